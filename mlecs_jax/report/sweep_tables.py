"""A sweep's tables with every figure linked to its runs, and the runs themselves."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from mlecs_jax.report.axes import counted, duration, linear_axis, score
from mlecs_jax.report.blocks import grid, panel, scroller, section
from mlecs_jax.report.curves import primary_metric
from mlecs_jax.report.markup import Markup, tag
from mlecs_jax.report.run_files import RunFiles, dig, number
from mlecs_jax.report.svg import Interval, forest
from mlecs_jax.report.sweep_files import SERIES, SweepFiles, SweepRun, distinct

_ALL = "#runs"  # the list of all runs
_UPRIGHT = 10  # columns at most that an upright page prints
_FULL_SHADE = 0.1  # difference at which a heat map's cell is fully coloured


def findings_section(sweep: SweepFiles) -> Markup | None:
    """Sentences that were derived from the numbers."""
    sentences = sweep.content.get("sentences") or []
    if not sentences:
        return None
    return section("findings", "What the numbers say",
                   tag("ul", *(tag("li", s) for s in sentences), class_="sentences"))


def tables_section(sweep: SweepFiles) -> Markup | None:
    """All tables; differences drawn with their intervals beside them."""
    tables = [table for table in sweep.content.get("tables") or []
              if table.get("kind") != "texts"]  # captions to read have a section
    if not tables:
        return None
    anchors = _Anchors(sweep)
    return section("tables", "Tables", *(_table(table, anchors) for table in tables),
                   lead="Every figure of ours leads to its runs in the list below: a difference to "
                   "those of one of its sides, a figure over several settings to the whole list.")


def differences_section(sweep: SweepFiles) -> Markup | None:
    """Differences over all cells as a forest plot, of every table that has such a column."""
    panels = [drawn for table in sweep.content.get("tables") or []
              if table.get("kind") == "differences" for drawn in _forests(table)]
    if not panels:
        return None
    return section("differences", "Differences", grid(*panels),
                   lead="Mean paired difference over all cells with its 95 % confidence interval. "
                   "Blue: above 0; red: below; grey: the interval holds 0.")


def runs_section(sweep: SweepFiles) -> Markup:
    """Every group of runs with the score of each seed, linked to its report; failures first."""
    failed = [tag("li", tag("b", f"{run.series}, {sweep.words(run.labels)}"), ": ", run.failure)
              for run in sweep.failed]
    groups: dict[Any, list[SweepRun]] = {}
    for run in sweep.finished:
        groups.setdefault(run.group, []).append(run)
    rows = [tag("tr", tag("th", runs[0].series, scope="row"),
                tag("td", sweep.words({k: v for k, v in runs[0].labels.items()
                                       if k not in SERIES})),
                tag("td", *(_run_link(run) for run in runs)), id=_slug(group))
            for group, runs in groups.items()]
    head = tag("tr", *(tag("th", name, scope="col") for name in (
        "method", "setting", "seed: mean score of the devices, or test MAE")))
    table = tag("table", tag("thead", head), tag("tbody", *rows), class_="devices runs")
    seconds = number(sweep.content.get("seconds"))
    spent = sum({run.get("run"): number(run.get("seconds")) or 0.0
                 for run in sweep.content["runs"]}.values())
    runs = distinct(sweep.finished)
    lead = (f"{counted(len(runs), 'run')}. The last call took {duration(seconds)} with "
            f"{sweep.content.get('processes')} workers and spent {duration(spent)} of worker time "
            "on runs that were not done before.")
    earlier = sum(run.earlier for run in runs)
    if earlier:
        lead += (f" {earlier} are rows of an earlier sweep: tables have them, charts leave them "
                 "out, and they have no page.")
    return section("runs", "Runs", tag("ul", *failed, class_="failures") if failed else None,
                   scroller("Table of runs", table, tall=True), lead=lead)


def _run_link(run: SweepRun) -> Markup:
    if run.earlier:
        return tag("span", f"{run.labels.get('seed', '')}: row", title=run.folder.name,
                   class_="seed")
    found = _headline(run.files) if run.files else None
    name = f"{run.labels.get('seed', '')}: {found}" if found else "counted"
    page = "report.html" if run.files else "summary.json"
    return tag("a", name, href=f"{run.link}/{page}", class_="seed")


def _headline(files: RunFiles) -> str | None:
    """The figure that a run is known by."""
    value = number(dig(files.summary, "client", f"avg_{primary_metric(files)}"))
    if value is not None:
        return score(value)
    errors = [number(dig(files.summary, part, "mae")) for part in ("client", "server")]
    return next((f"MAE {score(error)}" for error in errors if error is not None), None)


class _Anchors:
    """Where the runs of a cell of a table stand on the page."""

    def __init__(self, sweep: SweepFiles):
        seeds: dict[tuple[tuple[str, Any], ...], list[Any]] = {}
        for run in sweep.finished:
            seeds.setdefault(run.group, []).append(run.labels.get("seed"))
        self._groups = [(dict(group), found, f"#{_slug(group)}") for group, found in seeds.items()]
        self._known: dict[str, str | None] = {}

    def of(self, cell: dict[str, Any]) -> str | None:
        """The row of its group of runs in the list of them, or the list where there are several;
        None of what is no figure, or not ours."""
        if cell["text"] in ("", "–") or cell.get("tone") == "quiet":
            return None
        group = cell.get("group")
        if not isinstance(group, dict) or not group:
            return None if number(cell.get("value")) is None else _ALL
        key = repr(group)
        if key not in self._known:
            self._known[key] = self._search(group)
        return self._known[key]

    def _search(self, group: dict[str, Any]) -> str | None:
        rest = {name: value for name, value in group.items() if name != "seed"}
        found = [anchor for labels, seeds, anchor in self._groups
                 if all(labels.get(name) == value for name, value in rest.items())
                 and ("seed" not in group or group["seed"] in seeds)]
        return found[0] if len(found) == 1 else _ALL if found else None


def _slug(group: tuple[tuple[str, Any], ...]) -> str:
    return "g" + hashlib.sha256(repr(group).encode()).hexdigest()[:10]


def _table(table: dict[str, Any], anchors: _Anchors) -> Markup:
    names = table.get("names", 1)
    heat = table.get("kind") == "heat"
    head = tag("tr", *(tag("th", c, scope="col", class_="n" if i >= names else None)
                       for i, c in enumerate(table["columns"])))
    rows, before = [], None
    for row in table["rows"]:
        first = row[0]["text"]
        cells = [_cell(cell, anchors, heading=i < names, heat=heat and i >= names,
                       blank=i == 0 and names == 2 and first == before)
                 for i, cell in enumerate(row)]
        rows.append(tag("tr", *cells, class_="begins" if names == 2 and first != before else None))
        before = first
    columns = len(table["columns"])
    drawn = tag("table", tag("thead", head), tag("tbody", *rows), style=f"--columns:{columns}",
                class_="devices figures heat" if heat else "devices figures")
    return tag("figure", tag("figcaption", tag("h3", table["title"])),
               scroller(table["title"], drawn),
               tag("p", table["note"], class_="note") if table.get("note") else None,
               class_="wide sideways" if columns > _UPRIGHT else "wide")


def _cell(cell: dict[str, Any], anchors: _Anchors, *, heading: bool, heat: bool, blank: bool
          ) -> Markup:
    text = "" if blank else cell["text"]
    mark = {"up": " ▲", "down": " ▼"}.get(cell.get("tone") or "", "")
    target = None if heading else anchors.of(cell)
    inner = tag("a", text + mark, href=target) if target else text + mark
    if cell.get("strong"):
        inner = tag("b", inner)
    kind = " ".join(filter(None, ["" if heading else "n", cell.get("tone") or ""]))
    if heading:
        return tag("th", inner, scope="row", class_=kind or None)
    value = number(cell.get("value"))
    if heat and value is not None:
        shade = min(abs(value) / _FULL_SHADE, 1.0)
        return tag("td", inner, class_=f"n {'gain' if value > 0 else 'loss'}",
                   style=f"--s:{shade:.2f}")
    return tag("td", inner, class_=kind or None)


def _forests(table: dict[str, Any]) -> Iterator[Markup]:
    """The columns 'all' of a table: of the devices, of the server."""
    for i, name in enumerate(table["columns"]):
        if not name.endswith("all"):
            continue
        rows = [Interval(row[0]["text"], value, number(cell.get("low")), number(cell.get("high")),
                         f"{row[0]['text']}: {cell['text']}")
                for row in table["rows"]
                if (value := number((cell := row[i]).get("value"))) is not None]
        if rows:
            title = table["title"] + ("" if name == "all" else f": {name}")
            ends = [v for row in rows for v in (row.value, row.low, row.high, 0.0)
                    if v is not None]
            yield panel(title, forest(rows, linear_axis(ends, count=4), label=title,
                                      x_label="difference"))
