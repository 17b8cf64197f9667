"""Table 2: the number of devices at ρ = .8; 50 and 200 devices go beyond the paper."""

from __future__ import annotations

from mlecs_jax.repro.artefacts.table1 import splits_of
from mlecs_jax.repro.comparison import compare_all
from mlecs_jax.repro.job import Job
from mlecs_jax.repro.methods import ALL, chosen
from mlecs_jax.repro.options import Options, one_rho, only
from mlecs_jax.repro.results import Results
from mlecs_jax.repro.tables import Findings

TITLE = "Table 2: number of devices"
DEVICES = {"smoke": (3, 5), "cpu": (3, 5, 10, 20, 50, 200), "paper": (3, 5, 10, 20, 50, 200)}
MANY = 50  # from here on a run takes many times longer, and a few methods tell the story
SHARED_TEST = ("sequence",)  # splits whose test samples do not grow fewer with every device
FEW_METHODS = ("ml_ecs", "ml_ecs_plus", "localpub", "localpub_mixed")
RHO = 0.8


def jobs(options: Options) -> list[Job]:
    """Small federations first, seed by seed.

    Large ones are scored on the sequence split unless ``--splits`` asks for another: on frames a
    device among 200 holds four test samples, and its macro-F1 is noise.
    """
    only(options, "datasets", "methods", "splits", "rhos", "devices")
    rho = one_rho(options, RHO)
    counts = options.devices or DEVICES[options.preset]
    methods = {large: chosen(options.methods, FEW_METHODS if large else ALL)
               for large in (False, True)}
    return [options.job(dataset, method, seed, {
                "data.split": split, "partition.rho": rho, "partition.num_clients": count})
            for large in methods
            for seed in options.seeds
            for dataset in options.datasets
            for split in options.splits or (SHARED_TEST if large else splits_of(dataset))
            for count in counts if (count >= MANY) == large
            for method in methods[large]]


def findings(options: Options, results: Results) -> Findings:
    """Scores per number of devices, and what ML-ECS and ML-ECS+ gain."""
    return compare_all(results, "num_clients")
