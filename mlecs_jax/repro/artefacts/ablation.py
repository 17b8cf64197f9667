"""Fig. 4: ML-ECS without its parts, and with modalities missing only at inference; and the levers
of ML-ECS+, with the validation scores they are chosen by beside the test scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlecs_jax.errors import UserError
from mlecs_jax.report.axes import counted
from mlecs_jax.report.blocks import proper
from mlecs_jax.repro.artefacts.regime import KEYS, public_words
from mlecs_jax.repro.artefacts.table1 import splits_of
from mlecs_jax.repro.comparison import (
    cells_of,
    data_words,
    num_seeds,
    ranked_words,
    seeds_words,
    with_seeds,
)
from mlecs_jax.repro.job import Job, Label
from mlecs_jax.repro.options import PUBLICS, Options, each, only
from mlecs_jax.repro.results import Results
from mlecs_jax.repro.statistics import (
    common_means,
    common_seeds,
    mean_by_seed,
    paired,
    paired_over,
)
from mlecs_jax.repro.tables import (
    METRICS,
    Cell,
    Findings,
    Labels,
    Table,
    difference_cell,
    mean_text,
    plain,
    pooled,
    primary,
    share,
)

TITLE = "Fig. 4: ablations, and modalities lost at inference"
RHOS = (0.5, 0.8)
Variants = Mapping[str, Mapping[str, Any]]
PARTS: Variants = {
    "": {}, "w/o MMA": {"method.mma": False}, "w/o SE-CCL": {"method.se_ccl": False},
    "w/o CCL": {"method.ccl": False}, "w/o KT": {"method.kt": False}}
LEVERS: Variants = {
    "": {}, "w/o teacher": {"plus.distil": 0.0}, "w/o devices' share": {"plus.devices_share": 0.0},
    "w/o lesson of the server": {"plus.server_distil": 0.0}, "w/o alignment": {"plus.align": False},
    "w/o LoRA": {"plus.lora": False}, "uniform weights": {"plus.weighting": "uniform"},
    "confidence weights": {"plus.weighting": "confidence"}, "+ encoders": {"plus.encoders": True},
    "+ volume": {"plus.volume": 1.0, "ccl.negatives": "all"},
    "+ class-aware volume": {"plus.volume": 1.0, "ccl.negatives": "other_class"}}
VARIANTS: Mapping[str, Variants] = {"ml_ecs": PARTS, "ml_ecs_plus": LEVERS}
REMOVED = ("removed_1", "removed_2")
AXES = (*KEYS, "labelled", "rho")


def jobs(options: Options) -> list[Job]:
    """Every variant of ML-ECS, with answers under fewer modalities; or of ML-ECS+."""
    only(options, "datasets", "methods", "splits", "rhos", "labelled", "publics")
    for method in options.methods or ():
        if method not in VARIANTS:
            raise UserError(f"mlecs ablation has no variants of '{method}'; use "
                            f"{' or '.join(VARIANTS)}")
    return [options.job(dataset, method, seed,
                        {"data.split": split, "partition.rho": rho, **labels, **public, **changes},
                        variant, extras=("absence",) if method == "ml_ecs" else ())
            for seed in options.seeds
            for dataset in options.datasets
            for split in options.splits or splits_of(dataset)
            for public in [PUBLICS[name] for name in options.publics or ()] or [{}]
            for labels in each("partition.labelled", options.labelled)
            for rho in options.rhos or RHOS
            for method in options.methods or ("ml_ecs",)
            for variant, changes in VARIANTS[method].items()]


def findings(options: Options, results: Results) -> Findings:
    """Scores of every variant, and what each part is worth."""
    tables: list[Table] = []
    said: list[str] = []
    for dataset in results.distinct("dataset", {}):
        for split in results.distinct("split", {"dataset": dataset}):
            for method in results.distinct("method", {"dataset": dataset, "split": split}):
                where: dict[str, Label] = {"dataset": dataset, "split": split, "method": method}
                cells = cells_of(results, where, AXES)
                tables.append(_scores(results, where, cells))
                for part in ("", "validation.") if method == "ml_ecs_plus" else ("",):
                    table, sentences = _worth(results, where, cells, part)
                    tables.append(table)
                    said += sentences
                if method == "ml_ecs_plus":
                    said += _chosen(results, where, cells)
                said += _lost(results, where, cells)
    return Findings(tuple(tables), tuple(said))


def _words(cell: Labels, cells: list[Labels]) -> str:
    """What sets a cell apart: ``50 labels, public unlabelled, ρ=.5``."""
    parts = []
    if len({c["labelled"] for c in cells}) > 1 or cell["labelled"]:
        parts.append(f"{cell['labelled'] or 'all'} labels")
    if len({tuple(c[key] for key in KEYS) for c in cells}) > 1 or public_words(cell) != "labelled":
        parts.append(f"public {public_words(cell)}")
    return ", ".join([*parts, f"ρ={plain(float(cell['rho']))}"])


def _nodes(metric: str, part: str = "") -> tuple[tuple[str, str], ...]:
    return ("devices", f"{part}client.avg_{metric}"), ("server", f"{part}server.{metric}")


def _scores(results: Results, where: Labels, cells: list[Labels]) -> Table:
    metric = primary(results, where)
    columns = [*_nodes(metric), *((f"{who}, validation", key)
                                  for who, key in _nodes(metric, "validation."))]
    columns += [(f"{who}, {i + 1} lost", f"extra.absence.{name}.{key}")
                for who, key in _nodes(metric) for i, name in enumerate(REMOVED)
                if results.at(f"extra.absence.{name}.{key}", {**cells[0], "variant": ""})]
    rows, seeds = [], num_seeds(results, where)
    for cell in cells:
        for variant in results.distinct("variant", cell):
            group = {**cell, "variant": variant}
            rows.append((Cell(_words(cell, cells)),
                         Cell(variant or proper(str(where["method"])), group),
                         *(Cell(mean_text(results.at(key, group), seeds), group)
                           for _, key in columns)))
    lost = any("lost" in name for name, _ in columns)
    return Table(
        f"{METRICS[metric]} of variants of {proper(str(where['method']))}, "
        f"{data_words(results, where)}",
        ("setting", "variant", *(name for name, _ in columns)), tuple(rows),
        f"Mean ± standard deviation over {seeds_words(results, where)}, last round, on test data "
        "unless it says validation." + (
            " 'Lost': the trained nodes answer with that many modalities fewer, drawn at random "
            "per sample, keeping at least one." if lost else ""), names=2)


def _worth(
    results: Results, where: Labels, cells: list[Labels], part: str
) -> tuple[Table, list[str]]:
    """Full minus each variant, for devices and server; ``part`` names the data."""
    metric, full = primary(results, where), proper(str(where["method"]))
    keys = _nodes(metric, part)
    data = data_words(results, where) + (", validation data" if part else "")
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
            if overall and not part:
                said.append(f"{data}: {full} minus {variant}, {METRICS[metric]} of the {who}: "
                            f"{with_seeds(overall)}.")
        rows.append(tuple(row))
    names = [*(_words(cell, cells) for cell in cells), "all"]
    return Table(
        f"What each part is worth: {full} minus the variant, {data}",
        ("part", *(f"{who}, {name}" for who, _ in keys for name in names)), tuple(rows),
        "Paired by seed, 95 % confidence interval. Of a variant that adds something (+), less than "
        "0 means that it helps.", "differences"), said


def _chosen(results: Results, where: Labels, cells: list[Labels]) -> list[str]:
    """Which variant validation data choose, and what it has on test data, over the seeds that all
    variants have."""
    metric = primary(results, where)
    (_, key), _ = _nodes(metric)

    def scores(part: str) -> dict[Label, dict[int, float]]:
        return {variant: mean_by_seed([results.at(part + key, {**cell, "variant": variant})
                                       for cell in cells])
                for variant in results.distinct("variant", where)}

    found = scores("validation.")
    known, tested = common_means(found), common_means(scores(""))
    if "" not in known or len(known) < 2:
        return []
    best = max(known, key=lambda v: known[v])
    name = proper(str(where["method"]))
    return [f"{data_words(results, where)}: on validation data the devices' mean {METRICS[metric]} "
            f"over all settings is highest with {best or name + ' as it is'} ({share(known[best])};"
            f" {name} as it is: {share(known[''])}); on test data that variant has "
            f"{share(tested.get(best))}, {name} as it is {share(tested.get(''))}"
            f"{ranked_words(results, where)}; {counted(len(common_seeds(found)), 'seed')}."]


def _lost(results: Results, where: Labels, cells: list[Labels]) -> list[str]:
    """How much a lost modality costs the full method, paired by seed."""
    said, metric = [], primary(results, where)
    groups = [{**cell, "variant": ""} for cell in cells]
    over = " on average over all settings" if len(cells) > 1 else ""
    for who, key in _nodes(metric):
        for i, name in enumerate(REMOVED):
            cost = paired_over([(results.at(f"extra.absence.{name}.{key}", group),
                                 results.at(key, group)) for group in groups])
            if cost:
                said.append(f"{data_words(results, where)}: {i + 1} modalit"
                            f"{'y' if not i else 'ies'} fewer at inference changes the "
                            f"{METRICS[metric]} of the {who}{over} by {with_seeds(cost)}.")
    return said
