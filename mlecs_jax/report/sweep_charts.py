"""A sweep drawn: learning curves over seeds, bytes against scores, who had what, confusions."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping

import numpy as np

from mlecs_jax.report.axes import byte_text, linear_axis, log_axis, score
from mlecs_jax.report.blocks import grid, panel, section, words
from mlecs_jax.report.captions import captions_section
from mlecs_jax.report.confusion import matrices, summed_matrix
from mlecs_jax.report.curves import (
    Column,
    Crowd,
    client_scores,
    primary_metric,
    rounds_done,
    stages_of,
)
from mlecs_jax.report.markup import Markup, join, tag
from mlecs_jax.report.run_files import RunFiles, dig, number
from mlecs_jax.report.svg import Band, DotRow, Line, Point, dot_rows, heat_map, line_chart, scatter
from mlecs_jax.report.sweep_files import SERIES, SweepFiles, SweepRun, by_series, of_runs

_STYLES = ("dev", "srv", "ceil", "down")
_FIRST = ("ML-ECS", "ML-ECS+", "Local + public", "Private only")  # coloured where they are there
_CONFUSED = (*_FIRST[:3], "Mega-CE²")  # whose matrices are shown where there are many series
_CELLS = 12  # panels of a kind at most
_COLUMNS = 120  # of a heat map at most


def metric_of(runs: Iterable[SweepRun]) -> str:
    """The metric that leads among runs of one cell; cells of a sweep may be of several tasks."""
    return next((primary_metric(run.files) for run in runs if run.files), "f1")


def metric_words(sweep: SweepFiles) -> str:
    """The leading metrics of a sweep."""
    found = (words(metric_of(runs)) for runs in sweep.cells().values())
    return " or ".join(dict.fromkeys(found))


def _first(sweep: SweepFiles) -> list[tuple[str, list[SweepRun]]]:
    """The settings that are drawn; tables and the list of runs have all."""
    return list(sweep.cells().items())[:_CELLS]


def _not_drawn(sweep: SweepFiles, count: int | None = None, what: str = "settings") -> str:
    """That some settings, or others that are so many, and some runs are not drawn, where it is
    so."""
    count = len(sweep.cells()) if count is None else count
    first = f" Drawn are the first {_CELLS} of {count} {what}." if count > _CELLS else ""
    return first + sweep.left_out


def styles_of(series: list[str]) -> dict[str, str]:
    """Colours for the ones that matter most, or for the first; grey for the others."""
    leading = [name for name in _FIRST if name in series] + [
        name for name in series if name not in _FIRST]
    chosen = dict(zip(leading, _STYLES, strict=False))
    return {name: chosen.get(name, "ref") for name in series}


def curves_section(sweep: SweepFiles) -> Markup | None:
    """Score per round, mean over seeds with a band of one standard deviation: on test data, or on
    validation data where the test rows were answered after the last round alone."""
    panels = [drawn for title, runs in _first(sweep)
              if (drawn := _curves(title, runs, metric_of(runs)))]
    if not panels:
        return None
    return section("learning", "Learning curves", grid(*panels),
                   lead=f"Mean test {metric_words(sweep)} of the devices after every round, of "
                   "validation data where a panel says so. Bands: one standard deviation over "
                   "seeds. Grey: the other methods." + _not_drawn(sweep))


def _curves(title: str, runs: list[SweepRun], metric: str) -> Markup | None:
    found, note = _over_seeds(runs, "test", metric), ""
    if _points(found) < 2 <= _points(validated := _over_seeds(runs, "val", metric)):
        found, note = validated, ", validation"
    files = next((run.files for run in runs if run.files), None)
    if not found or files is None:
        return None
    styles = styles_of(list(found))
    length = min(len(crowd.mean) for crowd in found.values())
    rounds = rounds_done(files)[:length]
    bands, lines = [], []
    for name, crowd in sorted(found.items(), key=lambda item: styles[item[0]] != "ref"):
        mean, style = crowd.mean[:length], styles[name]
        if style != "ref" and len(crowd.per_device) > 1:
            bands.append(Band(*_deviation(crowd, length), style))
        lines.append(Line(mean, style + (" thin" if style == "ref" else "")))
    values = [v for line in lines for v in line.values]
    values += [v for band in bands for v in (*band.low, *band.high)]
    read_outs = [f"Round {r}: " + ", ".join(
        f"{name} {score(crowd.mean[i])}" for name, crowd in found.items() if styles[name] != "ref")
        for i, r in enumerate(rounds)]
    legend = [(style, "line", name) for name, style in styles.items() if style != "ref"]
    chart = line_chart([*bands, *lines], rounds, linear_axis(values), label=title + note,
                       y_label=f"{words(metric)} (0 to 1)", read_outs=read_outs)
    return panel(title + note, chart, legend=legend, read_out=read_outs[-1])


def _over_seeds(runs: list[SweepRun], split: str, metric: str) -> dict[str, Crowd]:
    """Of each series the devices' mean score per round, one column a seed."""
    found = {}
    for name, members in by_series(runs).items():
        columns = [crowd.mean for run in members if run.files and (crowd := _scores(
            run.files, split, metric))]
        if columns and (crowd := Crowd.of(
                [list(values) for values in zip(*columns, strict=False)])):
            found[name] = crowd
    return found


