"""A job: one run of a sweep, and the folder that caches it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlecs_jax import durable
from mlecs_jax.config import SPEED_ONLY, in_effect
from mlecs_jax.repro.methods import is_own

Values = dict[str, Any]
Label = str | int | float | bool
USUAL = (("labelled", 0), ("public_labels", True), ("server_labelled", 1.0),
         ("mask_schedule", "static"), ("uplink", "none"))
"""Labels that go without saying."""
_WORDS = ("method", "split", "variant", "dataset", "mask_schedule")


def _scarce(values: Values, *off: str) -> bool:
    """Few public samples have a label and, of these values by dotted name, one is off."""
    def at(name: str) -> Any:
        group, _, key = name.partition(".")
        return values.get(group, {}).get(key, 1.0)

    return at("partition.server_labelled") < 1 and (not off or not all(map(at, off)))


REVISED: Mapping[str, Callable[[Values], bool]] = {
    "co_plms": lambda values: True,
    "ml_ecs": lambda values: _scarce(values, "method.ccl", "ccl.weight"),
    "ml_ecs_plus": lambda values: _scarce(values, "plus.distil"),
    "localpub_mixed": _scarce}
"""Methods whose numbers a fix has changed, and where: runs of before are of another key.

Co-PLMs: the first distillation is within the first round's server steps and not beside them.
ML-ECS without CCL, ML-ECS+ without a teacher on its devices: where few public samples have a
label, batches are of these. Local + public, mixed: its server draws from all public samples, as
ML-ECS+'s does. (Not made again for it: ML-ECS without CCL sent anchors that nobody read, and runs
of then count them in what goes down.)
"""
RECORD = "job.json"  # in a run's folder, written when the run has ended well
FINAL, BEST_VAL = "final", "best_val"  # which round a figure is of: the last, or the chosen


@dataclasses.dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
      labels: what the tables group by, e.g. ``{'method': 'ml_ecs', 'rho': 0.5, 'seed': 0}``;
        ``method`` and ``seed`` are always there.
      values: the whole configuration as nested plain values.
      runner: name of a module, see :mod:`mlecs_jax.repro.worker`.
      extras: further measurements on the trained nodes, each kept in ``<extra>.json`` of the
        run's folder; a cached run that lacks one is asked for it without being trained again.
      twins: other configurations of the same numbers, since the method does not read what differs:
        a finished run of theirs serves as well.
    """

    labels: dict[str, Label]
    values: Values
    runner: str = "mlecs_jax.repro.runners"
    extras: tuple[str, ...] = ()
    twins: tuple[Values, ...] = ()

    @property
    def name(self) -> str:
        """The labels in short, for people."""
        return " ".join(str(v) if k in _WORDS else f"{k}={v}" for k, v in self.labels.items()
                        if v != "" and (k, v) not in USUAL)


@dataclasses.dataclass(frozen=True)
class Provenance:
    """What a run's numbers depend on beside its configuration.

    Attributes:
      data: ``{'source', 'samples', 'sha256'}`` of the dataset.
      code: version of the sources that compute the numbers (:mod:`code_version`).
    """

    data: dict[str, Any]
    code: str


def configuration_key(job: Job, data: Mapping[str, Any]) -> str:
    """A short hash of everything the job's numbers depend on except the code.

    What changes speed alone or is off is left out, and so are other methods' own options, but for
    a user's method, which may read any: new options do not turn the cached runs of before stale.
    """
    values = {k: v for k, v in in_effect(job.values).items() if k not in SPEED_ONLY}
    if data.get("source") in ("real", "simulated") and isinstance(values.get("data"), Mapping):
        values["data"] = values["data"] | {"source": data["source"]}  # what auto has found
    method = values.get("method")
    if isinstance(method, Mapping):
        name = str(method.get("name"))
        values["method"] = {k: v for k, v in method.items()
                            if not isinstance(v, Mapping) or k == name or is_own(name)}
        if name in REVISED and REVISED[name](values):
            values["revision"] = 1
    text = json.dumps([job.runner, values, dict(data)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def folder_name(job: Job, provenance: Provenance) -> str:
    """Name of the run's folder: words for people, then the key, then the code version."""
    words = "-".join(str(job.labels[k]) for k in ("dataset", "method", "variant", "split")
                     if job.labels.get(k))
    numbers = "".join(f"-{short}{job.labels[k]}" for k, short in
                      (("rho", "rho"), ("num_clients", "n"), ("seed", "s")) if k in job.labels)
    readable = re.sub(r"[^A-Za-z0-9._+-]+", "_", words + numbers)
    return f"{readable}-{configuration_key(job, provenance.data)}-{provenance.code}"


def find(runs: Path, job: Job, provenance: Provenance, *, any_code: bool) -> Path:
    """The folder of a job: its own, unless a finished run of the same configuration and data stands
    under a name that another artefact gave it, or with ``any_code`` was made by other sources; or a
    twin's, where that is whole and the job's own is not there."""
    own = runs / folder_name(job, provenance)
    if (own / RECORD).exists():
        return own
    if same := _finished(runs, job, provenance, any_code):
        return same
    for values in job.twins:
        twin = _finished(runs, dataclasses.replace(job, values=values), provenance, any_code)
        if twin and is_done(twin, job):
            return twin
    return own


def _finished(runs: Path, job: Job, provenance: Provenance, any_code: bool) -> Path | None:
    """The newest finished run of a job's configuration under any name."""
    key = configuration_key(job, provenance.data)
    for code in (provenance.code, "*") if any_code else (provenance.code,):
        others = [path.parent for path in runs.glob(f"*-{key}-{code}/{RECORD}")]
        if others:
            return max(others, key=lambda folder: (folder / RECORD).stat().st_mtime)
    return None


def is_done(folder: Path, job: Job) -> bool:
    """The run is whole and everything asked of it has been measured."""
    return all((folder / name).exists()
               for name in (RECORD, *map(extra_file, job.extras)))


def measure(folder: Path, extras: Sequence[str], measurement: Callable[[str], Any]) -> None:
    """Makes the extras that a finished run has not got, by name; each is there whole or not."""
    for extra in extras:
        path = folder / extra_file(extra)
        if not path.exists():
            durable.write(path, json.dumps(measurement(extra), indent=1) + "\n")


def extra_file(extra: str) -> str:
    """Where an extra stands in a run's folder."""
    return f"{extra}.json"
