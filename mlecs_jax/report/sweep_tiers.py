"""A sweep of three-tier runs drawn over their simulated clocks."""

from __future__ import annotations

import statistics

from mlecs_jax.report.axes import linear_axis, score
from mlecs_jax.report.blocks import grid, panel, section
from mlecs_jax.report.markup import Markup
from mlecs_jax.report.run_files import RunFiles, dig, number
from mlecs_jax.report.svg import Line, line_chart
from mlecs_jax.report.sweep_charts import styles_of
from mlecs_jax.report.sweep_files import SweepFiles, SweepRun, by_series

_READ_OUTS = 24  # positions at which the pointer reads
Curve = list[tuple[float, float]]


def times_section(sweep: SweepFiles) -> Markup | None:
    """Validation error over simulated time, a line per run, a colour per variant."""
    panels = [drawn for title, runs in sweep.cells().items() if (drawn := _panel(title, runs))]
    if not panels:
        return None
    return section("times", "Over simulated time", grid(*panels),
                   lead="Validation MAE of the global model at the simulated second at which each "
                   "version was made; a line per seed. Lower is better." + sweep.left_out)


def _panel(title: str, runs: list[SweepRun]) -> Markup | None:
    curves = {name: [found for run in members if run.files and (found := _curve(run.files))]
              for name, members in by_series(runs).items()}
    curves = {name: found for name, found in curves.items() if found}
    if not curves:
        return None
    styles = styles_of(list(curves))
    lines = [Line([error for _, error in one], f"{styles[name]} val" if styles[name] != "ref"
                  else "ref thin", [time for time, _ in one])
             for name, found in curves.items() for one in found]
    ends = [time for found in curves.values() for one in found for time, _ in one]
    axis = linear_axis(ends, from_zero=True)
    at = [max(ends) * (i + 1) / _READ_OUTS for i in range(_READ_OUTS)]
    read_outs = [f"By {time:,.1f} s: " + ", ".join(
        f"{name} {score(_mean_by(found, time))}" for name, found in curves.items()) for time in at]
    return panel(title, line_chart(
        lines, at, linear_axis([error for found in curves.values() for one in found
                                for _, error in one]),
        label=f"Validation error over simulated time, {title}", y_label="MAE (lower is better)",
        read_outs=read_outs, x_label="simulated seconds", x_axis=axis),
        legend=[(styles[name], "line", name) for name in curves], read_out=read_outs[-1])


def _curve(files: RunFiles) -> Curve:
    pairs = [(number(entry.get("time")), number(dig(entry, "eval", "val", "mae")))
             for entry in files.rounds]
    return [(time, error) for time, error in pairs if time is not None and error is not None]


def _mean_by(curves: list[Curve], time: float) -> float | None:
    """Mean over runs of the last error up to a time; None where a run has none yet."""
    last = [[error for at, error in one if at <= time * (1 + 1e-9)][-1:] for one in curves]
    return statistics.fmean(found[0] for found in last) if all(last) else None
