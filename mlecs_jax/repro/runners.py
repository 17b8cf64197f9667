"""What a worker does with a job of ML-ECS: one experiment of :mod:`mlecs_jax.experiment`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mlecs_jax import config as configs
from mlecs_jax import experiment, model_files, runlog
from mlecs_jax.config import CaptionsConfig, DataConfig
from mlecs_jax.data import sources
from mlecs_jax.data.samples import Samples
from mlecs_jax.repro import absence, masking
from mlecs_jax.repro.code_version import code_version
from mlecs_jax.repro.job import Provenance, Values, measure

EXTRAS = {"absence": absence.scores_without, "masking": masking.costs}
DATASETS_KEPT = 2  # in a worker's memory


@functools.lru_cache(DATASETS_KEPT)
def _samples(data: DataConfig, captions: CaptionsConfig | None) -> Samples:
    return sources.load(data, captions)


@functools.lru_cache(DATASETS_KEPT)
def _identity(data: DataConfig, captions: CaptionsConfig | None) -> dict[str, Any]:
    return runlog.data_identity(_samples(data, captions))


def _independent_of_split(data: DataConfig) -> DataConfig:
    """One dataset in memory serves both splits."""
    return dataclasses.replace(data, split="frame")


def provenance(values: Values) -> Provenance:
    """See :class:`Provenance`; loads the dataset.

    Raises:
      UserError: bad options, or no such data.
    """
    config = configs.parse(values)
    data = _identity(_independent_of_split(config.data), config.captions)
    return Provenance(model_files.with_identity(data, config), code_version(config.method.name))


def run(
    values: Values, folder: Path, extras: Sequence[str], on_round: Callable[[int, int], None]
) -> None:
    """Runs or resumes one experiment in ``folder``, then measures the extras that are not there.

    Raises:
      UserError: see :func:`mlecs_jax.experiment.run`.
    """
    config = configs.parse(values)
    experiment.use_compilation_cache()
    total = config.train.rounds
    samples = _samples(_independent_of_split(config.data), config.captions)
    experiment.run(
        config, folder, samples=samples, briefly=True,
        on_start=lambda setting, complete: on_round(complete, total),
        on_round=lambda record: on_round(record["round"] + 1, total))
    measure(folder, extras, lambda extra: EXTRAS[extra](config, samples, folder))
