"""Runs jobs over worker processes: cached, resumable, one failure never stops the rest."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import connection as connections
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from mlecs_jax import durable
from mlecs_jax.errors import UserError
from mlecs_jax.repro import accelerators, worker
from mlecs_jax.repro.earlier import EarlierRun, EarlierRuns
from mlecs_jax.repro.job import RECORD, Job, Provenance, configuration_key, find, is_done

RUNS, LOGS = "runs", "workers"
NONE = EarlierRuns()
# Then a fresh process: programs of shapes that do not come back take memory, and maps of it.
RUNS_PER_WORKER = 40
MAPS_PER_WORKER = 0.5  # of those that the system allows, past which nothing can be compiled


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
      folder: of the run, under the sweep's ``runs``; a row's is not there.
      provenance: the data and code of the run that stands there.
      failure: one line; empty where the run is whole.
      cached: it was there already.
      seconds: this call spent on it.
      cost: worker seconds of the call that ended the run, whenever that was; None where a row
        does not say.
      row: what an earlier sweep's file tells of it, in the place of a run here.
    """

    job: Job
    folder: Path
    provenance: Provenance | None
    failure: str = ""
    cached: bool = False
    seconds: float = 0.0
    cost: float | None = 0.0
    row: EarlierRun | None = None


@runtime_checkable
class Display(Protocol):
    """What the engine tells while it works."""

    def plan(self, total: int, cached: int) -> None: ...
    def begin(self, slot: int, job: Job) -> None: ...
    def round(self, slot: int, complete: int, total: int) -> None: ...
    def end(self, slot: int, outcome: Outcome) -> None: ...


@dataclasses.dataclass
class _Worker:
    slot: int
    process: Any
    pipe: connections.Connection
    task: tuple[Job, Path, Provenance] | None = None
    begun: float = 0.0
    runs: int = 0


def execute(
    jobs: Sequence[Job], workdir: Path, *, processes: int, display: Display,
    any_code: bool = False, train: bool = True, earlier: EarlierRuns = NONE,
) -> list[Outcome]:
    """Makes sure that every job's run is there; returns how each ended, in the order of ``jobs``.

    Jobs of one configuration are one run, whatever their labels. Jobs whose run is not there are
    left out where ``train`` is False, and after Ctrl-C.

    Args:
      workdir: runs go to ``workdir/runs``, shared by all sweeps of the folder.
      processes: workers, each with its share of the machine's cores, or with an accelerator.
      any_code: finished runs of other versions of the sources count as well.
      train: run what is not there; else only look.
      earlier: runs that need not be made, unless they are there.

    Raises:
      UserError: data or options of the first job are bad, or the folder cannot be written.
    """
    ended: dict[str, Outcome] = {}  # by key
    with _Pool(workdir, processes) as pool:
        origins = pool.provenances(jobs)
        keys = [f"{configuration_key(job, origin.data)}-{origin.code}"
                for job, origin in zip(jobs, origins, strict=True)]
        waiting: list[tuple[str, Job, Path, Provenance]] = []
        for key, (job, origin) in _distinct(keys, jobs, origins).items():
            folder = find(workdir / RUNS, job, origin, any_code=any_code)
            if is_done(folder, job):
                found, cost = _recorded(folder)
                ended[key] = Outcome(job, folder, found, cached=True, cost=cost)
            elif row := earlier.find(job, origin, any_code=any_code):
                ended[key] = Outcome(job, workdir / RUNS / row.name, Provenance(
                    origin.data, row.code), cached=True, cost=row.seconds, row=row)
            else:
                waiting.append((key, job, folder, origin))
        display.plan(len(ended) + len(waiting), len(ended))
        if train:
            with contextlib.suppress(KeyboardInterrupt):
                for key, outcome in pool.run(waiting, display):
                    ended[key] = outcome
    return [dataclasses.replace(ended[key], job=job)
            for key, job in zip(keys, jobs, strict=True) if key in ended]


def _distinct(
    keys: Sequence[str], jobs: Sequence[Job], origins: Sequence[Provenance]
) -> dict[str, tuple[Job, Provenance]]:
    """The first job of every key, with the extras of all of them."""
    found: dict[str, tuple[Job, Provenance]] = {}
    for key, job, origin in zip(keys, jobs, origins, strict=True):
        first = found.get(key, (job, origin))[0]
        extras = tuple(dict.fromkeys((*first.extras, *job.extras)))
        found[key] = (dataclasses.replace(first, extras=extras), origin)
    return found


