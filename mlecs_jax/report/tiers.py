"""A three-tier run: its edges, who reported when, and what was sent."""

from __future__ import annotations

import statistics
from itertools import accumulate

from mlecs_jax.report.axes import byte_text, byte_unit, figure, linear_axis, score
from mlecs_jax.report.blocks import grid, panel, scroller, section
from mlecs_jax.report.markup import Markup, tag
from mlecs_jax.report.run_files import RunFiles, dig, number, numbers
from mlecs_jax.report.sentiment import edges_of, error_at
from mlecs_jax.report.svg import DotRow, dot_rows

_ROWS = 24  # edges with a row of their own in the drawing
_HEADS = ("edge", "training segments", "of its ends", "validation", "test", "speed", "reports",
          "staleness, mean", "staleness, max", "MAE, global", "MAE, personal\u00adised", "change")


def edges_section(run: RunFiles) -> Markup | None:
    """What each edge has, how often it reported, how stale its models were, what it gains."""
    if run.unit != "version":
        return None
    stale = _staleness(run)
    rows = [_row(i, edge, stale) for i, edge in enumerate(edges_of(run))]
    table = None
    if rows:
        head = tag("tr", *(tag("th", name, scope="col", class_="n" if i else None)
                           for i, name in enumerate(_HEADS)))
        table = scroller("Table of edges", tag(
            "table", tag("thead", head), tag("tbody", *rows), class_="devices figures",
            style=f"--columns:{len(_HEADS)}"), tall=True)
    drawn = _schedule(run, stale)
    if not table and not drawn:
        return None
    return section(
        "edges", "Every edge", table, drawn,
        lead="Segments are counted, speeds are relative to the clock's. Staleness: versions that "
        "the cloud made since the one an edge's model was trained from. Change: personalised minus "
        "global on the edge's own test segments; below 0 is better.")


def sent_section(run: RunFiles) -> Markup | None:
    """Models up and down between edges and cloud, and between edges and their ends."""
    up, down = (number(dig(run.summary, "communication", f"{way}_bytes"))
                for way in ("uplink", "downlink"))
    uploads, downloads = (number(dig(run.summary, "communication", f"{way}s"))
                          for way in ("upload", "download"))
    if run.unit != "version" or up is None or down is None:
        return None
    facts = [("An upload, edge to cloud: its model and how many segments it stands for",
              _bytes(up)), ("A download, cloud to edge: the model", _bytes(down))]
    if uploads is not None and downloads is not None:
        facts += [(f"Uploads of all edges: {uploads:,.0f}", byte_text(uploads * up)),
                  (f"Downloads of all edges, the first included: {downloads:,.0f}",
                   byte_text(downloads * down))]
    inner = sum((number(edge.get("reports")) or 0) * len(numbers(edge.get("end_segments")))
                for edge in edges_of(run))
    if inner:
        facts.append((f"Between edges and their ends, {inner:,.0f} models each way",
                      f"{byte_text(inner * up)} up, {byte_text(inner * down)} down"))
    adapters = number(dig(run.summary, "communication", "adapter_bytes_sent"))
    if adapters is not None:
        facts.append(("Adapters, which stay where they are", byte_text(adapters)))
    listing = tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in facts),
                  class_="facts stacked")
    return section("communication", "Communication", grid(_error_against_bytes(run, up, down),
                                                          listing),
                   lead="Counted from the arrays that cross the tiers (1 MB = 1,000,000 bytes). "
                   "Training sends models; packets of readings are the predictor's.")


def _row(i: int, edge: dict, stale: dict[int, list[float]]) -> Markup:
    own = stale.get(edge.get("edge", i), [])
    before, after = (number(dig(edge, kind, "mae")) for kind in ("global", "personal"))
    change = None if before is None or after is None else after - before
    ends = ", ".join(f"{n:,.0f}" for n in numbers(edge.get("end_segments")) if n is not None)
    cells = [_count(edge.get("train_segments")), ends or "–", _count(edge.get("val_segments")),
             _count(edge.get("test_segments")), figure(number(edge.get("speed"))),
             _count(edge.get("reports")), figure(statistics.fmean(own)) if own else "–",
             figure(max(own)) if own else "–", score(before), score(after),
             "–" if change is None else f"{change:+.3f}".replace("-", "−")]
    return tag("tr", tag("th", edge.get("edge", i), scope="row"),
               *(tag("td", cell, class_="n") for cell in cells))


def _staleness(run: RunFiles) -> dict[int, list[float]]:
    """Staleness of every report of each edge, as the records have it."""
    found: dict[int, list[float]] = {}
    for entry in run.rounds:
        edges = entry.get("edges")
        for edge, value in zip(edges if isinstance(edges, list) else [],
                               numbers(entry.get("staleness")), strict=False):
            if isinstance(edge, int) and value is not None:
                found.setdefault(edge, []).append(value)
    return found


def _schedule(run: RunFiles, stale: dict[int, list[float]]) -> Markup | None:
    """A row per edge with a dot for each report at its simulated time."""
    when: dict[int, list[float]] = {edge: [] for edge in sorted(stale)[:_ROWS]}
    for entry in run.rounds:
        time = number(entry.get("time"))
        for edge in entry.get("edges") or []:
            if time is not None and edge in when:
                when[edge].append(time)
    rows = [DotRow(f"edge {edge}", times, "dev", [f"edge {edge}: {time:,.1f} s" for time in times])
            for edge, times in when.items() if times]
    if not rows:
        return None
    axis = linear_axis([time for row in rows for time in row.values], from_zero=True, count=4)
    rest = len(stale) - len(when)
    return panel("Who reported when", dot_rows(
        rows, axis, label="Reports of every edge over simulated time", x_label="simulated seconds",
        means=False), legend=[("dev", "dot", "a model reaches the cloud")],
        note=f"{rest} further edges are not drawn." if rest > 0 else None, shape="wide")


def _error_against_bytes(run: RunFiles, up: float, down: float) -> Markup | None:
    """Validation error over all bytes between edges and cloud so far."""
    counts = [len(entry["edges"]) if isinstance(entry.get("edges"), list) else 0
              for entry in run.rounds]
    sent = list(accumulate(count * (up + down) for count in counts))
    divisor, unit = byte_unit(sent)
    return error_at(run, [value / divisor for value in sent], unit,
                    f"{unit} up and down, edges and cloud", "Validation MAE against bytes")


def _bytes(value: float) -> str:
    return byte_text(value) + (f" ({value:,.0f} B)" if value >= 1000 else "")


def _count(value: object) -> str:
    known = number(value)
    return "–" if known is None else f"{known:,.0f}"
