"""Fig. 4: ML-ECS without its parts, and with modalities missing only at inference."""

from __future__ import annotations

from typing import Any

from mlecs_jax.repro.artefacts.table1 import splits_of
from mlecs_jax.repro.comparison import data_words, seeds_words
from mlecs_jax.repro.job import Job, Label
from mlecs_jax.repro.options import Options
from mlecs_jax.repro.results import FINAL, Results
from mlecs_jax.repro.statistics import paired, spread
from mlecs_jax.repro.tables import (
    METRICS,
    Cell,
    Findings,
    Labels,
    Table,
    difference_cell,
    difference_text,
    mean_text,
    pooled,
    primary,
    share,
    signed,
)

TITLE = "Fig. 4: ablations, and modalities lost at inference"
METHOD = "ml_ecs"
RHOS = (0.5, 0.8)
VARIANTS: dict[str, dict[str, Any]] = {
    "": {}, "w/o MMA": {"method.mma": False}, "w/o SE-CCL": {"method.se_ccl": False},
    "w/o CCL": {"method.ccl": False}, "w/o KT": {"method.kt": False}}
REMOVED = ("removed_1", "removed_2")


def jobs(options: Options) -> list[Job]:
    """Every variant of ML-ECS, with answers under fewer modalities."""
    return [options.job(dataset, METHOD, seed,
                        {"data.split": split, "partition.rho": rho, **changes},
                        variant, extras=("absence",))
            for seed in range(options.seeds)
            for dataset in options.datasets
            for split in options.splits or splits_of(dataset)
            for rho in options.rhos or RHOS
            for variant, changes in VARIANTS.items()]


def findings(options: Options, results: Results) -> Findings:
    """Scores of every variant, and what each part is worth."""
    tables: list[Table] = []
    said: list[str] = []
    for dataset in results.distinct("dataset", {}):
        for split in results.distinct("split", {"dataset": dataset}):
            where: dict[str, Label] = {"dataset": dataset, "split": split}
            cells: list[Labels] = [where | {"rho": rho} for rho in results.distinct("rho", where)]
            tables.append(_scores(results, where, cells))
            table, sentences = _worth(results, where, cells)
            tables.append(table)
            said += sentences
    return Findings(tuple(tables), tuple(said))


def _scores(results: Results, where: Labels, cells: list[Labels]) -> Table:
    metric = primary(results)
    nodes = (("devices", f"client.avg_{metric}"), ("server", f"server.{metric}"))
    columns = (*nodes, *((f"{who}, {i + 1} lost", f"extra.absence.{name}.{key}")
                         for who, key in nodes for i, name in enumerate(REMOVED)))
    rows = []
    for cell in cells:
        for variant in results.distinct("variant", cell):
            group = {**cell, "variant": variant}
            rows.append((Cell(f"ρ={share(float(cell['rho']), 1)}"),
                         Cell(variant or "ML-ECS", group),
                         *(Cell(mean_text(results.at(key, group)), group)
                           for _, key in columns)))
    return Table(
        f"{METRICS[metric]} without parts of ML-ECS, {data_words(results, where)}",
        ("setting", "variant", *(name for name, _ in columns)), tuple(rows),
        f"Mean ± standard deviation over {seeds_words(results, where)}, last round. 'Lost': the "
        "trained nodes answer with that many modalities fewer, drawn at random per sample, keeping "
        "at least one.", names=2)


def _worth(results: Results, where: Labels, cells: list[Labels]) -> tuple[Table, list[str]]:
    """Full minus each variant, for devices and server."""
    metric = primary(results)
    keys = (("devices", f"client.avg_{metric}"), ("server", f"server.{metric}"))
    rows, said = [], []
    for variant in results.distinct("variant", where):
        if not variant:
            continue
        row = [Cell(str(variant))]
        for who, key in keys:
            row += [difference_cell(paired(results.at(key, {**cell, "variant": ""}),
                                           results.at(key, {**cell, "variant": variant})),
                                    {**cell, "variant": variant}) for cell in cells]
            overall = pooled(results, key, cells, {"variant": ""}, {"variant": variant})
            row.append(difference_cell(overall, None))
            if overall:
                said.append(f"{data_words(results, where)}: ML-ECS minus {variant}, "
                            f"{METRICS[metric]} of the {who}: {difference_text(overall)}, "
                            f"{overall.n} seeds.")
        rows.append(tuple(row))
    said += _lost(results, where, cells, metric)
    names = [*(f"ρ={share(float(cell['rho']), 1)}" for cell in cells), "all"]
    return Table(
        f"What each part is worth: ML-ECS minus the variant, {data_words(results, where)}",
        ("part", *(f"{who}, {name}" for who, _ in keys for name in names)), tuple(rows),
        "Paired by seed, 95 % confidence interval.", "differences"), said


def _lost(results: Results, where: Labels, cells: list[Labels], metric: str) -> list[str]:
    """How much a lost modality costs the full method."""
    said = []
    for who, key in (("devices", f"client.avg_{metric}"), ("server", f"server.{metric}")):
        for i, name in enumerate(REMOVED):
            costs = []
            for cell in cells:
                group = {**cell, "variant": ""}
                full = spread(results.at(key, group, FINAL))
                less = spread(results.at(f"extra.absence.{name}.{key}", group))
                if full and less:
                    costs.append(less.mean - full.mean)
            if costs:
                said.append(f"{data_words(results, where)}: {i + 1} modalit"
                            f"{'y' if not i else 'ies'} fewer at inference changes the "
                            f"{METRICS[metric]} of the {who} by "
                            f"{signed(sum(costs) / len(costs))} on average over ρ.")
    return said