def _points(found: Mapping[str, Crowd]) -> int:
    """How many rounds have a score, of the series that has most."""
    return max((sum(v is not None for v in crowd.mean) for crowd in found.values()), default=0)


def _deviation(crowd: Crowd, length: int) -> tuple[Column, Column]:
    """One standard deviation below and above the mean; None where fewer than two seeds know."""
    low: Column = [None] * length
    high: Column = [None] * length
    for i, mean in enumerate(crowd.mean[:length]):
        known = [v for column in crowd.per_device if (v := column[i]) is not None]
        if mean is not None and len(known) > 1:
            spread = statistics.stdev(known)
            low[i], high[i] = mean - spread, mean + spread
    return low, high


def _scores(files: RunFiles, split: str, metric: str) -> Crowd | None:
    stages = stages_of(files)
    return client_scores(files, split, stages[0], metric) if stages else None


def ablation_section(sweep: SweepFiles) -> Markup | None:
    """Variants of a method side by side, devices and server; nothing where a sweep has none."""
    panels = []
    for title, runs in _first(sweep):
        metric = metric_of(runs)
        for who, style, keys in (("devices", "dev", ("client", f"avg_{metric}")),
                                 ("server", "srv", ("server", metric))):
            panels.append(_variants(f"{who}, {title}", runs, style, keys, words(metric)))
    if not any(panels):
        return None
    return section("ablation", "Ablation", grid(*panels),
                   lead="Each part taken away, or added, alone. A dot is a seed; bars are means."
                   + _not_drawn(sweep))


def _variants(title: str, runs: list[SweepRun], style: str, keys: tuple[str, str], unit: str
              ) -> Markup | None:
    rows = []
    for name, members in by_series([run for run in runs if run.files]).items():
        found = [(value, f"{name}, seed {run.labels.get('seed')}: {score(value)}")
                 for run in members if run.files
                 and (value := number(dig(run.files.summary, *keys))) is not None]
        short = str(members[0].labels.get("variant") or name)
        if found:
            rows.append(DotRow(short, [v for v, _ in found], style, [t for _, t in found]))
    if len(rows) < 2 or not any(run.labels.get("variant") for run in runs):
        return None
    axis = linear_axis([v for row in rows for v in row.values], count=4)
    return panel(title, dot_rows(rows, axis, label=f"Variants, {title}", x_label=f"test {unit}"))


def bytes_section(sweep: SweepFiles) -> Markup | None:
    """What a device and the server exchange in a round against the score it brings."""
    panels = [drawn for title, runs in _first(sweep)
              if (drawn := _bytes_against_score(title, runs, metric_of(runs)))]
    if not panels:
        return None
    return section("communication", "Communication against score", grid(*panels),
                   lead=f"Bytes per device and round, up and down together, against the mean test "
                   f"{metric_words(sweep)} of the devices, last round, mean over seeds."
                   + _not_drawn(sweep))


def _bytes_against_score(title: str, runs: list[SweepRun], metric: str) -> Markup | None:
    members = by_series(runs)
    styles = styles_of(list(members))
    points = []
    for name, own in members.items():
        sent = of_runs(own, _bytes)
        found = of_runs(own, lambda f: number(dig(f.summary, "client", f"avg_{metric}")))
        if sent and found:
            total, mean = statistics.fmean(sent), statistics.fmean(found)
            points.append(Point(name, total or None, mean, styles[name],
                                f"{name}: {byte_text(total)}, {score(mean)}"))
    if len(points) < 2:
        return None
    sizes = [p.x for p in points if p.x]
    drawing = scatter(points, log_axis(sizes or [1.0]), linear_axis([p.y for p in points]),
                      label=title, x_label="bytes per device and round, log scale",
                      y_label=words(metric), x_text=byte_text)
    return panel(title, drawing, note="; ".join(f"{i} {p.title}" for i, p in enumerate(points, 1)))


def _bytes(files: RunFiles) -> float | None:
    ways = [number(dig(files.summary, "communication", f"{way}_bytes_per_round"))
            for way in ("uplink", "downlink")]
    return sum(v for v in ways if v is not None) if any(v is not None for v in ways) else None


def availability_section(sweep: SweepFiles) -> Markup | None:
    """Which device had which modality, seed by seed, and what its set is worth."""
    panels: list[Markup | None] = []
    seen = set()
    for title, runs in sweep.cells().items():
        series = by_series(runs)
        lead = next((series[name] for name in _FIRST if name in series), runs)
        drawn = _availability(title, lead)
        if drawn and drawn[0] not in seen:
            seen.add(drawn[0])
            if len(seen) <= _CELLS:
                panels += [drawn[1], _by_modalities(title, series, metric_of(runs))]
    if not panels:
        return None
    return section("modalities", "Devices and their modalities", *(p for p in panels if p),
                   lead="Seeds draw partitions: who has which samples, and which modalities. The "
                   "same for all methods." + _not_drawn(
                       sweep, len(seen), "sets of partitions"))


