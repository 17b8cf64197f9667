"""What changes over the rounds: scores, losses, bytes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mlecs_jax.report.axes import (
    Axis,
    byte_text,
    byte_unit,
    figure,
    linear_axis,
    loss_axis,
    score,
)
from mlecs_jax.report.blocks import LegendEntry, capital, grid, panel, section, words
from mlecs_jax.report.markup import Markup, tag
from mlecs_jax.report.run_files import RunFiles, dig, number, numbers
from mlecs_jax.report.svg import Band, Line, bar_chart, line_chart

MANY = 8  # from more devices than this on, bands and quartiles take the place of single lines
_IN_NATS = {"lm", "llm_lm", "slm_lm", "volume", "kt_llm", "kt_slm"}  # cross-entropies and KL
_LEADING = ("f1", "rougeLsum")
_STAGES = ("devices", "ccl", "amt", "server", "se_ccl")
Column = list[float | None]


@dataclasses.dataclass(frozen=True)
class Crowd:
    """One value per device and round, summed up over the devices."""

    per_device: list[Column]  # [device][round]
    mean: Column
    low: Column
    high: Column
    lower_quartile: Column
    upper_quartile: Column

    @classmethod
    def of(cls, rounds: Sequence[Column]) -> Crowd | None:
        """From one list of devices' values per round; None where no round holds a value."""
        width = max((len(values) for values in rounds), default=0)
        table = np.full((len(rounds), width), np.nan)
        for i, values in enumerate(rounds):
            table[i, : len(values)] = [np.nan if v is None else v for v in values]
        if not width or np.isnan(table).all():
            return None
        summaries: list[Column] = [[] for _ in range(5)]
        for row in table:
            known = row[~np.isnan(row)]
            figures: Column = [None] * 5
            if known.size:
                figures = [float(known.mean()), *np.quantile(known, [0, 1, 0.25, 0.75]).tolist()]
            for column, value in zip(summaries, figures, strict=True):
                column.append(value)
        per_device = [[None if np.isnan(v) else float(v) for v in column] for column in table.T]
        return cls(per_device, *summaries)

    def layers(self, style: str, *, mean: bool = True) -> list[Band | Line]:
        """Single lines for few devices, else the range and the middle half; then the mean."""
        if len(self.per_device) > MANY:
            spread: list[Band | Line] = [Band(self.low, self.high, style),
                                         Band(self.lower_quartile, self.upper_quartile, style)]
        elif len(self.per_device) > 1:
            spread = [Band(self.low, self.high, style),
                      *(Line(values, f"{style} thin") for values in self.per_device)]
        else:
            spread = []
        return [*spread, Line(self.mean, style)] if mean else spread

    def legend(self, style: str) -> list[LegendEntry]:
        if len(self.per_device) > MANY:
            return [(style, "band", "all devices"), (f"{style} inner", "band", "middle half")]
        return [(f"{style} thin", "line", "each device")] if len(self.per_device) > 1 else []

    def describe(self, i: int, form=score) -> str:
        if self.mean[i] is None:
            return "–"
        if len(self.per_device) == 1:
            return form(self.mean[i])
        return f"{form(self.mean[i])} ({form(self.low[i])} to {form(self.high[i])})"


def primary_metric(run: RunFiles) -> str:
    """The score the report leads with: macro-F1 or ROUGE-LSum where the run has it, else the
    first it names."""
    found: list[str] = []
    for split in ("test", "val"):
        for stage in stages_of(run):
            found += list(_table(dig(run.last, "eval", split, stage, "clients")))
        found += list(_table(dig(run.last, "eval", split, "server")))
    return next((name for name in _LEADING if name in found), found[0] if found else "f1")


def stages_of(run: RunFiles) -> list[str]:
    """Points of a round at which devices were scored, in the order the run names them."""
    return list(dict.fromkeys(
        name for entry in run.rounds for split in ("test", "val")
        for name, part in _table(dig(entry, "eval", split)).items()
        if isinstance(part, dict) and isinstance(part.get("clients"), dict)))


def client_scores(run: RunFiles, split: str, stage: str, metric: str) -> Crowd | None:
    return Crowd.of([numbers(dig(entry, "eval", split, stage, "clients", metric))
                     for entry in run.rounds])


def server_scores(run: RunFiles, split: str, metric: str) -> Column | None:
    column = [number(dig(entry, "eval", split, "server", metric)) for entry in run.rounds]
    return column if any(v is not None for v in column) else None


