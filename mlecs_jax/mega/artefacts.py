"""Tables and figures of Mega-CE² as jobs and findings, for :mod:`mlecs_jax.repro`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mlecs_jax.mega.counts import PUBLISHED
from mlecs_jax.mega.runner import LATENCY, PARAMS
from mlecs_jax.repro.job import Job, Label
from mlecs_jax.repro.options import Options, with_changes
from mlecs_jax.repro.results import FINAL, Results, Run
from mlecs_jax.repro.statistics import paired
from mlecs_jax.repro.tables import Cell, Findings, Table, difference_cell, mean_text

RUNNER = "mlecs_jax.mega.runner"
OURS, MULT = "mega_ce2", "mult"
MODELS = (OURS, MULT, "ef_lstm", "lf_lstm", "raven", "mctn", "v2em_lite")
NAMES = {OURS: "Mega-CE²", MULT: "MulT, centralised", "ef_lstm": "EF-LSTM", "lf_lstm": "LF-LSTM",
         "raven": "RAVEN", "mctn": "MCTN", "v2em_lite": "V2EM-lite (re-targeted)"}
SCORES = {"acc2_non0": "Acc2 non0", "f1_non0": "F1 non0", "acc2_has0": "Acc2 has0",
          "acc7": "Acc7", "f1_7": "F1, 7 classes", "mae": "MAE", "corr": "Corr"}
NOTE = ("Mega-CE² is trained in three tiers on unlike edges; the others centrally, on all training "
        "segments. Personalised: each test segment by its own edge.")
Labels = Mapping[str, Label]


def datasets(options: Options) -> tuple[str, ...]:
    """MOSI unless MOSEI is asked for: the command's own default is another system's."""
    return tuple(name for name in options.datasets if name in ("mosi", "mosei")) or ("mosi",)


def job(options: Options, dataset: str, method: str, seed: int, variant: str = "",
        **changes: Any) -> Job:
    """One run; ``changes`` by name with ``__`` for the dot. Seed s is of the run, of the partition
    and of the clock."""
    values = with_changes(options.base(dataset), {
        "method.name": method, "seed": seed, "partition.seed": seed, "clock.seed": seed}
        | {name.replace("__", "."): value for name, value in changes.items()})
    labels: dict[str, Label] = {"dataset": dataset, "method": method, "variant": variant,
                                "split": values["data"]["split"], "seed": seed}
    return Job(labels, values, RUNNER)


def comparison_jobs(dataset: str) -> Callable[[Options], list[Job]]:
    """Tables 1 and 2: seed by seed, so that a sweep cut short compares all models on fewer."""
    def jobs(options: Options) -> list[Job]:
        return [job(options, dataset, method, seed) for seed in range(options.seeds)
                for method in options.methods or MODELS]

    return jobs


def comparison(options: Options, results: Results) -> Findings:
    """Scores of all models, and what Mega-CE² gains or loses against each."""
    del options
    tables = []
    for dataset in results.distinct("dataset", {}):
        sides: dict[str, tuple[Labels, str]] = {}
        for method in results.distinct("method", {"dataset": dataset}):
            where: Labels = {"dataset": dataset, "method": method}
            if method == OURS:
                sides["Mega-CE², personalised"] = (where, "client")
                sides["Mega-CE², global"] = (where, "server")
            else:
                sides[NAMES.get(method, method)] = (where, "server")
        tables.append(Table(f"{dataset.upper()}: test scores", ("", *SCORES.values()), tuple(
            (Cell(name), *(Cell(mean_text(results.at(f"{group}.{score}", where)), where)
                           for score in SCORES)) for name, (where, group) in sides.items()), NOTE))
        for ours in ("Mega-CE², personalised", "Mega-CE², global"):
            if ours in sides:
                tables.append(_differences(results, dataset, ours, sides))
    return Findings(tuple(tables))


def _differences(
    results: Results, dataset: str, ours: str, sides: Mapping[str, tuple[Labels, str]]
) -> Table:
    """Paired over seeds: ours minus every other row."""
    where, group = sides[ours]
    rows = []
    for name, (other, side) in sides.items():
        if name != ours:
            rows.append((Cell(f"minus {name}"), *(
                difference_cell(paired(results.at(f"{group}.{score}", where),
                                       results.at(f"{side}.{score}", other)), where)
                for score in SCORES)))
    return Table(f"{dataset.upper()}: {ours}, difference and 95 % interval",
                 ("", *SCORES.values()), tuple(rows), "A lower MAE is better.")


def convergence_jobs(options: Options) -> list[Job]:
    """Asynchronous and synchronous over the same simulated time, and the centralised model."""
    return [made for seed in range(options.seeds) for dataset in datasets(options) for made in (
        job(options, dataset, OURS, seed, "async", method__mode="async"),
        job(options, dataset, OURS, seed, "sync", method__mode="sync"),
        job(options, dataset, MULT, seed))]


def convergence(options: Options, results: Results) -> Findings:
    """When each mode first reaches the best validation error of the synchronous run."""
    del options
    rows, curves, sentences = [], [], []
    for run in results.runs:
        if run.labels["method"] != OURS:
            continue
        curves += [(Cell(f"{run.labels['dataset']} seed {run.labels['seed']} "
                         f"{run.labels['variant']}", run.labels), Cell(f"{time:.1f}"), Cell(str(n)),
                    Cell(f"{error:.4f}")) for n, (time, error) in enumerate(curve(run), start=1)]
        if run.labels["variant"] != "sync":
            continue
        other = results.of({**run.labels, "variant": "async"})
        if other:
            target = min(error for _, error in curve(run))
            waited = reached(curve(run), target)
            took = reached(curve(other[0]), target)
            ratio = None if took is None or waited is None else took / waited
            rows.append((Cell(f"{run.labels['dataset']} seed {run.labels['seed']}", run.labels),
                         Cell(f"{target:.4f}"), Cell(_seconds(waited)), Cell(_seconds(took)),
                         Cell("not reached" if ratio is None else f"{ratio:.2f}")))
            if ratio is not None:
                sentences.append(
                    f"{run.labels['dataset']}, seed {run.labels['seed']}: asynchronous training "
                    f"reaches the synchronous run's validation error in {ratio:.2f} of its "
                    "simulated time.")
    return Findings((
        Table("Simulated time to the synchronous run's lowest validation MAE",
              ("run", "MAE", "sync, s", "async, s", "ratio"), tuple(rows)),
        Table("Validation MAE over simulated time", ("run", "seconds", "version", "MAE"),
              tuple(curves))), tuple(sentences))


def curve(run: Run) -> list[tuple[float, float]]:
    """``(simulated seconds, validation MAE)`` of the evaluated versions of a run."""
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    return [(record["time"], record["eval"]["val"]["mae"]) for record in map(json.loads, lines)
            if "eval" in record]


def reached(points: Sequence[tuple[float, float]], target: float) -> float | None:
    """When a curve first goes as low as ``target``; None if it never does."""
    return next((time for time, error in points if error <= target), None)


def ablation_jobs(options: Options) -> list[Job]:
    """Table 4: one modality alone, one target alone, and all."""
    variants: dict[str, dict[str, str]] = {"full": {}}
    for name in ("text", "audio", "vision"):
        variants[f"{name} alone"] = {"model__modalities": name, "model__targets": name}
        variants[f"target {name}"] = {"model__targets": name}
    return [job(options, dataset, OURS, seed, variant, **changes)
            for seed in range(options.seeds) for dataset in datasets(options)
            for variant, changes in variants.items()]


def by_variant(title: str) -> Callable[[Options, Results], Findings]:
    """Scores of every variant, global and personalised."""
    def findings(options: Options, results: Results) -> Findings:
        del options
        rows = []
        for dataset in results.distinct("dataset", {}):
            for variant in results.distinct("variant", {"dataset": dataset}):
                where: Labels = {"dataset": dataset, "variant": variant}
                rows += [(Cell(f"{dataset} {variant}, {words}"), *(
                    Cell(mean_text(results.at(f"{group}.{score}", where)), where)
                    for score in SCORES)) for group, words in (
                        ("server", "global"), ("client", "personalised"))]
        return Findings((Table(title, ("", *SCORES.values()), tuple(rows)),))

    return findings


def adapter_jobs(options: Options) -> list[Job]:
    """With one shared block, with one for each place, and without tuning."""
    variants: dict[str, dict[str, Any]] = {
        "shared": {"adapter__share": True}, "unshared": {"adapter__share": False}}
    return [job(options, dataset, OURS, seed, variant, **changes)
            for seed in range(options.seeds) for dataset in datasets(options)
            for variant, changes in variants.items()]


def adapters(options: Options, results: Results) -> Findings:
    """What personalisation gains over the global model of the same run, and what it sends."""
    scores = by_variant("Adapters")(options, results).tables
    rows = []
    for dataset in results.distinct("dataset", {}):
        for variant in results.distinct("variant", {"dataset": dataset}):
            where: Labels = {"dataset": dataset, "variant": variant}
            rows.append((
                Cell(f"{dataset} {variant}"),
                *(difference_cell(paired(results.at(f"client.{score}", where),
                                         results.at(f"server.{score}", where)), where)
                  for score in SCORES),
                Cell(mean_text(results.at("extra.adapter_parameters", where))),
                Cell(mean_text(results.at("communication.adapter_bytes_sent", where)))))
    return Findings((*scores, Table(
        "Personalised minus global", ("", *SCORES.values(), "parameters", "bytes sent"),
        tuple(rows), "A lower MAE is better.")))


def latency_jobs(options: Options) -> list[Job]:
    return [job(options, "mosi", LATENCY, 0, options.preset, eval__latency=options.preset)]


def params_jobs(options: Options) -> list[Job]:
    return [job(options, "mosi", PARAMS, 0)]


def latency(options: Options, results: Results) -> Findings:
    """Table 3 in both accountings, and packets by codec."""
    del options
    tables = []
    for run in results.of({"method": LATENCY}):
        numbers = {name.removeprefix("extra."): value for (kind, name), value in run.values.items()
                   if kind == FINAL and name.startswith("extra.")}
        tables.append(Table(
            "Latency (milliseconds where no unit stands)", ("", "value"),
            tuple((Cell(name), Cell(f"{value:,.3f}", run.labels)) for name, value in
                  numbers.items()),
            "Compute is measured on this machine, links are modelled."))
    return Findings(tuple(tables))


def params(options: Options, results: Results) -> Findings:
    """Table 5 beside the published column."""
    del options
    rows = []
    for run in results.of({"method": PARAMS}):
        for (_, name), value in run.values.items():
            own = name.removeprefix("extra.")
            published = PUBLISHED.get(own)
            rows.append((Cell(own), Cell(f"{value:,.0f}", run.labels), Cell(
                "–" if published is None else f"{published:,.0f}", tone="quiet")))
    return Findings((Table("Parameters of the paper preset", ("", "exact", "published"),
                           tuple(rows)),))


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


TABLE: Mapping[str, tuple[str, Callable, Callable]] = {
    "table1": ("Table 1: MOSI", comparison_jobs("mosi"), comparison),
    "table2": ("Table 2: MOSEI", comparison_jobs("mosei"), comparison),
    "convergence": ("Fig. 3: convergence on unlike edges", convergence_jobs, convergence),
    "latency": ("Table 3: latency", latency_jobs, latency),
    "ablation": ("Table 4: modalities and targets", ablation_jobs,
                 by_variant("Modalities and targets")),
    "params": ("Table 5: parameters", params_jobs, params),
    "adapters": ("Adapters", adapter_jobs, adapters),
}
"""Title, jobs and findings of every artefact."""
