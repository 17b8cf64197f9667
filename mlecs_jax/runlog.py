"""The files of a run: config, one metrics line per complete round, events, summary.

``metrics.jsonl`` and the checkpoints together are the record: a line is written before its
round's checkpoint, and lines of rounds that no checkpoint confirms are dropped on resuming.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlecs_jax import durable
from mlecs_jax.config import SPEED_ONLY, in_effect
from mlecs_jax.data.samples import BUILT_HERE, Samples
from mlecs_jax.errors import UserError

KEPT = 2  # rounds of metrics a kill, or a torn checkpoint, may leave unconfirmed
CONFIG, METRICS, SUMMARY = "config.json", "metrics.jsonl", "summary.json"
SAMPLES = "samples.jsonl"
SEEN_WITHIN = 60.0  # s until other hosts see what was written on a shared file system


class RunLog:
    """Writes a run's folder; see the module's docstring.

    The folder is locked as long as the log is open: two processes never write one run.

    Args:
      identity: the whole configuration, and under ``data`` what :func:`data_identity` says.

    Raises:
      UserError: the folder holds a run of another configuration or of other data, another process
        is running in it, or it cannot be written.
    """

    def __init__(self, workdir: Path, identity: Mapping[str, Any]):
        self.workdir = workdir
        self.records: list[dict[str, Any]] = []
        self._events: Any = None
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            self._lock = open(workdir / ".lock", "w")  # held until close
        except OSError as error:
            raise UserError(f"cannot write to workdir {workdir}: {error.strerror}; choose another "
                            "with --workdir") from None
        try:
            self._claim(identity)
        except BaseException:
            self._lock.close()
            raise

    def finished_summary(self, complete_rounds: int) -> dict[str, Any] | None:
        """The summary of a run whose ``complete_rounds`` are all there are; None otherwise."""
        path = self.workdir / SUMMARY
        if not path.exists():
            return None
        summary = _read_json(path)
        return summary if summary.get("rounds") == complete_rounds else None

    def resume(self, complete_rounds: int) -> None:
        """Keeps the records of the first ``complete_rounds`` rounds and drops what came after.

        Raises:
          UserError: records are missing or torn, or there are more than a killed run leaves behind
            (checkpoints were removed), so that dropping them would lose something.
        """
        path = self.workdir / METRICS
        lines = path.read_text().splitlines() if path.exists() else []
        whole = [record for record in map(_parse_line, lines) if record is not None]
        if any(_parse_line(line) is None for line in lines[:complete_rounds]) or len(
                lines) < complete_rounds:
            raise UserError(f"{path} has {len(whole)} whole lines but {complete_rounds} rounds are "
                            "saved; restore it, or use another --workdir")
        if len(whole) > complete_rounds + KEPT:
            raise UserError(f"{path} has {len(whole)} rounds but only {complete_rounds} are saved; "
                            "restore checkpoints/, or use another --workdir")
        self.records = whole[:complete_rounds]
        durable.write(path, "".join(line + "\n" for line in lines[:complete_rounds]))

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds the line of one complete round, safe on disk when it returns."""
        self.records.append(dict(record))
        with open(self.workdir / METRICS, "a") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._write_events(record)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes ``summary.json``, whole or not at all."""
        durable.write(self.workdir / SUMMARY, json.dumps(summary, indent=2) + "\n")

    def write_samples(self, samples: Sequence[Mapping[str, Any]]) -> None:
        """Writes ``samples.jsonl``, one generated answer a line."""
        write_samples(self.workdir, samples)

    def close(self) -> None:
        """Ends the run's claim on the folder."""
        if self._events is not None:
            self._events.close()
        self._lock.close()

    def _claim(self, identity: Mapping[str, Any]) -> None:
        """Locks the folder and writes ``config.json``, unless it holds rounds of another run."""
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"another process is running in workdir {self.workdir}; wait for it, "
                            "or use another --workdir") from None
        path = self.workdir / CONFIG
        metrics = self.workdir / METRICS
        if metrics.exists() and metrics.stat().st_size:
            if not path.exists():
                raise UserError(f"workdir {self.workdir} holds metrics but no {CONFIG}; use "
                                "another --workdir")
            # An option that came later, and is off, makes no other run of an old one.
            changed = [key for key in _differences(*map(_found, (
                in_effect(_read_json(path)), in_effect(identity))))
                       if key.split(".")[0] not in SPEED_ONLY]
            if changed:
                raise UserError(f"workdir {self.workdir} belongs to a run with another "
                                f"{', '.join(changed)}; use another --workdir or the same values")
        durable.write(path, json.dumps(identity, indent=2) + "\n")

    def _write_events(self, record: Mapping[str, Any]) -> None:
        """The round's numbers as TensorBoard events."""
        if self._events is None:
            from tensorboardX import SummaryWriter  # slow to import, and not every caller logs

            self._events = SummaryWriter(
                str(self.workdir / "events"), purge_step=record["round"], flush_secs=10)
            self._events.add_text("data_source", record["data_source"], record["round"])
        for name, value in _scalars(record):
            self._events.add_scalar(name, value, record["round"])


def _found(identity: Mapping[str, Any]) -> Mapping[str, Any]:
    """An identity without the source that was asked for, where it says which was found."""
    if "source" not in (identity.get("samples") or {}):
        return identity
    return identity | {"data": {k: v for k, v in identity["data"].items() if k != "source"}}


def write_samples(folder: Path, samples: Sequence[Mapping[str, Any]]) -> None:
    """Writes ``samples.jsonl`` into a folder, one generated answer a line."""
    durable.write(folder / SAMPLES, "".join(json.dumps(s) + "\n" for s in samples))


def stamp(workdir: Path) -> str:
    """Differs between folders, also of equal contents: processes that see one folder see one."""
    path = workdir / CONFIG
    return f"{path.stat().st_mtime_ns} {path.read_text()}" if path.exists() else "absent"


def data_identity(samples: Samples) -> dict[str, Any]:
    """What a run was trained on: its source, size and a hash of every reading and target, and of
    a user's data also of what their manifest says of them."""
    digest = hashlib.sha256()
    for values in (*samples.inputs.values(), samples.present, samples.groups, samples.labels,
                   samples.devices):
        if values is not None:
            digest.update(values.tobytes())
    digest.update("\n".join(samples.texts or ()).encode())
    if samples.name not in BUILT_HERE:
        digest.update(samples.strata.tobytes())
        layout = {name: (str(x.dtype), x.shape) for name, x in samples.inputs.items()}
        digest.update(repr((samples.class_names, samples.context, layout)).encode())
    return {"source": samples.source, "samples": len(samples), "sha256": digest.hexdigest()}


def _parse_line(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (ValueError, OSError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged; restore it, or use another --workdir")
    return found


def _differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Dotted names of values that differ between two nested dicts."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return [name for key in sorted({*a, *b})
                for name in _differences(a.get(key), b.get(key), f"{where}.{key}".lstrip("."))]
    return [] if a == b else [where]


def _scalars(tree: Any, where: str = "") -> list[tuple[str, float]]:
    """Numbers of a nested record by path; lists (one entry per device) by number."""
    if isinstance(tree, Mapping):
        return [pair for key, value in tree.items()
                for pair in _scalars(value, f"{where}/{key}".lstrip("/"))]
    if isinstance(tree, list):
        return [pair for i, value in enumerate(tree) for pair in _scalars(value, f"{where}/{i}")]
    if isinstance(tree, bool) or not isinstance(tree, int | float):
        return []
    return [(where, float(tree))]
