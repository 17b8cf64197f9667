"""The numbers of a sweep as one tidy table: a row per run and metric."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from mlecs_jax.repro.engine import Outcome
from mlecs_jax.repro.job import BEST_VAL, FINAL, Label, extra_file

_SKIPPED = {"per_client", "confusion", "round"}
SHAPES = "shapes"  # the source of data of which a run reads no more
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run of a sweep.

    Attributes:
      labels: as its job has them.
      values: ``{(selection, metric): number}``, e.g. ``('final', 'client.avg_f1')``.
      folder: where it stands.
      data_source, data: ``real`` or ``simulated``, and the data's hash.
      code: version of the sources.
      seconds: worker time; None where nobody knows.
      earlier: it is a row of an earlier sweep's file (:mod:`earlier`), and has no folder here.
    """

    labels: Mapping[str, Label]
    values: Mapping[tuple[str, str], float]
    folder: Path
    data_source: str
    data: str
    code: str
    seconds: float | None = None
    earlier: bool = False


@dataclasses.dataclass(frozen=True)
class Results:
    """Everything a sweep's tables are made of."""

    runs: tuple[Run, ...]

    def at(
        self, metric: str, labels: Mapping[str, Label], selection: str = FINAL
    ) -> dict[int, float]:
        """``{seed: value}`` of the runs with these labels.

        Raises:
          ValueError: the labels leave several runs of one seed.
        """
        found: dict[int, float] = {}
        for run in self.of(labels):
            if (selection, metric) in run.values:
                seed = int(run.labels["seed"])
                if seed in found:
                    raise ValueError(f"several runs of seed {seed} have the labels {dict(labels)}")
                found[seed] = run.values[selection, metric]
        return found

    def of(self, labels: Mapping[str, Label]) -> list[Run]:
        """The runs with these labels."""
        return [run for run in self.runs if _match(run.labels, labels)]

    def distinct(self, name: str, labels: Mapping[str, Label]) -> list[Any]:
        """Distinct values of a label among the runs with these labels, in their order."""
        return list(dict.fromkeys(run.labels[name] for run in self.of(labels)
                                  if name in run.labels))

    @property
    def sources(self) -> set[str]:
        return {run.data_source for run in self.runs}


def read(outcomes: Iterable[Outcome]) -> Results:
    """The numbers of all runs that ended well."""
    runs = []
    for outcome in outcomes:
        if outcome.failure or outcome.provenance is None:
            continue
        values = outcome.row.values if outcome.row else dict(_numbers(_summary(outcome)))
        runs.append(Run(outcome.job.labels, values, outcome.folder,
                        str(outcome.provenance.data["source"]),
                        str(outcome.provenance.data["sha256"]), outcome.provenance.code,
                        outcome.cost, outcome.row is not None))
    return Results(tuple(runs))


def _summary(outcome: Outcome) -> dict[str, Any]:
    """What a run's folder says of it."""
    summary = json.loads((outcome.folder / "summary.json").read_text("utf-8"))
    for extra in outcome.job.extras:
        summary.setdefault("extra", {})[extra] = json.loads(
            (outcome.folder / extra_file(extra)).read_text("utf-8"))
    summary.setdefault("validation", _validation(outcome.folder / "metrics.jsonl"))
    if not _chooses(outcome.job.values):
        summary["best_val"] = None
    return summary


def versions(results: Results) -> dict[str, set[str]]:
    """Of which versions of its sources the runs of each method are; counts by shapes alone, which
    a loop of their own makes, left out."""
    found: dict[str, set[str]] = {}
    for run in results.runs:
        if run.data_source != SHAPES:
            found.setdefault(str(run.labels["method"]), set()).add(run.code)
    return found


def tidy(results: Results, workdir: Path) -> list[Row]:
    """One row per run and metric, with the run's labels, data, code and folder."""
    return [{**run.labels, "selection": selection, "metric": metric, "value": value,
             "data_source": run.data_source, "data_sha256": run.data, "code": run.code,
             "run": _relative(run.folder, workdir)}
            for run in results.runs for (selection, metric), value in run.values.items()]


def write(rows: Sequence[Row], folder: Path) -> None:
    """Writes ``results.csv`` and ``results.parquet``."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with open(folder / "results.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    table = pyarrow.table({name: [row.get(name) for row in rows] for name in columns})
    parquet.write_table(table, folder / "results.parquet")


def _validation(metrics: Path) -> dict[str, Any]:
    """Scores on validation data after the last round, where a run has written rounds."""
    if not metrics.exists():
        return {}
    last = json.loads(metrics.read_text("utf-8").splitlines()[-1])
    scored = last.get("eval", {}).get("val", {})
    devices = scored.get("after_amt", {}).get("clients", {})
    return {"client": {f"avg_{name}": statistics.fmean(own) for name, own in devices.items()
                       if all(map(math.isfinite, own))},
            "server": scored.get("server", {})}


def _chooses(values: Mapping[str, Any]) -> bool:
    """Whether validation had several rounds to choose from: of captions, those whose test rows are
    answered, which is the last alone unless ``captions.test_every`` says more."""
    captions = values.get("captions")
    return captions is None or bool(captions["test_every"])


def _numbers(summary: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], float]]:
    """Every figure of a summary by selection and dotted name."""
    for group in ("client", "server", "validation", "communication", "timing", "extra"):
        for name, value in _leaves(summary.get(group), group):
            yield (FINAL, name), value
    for group in ("client", "server"):
        chosen = summary.get("best_val") or {}
        for name, value in _leaves(chosen.get(group), group):
            yield (BEST_VAL, name), value


def _leaves(tree: Any, where: str) -> Iterator[tuple[str, float]]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            if key not in _SKIPPED:
                yield from _leaves(value, f"{where}.{key}")
    elif isinstance(tree, int | float) and not isinstance(tree, bool) and math.isfinite(tree):
        yield where, float(tree)


def _match(own: Mapping[str, Label], wanted: Mapping[str, Label]) -> bool:
    return all(own.get(name) == value for name, value in wanted.items())


def _relative(folder: Path, base: Path) -> str:
    return folder.relative_to(base).as_posix() if folder.is_relative_to(base) else str(folder)
