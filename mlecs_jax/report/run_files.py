"""The files of one run, read with distrust: `read_run(workdir) -> RunFiles`.

A run may be under way, or come from a method that has no server or no broadcast; whatever is not
there reads as None. Values of the wrong kind count as absent as well.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

from mlecs_jax.errors import UserError

_LARGEST = 1e300  # NaN and infinity are not below it either


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """What a run has written so far.

    Attributes:
      name: name of the run's folder.
      config: the whole config, nested.
      rounds: one entry per complete round, in order of rounds, as in ``metrics.jsonl``.
      summary: ``summary.json``; empty while the run is under way.
      samples: generated answers to read, as in ``samples.jsonl``; empty where there are none.
    """

    name: str
    config: dict[str, Any]
    rounds: list[dict[str, Any]]
    summary: dict[str, Any]
    samples: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    @property
    def finished(self) -> bool:
        return bool(self.summary)

    @property
    def last(self) -> dict[str, Any]:
        return self.rounds[-1]

    @property
    def unit(self) -> str:
        """What a record is of: a ``round``, a ``version`` of the model of a cloud that waits for
        no one, or an ``epoch`` on one machine."""
        if "edges" in self.last:
            return "version"
        return "epoch" if "epoch" in self.last else "round"

    @property
    def total_rounds(self) -> int | None:
        for value in (self.summary.get("rounds"), self.last.get("rounds"),
                      dig(self.config, "train", "rounds")):
            if (known := number(value)) is not None:
                return int(known)
        return None

    @functools.cached_property
    def data_source(self) -> str | None:
        """``real``, ``simulated`` or None; one simulated round makes a run simulated."""
        named = {text(entry.get("data_source")) for entry in self.rounds}
        if self.finished:
            named.add(text(self.summary.get("data_source")))
        if "simulated" in named:
            return "simulated"
        return "real" if named == {"real"} else None

    @property
    def method(self) -> str:
        return text(self.summary.get("method")) or text(dig(self.config, "method", "name")) or "run"

    @property
    def dataset(self) -> str:
        name = text(self.summary.get("dataset")) or text(dig(self.config, "data", "name"))
        return name or (text(self.config.get("config_name")) or "unnamed data").partition(":")[0]

    @functools.cached_property
    def clients(self) -> list[dict[str, Any]]:
        """One entry per client as in the summary; empty while the run is under way."""
        found = dig(self.summary, "client", "per_client")
        return [c for c in found if isinstance(c, dict)] if isinstance(found, list) else []

    @functools.cached_property
    def presence(self) -> list[list[list[float]]]:
        """``[round][client][modality]`` in [0, 1]; rounds without a well-formed table are left out.

        All tables have the shape of the first.
        """
        tables: list[list[list[float]]] = []
        for entry in self.rounds:
            rows = entry.get("modalities")
            if not isinstance(rows, list) or not rows or not all(isinstance(r, list) for r in rows):
                continue
            table = [[min(max(float(v), 0.0), 1.0) if isinstance(v, bool | int | float) else 0.0
                      for v in row] for row in rows]
            width = len((tables or [table])[0][0])
            if width and all(len(r) == width for r in table) and (
                not tables or len(table) == len(tables[0])
            ):
                tables.append(table)
        return tables

    @property
    def num_clients(self) -> int | None:
        value = number(self.summary.get("num_clients"))
        if value is None:
            value = number(dig(self.config, "partition", "num_clients"))
        if value is None and self.presence:
            value = len(self.presence[0])
        return None if value is None else int(value)

    @functools.cached_property
    def modalities(self) -> list[str]:
        """Names in index order; numbered where the files do not name them (yet)."""
        names = self.summary.get("modalities") or dig(self.config, "data", "modalities")
        width = len(self.presence[0][0]) if self.presence else None
        if isinstance(names, list) and (width is None or len(names) == width):
            return [str(name) for name in names]
        return [f"modality {i}" for i in range(width or 0)]


def read_run(workdir: Path) -> RunFiles:
    """Reads ``config.json``, ``metrics.jsonl`` and, where the run has ended, ``summary.json``.

    Raises:
      UserError: no such folder, a file is missing or broken, or no round is complete yet.
    """
    if not workdir.is_dir():
        raise UserError(f"no folder '{workdir}'; give the --workdir of a run")
    config = _read_object(workdir / "config.json")
    summary_file = workdir / "summary.json"
    summary = _read_object(summary_file) if summary_file.exists() else {}
    rounds = _read_rounds(workdir / "metrics.jsonl")
    samples = _read_samples(workdir / "samples.jsonl") if summary else []
    return RunFiles(workdir.resolve().name, config, rounds, summary, samples)


def dig(tree: object, *path: str) -> Any:
    """The value at a path of nested dicts, or None where there is none."""
    for key in path:
        if not isinstance(tree, dict):
            return None
        tree = tree.get(key)
    return tree


def number(value: object) -> float | None:
    """The value where it is a number that can be drawn, else None.

    JSON may hold NaN and integers of any length, and true and false are no numbers.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) <= _LARGEST else None


def numbers(value: object) -> list[float | None]:
    """The entries of a list, each as `number` has it; empty where it is no list."""
    return [number(v) for v in value] if isinstance(value, list) else []


def text(value: object) -> str | None:
    """The value where it is a non-empty string, else None."""
    return value if isinstance(value, str) and value else None


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"'{path.parent}' has no {path.name}; give the --workdir of a run") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read '{path}' ({error}); mend or remove the file") from None
    if not isinstance(content, dict):
        raise UserError(f"'{path}' holds no JSON object; mend or remove the file")
    return content


def _read_samples(path: Path) -> list[dict[str, Any]]:
    """Generated answers; a run without texts has no such file."""
    if not path.exists():
        return []
    try:
        entries = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line]
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read '{path}' ({error}); mend or remove the file") from None
    return [entry for entry in entries if isinstance(entry, dict)]


def _read_rounds(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text("utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        raise UserError(
            f"'{path.parent}' has no {path.name}; the report needs a run with one complete round"
        ) from None
    except OSError as error:
        raise UserError(f"cannot read '{path}' ({error})") from None
    rounds: dict[int, dict[str, Any]] = {}
    for i, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            if i == len(lines) - 1:  # a run killed while writing: the round will be run again
                continue
            raise UserError(f"'{path}' line {i + 1} is not JSON; mend or remove the line") from None
        index = entry.get("round") if isinstance(entry, dict) else None
        if not isinstance(index, int) or isinstance(index, bool):
            raise UserError(f"'{path}' line {i + 1} names no round; mend or remove the line")
        rounds[index] = entry  # a resumed run may have written a round twice: the later one holds
    if not rounds:
        raise UserError(f"'{path}' holds no complete round yet; wait for the first to end")
    return [rounds[index] for index in sorted(rounds)]