def _availability(title: str, runs: list[SweepRun]) -> tuple[str, Markup] | None:
    held = [(run.labels.get("seed"), c.get("client"), c.get("modalities") or [])
            for run in runs if run.files for c in run.files.clients]
    names = next((run.files.modalities for run in runs if run.files), [])
    if not held or not names:
        return None
    rows = [[1.0 if name in own else 0.0 for _, _, own in held] for name in names]
    if len(held) > _COLUMNS:
        return repr(rows), panel(title, tag("p", f"{len(held)} devices in all are too many to "
                                                 "draw; the page of each run has its own."))
    drawing = heat_map(rows, label=f"Modalities of every device, {title}", cell=(18, 24), first=0,
                       tick_every=len(held) + 1, x_label="devices, seed by seed",
                       title=lambda i, j: f"seed {held[j][0]}, device {held[j][1]}: {names[i]} "
                       + ("present" if rows[i][j] else "missing"))
    labels = tag("ul", *(tag("li", tag("span", name), title=name, style="height:24px")
                         for name in names), class_="row-labels")
    box = tag("div", labels, tag("div", drawing, class_="scroll", tabindex="0", role="region",
                                 aria_label=f"Modalities, {title}"), class_="labelled")
    return repr(rows), panel(title, box, legend=[("", "cell", "present"),
                                                 ("none", "cell", "missing")], shape="wide")


def _by_modalities(title: str, series: dict[str, list[SweepRun]], metric: str) -> Markup | None:
    """Scores of all seeds' devices by modality set, of the leading methods."""
    rows = []
    styles = styles_of(list(series))
    for name in [n for n in _FIRST if n in series][:2] or list(series)[:2]:
        groups: dict[str, list[tuple[float, str]]] = {}
        for run in series[name]:
            for client in run.files.clients if run.files else []:
                value = number(client.get(metric))
                if value is not None:
                    own = " + ".join(map(str, client.get("modalities") or ["none"]))
                    groups.setdefault(own, []).append(
                        (value, f"{name}, seed {run.labels.get('seed')}, device "
                         f"{client.get('client')}: {score(value)}"))
        rows += [DotRow(own, [v for v, _ in found], styles[name], [t for _, t in found])
                 for own, found in sorted(groups.items())]
    if not rows:
        return None
    axis = linear_axis([v for row in rows for v in row.values], limits=(0.0, 1.0), count=4)
    used = dict.fromkeys(row.style for row in rows)
    legend = [(style, "dot", name) for name, style in styles.items() if style in used]
    return panel(f"{words(metric)} by modality set: {title}",
                 dot_rows(rows, axis, label=f"Scores by modality set, {title}",
                          x_label=f"test {words(metric)}"),
                 legend=legend[:2], note="A dot is a device of one seed; bars are means.")


def confusions_section(sweep: SweepFiles) -> Markup | None:
    """Confusion matrices summed over devices and seeds, of the leading methods."""
    tables: dict[tuple[str, ...], list[tuple[str, np.ndarray]]] = {}  # by the classes' names
    for title, runs in _first(sweep):
        for name, members in by_series(runs).items():
            if name not in _CONFUSED and len(by_series(runs)) > 3:
                continue
            files = [run.files for run in members if run.files]
            total = summed_matrix([c.get("confusion") for f in files for c in f.clients] or [
                dig(f.summary, "confusion", "personal") for f in files])
            if total is not None:
                found = dig(files[0].summary, "class_names")
                names = tuple(map(str, found)) if isinstance(found, list) else ()
                tables.setdefault(names, []).append((f"{name}: {title}", total))
    if not tables:
        return None
    return section("confusion", "Confusion matrices",
                   *(matrices(found, list(names)) for names, found in tables.items()),
                   lead="Test samples, all devices or edges and all seeds together. Rows: true "
                   "class; columns: answer; a last column “unparsable”: answers that name no "
                   "class." + _not_drawn(sweep))


def samples_section(sweep: SweepFiles) -> Markup | None:
    """Captions of the leading method's first run."""
    for name in (*_FIRST, None):
        for run in sweep.finished:
            if run.files and (name is None or run.series == name) and (
                    drawn := captions_section(run.files, _whose(sweep, run))):
                return drawn
    return None


def _whose(sweep: SweepFiles, run: SweepRun) -> Markup:
    """Which run something is of, with the way to its page."""
    setting = {k: v for k, v in run.labels.items() if k not in SERIES}
    told = f"{run.series}, {sweep.words(setting)}, seed {run.labels.get('seed')}"
    return join(["Of one run: ", tag("a", told, href=f"{run.link}/report.html"), ". "])