def rounds_done(run: RunFiles) -> list[int]:
    """The x axis of every chart: how many rounds were done when the value was taken."""
    return [entry["round"] + 1 for entry in run.rounds]


def learning_section(run: RunFiles) -> Markup | None:
    """Validation and test score per round: devices at each point of the round, and the server."""
    metric = primary_metric(run)
    stages = stages_of(run)
    crowds = {(split, stage): crowd for split in ("test", "val") for stage in stages
              if (crowd := client_scores(run, split, stage, metric))}
    server = {split: column for split in ("test", "val")
              if (column := server_scores(run, split, metric))}
    values = [v for crowd in crowds.values() for v in (*crowd.low, *crowd.high)]
    values += [v for column in server.values() for v in column]
    if not any(v is not None for v in values):
        return None
    axis = linear_axis(values, limits=(0.0, 1.0))  # one axis for all, so that panels compare
    panels = [
        _stage_panel(run, axis, metric, stage, crowds.get(("test", stage)),
                     crowds.get(("val", stage)),
                     (stages[0], crowds.get(("test", stages[0]))) if i else None)
        for i, stage in enumerate(stages)
        if ("test", stage) in crowds or ("val", stage) in crowds
        if not i or _is_a_curve(run, crowds.get(("test", stage)) or crowds[("val", stage)])
    ]
    if server:
        panels.append(_server_panel(run, axis, metric, server))
    return section(
        "learning", "Learning curves", grid(*panels),
        lead=f"{capital(words(metric))} after every round, on one scale. Solid: test. Dashed: "
        "validation, the only curve that may choose a round.")


def _is_a_curve(run: RunFiles, crowd: Crowd) -> bool:
    """More than a point, where there is more than a round: a sweep's runs are asked after the last
    broadcast alone."""
    return len(run.rounds) == 1 or sum(v is not None for v in crowd.mean) > 1


def _stage_panel(
    run: RunFiles, axis: Axis, metric: str, stage: str, test: Crowd | None, val: Crowd | None,
    earlier: tuple[str, Crowd | None] | None,
) -> Markup:
    rounds = rounds_done(run)
    spread = test or val
    assert spread is not None
    layers = spread.layers("dev", mean=False)
    legend: list[LegendEntry] = []
    reference = None
    if earlier and earlier[1]:
        reference = earlier[1].mean
        layers.append(Line(reference, "ref"))
    for name, crowd, style in (("test", test, "dev"), ("validation", val, "dev val")):
        if crowd:
            layers.append(Line(crowd.mean, style))
            legend.append((style, "line", f"{name}, mean"))
    legend += spread.legend("dev")
    if earlier and reference:
        legend.append(("ref", "line", f"test mean {words(earlier[0])}"))
    read_outs = [
        at(run, rounds[i], [("test", test.describe(i) if test else None),
                        ("validation", val.describe(i) if val else None)])
        for i in range(len(rounds))
    ]
    title = f"Devices {words(stage)}"
    return panel(title, line_chart(layers, rounds, axis, label=f"{title}: {words(metric)} by round",
                                   y_label=f"{words(metric)} (0 to 1)", read_outs=read_outs),
                 legend=legend, read_out=read_outs[-1])


def _server_panel(run: RunFiles, axis: Axis, metric: str, server: dict[str, Column]) -> Markup:
    rounds = rounds_done(run)
    styles = {"test": ("srv", "test"), "val": ("srv val", "validation")}
    layers = [Line(column, styles[split][0]) for split, column in server.items()]
    read_outs = [at(run, r, [(styles[split][1], score(column[i]))
                             for split, column in server.items()]) for i, r in enumerate(rounds)]
    return panel(
        "Server", line_chart(layers, rounds, axis, label=f"Server: {words(metric)} by round",
                             y_label=f"{words(metric)} (0 to 1)", read_outs=read_outs),
        legend=[(styles[split][0], "line", styles[split][1]) for split in server],
        read_out=read_outs[-1])


def loss_section(run: RunFiles) -> Markup | None:
    """One panel per loss found under ``train``, whatever the method calls it; versions of a
    three-tier run, each of another edge, have their own."""
    if run.unit == "version":
        return None
    paths = dict.fromkeys(p for entry in run.rounds for p in _leaves(entry.get("train")))
    panels = [drawn for path in sorted(paths, key=_in_order_of_the_round)
              if (drawn := _loss_panel(run, path))]
    if not panels:
        return None
    return section("losses", "Training losses", grid(*panels),
                   lead=f"As the run logged them for each stage of a {run.unit}. Every panel has "
                   "its own scale, logarithmic where a loss spans two decades or more.")


