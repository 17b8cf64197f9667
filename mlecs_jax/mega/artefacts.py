"""Tables and figures of Mega-CE² for :mod:`mlecs_jax.repro`: which runs each of them needs.

What the runs show is :mod:`mlecs_jax.mega.findings` and :mod:`mlecs_jax.mega.convergence`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mlecs_jax.errors import UserError
from mlecs_jax.mega import config, controls, convergence, findings
from mlecs_jax.mega.runner import LATENCY, PARAMS
from mlecs_jax.models import sentiment_zoo
from mlecs_jax.repro.job import Job, Label
from mlecs_jax.repro.options import Options, each, only

RUNNER = "mlecs_jax.mega.runner"
OURS, MULT = findings.OURS, "mult"
COMPARED: Mapping[tuple[str, str], Mapping[str, Any]] = {
    (OURS, ""): {}, (OURS, findings.SYNC): {"method__mode": "sync"},
    (controls.ALONE, ""): {}, (controls.FEDAVG, ""): {}, (MULT, ""): {},
    (MULT, findings.LIKE_OURS): {"train__recipe": "tiers"},
    **{(name, ""): {} for name in sentiment_zoo.BASELINES},
    (controls.CONSTANT, ""): {}, (controls.MAJORITY, ""): {}}
"""Rows of Tables 1 and 2: changes of the configuration by method and variant."""
MODELS = tuple(dict.fromkeys(method for method, _ in COMPARED))
DATASETS = ("mosi", "mosei")


def chosen(options: Options, *allowed: str) -> Options:
    """The options, if all filters that are set mean something here.

    Raises:
      UserError: a filter that would do nothing, an unknown dataset or method.
    """
    only(options, *allowed)
    for name in options.datasets:
        if name not in DATASETS:
            raise UserError(f"'{name}' is no dataset of mega; use {' or '.join(DATASETS)}")
    for name in options.methods or ():
        if name not in MODELS:
            raise UserError(f"unknown method '{name}'; use {', '.join(MODELS)}")
    return options


def job(options: Options, dataset: str, method: str, seed: int, variant: str = "",
        extras: tuple[str, ...] = (), **changes: Any) -> Job:
    """One run; ``changes`` by name with ``__`` for the dot. Seed s is of the run, of the partition
    and of the clock."""
    values = options.values(dataset, {
        "method.name": method, "seed": seed, "partition.seed": seed, "clock.seed": seed}
        | {name.replace("__", "."): value for name, value in changes.items()})
    config.parse(values)  # a value that cannot be is told of before the first run
    labels: dict[str, Label] = {"dataset": dataset, "method": method, "variant": variant,
                                "split": values["data"]["split"], "seed": seed}
    return Job(labels, values, RUNNER, extras)


def grid(
    options: Options, runs: Mapping[tuple[str, str], Mapping[str, Any]],
    datasets: tuple[str, ...] | None = None, extras: tuple[str, ...] = (),
) -> list[Job]:
    """Jobs of every seed, dataset and split; seed by seed, so that a sweep cut short compares all
    runs on fewer.

    Args:
      runs: changes of the configuration by method and variant.
      extras: see :class:`Job`.
    """
    return [job(options, dataset, method, seed, variant, extras, **changes, **where)
            for seed in options.seeds
            for dataset in datasets or options.datasets or DATASETS
            for where in each("data__split", options.splits)
            for (method, variant), changes in runs.items()]


def comparison_jobs(dataset: str) -> Callable[[Options], list[Job]]:
    """Tables 1 and 2."""
    def jobs(options: Options) -> list[Job]:
        methods = chosen(options, "methods", "splits").methods or MODELS
        return grid(options, {row: changes for row, changes in COMPARED.items()
                              if row[0] in methods}, (dataset,))

    return jobs


def convergence_jobs(options: Options) -> list[Job]:
    """Asynchronous and synchronous over the same simulated time, and the centralised model."""
    return grid(chosen(options, "datasets", "splits"), {
        (OURS, "async"): {"method__mode": "async"}, (OURS, "sync"): {"method__mode": "sync"},
        (MULT, ""): {}})


def ablation_jobs(options: Options) -> list[Job]:
    """Table 4: one modality alone, one target alone, and all."""
    runs: dict[tuple[str, str], dict[str, str]] = {(OURS, findings.FULL): {}}
    for name in ("text", "audio", "vision"):
        runs[OURS, f"{name} alone"] = {"model__modalities": name, "model__targets": name}
    for name in ("text", "audio", "vision"):
        runs[OURS, f"target {name}"] = {"model__targets": name}
    return grid(chosen(options, "datasets", "splits"), runs)


def adapter_jobs(options: Options) -> list[Job]:
    """The three-tier run, whose model is then personalised in every way (:mod:`adapter_kinds`)."""
    return grid(chosen(options, "datasets", "splits"), {(OURS, ""): {}}, extras=("personal",))


def latency_jobs(options: Options) -> list[Job]:
    return [job(_of_one(options), "mosi", LATENCY, 0, options.preset,
                eval__latency=options.preset)]


def params_jobs(options: Options) -> list[Job]:
    return [job(_of_one(options), "mosi", PARAMS, 0)]


def _of_one(options: Options) -> Options:
    """Of an artefact in which a seed draws nothing that its figures depend on.

    Raises:
      UserError: as :func:`chosen`, or certain seeds are asked for.
    """
    if options.seeds != tuple(range(len(options.seeds))):
        raise UserError(f"--seeds means nothing to mega {options.artefact}, in which nothing is "
                        "drawn; leave it out")
    return chosen(options)


TABLE: Mapping[str, tuple[str, Callable, Callable]] = {
    "table1": ("Table 1: MOSI", comparison_jobs("mosi"), findings.comparison),
    "table2": ("Table 2: MOSEI", comparison_jobs("mosei"), findings.comparison),
    "convergence": ("Fig. 3: convergence on unlike edges", convergence_jobs,
                    convergence.findings),
    "latency": ("Table 3: latency", latency_jobs, findings.latency),
    "ablation": ("Table 4: modalities and targets", ablation_jobs, findings.ablation),
    "params": ("Table 5: parameters", params_jobs, findings.params),
    "adapters": ("Adapters: personal beside frozen", adapter_jobs, findings.adapters),
}
"""Title, jobs and findings of every artefact."""
