"""Sentiment scores of a run: headline, table, curves over versions and simulated time, confusion.

Scores stand in ``eval.val`` and ``eval.test`` of a record, and in the summary under ``server`` (the
global model), ``client`` (each segment by its own edge's model) and ``edges``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mlecs_jax.report.axes import duration, linear_axis, score
from mlecs_jax.report.blocks import capital, grid, panel, scroller, section, tile
from mlecs_jax.report.confusion import matrices, matrix_of
from mlecs_jax.report.curves import Column, at, rounds_done
from mlecs_jax.report.markup import Markup, tag
from mlecs_jax.report.run_files import RunFiles, dig, number, numbers
from mlecs_jax.report.svg import Line, line_chart

SCORES = {"mae": "MAE", "corr": "Corr", "acc2_non0": "Acc2 non0", "f1_non0": "F1 non0",
          "acc2_has0": "Acc2 has0", "f1_has0": "F1 has0", "acc7": "Acc7", "f1_7": "F1, 7 classes"}
LEADING, FOLDED = ("mae", "acc2_non0"), ("corr", "f1_non0", "acc7")
KINDS = (("global", "server", "srv"), ("personal", "client", "dev"))
WORDS = {"global": "global", "personal": "personalised"}
_FEW = 12  # edges whose matrices are shown


def is_sentiment(run: RunFiles) -> bool:
    """Its records have errors of sentiment."""
    return any(number(dig(entry, "eval", part, "mae")) is not None
               for entry in run.rounds for part in ("val", "test"))


def sentiment_tiles(run: RunFiles) -> list[Markup]:
    """Personalised and global error on test segments, bytes, and simulated time."""
    if not is_sentiment(run):
        return []
    titles = {"personal": "Personalised", "global": "Global model"}
    tiles = []
    for kind, part, style in reversed(KINDS):
        scores = run.summary.get(part)
        error = number(dig(scores, "mae"))
        if error is None and kind == "global":
            scores = dig(run.last, "eval", "test") or {}
            error = number(dig(scores, "mae"))
        if error is not None:
            tiles.append(tile(
                titles[kind], score(error), "test MAE",
                [f"Acc2 {_of(scores, 'acc2_non0')}, F1 {_of(scores, 'f1_non0')} (non0)",
                 f"Corr {_of(scores, 'corr')}, Acc7 {_of(scores, 'acc7')}"], style))
    seconds = number(dig(run.summary, "timing", "simulated_seconds"))
    seconds = number(run.last.get("time")) if seconds is None else seconds
    if seconds is not None:
        amount, _, unit = duration(seconds).partition(" ")
        chosen = number(run.summary.get("best_version"))
        tiles.append(tile("Simulated time", amount, f"{unit} on the run's clock",
                          [f"{len(run.rounds)} versions of the model",
                           None if chosen is None else
                           f"version {chosen:.0f} is best on validation, and is what is scored"]))
    return tiles


def scores_section(run: RunFiles) -> Markup | None:
    """Every score of the global and the personalised models, of all segments and edge by edge."""
    if not is_sentiment(run) or not run.finished:
        return None
    rows = [(f"{capital(WORDS[kind])}, test", run.summary.get(part), "")
            for kind, part, _ in KINDS]
    for i, edge in enumerate(edges_of(run)):
        rows += [(f"edge {edge.get('edge', i)}, {WORDS[kind]}", edge.get(kind),
                  "begins" if kind == "global" else "") for kind, _, _ in KINDS]
    rows += [(f"{capital(WORDS[kind])}, validation", dig(run.summary, "validation", part),
              "begins" if kind == "global" else "") for kind, part, _ in KINDS]
    body = [tag("tr", tag("th", name, scope="row"),
                *(tag("td", _of(scores, key), class_="n") for key in SCORES), class_=style or None)
            for name, scores, style in rows if isinstance(scores, dict)]
    if not body:
        return None
    head = tag("tr", tag("th", "model", scope="col"),
               *(tag("th", name, scope="col", class_="n") for name in SCORES.values()))
    table = tag("table", tag("thead", head), tag("tbody", *body), class_="devices figures")
    tiers = " Personalised: each segment by the model and adapter of its own edge; an edge's rows "\
        "are its own test segments." if edges_of(run) else ""
    return section("scores", "Scores", scroller("Table of scores", table),
                   lead="MAE: lower is better. non0 leaves segments labelled 0 out, has0 counts "
                   "them as positive; F1 is weighted by class." + tiers)


def sentiment_learning_section(run: RunFiles) -> Markup | None:
    """Validation and test scores over versions and over simulated time; training errors."""
    if not is_sentiment(run):
        return None
    leading = [drawn for key in LEADING for drawn in _score_panels(run, key)]
    folded = [drawn for key in FOLDED for drawn in _score_panels(run, key)]
    extra = [drawn for drawn in (_training_panel(run), _tuning_panel(run)) if drawn]
    timed = _times(run) is not None
    tuned = " Adapters: each edge keeps the epoch with its own lowest error." if dig(
        run.summary, "personalisation_history") else ""
    return section(
        "learning", "Learning curves", grid(*leading, *extra),
        tag("details", tag("summary", "Further scores"), grid(*folded)) if folded else None,
        lead=f"After every {run.unit}" + (", and when it was made on the simulated clock" if timed
                                          else "") + ". Solid: test. Dashed: validation, the only "
        f"curve that may choose a {run.unit}.{tuned}")


def sentiment_confusion_section(run: RunFiles) -> Markup | None:
    """Seven classes: all test segments by the global and the personalised models, then edges."""
    names = dig(run.summary, "class_names")
    names = [str(name) for name in names] if isinstance(names, list) else []
    shown = _matrices([(capital(f"{WORDS[kind]}, all test segments"),
                        dig(run.summary, "confusion", kind)) for kind, _, _ in KINDS])
    if not shown:
        return None
    edges = edges_of(run)
    own = _matrices([(f"Edge {edge.get('edge', i)}, {WORDS[kind]}", dig(edge, kind, "confusion"))
                     for i, edge in enumerate(edges[:_FEW]) for kind, _, _ in KINDS])
    more = f"The first {_FEW} of {len(edges)} edges" if len(edges) > _FEW else "Edge by edge"
    return section(
        "confusion", "Confusion matrices", matrices(shown, names),
        tag("details", tag("summary", more), matrices(own, names)) if own else None,
        lead="Sentiment clipped to ±3 and rounded, as Acc7 has it. Rows: true class; columns: "
        "predicted class. Shade: share of the row.")


def edges_of(run: RunFiles) -> list[dict[str, Any]]:
    """One entry per edge as in the summary; empty while the run is under way."""
    found = run.summary.get("edges")
    return [edge for edge in found if isinstance(edge, dict)] if isinstance(found, list) else []


def error_at(
    run: RunFiles, x: Sequence[float], unit: str, label: str, title: str
) -> Markup | None:
    """The validation error over something that grows with the versions.

    Args:
      x: one value per record, rising, in ``unit``.
      label: of the axis.
    """
    evaluated = [i for i, entry in enumerate(run.rounds)
                 if number(dig(entry, "eval", "val", "mae")) is not None]
    if not evaluated:
        return None
    values = [number(dig(run.rounds[i], "eval", "val", "mae")) for i in evaluated]
    xs = [x[i] for i in evaluated]
    read_outs = [at(run, rounds_done(run)[i], [
        ("validation MAE", score(v)), ("after", f"{x[i]:,.4g} {unit}")])
        for i, v in zip(evaluated, values, strict=True)]
    return panel(title, line_chart(
        [Line(values, "srv val")], xs, linear_axis(values), label=title, y_label=_y_label("mae"),
        read_outs=read_outs, x_label=label, x_axis=linear_axis(xs, from_zero=True)),
        legend=[("srv val", "line", "validation")], read_out=read_outs[-1])


def _score_panels(run: RunFiles, key: str) -> list[Markup]:
    """A score over versions and, where the run has a clock, over simulated time."""
    evaluated = [i for i, entry in enumerate(run.rounds) if isinstance(entry.get("eval"), dict)]
    columns: dict[str, Column] = {
        part: [number(dig(run.rounds[i], "eval", part, key)) for i in evaluated]
        for part in ("test", "val")}
    columns = {part: column for part, column in columns.items()
               if any(v is not None for v in column)}
    if not columns:
        return []
    words = {"test": "test", "val": "validation"}
    styles = {"test": "srv", "val": "srv val"}
    done, times = rounds_done(run), _times(run)
    read_outs = [at(run, done[i], [
        ("at", None if times is None else f"{times[i]:,.1f} s"),
        *((words[part], score(column[j])) for part, column in columns.items())])
        for j, i in enumerate(evaluated)]
    axis = linear_axis([v for column in columns.values() for v in column],
                       limits=None if key in ("mae", "corr") else (0.0, 1.0))
    positions = [(f"{run.unit}s", [done[i] for i in evaluated], f"{run.unit}s done", None)]
    if times is not None:
        xs = [times[i] for i in evaluated]
        positions.append(("simulated time", xs, "simulated seconds",
                          linear_axis(xs, from_zero=True)))
    return [panel(f"{SCORES[key]} over {over}", line_chart(
        [Line(column, styles[part]) for part, column in columns.items()], xs, axis,
        label=f"{SCORES[key]} over {over}", y_label=_y_label(key), read_outs=read_outs,
        x_label=x_label, x_axis=x_axis),
        legend=[(styles[part], "line", words[part]) for part in columns], read_out=read_outs[-1])
        for over, xs, x_label, x_axis in positions]


def _training_panel(run: RunFiles) -> Markup | None:
    """Training error of the ends: the mean of a version's, a line for each of a few edges."""
    per_edge: dict[int, tuple[list[int], list[float]]] = {}
    for done, entry in zip(rounds_done(run), run.rounds, strict=True):
        edges, errors = entry.get("edges"), numbers(dig(entry, "train", "ends", "mae"))
        if not isinstance(edges, list) or not edges or len(errors) % len(edges):
            continue
        ends = len(errors) // len(edges)
        for i, edge in enumerate(edges):
            known = [v for v in errors[i * ends:(i + 1) * ends] if v is not None]
            if known and isinstance(edge, int):
                xs, values = per_edge.setdefault(edge, ([], []))
                xs.append(done)
                values.append(float(np.mean(known)))
    if not per_edge:
        return None
    styles = ("dev", "ceil", "down")
    named = {edge: styles[i] if len(per_edge) <= len(styles) else "ref thin"
             for i, edge in enumerate(sorted(per_edge))}
    layers = [Line(per_edge[edge][1], style, per_edge[edge][0]) for edge, style in named.items()]
    by_version = {x: (edge, value) for edge, (xs, values) in per_edge.items()
                  for x, value in zip(xs, values, strict=True)}
    done = sorted(by_version)
    read_outs = [at(run, x, [(f"edge {by_version[x][0]}", score(by_version[x][1]))]) for x in done]
    legend = [(style, "line", f"edge {edge}") for edge, style in named.items()]
    return panel("Training MAE of the ends", line_chart(
        layers, done, linear_axis([v for _, values in per_edge.values() for v in values]),
        label="Training MAE of the ends over versions", y_label=_y_label("mae"),
        read_outs=read_outs, x_label=f"{run.unit}s done"),
        legend=legend if len(per_edge) <= len(styles) else [("ref thin", "line", "each edge")],
        read_out=read_outs[-1])


