"""Tables that every comparison of methods shows: scores per cell, and paired differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mlecs_jax.report.axes import counted
from mlecs_jax.report.blocks import proper, words
from mlecs_jax.repro import paper
from mlecs_jax.repro.job import USUAL, Label
from mlecs_jax.repro.methods import NOTES, PUBLISHED, compared
from mlecs_jax.repro.results import BEST_VAL, FINAL, Results
from mlecs_jax.repro.statistics import Difference, common_means, paired
from mlecs_jax.repro.tables import (
    METRICS,
    Cell,
    Findings,
    Labels,
    Table,
    difference_cell,
    difference_text,
    mark_best,
    mean_text,
    plain,
    pooled,
    primary,
    share,
)

SHORT = {"rho": "ρ", "num_clients": "N", "labelled": "labels", "mask_schedule": "availability",
         "public_labels": "public labels"}
SAYS_NOTHING = "one seed says nothing about the difference"

Namer = Callable[[Labels, Labels], str]
"""``(cell, where)`` to words for what sets the cell apart within ``where``."""


def cell_words(cell: Labels, where: Labels) -> str:
    """Label by label, e.g. ``ρ=.5``."""
    return ", ".join(_label_words(k, v) for k, v in cell.items() if k not in where)


def compare_all(results: Results, *axes: str, name: Namer = cell_words) -> Findings:
    """For every dataset and split: scores in every cell that the axes span, and what ML-ECS,
    ML-ECS+ and a user's own method gain over every other."""
    tables: list[Table] = []
    sentences: list[str] = []
    for dataset in results.distinct("dataset", {}):
        for split in results.distinct("split", {"dataset": dataset}):
            where: dict[str, Label] = {"dataset": dataset, "split": split}
            cells = cells_of(results, where, axes)
            tables.append(score_table(results, where, cells, name=name))
            for ours in compared(results.distinct("method", where)):
                found, said = compare(results, where, cells, ours, name)
                tables += found
                sentences += said
    return Findings(tuple(tables), tuple(sentences))


def cells_of(results: Results, where: Labels, axes: Sequence[str]) -> list[Labels]:
    """The cells that were run: distinct values along the axes, in order of the first seed."""
    found = {tuple(run.labels[axis] for axis in axes): None for run in results.of(where)}
    return [{**where, **dict(zip(axes, values, strict=True))} for values in found]


def data_words(results: Results, where: Labels) -> str:
    """``UR-Fall, frame split``, with SIMULATED where the data are."""
    sources = {run.data_source for run in results.of(where)}
    mark = "" if sources == {"real"} else ", SIMULATED data"
    return f"{proper(str(where['dataset']))}, {where['split']} split{mark}"


def seeds_words(results: Results, where: Labels) -> str:
    """``5 seeds``; :func:`mlecs_jax.repro.tables.mean_text` says where there are fewer."""
    return counted(num_seeds(results, where), "seed") + (
        "" if _all_seeds(results, where) else ", or as many as n says")


def num_seeds(results: Results, where: Labels) -> int:
    """Seeds that any run with these labels has."""
    return len(results.distinct("seed", where))


def ranked_words(results: Results, where: Labels, methods: Sequence[str] | None = None) -> str:
    """Of which seeds ranks are, where runs (of these methods) have unlike ones."""
    runs = tuple(run for run in results.runs if methods is None or run.labels["method"] in methods)
    return "" if _all_seeds(Results(runs), where) else ", over the seeds that all have"


def _all_seeds(results: Results, where: Labels) -> bool:
    """Every group of runs has every seed."""
    groups: dict[tuple[object, ...], set[Label]] = {}
    for run in results.of(where):
        rest = tuple((name, value) for name, value in run.labels.items() if name != "seed")
        groups.setdefault(rest, set()).add(run.labels["seed"])
    return len({frozenset(seeds) for seeds in groups.values()}) <= 1


def _label_words(name: str, value: Label) -> str:
    if isinstance(value, bool):
        return f"{SHORT.get(name, name)}: {'yes' if value else 'no'}"
    if name == "labelled" and not value:
        return "all labels"
    if isinstance(value, str):
        return value
    return f"{SHORT.get(name, name)}={plain(value)}"


