"""Table 1: every method at ρ = .5, .7 and .8, with three devices; of captions also every score,
captions to read, and what each modality is worth to trained nodes."""

from __future__ import annotations

from mlecs_jax.repro import caption_tables
from mlecs_jax.repro.comparison import compare_all
from mlecs_jax.repro.job import Job
from mlecs_jax.repro.methods import chosen
from mlecs_jax.repro.options import Options, only
from mlecs_jax.repro.results import Results
from mlecs_jax.repro.tables import Findings

RHOS = (0.5, 0.7, 0.8)
TITLE = "Table 1: every method, three devices"


def jobs(options: Options) -> list[Job]:
    """Seed by seed, so that a sweep that is cut short compares all methods on fewer seeds."""
    only(options, "datasets", "methods", "splits", "rhos")
    methods = chosen(options.methods)
    return [options.job(dataset, method, seed, {"data.split": split, "partition.rho": rho},
                        extras=extras_of(dataset, method))
            for seed in options.seeds
            for dataset in options.datasets
            for split in options.splits or splits_of(dataset)
            for rho in options.rhos or RHOS
            for method in methods]


def splits_of(dataset: str) -> tuple[str, ...]:
    """The paper's random frames and the leak-free split; captions are split by video alone."""
    return ("sequence",) if dataset == "vast" else ("frame", "sequence")


def extras_of(dataset: str, method: str) -> tuple[str, ...]:
    """Captions of the nodes of some methods are measured with each modality taken away."""
    return ("masking",) if dataset == "vast" and method in caption_tables.MASKED else ()


def findings(options: Options, results: Results) -> Findings:
    """Scores, then what ML-ECS and ML-ECS+ gain over every other method."""
    return caption_tables.added(compare_all(results, "rho"), results)
