"""The command: plan, run, show, write."""

from __future__ import annotations

import dataclasses
import datetime
import json
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mlecs_jax import durable
from mlecs_jax.errors import INTERRUPTED, UserError
from mlecs_jax.report.axes import counted, duration
from mlecs_jax.report.sweep_report import write_sweep_report
from mlecs_jax.repro import earlier, engine, render, results
from mlecs_jax.repro.display import SweepDisplay, failed_line
from mlecs_jax.repro.docs_page import write_docs
from mlecs_jax.repro.engine import Outcome
from mlecs_jax.repro.job import Job, configuration_key
from mlecs_jax.repro.options import Options, parse
from mlecs_jax.repro.results import Results
from mlecs_jax.repro.systems import SYSTEMS
from mlecs_jax.repro.tables import Findings

SWEEP, TABLES = "sweep.json", "tables.md"


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code: 0; 1 where a run failed; 130 after Ctrl-C, when what there is has been
    written all the same.

    Raises:
      UserError: bad options or data, or nothing to show.
      KeyboardInterrupt: before a run was whole.
    """
    options = parse(arguments, {system: tuple(found) for system, found in SYSTEMS.items()})
    artefact = SYSTEMS[options.system][options.artefact]
    console = Console(highlight=False)
    jobs = artefact.jobs(options)
    if options.rows and not artefact.of_figures:
        raise UserError(f"--rows means nothing to {options.system} {options.artefact}, which reads "
                        "its runs' own files; leave it out")
    _check_names(options)
    _check_folder(options)
    rows = earlier.read(options.rows)
    begun = time.monotonic()
    with SweepDisplay(console) as display:
        outcomes = engine.execute(jobs, options.workdir, processes=options.processes,
                                  display=display, any_code=options.any_code, train=options.run,
                                  earlier=rows)
    found = results.read(outcomes)
    runs, unmade = distinct(outcomes), num_unmade(jobs, outcomes)
    missing = unmade + sum(bool(run.failure) for run in runs)
    if unmade and not found.runs:
        if options.run:
            raise KeyboardInterrupt
        raise UserError(f"none of the {len(jobs)} runs is done in {options.workdir}; leave "
                        "--no-run out to make them")
    findings = artefact.findings(options, found)
    write(options, artefact.title, outcomes, found, findings, time.monotonic() - begun, missing)
    render.print_findings(findings, console)
    code = _finish(options, runs, found, time.monotonic() - begun, console, missing)
    if options.write_docs and missing and options.run:  # not replaced by a part of itself by chance
        console.print(f"{options.write_docs} is left as it was; --no-run writes what there is",
                      soft_wrap=True, markup=False)
    elif options.write_docs:
        write_docs(options.write_docs, options, artefact.title, findings, found, missing)
    return INTERRUPTED if unmade and options.run else code


def _check_names(options: Options) -> None:
    """Raises UserError where the tables could not tell two data sets apart."""
    known: dict[str, str] = {}
    for dataset in options.datasets:
        name = options.base(dataset)["data"]["name"]
        if name in known:
            raise UserError(f"--dataset: {known[name]} and {dataset} are both data.name={name}, "
                            "and tables go by that; sweep one at a time, each with a --name")
        known[name] = dataset


def _check_folder(options: Options) -> None:
    """Raises UserError where the artefact's folder holds results of another sweep: of another
    preset or another kind of data."""
    try:
        told = json.loads((options.folder / SWEEP).read_text("utf-8"))
    except (OSError, ValueError):  # none yet
        return
    asked = {"preset": options.preset, "data": options.data}
    other = " ".join(f"--{name}={told.get(name)}" for name, value in asked.items()
                     if told.get(name) != value)
    if other:
        raise UserError(f"{options.folder} holds the results of {other}; give this sweep a --name, "
                        "or another --workdir")


def num_unmade(jobs: Sequence[Job], outcomes: Sequence[Outcome]) -> int:
    """How many runs of the jobs are not there: jobs of one configuration are one run."""
    planned, there = ({configuration_key(job, {}) for job in some}
                      for some in (jobs, (outcome.job for outcome in outcomes)))
    return len(planned - there)


def distinct(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """One outcome of every run: a run may stand for several jobs."""
    return list({outcome.folder: outcome for outcome in outcomes}.values())


def write(options: Options, title: str, outcomes: Sequence[Outcome], found: Results,
          findings: Findings, seconds: float, missing: int) -> None:
    """The artefact's folder: results, tables and what ran.

    Args:
      missing: how many planned runs are not there.
    """
    options.folder.mkdir(parents=True, exist_ok=True)
    results.write(results.tidy(found, options.workdir), options.folder)
    head = f"# {title}\n\n" + (f"{render.missing_text(missing)}\n\n" if missing else "")
    durable.write(options.folder / TABLES, head + render.markdown(findings))
    durable.write(options.folder / SWEEP, json.dumps(dataclasses.asdict(findings) | {
        "system": options.system, "artefact": options.artefact, "title": title,
        "preset": options.preset, "data": options.data, "seeds": options.seeds_text,
        "name": options.name, "command": options.command, "processes": options.processes,
        "missing": missing,
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "runs": [_entry(outcome, options) for outcome in outcomes],
    }, indent=1) + "\n")
    write_sweep_report(options.folder)


def _entry(outcome: Outcome, options: Options) -> dict[str, object]:
    folder = Path("..", outcome.folder.relative_to(options.workdir)).as_posix()
    return {"labels": outcome.job.labels, "run": folder, "failure": outcome.failure,
            "cached": outcome.cached, "seconds": round(outcome.seconds, 1),
            "earlier": outcome.row is not None,
            "data_source": outcome.provenance.data["source"] if outcome.provenance else None}


def _finish(options: Options, runs: Sequence[Outcome], found: Results, seconds: float,
            console: Console, missing: int) -> int:
    """Says what was done, on which data, what failed and what is not there."""
    failed = [run for run in runs if run.failure]
    cached = sum(run.cached for run in runs)
    made = len(runs) - cached - len(failed)
    rows = sum(run.row is not None for run in runs)
    before = f"{cached} done before" + (f" ({rows} by --rows)" if options.rows else "")
    console.print(f"{counted(made, 'run')} made in {duration(seconds)}, {before}, "
                  f"{len(failed)} failed; {counted(options.processes, 'worker')}; "
                  f"results: {options.folder}", soft_wrap=True, markup=False)
    if missing:
        console.print(f"[bold yellow]{render.missing_text(missing)}[/bold yellow]; the same "
                      "command makes them" + ("" if options.run else " without --no-run"),
                      soft_wrap=True)
    if "simulated" in found.sources:
        console.print("[bold yellow]SIMULATED DATA: these figures say nothing about real "
                      "ones.[/bold yellow]")
    mixed = [method for method, codes in results.versions(found).items() if len(codes) > 1]
    if mixed:
        console.print(f"runs of {', '.join(mixed)} were made by several versions of the sources",
                      soft_wrap=True, markup=False)
    for run in failed:
        console.print(failed_line(run), soft_wrap=True)
    return 1 if failed else 0