class _Pool:
    """Worker processes, started when there is work and replaced when they die."""

    def __init__(self, workdir: Path, processes: int):
        self._workdir = workdir
        self._processes = processes
        self._context = multiprocessing.get_context("spawn")  # forking a threaded JAX may hang
        self._workers: list[_Worker] = []
        try:
            (workdir / RUNS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write to workdir {workdir}: {error.strerror}; choose another "
                            "with --workdir") from None

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, *_: object) -> None:
        for member in self._workers:
            member.process.kill()  # runs are safe at any moment; waiting for one could take minutes
            member.process.join()
            member.pipe.close()

    def provenances(self, jobs: Sequence[Job]) -> list[Provenance]:
        """Data, models and code of every job; jobs that share the groups are asked once."""
        known: dict[str, Provenance] = {}
        result = []
        for job in jobs:
            asked = {key: job.values.get(key) for key in ("data", "captions", "model")}
            asked["data"] = {k: v for k, v in (asked["data"] or {}).items() if k != "split"}
            key = json.dumps([job.runner, asked, job.values.get("method", {}).get("name")],
                             sort_keys=True)
            if key not in known:
                known[key] = self._ask(job)
            result.append(known[key])
        return result

    def _ask(self, job: Job) -> Provenance:
        member = self._workers[0] if self._workers else self._start(0)
        member.pipe.send(("provenance", job.runner, job.values, "", (), ""))
        try:
            kind, content = member.pipe.recv()
        except EOFError:
            raise UserError(f"the worker died while it loaded the data of {job.name}; see "
                            f"{self._log(member.slot)}") from None
        if kind == "failed":
            line, trace = content
            if trace:
                raise RuntimeError(trace)
            raise UserError(line)
        return content

    def run(
        self, waiting: Sequence[tuple[str, Job, Path, Provenance]], display: Display
    ) -> Iterator[tuple[str, Outcome]]:
        """Runs jobs in order, as workers become free; yields outcomes as they come."""
        queue = list(reversed(waiting))
        names: dict[int, str] = {}  # slot → key of its job
        for slot in range(min(self._processes, len(queue))):
            if slot >= len(self._workers):
                self._start(slot)
        busy: dict[Any, _Worker] = {}

        def give(member: _Worker) -> None:
            if queue:
                key, job, folder, origin = queue.pop()
                member.task, member.begun = (job, folder, origin), time.perf_counter()
                member.runs += 1
                names[member.slot] = key
                busy[member.pipe] = member
                display.begin(member.slot, job)
                member.pipe.send(
                    ("run", job.runner, job.values, str(folder), job.extras, origin.code))

        for member in list(self._workers):
            give(member)
        while busy:
            for ready in connections.wait(list(busy)):
                member = busy[ready]
                outcome = self._hear(member, display)
                if outcome is None:
                    continue
                del busy[ready]
                display.end(member.slot, outcome)
                yield names[member.slot], outcome
                if queue and (member.runs >= RUNS_PER_WORKER or not member.process.is_alive()
                              or memory_maps(member.process.pid) >= MAPS_PER_WORKER):
                    member.pipe.close()
                    member.process.join()
                    member = self._start(member.slot)
                give(member)

    def _hear(self, member: _Worker, display: Display) -> Outcome | None:
        """One message of a busy worker; the outcome if its job has ended."""
        assert member.task is not None
        job, folder, origin = member.task
        content: Any
        try:
            kind, content = member.pipe.recv()
        except (EOFError, ConnectionResetError):
            member.process.join()
            kind, content = "failed", (
                f"the worker died (exit {member.process.exitcode}); see {self._log(member.slot)}",
                "")
        seconds = time.perf_counter() - member.begun
        if kind == "round":
            complete, total = content
            display.round(member.slot, complete, total)
            return None
        if kind == "done":
            if not (folder / RECORD).exists():  # else an extra alone was measured
                _record(folder, job, origin, seconds)
            found, cost = _recorded(folder)
            return Outcome(job, folder, found, seconds=seconds, cost=cost)
        line, trace = content
        if trace:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "failure.txt").write_text(trace)
            line = f"{line}; see {folder / 'failure.txt'}"
        return Outcome(job, folder, origin, failure=line, seconds=seconds)

    def _start(self, slot: int) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=worker.main, args=(theirs, self._log(slot)),
                                        daemon=True, name=f"repro-worker-{slot}")
        with _environment(_share(slot, self._processes)):
            process.start()
        theirs.close()
        member = _Worker(slot, process, ours)
        self._workers = [m for m in self._workers if m.slot != slot] + [member]
        return member

    def _log(self, slot: int) -> Path:
        return self._workdir / LOGS / f"worker-{slot}.log"


def memory_maps(pid: int) -> float:
    """How many maps of memory a process has, as a share of those that Linux allows one; 0 where
    nobody can tell."""
    try:
        limit = int(Path("/proc/sys/vm/max_map_count").read_text())
        return len(Path(f"/proc/{pid}/maps").read_bytes().splitlines()) / limit
    except (OSError, ValueError):
        return 0.0


def _share(slot: int, processes: int) -> dict[str, str]:
    """What tells a worker its part of the machine: cores, of which XLA reads the number when it
    makes its thread pools (more threads than cores only wait for each other), or an accelerator."""
    cores = str(max(1, (os.cpu_count() or 1) // processes))
    return {"PJRT_NPROC": cores} | accelerators.environment(
        slot, processes, accelerators.visible())


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Variables for a process started inside; what the user set stays, except which accelerators
    there are."""
    before = {name: os.environ.get(name) for name in values}
    for name, value in values.items():
        if before[name] is None or name == accelerators.VISIBLE:
            os.environ[name] = value
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _record(folder: Path, job: Job, origin: Provenance, seconds: float) -> None:
    """Marks a run as whole and says where it came from."""
    record = {"labels": job.labels, "runner": job.runner, "data": origin.data, "code": origin.code,
              "seconds": round(seconds, 2)}
    durable.write(folder / RECORD, json.dumps(record, indent=2) + "\n")


def _recorded(folder: Path) -> tuple[Provenance, float]:
    """Where a whole run came from, and the worker seconds of the call that ended it."""
    record = json.loads((folder / RECORD).read_text())
    return Provenance(record["data"], record["code"]), record["seconds"]