def _tuning_panel(run: RunFiles) -> Markup | None:
    """What tuning adapters does to the edges' validation error, epoch by epoch."""
    values = numbers(run.summary.get("personalisation_history"))
    if len(values) < 2:
        return None
    read_outs = [f"{'Untuned' if i == 0 else f'Epoch {i}'}: {score(v)}"
                 for i, v in enumerate(values)]
    return panel("Adapters: validation MAE, mean of the edges", line_chart(
        [Line(values, "dev val")], list(range(len(values))), linear_axis(values),
        label="Validation error while adapters are tuned", y_label=_y_label("mae"),
        read_outs=read_outs, x_label="epochs of tuning"),
        legend=[("dev val", "line", "validation")], read_out=read_outs[-1])


def _times(run: RunFiles) -> list[float] | None:
    """When each version was made; None where the run has no clock."""
    times = [number(entry.get("time")) for entry in run.rounds]
    known = [time for time in times if time is not None]
    return known if len(known) == len(times) else None


def _matrices(found: Sequence[tuple[str, Any]]) -> list[tuple[str, np.ndarray]]:
    return [(title, matrix) for title, value in found if (matrix := matrix_of(value)) is not None]


def _of(scores: Any, key: str) -> str:
    return score(number(dig(scores, key)))


def _y_label(key: str) -> str:
    return {"mae": "MAE (lower is better)", "corr": "correlation (−1 to 1)"}.get(
        key, f"{SCORES[key]} (0 to 1)")
