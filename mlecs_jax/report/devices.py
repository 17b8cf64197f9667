"""Who had which modality, and how far each device came."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from mlecs_jax.report.axes import linear_axis, score
from mlecs_jax.report.blocks import panel, scroller, section, words
from mlecs_jax.report.curves import primary_metric, rounds_done
from mlecs_jax.report.markup import Markup, tag
from mlecs_jax.report.run_files import RunFiles, dig, number
from mlecs_jax.report.svg import DotRow, dot_rows, heat_map

_ROWS = 12  # of modality sets shown by name
_NARROW = 8  # up to this many devices, map and scores share a row


def modality_section(run: RunFiles) -> Markup | None:
    """Availability per device (and round, where it changes), and scores by modality set."""
    maps = _presence_panels(run) if run.presence and run.modalities else []
    dots = _scores_by_modalities(run)
    if not maps and not dots:
        return None
    narrow = len(maps) == 1 and len(run.presence[0]) <= _NARROW
    body = [tag("div", *maps, dots, class_="duo")] if narrow else [*maps, dots]
    return section("modalities", "Devices and their modalities", *body)


def _presence_panels(run: RunFiles) -> list[Markup]:
    tables, names = run.presence, run.modalities
    rounds, clients, width = len(tables), len(tables[0]), len(names)
    share = [[statistics.fmean(table[c][m] for table in tables) for c in range(clients)]
             for m in range(width)]
    changes = any(table != tables[0] for table in tables)
    many = clients > 64
    note = f"Share of the {rounds} rounds in which a device had the modality." if changes else None

    def per_device(m: int, c: int) -> str:
        part = f"in {share[m][c]:.0%} of rounds" if changes else (
            "present" if share[m][c] == 1 else "missing" if share[m][c] == 0
            else f"{share[m][c]:.0%} of samples")
        return f"device {c}, {names[m]}: {part}"

    drawn = heat_map(share, label="Modalities of every device",
                     cell=(8 if many else 16 if clients > 16 else 28, 26), first=0,
                     tick_every=32 if many else 8 if clients > 16 else 1, x_label="device",
                     title=per_device)
    counts = [f"{statistics.fmean(row):.0%}" for row in share]
    legend = [("", "cell", "present"), ("none", "cell", "missing")]
    if changes:
        legend = [("", "cell", "always"), ("half", "cell", "half of the rounds"),
                  ("none", "cell", "never")]
    panels = [panel("Availability", _labelled(names, counts, drawn, "Modalities by device"),
                    legend=legend, note=note, shape="wide")]
    if changes:
        panels.append(_presence_over_rounds(run))
    return panels


def _presence_over_rounds(run: RunFiles) -> Markup:
    """Every device's row for a few devices, else the share of devices per modality."""
    tables, names = run.presence, run.modalities
    clients = len(tables[0])
    if clients * len(names) <= 36:
        pairs = [(m, c) for c in range(clients) for m in range(len(names))]
        rows = [[table[c][m] for table in tables] for m, c in pairs]
        labels = [f"{c} · {names[m]}" for m, c in pairs]
        title = "Availability over the rounds, by device"
    else:
        rows = [[statistics.fmean(row[m] for row in table) for table in tables]
                for m in range(len(names))]
        labels = names
        title = "Availability over the rounds, share of devices"
    first = rounds_done(run)[0]
    long = len(tables) > 64
    drawn = heat_map(
        rows, label=title, cell=(6 if long else 16, 20), first=first,
        tick_every=20 if long else 5 if len(tables) > 10 else 1, x_label="round",
        title=lambda i, j: f"{labels[i]}, round {first + j}: {rows[i][j]:.0%}")
    return panel(title, _labelled(labels, None, drawn, title, row_height=20), shape="wide")


def _labelled(
    names: Sequence[str], figures: Sequence[str] | None, drawn: Markup, label: str,
    row_height: int = 26,
) -> Markup:
    """Row labels that stay put beside a drawing that scrolls."""
    labels = (tag("li", tag("span", name), tag("b", figures[i]) if figures else None,
                  title=name, style=f"height:{row_height}px")
              for i, name in enumerate(names))
    return tag("div", tag("ul", *labels, class_="row-labels"), scroller(label, drawn),
               class_="labelled")


