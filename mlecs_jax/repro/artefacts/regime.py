"""Where collaboration pays: labels on devices, labels on public data, devices, split and ρ."""

from __future__ import annotations

import dataclasses
from typing import Any

from mlecs_jax.report.axes import counted
from mlecs_jax.report.blocks import proper
from mlecs_jax.repro.artefacts.table1 import splits_of
from mlecs_jax.repro.comparison import cells_of, compare_all, data_words
from mlecs_jax.repro.job import Job, Label
from mlecs_jax.repro.methods import chosen, compared, read_of
from mlecs_jax.repro.options import PUBLICS, Options, each, only, with_changes
from mlecs_jax.repro.results import Results
from mlecs_jax.repro.statistics import paired
from mlecs_jax.repro.tables import (
    METRICS,
    Cell,
    Findings,
    Labels,
    Table,
    difference_cell,
    difference_text,
    plain,
    primary,
    signed,
)

TITLE = "Where collaboration pays"
LABELLED = {"smoke": (25, 0), "cpu": (25, 50, 200, 0), "paper": (25, 50, 200, 0)}
RHOS = (0.5, 0.8)
CONTROL = "localpub"
KEYS = ("public_labels", "server_labelled")  # of the partition: what the public data have
UNSAID = (3, -1)  # numbers of devices that need no word: the paper's, and those of a manifest
AXES = (*KEYS, "num_clients", "labelled", "rho")


def jobs(options: Options) -> list[Job]:
    """Every method in every regime; the scarcest labels first."""
    only(options, "datasets", "methods", "splits", "rhos", "devices", "labelled", "publics")
    methods = chosen(options.methods)
    return [_job(options, dataset, method, seed, public, {
                "data.split": split, "partition.rho": rho, "partition.labelled": labelled,
                **devices})
            for seed in options.seeds
            for dataset in options.datasets
            for split in options.splits or splits_of(dataset)
            for devices in each("partition.num_clients", options.devices)
            for public in options.publics or PUBLICS
            for labelled in options.labelled or LABELLED[options.preset]
            for rho in options.rhos or RHOS
            for method in methods]


def _job(options: Options, dataset: str, method: str, seed: int, public: str,
         changes: dict[str, Any]) -> Job:
    """A job under some labels of public data; where the method does not read them, the same run
    stands for several."""
    base = options.base(dataset)
    usual = {f"partition.{key}": base["partition"][key] for key in KEYS}
    asked = {name: usual | dict(PUBLICS[name]) for name in PUBLICS}

    def read(name: str) -> dict[str, Any]:
        return read_of(method, asked[name], base.get("captions") is not None)

    whole = options.job(dataset, method, seed, changes | dict(PUBLICS[public]))
    same = options.job(dataset, method, seed, changes | {
        name: value for name, value in read(public).items() if name in PUBLICS[public]})
    twins = [with_changes(same.values, asked[name]) for name in PUBLICS
             if read(name) == read(public)]
    return dataclasses.replace(same, labels=whole.labels, twins=tuple(
        values for values in twins if values != same.values))


def findings(options: Options, results: Results) -> Findings:
    """Scores and differences per regime, and the regimes in which collaboration pays."""
    found = compare_all(results, *AXES, name=lambda cell, where: words(cell))
    return Findings((*heat_maps(results), *found.tables),
                    (*where_it_pays(results), *found.sentences))


def heat_maps(results: Results) -> list[Table]:
    """Every method in every regime against the control that does not communicate."""
    tables = []
    for dataset in results.distinct("dataset", {}):
        metric = primary(results, {"dataset": dataset})
        key = f"client.avg_{metric}"
        for split in results.distinct("split", {"dataset": dataset}):
            where: dict[str, Label] = {"dataset": dataset, "split": split}
            cells, methods = cells_of(results, where, AXES), results.distinct("method", where)
            if CONTROL not in methods:
                continue
            rows = []
            for method in methods:
                if method == CONTROL:
                    continue
                row = [Cell(proper(str(method)))]
                for cell in cells:
                    found = paired(results.at(key, {**cell, "method": method}),
                                   results.at(key, {**cell, "method": CONTROL}))
                    shown = difference_cell(found, {**cell, "method": method})
                    row.append(dataclasses.replace(
                        shown, text=signed(found.mean if found else None)))
                rows.append(tuple(row))
            tables.append(Table(
                f"{METRICS[metric]} of the devices minus {proper(CONTROL)}'s, "
                f"{data_words(results, where)}",
                ("minus " + proper(CONTROL), *(words(cell) for cell in cells)), tuple(rows),
                "Mean paired difference; ▲ and ▼ where its 95 % confidence interval excludes 0.",
                "heat"))
    return tables


def where_it_pays(results: Results) -> list[str]:
    """Regimes where a method of ours is above, or below, the control without communication."""
    said = []
    for dataset in results.distinct("dataset", {}):
        metric = primary(results, {"dataset": dataset})
        key = f"client.avg_{metric}"
        for split in results.distinct("split", {"dataset": dataset}):
            where: dict[str, Label] = {"dataset": dataset, "split": split}
            for ours in compared(results.distinct("method", where)):
                for control in (CONTROL, "localpub_mixed", "private_only"):
                    said += _sentence(results, where, ours, control, key, METRICS[metric])
    return said


def _sentence(
    results: Results, where: Labels, ours: str, control: str, key: str, metric: str
) -> list[str]:
    above, below, total = [], [], 0
    for regime in cells_of(results, where, AXES):
        found = paired(results.at(key, {**regime, "method": ours}),
                       results.at(key, {**regime, "method": control}))
        if found is None or found.low is None:  # one seed says nothing
            continue
        total += 1
        if found.above or found.below:
            (above if found.above else below).append(f"{words(regime)}: {difference_text(found)}")
    if not total:
        return []
    head = (f"{data_words(results, where)}: {proper(ours)} against {proper(control)}, {metric} of "
            f"the devices, {counted(total, 'regime')}")
    if not above and not below:
        return [f"{head}: no interval excludes 0."]
    better = f"better in {len(above)}" + (f" ({'; '.join(above)})" if above else "")
    worse = f"worse in {len(below)}" + (f" ({'; '.join(below)})" if below else "")
    return [f"{head}: {better}, {worse}."]


def words(regime: Labels) -> str:
    """``25 labels, public unlabelled, ρ=.5``, after the number of devices where it is unusual."""
    count = regime["num_clients"]
    devices = "" if count in UNSAID else f"{count} devices, "
    return (f"{devices}{regime['labelled'] or 'all'} labels, public {public_words(regime)}, "
            f"ρ={plain(float(regime['rho']))}")


def public_words(regime: Labels) -> str:
    """``unlabelled`` (on devices), ``labelled``, ``10 % labelled``."""
    found = float(regime["server_labelled"])
    if found == 1:
        return "labelled" if regime["public_labels"] else "unlabelled"
    alone = "" if regime["public_labels"] else " for the server alone"
    return f"{100 * found:g} % labelled{alone}"
