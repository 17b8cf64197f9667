"""Table 1: every method at ρ = .5, .7 and .8, with three devices."""

from __future__ import annotations

from mlecs_jax.repro.comparison import compare, score_table
from mlecs_jax.repro.job import Job, Label
from mlecs_jax.repro.methods import OURS, chosen
from mlecs_jax.repro.options import Options
from mlecs_jax.repro.results import Results
from mlecs_jax.repro.tables import Findings, Table

RHOS = (0.5, 0.7, 0.8)
TITLE = "Table 1: every method, three devices"


def jobs(options: Options) -> list[Job]:
    """Seed by seed, so that a sweep that is cut short compares all methods on fewer seeds."""
    return [options.job(dataset, method, seed, {"data.split": split, "partition.rho": rho})
            for seed in range(options.seeds)
            for dataset in options.datasets
            for split in options.splits or splits_of(dataset)
            for rho in options.rhos or RHOS
            for method in chosen(options.methods)]


def splits_of(dataset: str) -> tuple[str, ...]:
    """The paper's random frames and the leak-free split; captions are split by video alone."""
    return ("sequence",) if dataset == "vast" else ("frame", "sequence")


def findings(options: Options, results: Results) -> Findings:
    """Scores, then what ML-ECS and ML-ECS+ gain over every other method."""
    tables: list[Table] = []
    sentences: list[str] = []
    for dataset in results.distinct("dataset", {}):
        for split in results.distinct("split", {"dataset": dataset}):
            where: dict[str, Label] = {"dataset": dataset, "split": split}
            cells: list[dict[str, Label]] = [where | {"rho": rho}
                                             for rho in results.distinct("rho", where)]
            tables.append(score_table(results, where, cells))
            for ours in OURS:
                table, said = compare(results, where, cells, ours)
                if table:
                    tables.append(table)
                sentences += said
    return Findings(tuple(tables), tuple(sentences))