def _scores_by_modalities(run: RunFiles) -> Markup | None:
    """Final score of every device, grouped by what it holds, with ceilings and the server."""
    metric = primary_metric(run)
    groups: dict[str, list[tuple[float, Any]]] = {}
    for client in run.clients:
        value = number(client.get(metric))
        held = client.get("modalities")
        if value is not None and isinstance(held, list):
            name = "all modalities" if len(held) == len(run.modalities) > 1 else " + ".join(
                str(m) for m in held)
            groups.setdefault(name or "none", []).append((value, client.get("client")))
    rows = [
        DotRow(name, [v for v, _ in found], "dev",
               [f"device {c}, {name}: {score(v)}" for v, c in found])
        for name, found in _largest(groups)
    ]
    legend = [("dev", "dot", "device")] if rows else []
    ceilings = dig(run.summary, "ceilings")
    ceilings = ceilings if isinstance(ceilings, dict) else {}
    for name, value in ceilings.items():
        if (known := number(value)) is not None:
            rows.append(DotRow(f"only {name}", [known], "ceil",
                               [f"offline classifier on {name} alone: {score(known)}"], "diamond"))
    if any(row.style == "ceil" for row in rows):
        legend.append(("ceil", "diamond", "offline classifier, that modality alone"))
    server = number(dig(run.summary, "server", metric))
    if server is not None and rows:
        rows.append(DotRow("server", [server], "srv", [f"server: {score(server)}"], "diamond"))
        legend.append(("srv", "diamond", "server"))
    if not rows:
        return None
    axis = linear_axis([v for row in rows for v in row.values], limits=(0.0, 1.0), count=4)
    name = words(metric)
    notes = []
    if any(len(row.values) > 1 for row in rows):
        notes.append("A vertical bar is the mean of a row.")
    if ceilings:
        notes.append("A purple diamond shows what one modality can give on its own.")
    return panel(
        f"Final {name} by modality set",
        dot_rows(rows, axis, label=f"Final {name} by modality set",
                 x_label=f"test {name} (0 to 1)"),
        legend=legend,
        note=" ".join(notes), shape="beside")


def _largest(
    groups: dict[str, list[tuple[float, Any]]],
) -> list[tuple[str, list[tuple[float, Any]]]]:
    """The groups, best mean first; the smallest are put together where there are too many."""
    by_size = sorted(groups.items(), key=lambda item: -len(item[1]))
    shown, rest = by_size[:_ROWS], by_size[_ROWS:]
    shown.sort(key=lambda item: -statistics.fmean(v for v, _ in item[1]))
    if rest:
        shown.append((f"{len(rest)} other sets", [pair for _, found in rest for pair in found]))
    return shown


def table_section(run: RunFiles) -> Markup | None:
    """One row per device with its data, its modalities and its final test scores."""
    if not run.clients:
        return None
    columns = [key for key in dict.fromkeys(k for c in run.clients for k in c)
               if any(number(c.get(key)) is not None for c in run.clients) and key != "client"]
    columns.sort(key=lambda key: not _is_score(key))  # a phone shows the first few
    heads = {"train_samples": "training samples", "test_samples": "test samples"}
    body = []
    for i, client in enumerate(run.clients):
        held = client.get("modalities")
        held = [str(m) for m in held] if isinstance(held, list) else []
        body.append(tag(
            "tr", tag("th", client.get("client", i), scope="row"),
            tag("td", *(tag("span", m, class_="chip") for m in held)),
            *(_cell(key, number(client.get(key))) for key in columns)))
    head = tag("tr", tag("th", "device", scope="col"), tag("th", "modalities", scope="col"),
               *(tag("th", heads.get(k, words(k)), scope="col", class_="n") for k in columns))
    table = tag("table", tag("thead", head), tag("tbody", *body), class_="devices")
    return section("devices", "Every device", scroller("Table of devices", table, tall=True),
                   lead="Final round, each device on its own test samples.")


def _cell(key: str, value: float | None) -> Markup:
    if value is not None and (float(value).is_integer() and not _is_score(key)):
        return tag("td", f"{value:,.0f}", class_="n")
    bar = None if value is None or not 0 <= value <= 1 else f"--v:{value:.3f}"
    return tag("td", score(value), class_="n meter" if bar else "n", style=bar)


def _is_score(key: str) -> bool:
    return "f1" in key or "acc" in key or key.startswith(("rouge", "bertscore_"))
