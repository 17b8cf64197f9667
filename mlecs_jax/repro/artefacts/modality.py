"""Availability that changes over time: static, drawn per round, drawn per sample, at equal ρ."""

from __future__ import annotations

import dataclasses

from mlecs_jax.repro.artefacts.table1 import splits_of
from mlecs_jax.repro.comparison import compare_all
from mlecs_jax.repro.job import Job
from mlecs_jax.repro.methods import chosen
from mlecs_jax.repro.options import Options, only
from mlecs_jax.repro.results import Results
from mlecs_jax.repro.tables import Findings

TITLE = "Time-varying availability of modalities (the paper's future work)"
RHOS = (0.5, 0.8)
SCHEDULES = ("static", "per_round", "per_sample")
INERT = ("Under per_sample every device owns every modality and samples lack some: the modality "
         "counts that MMA weighs uploads by are then equal, MMA is plain averaging, and what "
         "ML-ECS shows there is its other parts; FedMLLM, which holds a device the nearer the more "
         "modalities it lacks, holds none there.")
METHODS = ("ml_ecs", "ml_ecs_plus", "localpub", "localpub_mixed", "private_only")


def jobs(options: Options) -> list[Job]:
    """Every schedule at every ρ."""
    only(options, "datasets", "methods", "splits", "rhos")
    methods = chosen(options.methods, METHODS)
    return [options.job(dataset, method, seed, {
                "data.split": split, "partition.rho": rho, "partition.mask_schedule": schedule})
            for seed in options.seeds
            for dataset in options.datasets
            for split in options.splits or splits_of(dataset)
            for rho in options.rhos or RHOS
            for schedule in SCHEDULES
            for method in methods]


def findings(options: Options, results: Results) -> Findings:
    """Scores per schedule and ρ, and what collaboration gives under each."""
    found = compare_all(results, "mask_schedule", "rho")
    inert = "ml_ecs" in results.distinct("method", {"mask_schedule": "per_sample"})
    return dataclasses.replace(found, sentences=(*found.sentences, *((INERT,) if inert else ())))
