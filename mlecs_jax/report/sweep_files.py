"""The files of a sweep: `read_sweep(folder) -> SweepFiles`."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from mlecs_jax.errors import UserError
from mlecs_jax.report.blocks import proper
from mlecs_jax.report.run_files import RunFiles, read_run, text

SWEEP = "sweep.json"
Labels = Mapping[str, Any]
SERIES = ("method", "variant", "uplink")  # labels that a chart compares
_SHORT = {"rho": "ρ", "num_clients": "N", "labelled": "labels per device",
          "public_labels": "public labels", "server_labelled": "labelled at the server",
          "mask_schedule": "availability"}


@dataclasses.dataclass(frozen=True)
class SweepRun:
    """One run of a sweep.

    Attributes:
      labels: what it was, e.g. ``{'method': 'ml_ecs', 'rho': 0.5, 'seed': 0}``.
      link: its folder, relative to the sweep's.
      failure: a line; empty where it ended well.
      folder: where it stands.
      named: ``real`` or ``simulated`` data, ``none`` where nothing was trained; None where
        neither the sweep nor the run's own files say.
      earlier: a row of an earlier sweep stands for it; it has no files here.
    """

    labels: Labels
    link: str
    failure: str
    folder: Path
    named: str | None = None
    earlier: bool = False

    @property
    def source(self) -> str | None:
        return self.named or (self.files.data_source if self.files else None)

    @functools.cached_property
    def files(self) -> RunFiles | None:
        """What it has written; None where that cannot be read, where nothing was trained, or where
        a row stands for it."""
        if self.earlier:
            return None
        try:
            return read_run(self.folder)
        except UserError:
            return None

    @property
    def group(self) -> tuple[tuple[str, Any], ...]:
        """Its labels without the seed: runs of one group are averaged."""
        return tuple((k, v) for k, v in self.labels.items() if k != "seed")

    @property
    def series(self) -> str:
        """What a chart compares: the method, or its variant or uplink where that is set."""
        parts = [proper(str(self.labels.get("method", "run")))]
        if self.labels.get("variant"):
            parts.append(str(self.labels["variant"]))
        if self.labels.get("uplink", "none") != "none":
            parts.append(f"{self.labels['uplink']} uplink")
        return ", ".join(parts)


@dataclasses.dataclass(frozen=True)
class SweepFiles:
    """What a sweep has written.

    Attributes:
      content: ``sweep.json``.
      runs: all runs, failed ones too.
    """

    name: str
    content: dict[str, Any]
    runs: tuple[SweepRun, ...]

    @functools.cached_property
    def data_source(self) -> str | None:
        """``real``, ``simulated`` or None; one simulated run makes a sweep simulated."""
        found = {run.source for run in self.finished} - {None, "none"}
        if "simulated" in found:
            return "simulated"
        return "real" if found == {"real"} else None

    @property
    def counted(self) -> bool:
        """Whether there are no data behind its figures: nothing was trained."""
        return bool(self.finished) and all(run.source == "none" for run in self.finished)

    @property
    def finished(self) -> list[SweepRun]:
        return [run for run in self.runs if not run.failure]

    @property
    def failed(self) -> list[SweepRun]:
        """One of every run that failed, whatever it stands for."""
        return distinct(run for run in self.runs if run.failure)

    @property
    def datasets(self) -> list[str]:
        """What its runs are on, as papers write it."""
        named = (run.labels.get("dataset") for run in self.runs)
        return list(dict.fromkeys(proper(str(name)) for name in named if name))

    @property
    def given_name(self) -> str | None:
        """What sets it apart from other sweeps of its artefact: its ``--name``."""
        return text(self.content.get("name"))

    @functools.cached_property
    def left_out(self) -> str:
        """A sentence on the runs that charts leave out, having only a row of an earlier sweep to go
        by; empty where there are none."""
        rows = Counter(run.series for run in self.finished if run.earlier)
        of = Counter(run.series for run in self.finished)
        shares = {name: f"{count} of {of[name]}" for name, count in rows.items()}
        if len(shares) == len(of) > 1 and len(set(shares.values())) == 1:
            told = f"{next(iter(shares.values()))} of each"
        else:
            told = ", ".join(f"{share} of {name}" for name, share in shares.items())
        return f" Without runs that are rows of an earlier sweep: {told}." if rows else ""

    @functools.cached_property
    def usual(self) -> dict[str, Any]:
        """Labels that all trained runs share: they are said once."""
        trained = [run.labels for run in self.finished if run.files or run.earlier]
        return {k: v for k, v in (trained[0] if trained else {}).items()
                if all(labels.get(k) == v for labels in trained)}

    def cells(self) -> dict[str, list[SweepRun]]:
        """Trained runs by everything but method, variant, uplink and seed, in words."""
        found: dict[str, list[SweepRun]] = {}
        for run in self.finished:
            if run.files:
                found.setdefault(self.words({k: v for k, v in run.labels.items()
                                             if k not in (*SERIES, "seed")}), []).append(run)
        return found

    def words(self, labels: Labels) -> str:
        """Labels that set runs apart, for people: ``frame, ρ 0.5``."""
        parts = []
        for name, value in labels.items():
            if name in self.usual or value == "" or name == "seed":
                continue
            if name in ("method", "dataset"):
                parts.append(proper(str(value)))
            elif isinstance(value, bool):
                parts.append(f"{_SHORT.get(name, name)}: {'yes' if value else 'no'}")
            elif isinstance(value, str):
                parts.append(value.replace("_", " "))
            else:
                shown = "all" if name == "labelled" and not value else f"{value:g}"
                parts.append(f"{_SHORT.get(name, name)} {shown}")
        return ", ".join(parts) or "all runs"


def distinct(runs: Iterable[SweepRun]) -> list[SweepRun]:
    """The first of every run: one may stand for several settings, whose numbers are the same."""
    found: dict[str, SweepRun] = {}
    for run in runs:
        found.setdefault(run.link, run)
    return list(found.values())


def by_series(runs: list[SweepRun]) -> dict[str, list[SweepRun]]:
    """Runs of one cell by what is compared."""
    found: dict[str, list[SweepRun]] = {}
    for run in runs:
        found.setdefault(run.series, []).append(run)
    return found


def of_runs(runs: list[SweepRun], figure: Callable[[RunFiles], float | None]) -> list[float]:
    """A figure of every run that has it."""
    return [v for run in runs if run.files and (v := figure(run.files)) is not None]


def read_sweep(folder: Path) -> SweepFiles:
    """Reads ``sweep.json``; the runs' own files are read when they are asked for.

    Raises:
      UserError: no such folder, or the file is missing or broken.
    """
    path = folder / SWEEP
    try:
        content = json.loads(path.read_text("utf-8"))
        runs = tuple(SweepRun(run["labels"], str(run["run"]), str(run["failure"]),
                              folder / str(run["run"]), text(run.get("data_source")),
                              bool(run.get("earlier")))
                     for run in content["runs"])
    except FileNotFoundError:
        raise UserError(f"'{folder}' has no {SWEEP}; give the folder of a sweep") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"cannot read '{path}' ({error}); run the sweep again") from None
    return SweepFiles(folder.resolve().name, content, runs)