def _in_order_of_the_round(path: tuple[str, ...]) -> tuple[int, ...]:
    """Stages as Algorithm 1 takes them; the files name them alphabetically. Others come last."""
    return tuple(_STAGES.index(name) if name in _STAGES else len(_STAGES) for name in path)


def _loss_panel(run: RunFiles, path: tuple[str, ...]) -> Markup | None:
    leaves = [dig(run_round.get("train"), *path) for run_round in run.rounds]
    crowd = Crowd.of([numbers(v) if isinstance(v, list) else [number(v)] for v in leaves])
    if crowd is None:
        return None
    rounds = rounds_done(run)
    style = "srv" if path[0] == "server" else "dev"
    axis = loss_axis([*crowd.low, *crowd.high])
    read_outs = [at(run, r, [("loss", crowd.describe(i, figure))]) for i, r in enumerate(rounds)]
    *stage, name = path
    where = " · ".join(words(part) for part in stage)
    title = f"{where}: {words(name)}" if where else words(name)
    notes = (["nats"] if name in _IN_NATS else []) + (["log scale"] if axis.log else [])
    unit = f" ({', '.join(notes)})" if notes else ""
    several = len(crowd.per_device) > 1
    return panel(capital(title),
                 line_chart(crowd.layers(style), rounds, axis, label=f"{title}: loss by {run.unit}",
                            y_label=f"loss{unit}", read_outs=read_outs,
                            x_label=f"{run.unit}s done"),
                 legend=[(style, "line", "mean"), *crowd.legend(style)] if several else [],
                 read_out=read_outs[-1])


def communication_section(run: RunFiles) -> Markup | None:
    """Bytes up and down per device and round, their sum, and the shares of a device's model."""
    panels: list[Markup] = []
    facts: list[tuple[str, str]] = []
    for key, title, style in (("uplink_bytes", "Up: device to server", "up"),
                              ("downlink_bytes", "Down: server to device", "down")):
        column = [number(dig(entry, "communication", key)) for entry in run.rounds]
        known = [v for v in column if v is not None]
        if not known:
            continue
        panels.append(_bytes_panel(run, title, column, style))
        facts.append((f"{title.partition(':')[0]}, all devices and all {len(known)} rounds",
                      byte_text(sum(known) * (run.num_clients or 1))))
    for key, name in (("uplink_share_of_parameters", "A round sends, of a device's parameters"),
                      ("share_of_parameters", "A round exchanges, of a device's parameters")):
        share = number(dig(run.summary, "communication", key))
        if share is not None:
            facts.append((name, f"{figure(100 * share)} %"))
    held = number(dig(run.summary, "communication", "device_parameters"))
    if held is not None:
        facts.append(("Parameters a device holds", f"{held:,.0f}"))
    if not facts:
        return None
    listing = tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in facts),
                  class_="facts stacked")
    return section("communication", "Communication", grid(*panels, listing),
                   lead="Per device and round, counted from the arrays that cross the tiers "
                   "(1 MB = 1,000,000 bytes).")


def _bytes_panel(run: RunFiles, title: str, column: Column, style: str) -> Markup:
    rounds = rounds_done(run)
    divisor, unit = byte_unit(column)
    scaled: Column = [None if v is None else v / divisor for v in column]
    read_outs = [at(run, r, [("sent", byte_text(v) + (
        f" ({v:,.0f} B)" if v and v >= 1000 else ""))])
                 for r, v in zip(rounds, column, strict=True)]
    chart = bar_chart(scaled, rounds, linear_axis(scaled, from_zero=True),
                      label=f"{title}, {unit} by round", y_label=f"{unit} per device and round",
                      read_outs=read_outs, style=style)
    return panel(title, chart, read_out=read_outs[-1])


def at(run: RunFiles, done: int, figures: Sequence[tuple[str, str | None]]) -> str:
    """What the pointer reads at a round: ``Round 3: test 0.812, validation 0.806``."""
    return f"{capital(run.unit)} {done}: " + ", ".join(
        f"{name} {value}" for name, value in figures if value)


def _table(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _leaves(tree: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Paths of all values that can be drawn: numbers and lists of numbers."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _leaves(value, (*path, key))
    elif path and (isinstance(tree, list) or number(tree) is not None):
        yield path
