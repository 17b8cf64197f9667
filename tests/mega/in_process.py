"""The sweep's engine without its worker processes, so that a test can put a toy in a model's place.

Hands runners exactly what :mod:`mlecs_jax.repro.worker` hands them.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlecs_jax.repro.earlier import EarlierRuns
from mlecs_jax.repro.engine import NONE, RUNS, Display, Outcome, _record
from mlecs_jax.repro.job import Job, find, is_done


def execute(
    jobs: Sequence[Job], workdir: Path, *, processes: int, display: Display,
    any_code: bool = False, train: bool = True, earlier: EarlierRuns = NONE,
) -> list[Outcome]:
    """As :func:`mlecs_jax.repro.engine.execute`, one job after the other."""
    assert processes and train and not earlier.by_key
    display.plan(len(jobs), 0)
    return [_outcome(job, workdir, any_code) for job in jobs]


def _outcome(job: Job, workdir: Path, any_code: bool) -> Outcome:
    runner: Any = importlib.import_module(job.runner)
    origin, progress = runner.provenance(job.values), []
    folder = find(workdir / RUNS, job, origin, any_code=any_code)
    if is_done(folder, job):
        return Outcome(job, folder, origin, cached=True)
    begun = time.perf_counter()
    runner.run(job.values, folder, job.extras, lambda *shown: progress.append(shown))
    assert all(complete <= total for complete, total in progress)
    seconds = time.perf_counter() - begun
    _record(folder, job, origin, seconds)
    return Outcome(job, folder, origin, seconds=seconds, cost=seconds)
