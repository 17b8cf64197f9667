"""Fig. 3: asynchronous against synchronous training over the same simulated time."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

from mlecs_jax.repro.comparison import data_words, seeds_words
from mlecs_jax.repro.job import Label
from mlecs_jax.repro.options import Options
from mlecs_jax.repro.results import Results, Run
from mlecs_jax.repro.statistics import paired, spread
from mlecs_jax.repro.tables import (
    Cell,
    Findings,
    Labels,
    Table,
    difference_cell,
    difference_text,
    mean_text,
)

OURS, MODES = "mega_ce2", ("sync", "async")
GOAL = 0.6
"""Of the synchronous run's time, with one edge four times slower."""
SHARES = (0.25, 0.5, 0.75, 1.0)
Points = Sequence[tuple[float, float]]


def findings(options: Options, results: Results) -> Findings:
    """When each mode first reaches the synchronous run's lowest validation error, errors at equal
    simulated times, and the ends of both beside the centralised model."""
    del options
    tables, said = [], []
    for dataset in results.distinct("dataset", {}):
        for split in results.distinct("split", {"dataset": dataset}):
            where: dict[str, Label] = {"dataset": dataset, "split": split}
            curves = {mode: {int(run.labels["seed"]): curve(run) for run in results.of(
                {**where, "method": OURS, "variant": mode})} for mode in MODES}
            seeds = sorted(set(curves["sync"]) & set(curves["async"]))
            if seeds:
                table, sentences = _time_to_target(results, where, curves, seeds)
                tables += [table, _over_time(results, where, curves, seeds)]
                said += sentences
            tables.append(_ends(results, where))
    return Findings(tuple(tables), tuple(said))


def curve(run: Run) -> list[tuple[float, float]]:
    """``(simulated seconds, validation MAE)`` of the evaluated versions of a run."""
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    return [(record["time"], record["eval"]["val"]["mae"]) for record in map(json.loads, lines)
            if "eval" in record]


def reached(points: Points, target: float) -> float | None:
    """When a curve first goes as low as ``target``; None if it never does."""
    return next((time for time, error in points if error <= target), None)


def lowest_by(points: Points, time: float) -> float:
    """The lowest error up to a time; NaN before the first evaluated version."""
    return min((error for at, error in points if at <= time * (1 + 1e-9)), default=math.nan)


def _time_to_target(
    results: Results, where: Labels, curves: Mapping[str, Mapping[int, Points]],
    seeds: Sequence[int],
) -> tuple[Table, list[str]]:
    rows: list[tuple[Cell, ...]] = []
    group = {**where, "method": OURS}
    waited: dict[int, float] = {}
    took: dict[int, float] = {}
    for seed in seeds:
        sync, other = curves["sync"][seed], curves["async"][seed]
        target = min(error for _, error in sync)
        first, second = reached(sync, target), reached(other, target)
        assert first is not None
        if second is not None:
            waited[seed], took[seed] = first, second
        rows.append((Cell(f"seed {seed}", group), Cell(f"{target:.4f}", group),
                     *(Cell("not reached" if t is None else f"{t:.1f}", group)
                       for t in (first, second)),
                     Cell("–" if second is None else f"{second / first:.2f}", group)))
    ratios = {seed: took[seed] / waited[seed] for seed in took}
    rows.append((Cell(f"mean, {len(took)} of {len(seeds)} that reach it", group), Cell(""),
                 Cell(_seconds(waited), group), Cell(_seconds(took), group),
                 Cell(mean_text(ratios), group)))
    data = data_words(results, where)
    found = paired(took, waited)
    said = [f"{data}: asynchronous training reaches the synchronous run's lowest validation error "
            f"in {mean_text(ratios)} of its simulated time, in {len(took)} of {len(seeds)} "
            f"seed{'s' if len(seeds) > 1 else ''}"
            + (f"; seconds more: {difference_text(found)}." if found else ".")]
    if took and len(took) == len(seeds):
        mean = spread(ratios)
        assert mean is not None
        met = mean.mean <= GOAL
        said[0] += f" The goal, {GOAL} or less, is {'met' if met else 'not met'}."
    elif took:
        said[0] += f" The goal, {GOAL} or less in the mean of all seeds, is not met."
    if not took:
        said = [f"{data}: asynchronous training reaches the synchronous run's lowest validation "
                f"error in none of {len(seeds)} seeds."]
    return Table(
        f"Simulated seconds to the synchronous run's lowest validation MAE, {data}",
        ("", "MAE", "synchronous", "asynchronous", "ratio"), tuple(rows),
        "Both are given the same simulated time and the same draws of the clock. A mean leaves "
        "seeds out that never reach it."), said


def _over_time(
    results: Results, where: Labels, curves: Mapping[str, Mapping[int, Points]],
    seeds: Sequence[int],
) -> Table:
    ends = {seed: max(time for mode in MODES for time, _ in curves[mode][seed]) for seed in seeds}
    at = {mode: [{seed: lowest_by(curves[mode][seed], part * ends[seed]) for seed in seeds}
                 for part in SHARES] for mode in MODES}
    words = {"sync": "synchronous", "async": "asynchronous"}
    rows: list[tuple[Cell, ...]] = []
    for mode in MODES:
        group = {**where, "method": OURS, "variant": mode}
        rows.append((Cell(words[mode], group), *(Cell(mean_text(v), group) for v in at[mode])))
    rows.append((Cell("asynchronous minus synchronous"), *(
        difference_cell(paired(a, s), {**where, "method": OURS, "variant": "async"})
        for a, s in zip(at["async"], at["sync"], strict=True))))
    return Table(
        f"Lowest validation MAE so far, at shares of the simulated time, "
        f"{data_words(results, where)}",
        ("", *(f"{share:.0%}" for share in SHARES)), tuple(rows),
        f"Mean ± standard deviation over {seeds_words(results, where)}; differences are paired by "
        "seed, with a 95 % confidence interval. A dash: before the first version.")


def _ends(results: Results, where: Labels) -> Table:
    columns = {"validation MAE": "validation.server.mae", "test MAE": "server.mae",
               "test Acc2 non0": "server.acc2_non0"}
    sides = [("asynchronous, global", {**where, "method": OURS, "variant": "async"}),
             ("synchronous, global", {**where, "method": OURS, "variant": "sync"}),
             ("MulT, centralised", {**where, "method": "mult"})]
    found = [(name, labels) for name, labels in sides
             if spread(results.at("server.mae", labels))]
    return Table(
        f"Of the version, or epoch, with the lowest validation MAE, {data_words(results, where)}",
        ("", *columns), tuple(
            (Cell(name, labels), *(Cell(mean_text(results.at(key, labels)), labels)
                                   for key in columns.values())) for name, labels in found),
        f"Mean ± standard deviation over {seeds_words(results, where)}.")


def _seconds(values: Mapping[int, float]) -> str:
    found = spread(values)
    if found is None:
        return "–"
    return f"{found.mean:.1f}" if found.sd is None else f"{found.mean:.1f} ± {found.sd:.1f}"
