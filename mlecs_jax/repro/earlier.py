"""Runs that an earlier sweep's CSV file tells of, and that need not be made again.

``--write-docs`` leaves a row per run and setting beside its page. A row holds every figure of its
run, and the run's name ends with the hash of its configuration and data and with the version of its
code: enough to put it beside runs that are made here, paired by seed, as a run found in the cache
would be. So a table can be continued on another machine, and a method of one's own is compared with
a committed table by running that method alone.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlecs_jax.errors import UserError
from mlecs_jax.repro.job import BEST_VAL, FINAL, Job, Provenance, configuration_key

SECONDS = "seconds"  # worker time of the run; files of older sweeps have no such column
_COLUMNS = ("run", "code", "data_sha256")  # that every such file has


@dataclasses.dataclass(frozen=True)
class EarlierRun:
    """A run as its row tells of it.

    Attributes:
      name: of its folder, wherever that stood.
      code: version of the sources that made it.
      values: its figures, as :class:`mlecs_jax.repro.results.Run` has them, with six digits.
      seconds: worker time; None where the file does not say.
    """

    name: str
    code: str
    values: Mapping[tuple[str, str], float]
    seconds: float | None


@dataclasses.dataclass(frozen=True)
class EarlierRuns:
    """The runs of some files.

    Attributes:
      by_key: runs of every hash of configuration and data, in the files' order.
    """

    by_key: Mapping[str, Sequence[EarlierRun]] = dataclasses.field(default_factory=dict)

    def find(self, job: Job, provenance: Provenance, *, any_code: bool) -> EarlierRun | None:
        """The run of a job, or of its twin: the same configuration, data and, without
        ``any_code``, the same sources; of several the last. None where no row tells of all that
        the job measures."""
        for values in (job.values, *job.twins):
            key = configuration_key(dataclasses.replace(job, values=values), provenance.data)
            found = [run for run in self.by_key.get(key, ())
                     if (any_code or run.code == provenance.code) and _tells_all(run, job)]
            if found:
                return found[-1]
        return None


def read(paths: Sequence[Path]) -> EarlierRuns:
    """The runs of CSV files that ``--write-docs`` wrote.

    Raises:
      UserError: a file that is not there, or is no such file.
    """
    found: dict[str, list[EarlierRun]] = {}
    for path in paths:
        try:
            with open(path, newline="", encoding="utf-8") as file:
                reader = csv.DictReader(file)
                missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
                if missing:
                    raise UserError(f"--rows: {path} has no column '{missing[0]}'; give a CSV file "
                                    "that --write-docs wrote beside its page")
                runs = [_run(row) for row in reader]
        except OSError as error:
            raise UserError(f"--rows: cannot read {path}: {error.strerror}") from None
        except (ValueError, csv.Error) as error:  # of encodings and numbers
            raise UserError(f"--rows: {path} is no CSV file of a sweep: {error}") from None
        for run in runs:
            key = run.name.rsplit("-", 2)[-2:][0]
            found.setdefault(key, []).append(run)
    return EarlierRuns(found)


def _run(row: Mapping[str, str]) -> EarlierRun:
    if None in row or not (row["run"] and row["code"]):  # as csv tells of odd lengths
        raise ValueError("a row is longer than the head, or says no run")
    values = {}
    for column, text in row.items():
        selection, _, metric = column.partition(".")
        if selection in (FINAL, BEST_VAL) and text:
            values[selection, metric] = float(text)
    seconds = row.get(SECONDS)
    return EarlierRun(row["run"], row["code"], values, float(seconds) if seconds else None)


def _tells_all(run: EarlierRun, job: Job) -> bool:
    """Whether every extra of a job is among the figures."""
    return all(any(metric.startswith(f"extra.{extra}.") for _, metric in run.values)
               for extra in job.extras)