def score_table(
    results: Results, where: Labels, cells: Sequence[Labels], *, variant: str = "",
    name: Namer = cell_words, other: str = "",
) -> Table:
    """Avg, best and worst device and the server, per cell and method, with the paper's figures.

    Args:
      other: a metric beside the one that leads; of it best_val says nothing, as of runs that had
        no rounds to choose from.
    """
    metric = other or primary(results, where)
    chosen = not other and any(
        selection == BEST_VAL for run in results.of(where) for selection, _ in run.values)
    columns = [("devices, avg", FINAL, f"client.avg_{metric}"),
               ("best", FINAL, f"client.best_{metric}"),
               ("worst", FINAL, f"client.worst_{metric}"),
               ("server", FINAL, f"server.{metric}")]
    best_val = "" if not chosen else (
        "; best_val: the round with the best mean validation score of the devices")
    if chosen:
        columns += [("avg at best_val", BEST_VAL, f"client.avg_{metric}"),
                    ("server at best_val", BEST_VAL, f"server.{metric}")]
    ranked = [m for m in results.distinct("method", where) if m != "centralized"]
    rows: list[tuple[Cell, ...]] = []
    for cell in cells:
        rows += _rows_of_cell(results, {**cell, "variant": variant}, name(cell, where), columns)
    return Table(
        f"{METRICS.get(metric) or words(metric)} on test data, {data_words(results, where)}",
        ("setting", "method", *(name for name, _, _ in columns)), tuple(rows),
        f"Mean ± standard deviation over {seeds_words(results, where)}, last round{best_val}. "
        f"Bold: highest mean{ranked_words(results, where, ranked)}; 'centralized' pools all data "
        "and competes with none.",
        names=2)


def _rows_of_cell(
    results: Results, cell: Labels, setting: str, columns: Sequence[tuple[str, str, str]]
) -> list[tuple[Cell, ...]]:
    name = Cell(setting)
    seeds = num_seeds(results, {"dataset": cell["dataset"], "split": cell["split"]})
    rows, values, eligible = [], [], []
    for method in results.distinct("method", cell):
        group = {**cell, "method": method}
        found = [results.at(key, group, selection) for _, selection, key in columns]
        rows.append((Cell(proper(str(method)), group),
                     *(Cell(mean_text(own, seeds), group) for own in found)))
        values.append(found)
        eligible.append(method != "centralized")
    marked = mark_best(rows, values, eligible) if sum(eligible) > 1 else rows
    result: list[tuple[Cell, ...]] = []
    for row in marked:
        result.append((name, *row))
        method = row[0].group["method"] if row[0].group else ""
        printed = _printed(results, {**cell, "method": method})
        if any(key in printed for _, _, key in columns):
            result.append((name, Cell(f"{proper(str(method))}, as printed", tone="quiet"), *(
                Cell(share(printed.get(key)) if selection == FINAL else "", tone="quiet")
                for _, selection, key in columns)))
    return result


def _printed(results: Results, group: Labels) -> dict[str, float]:
    """The paper's figures of the cell that a group of runs stands in: with all labels, sensors
    that stay, and uploads as they are."""
    run = results.of(group)[0].labels
    if any(run.get(name, value) != value for name, value in USUAL):
        return {}
    return paper.printed(str(run["dataset"]), str(run["method"]), str(run["split"]),
                         float(run["rho"]), int(run["num_clients"]))


