"""Fig. 3: asynchronous against synchronous training over the same simulated time."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence

from mlecs_jax.report.axes import counted
from mlecs_jax.repro.comparison import data_words, num_seeds, seeds_words
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
TARGETS: Mapping[str, Callable[[Sequence[float]], float]] = {
    "lowest": min, "final": lambda errors: errors[-1]}
"""Of the synchronous run's errors; the lowest of a noisy curve is the harder one."""
SHARES = (0.25, 0.5, 0.75, 1.0)
Points = Sequence[tuple[float, float]]


def findings(options: Options, results: Results) -> Findings:
    """When each mode first reaches an error of the synchronous run, errors at equal simulated
    times, and the ends of both beside the centralised model."""
    del options
    tables, said = [], []
    for dataset in results.distinct("dataset", {}):
        for split in results.distinct("split", {"dataset": dataset}):
            where: dict[str, Label] = {"dataset": dataset, "split": split}
            curves = {mode: {int(run.labels["seed"]): curve(run) for run in results.of(
                {**where, "method": OURS, "variant": mode})} for mode in MODES}
            seeds = sorted(set(curves["sync"]) & set(curves["async"]))
            if seeds:
                timed = [_time_to_target(results, where, curves, seeds, name) for name in TARGETS]
                tables += [table for table, _ in timed]
                tables.append(_over_time(results, where, curves, seeds))
                said += [sentence for _, sentence in timed]
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
    seeds: Sequence[int], name: str,
) -> tuple[Table, str]:
    """When both reach an error of the synchronous run, one of :data:`TARGETS`."""
    rows: list[tuple[Cell, ...]] = []
    group = {**where, "method": OURS}
    first: dict[int, float] = {}
    took: dict[int, float] = {}
    whole: dict[int, float] = {}
    for seed in seeds:
        sync, other = curves["sync"][seed], curves["async"][seed]
        target = TARGETS[name]([error for _, error in sync])
        waited, second = reached(sync, target), reached(other, target)
        assert waited is not None
        times, ratios = [f"{waited:.1f}", "not reached"], ["–", "–"]
        if second is not None:
            first[seed], took[seed], whole[seed] = waited, second, sync[-1][0]
            times[1] = f"{second:.1f}"
            ratios = [f"{second / waited:.2f}", f"{second / sync[-1][0]:.2f}"]
        rows.append((Cell(f"seed {seed}", group), Cell(f"{target:.4f}", group),
                     *(Cell(text, group) for text in (*times, *ratios))))
    shares = [{seed: took[seed] / base[seed] for seed in took} for base in (first, whole)]
    rows.append((Cell(f"mean, {len(took)} of {len(seeds)} that reach it", group), Cell(""),
                 Cell(_seconds(first), group), Cell(_seconds(took), group),
                 *(Cell(mean_text(share), group) for share in shares)))
    data = data_words(results, where)
    said = f"{data}: asynchronous training reaches the synchronous run's {name} validation error "
    every = counted(len(seeds), "seed")
    if took:
        found = paired(took, first)
        more = f"; seconds more: {difference_text(found)}" if found else ""
        said += (f"in {mean_text(shares[0])} of the time that one takes to it{more}; in "
                 f"{mean_text(shares[1])} of that one's whole simulated time. Of {every} "
                 f"{len(took)} reach it. The goal, {GOAL} or less in the mean of all seeds, is "
                 f"{_verdict(shares, len(seeds))}.")
    else:
        said += f"in none of {every}."
    return Table(
        f"Simulated seconds to the synchronous run's {name} validation MAE, {data}",
        ("", "MAE", "synchronous", "asynchronous", "ratio", "of the whole run"), tuple(rows),
        "When an error as low is first seen. Both modes are given the same simulated time and the "
        "same draws of the clock. A mean leaves seeds out that never reach it."), said


def _verdict(shares: Sequence[Mapping[int, float]], seeds: int) -> str:
    """Which of the two readings of the goal is met, by all seeds."""
    met = [len(share) == seeds and sum(share.values()) / seeds <= GOAL for share in shares]
    return {(True, True): "met", (False, False): "not met",
            (False, True): "met of the whole time alone",
            (True, False): "met of the time to it alone"}[met[0], met[1]]


def _over_time(
    results: Results, where: Labels, curves: Mapping[str, Mapping[int, Points]],
    seeds: Sequence[int],
) -> Table:
    ends = {seed: max(time for mode in MODES for time, _ in curves[mode][seed]) for seed in seeds}
    at = {mode: [{seed: lowest_by(curves[mode][seed], part * ends[seed]) for seed in seeds}
                 for part in SHARES] for mode in MODES}
    words = {"sync": "synchronous", "async": "asynchronous"}
    rows: list[tuple[Cell, ...]] = []
    count = num_seeds(results, where)
    for mode in MODES:
        group = {**where, "method": OURS, "variant": mode}
        rows.append((Cell(words[mode], group),
                     *(Cell(mean_text(v, count), group) for v in at[mode])))
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
    count = num_seeds(results, where)
    return Table(
        f"Of the version, or epoch, with the lowest validation MAE, {data_words(results, where)}",
        ("", *columns), tuple(
            (Cell(name, labels), *(Cell(mean_text(results.at(key, labels), count), labels)
                                   for key in columns.values())) for name, labels in found),
        f"Mean ± standard deviation over {seeds_words(results, where)}.")


def _seconds(values: Mapping[int, float]) -> str:
    found = spread(values)
    if found is None:
        return "–"
    return f"{found.mean:.1f}" if found.sd is None else f"{found.mean:.1f} ± {found.sd:.1f}"
