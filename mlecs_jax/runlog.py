"""The files of a run: config, one metrics line per complete round, events, summary.

``metrics.jsonl`` and the checkpoints together are the record: a line is written before its
round's checkpoint, and lines of rounds that no checkpoint confirms are dropped on resuming.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlecs_jax.config import SPEED_ONLY
from mlecs_jax.errors import UserError

CONFIG, METRICS, SUMMARY = "config.json", "metrics.jsonl", "summary.json"


class RunLog:
    """Writes a run's folder; see the module's docstring.

    Raises:
      UserError: the folder holds a run of another configuration, or cannot be written.
    """

    def __init__(self, workdir: Path, config: Mapping[str, Any]):
        self.workdir = workdir
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            self._claim(config)
        except OSError as error:
            raise UserError(f"cannot write to workdir {workdir}: {error.strerror}; choose another "
                            "with --workdir") from None
        self.records: list[dict[str, Any]] = []
        self._events: Any = None

    @property
    def summary_path(self) -> Path:
        return self.workdir / SUMMARY

    def resume(self, complete_rounds: int) -> None:
        """Keeps the records of the first ``complete_rounds`` rounds and drops what came after."""
        path = self.workdir / METRICS
        lines = path.read_text().splitlines() if path.exists() else []
        self.records = [json.loads(line) for line in lines[:complete_rounds]]
        if len(self.records) < complete_rounds:
            raise UserError(f"{path} has {len(self.records)} lines but {complete_rounds} rounds "
                            "are saved; restore it, or use another --workdir")
        _write(path, "".join(line + "\n" for line in lines[:complete_rounds]))

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
        _write(self.summary_path, json.dumps(summary, indent=2) + "\n")

    def close(self) -> None:
        if self._events is not None:
            self._events.close()

    def _claim(self, config: Mapping[str, Any]) -> None:
        path = self.workdir / CONFIG
        if path.exists():
            try:
                found = json.loads(path.read_text())
            except ValueError:
                raise UserError(f"{path} is not JSON; remove it or use another --workdir") from None
            changed = [key for key in _differences(found, config)
                       if key.split(".")[0] not in SPEED_ONLY]
            if changed:
                raise UserError(f"workdir {self.workdir} belongs to a run with another "
                                f"{', '.join(changed)}; use another --workdir or the same values")
        elif (self.workdir / METRICS).exists():
            raise UserError(f"workdir {self.workdir} holds metrics but no {CONFIG}; use another "
                            "--workdir")
        _write(path, json.dumps(config, indent=2) + "\n")

    def _write_events(self, record: Mapping[str, Any]) -> None:
        """The round's numbers as TensorBoard events."""
        if self._events is None:
            from tensorboardX import SummaryWriter  # slow to import, and not every caller logs

            self._events = SummaryWriter(
                str(self.workdir / "events"), purge_step=record["round"], flush_secs=10)
        for name, value in _scalars(record):
            self._events.add_scalar(name, value, record["round"])


def _write(path: Path, text: str) -> None:
    """Replaces a file in one step, so that a kill leaves the old or the new one."""
    temporary = path.with_name(f".{path.name}.new")
    with open(temporary, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


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