def compare(
    results: Results, where: Labels, cells: Sequence[Labels], ours: str,
    name: Namer = cell_words,
) -> tuple[list[Table], list[str]]:
    """Paired differences of one method to every other, per cell and over all, of the devices and of
    the server, and what those of the devices say."""
    metric = primary(results, where)
    others = [str(m) for m in results.distinct("method", where) if m != ours]
    if not others:
        return [], []
    mine: Labels = {"method": ours, "variant": ""}
    shared = _with_all(results, cells, {ours, *others})
    part = f", {len(shared)} of {len(cells)} settings" if 0 < len(shared) < len(cells) else ""
    tables, said = [], []
    for who, key in (("devices", f"client.avg_{metric}"), ("server", f"server.{metric}")):
        rows = []
        for other in others:
            theirs: Labels = {"method": other, "variant": ""}
            overall = pooled(results, key, shared or cells, mine, theirs)
            if overall and who == "devices":
                said.append(_sentence(ours, other, overall, METRICS[metric],
                                      data_words(results, where), part))
            if overall or who == "devices":  # not every method has a server
                rows.append((
                    Cell(proper(other)),
                    *(difference_cell(paired(results.at(key, {**cell, **mine}),
                                             results.at(key, {**cell, **theirs})),
                                      {**cell, **mine}) for cell in cells),
                    difference_cell(overall, None)))
        if rows:
            tables.append(Table(
                f"{proper(ours)} minus each other method, {METRICS[metric]} of the {who}, "
                f"{data_words(results, where)}",
                ("minus", *(name(cell, where) for cell in cells), "all"), tuple(rows),
                "Paired by seed (same partition and modality sets), mean difference and 95 % "
                "confidence interval (Student's t over seeds). Column 'all' averages a seed's "
                "cells first" + (f", of the settings in which every method has run{part}" if part
                                 else "" if shared else ", of the settings that both methods have")
                + ". Marked where the interval excludes 0; no correction for the number of "
                "comparisons.", "differences"))
    return tables, said + _first_places(results, where, cells, ours, metric)


def _with_all(results: Results, cells: Sequence[Labels], methods: set[str]) -> list[Labels]:
    """The cells in which all these methods have run."""
    return [cell for cell in cells if methods <= set(results.distinct("method", cell))]


def _sentence(
    ours: str, other: str, found: Difference, metric: str, data: str, part: str
) -> str:
    a, b = proper(ours), proper(other)
    head = f"{data}: {a} minus {b}, {metric} of the devices: {difference_text(found)}"
    note = f" ({b}: {NOTES[other]})" if other in NOTES else ""
    seeds = f", {found.n} seeds" if found.low is not None else ""
    return f"{head}{seeds}{part}; {verdict(a, found)}{note}."


def with_seeds(found: Difference) -> str:
    """A difference and how many seeds it is of, where nothing is said of who is better."""
    told = f", {found.n} seeds" if found.low is not None else f"; {SAYS_NOTHING}"
    return difference_text(found) + told


def verdict(name: str, found: Difference, lower: bool = False) -> str:
    """What a difference says of the method ``name``; ``lower``: less is better."""
    if found.low is None:
        return SAYS_NOTHING
    if found.above or found.below:
        return f"{name} is {'worse' if found.above == lower else 'better'}"
    return "no difference is shown"


def _first_places(
    results: Results, where: Labels, cells: Sequence[Labels], ours: str, metric: str
) -> list[str]:
    """In how many cells (each of avg, best, worst, server) the method's mean is the highest, of
    the settings in which all its rivals have run, and over the seeds that they share."""
    first = total = 0
    nodes: dict[str, None] = {}
    rivals = [m for m in results.distinct("method", where)
              if m in PUBLISHED or m == ours]
    cells = _with_all(results, cells, set(rivals))
    for cell in cells:
        for name in ("client.avg_", "client.best_", "client.worst_", "server."):
            means = common_means({
                m: results.at(name + metric, {**cell, "method": m, "variant": ""})
                for m in rivals})
            if ours in means and len(means) > 1:
                total += 1
                nodes[name.removeprefix("client.").strip("_.")] = None
                first += round(means[ours], 3) >= max(round(v, 3) for v in means.values())
    if not total:
        return []
    others = [proper(str(m)) for m in PUBLISHED if m in rivals and m != ours]
    if len(others) == len(set(PUBLISHED) - {ours}):
        among = "the published methods" + ("" if ours in PUBLISHED else " and itself")
    else:
        among = f"itself and {', '.join(others)}"
    return [f"{data_words(results, where)}: {proper(ours)} has the highest mean of {among}"
            f"{ranked_words(results, where, rivals)} in {first} of {total} cells "
            f"({counted(len(cells), 'setting')} × {', '.join(nodes)}; ties count)."]
