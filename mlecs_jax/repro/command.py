"""The command: plan, run, show, write."""

from __future__ import annotations

import dataclasses
import datetime
import json
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mlecs_jax.errors import INTERRUPTED, UserError
from mlecs_jax.report.axes import counted, duration
from mlecs_jax.report.sweep_report import write_sweep_report
from mlecs_jax.repro import earlier, engine, render, results
from mlecs_jax.repro.display import SweepDisplay
from mlecs_jax.repro.docs_page import write_docs
from mlecs_jax.repro.engine import Outcome
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
    rows = earlier.read(options.rows)
    begun = time.monotonic()
    with SweepDisplay(console) as display:
        outcomes = engine.execute(jobs, options.workdir, processes=options.processes,
                                  display=display, any_code=options.any_code, train=options.run,
                                  earlier=rows)
    found = results.read(outcomes)
    unmade = len(jobs) - len(outcomes)
    missing = unmade + sum(bool(outcome.failure) for outcome in outcomes)
    if unmade and not found.runs:
        if options.run:
            raise KeyboardInterrupt
        raise UserError(f"none of the {len(jobs)} runs is done in {options.workdir}; leave "
                        "--no-run out to make them")
    findings = artefact.findings(options, found)
    write(options, artefact.title, outcomes, found, findings, time.monotonic() - begun, missing)
    render.print_findings(findings, console)
    code = _finish(options, outcomes, found, time.monotonic() - begun, console, missing)
    if options.write_docs and missing and options.run:  # not replaced by a part of itself by chance
        console.print(f"{options.write_docs} is left as it was; --no-run writes what there is",
                      soft_wrap=True)
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


def write(options: Options, title: str, outcomes: Sequence[Outcome], found: Results,
          findings: Findings, seconds: float, missing: int) -> None:
    """The artefact's folder: results, tables and what ran.

    Args:
      missing: how many planned runs are not there.
    """
    options.folder.mkdir(parents=True, exist_ok=True)
    results.write(results.tidy(found, options.workdir), options.folder)
    head = f"# {title}\n\n" + (f"{render.missing_text(missing)}\n\n" if missing else "")
    (options.folder / TABLES).write_text(head + render.markdown(findings), "utf-8")
    (options.folder / SWEEP).write_text(json.dumps(dataclasses.asdict(findings) | {
        "system": options.system, "artefact": options.artefact, "title": title,
        "preset": options.preset, "data": options.data, "seeds": options.seeds_text,
        "name": options.name, "command": options.command, "processes": options.processes,
        "missing": missing,
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "runs": [_entry(outcome, options) for outcome in outcomes],
    }, indent=1) + "\n", "utf-8")
    write_sweep_report(options.folder)


def _entry(outcome: Outcome, options: Options) -> dict[str, object]:
    folder = Path("..", outcome.folder.relative_to(options.workdir)).as_posix()
    return {"labels": outcome.job.labels, "run": folder, "failure": outcome.failure,
            "cached": outcome.cached, "seconds": round(outcome.seconds, 1),
            "earlier": outcome.row is not None,
            "data_source": outcome.provenance.data["source"] if outcome.provenance else None}


def _finish(options: Options, outcomes: Sequence[Outcome], found: Results, seconds: float,
            console: Console, missing: int) -> int:
    """Says what was done, on which data, what failed and what is not there."""
    distinct = {outcome.folder: outcome for outcome in outcomes}.values()
    failed = [outcome for outcome in distinct if outcome.failure]
    cached = sum(outcome.cached for outcome in distinct)
    made = len(distinct) - cached - len(failed)
    rows = sum(outcome.row is not None for outcome in distinct)
    before = f"{cached} done before" + (f" ({rows} by --rows)" if rows else "")
    console.print(f"{counted(made, 'run')} made in {duration(seconds)}, {before}, "
                  f"{len(failed)} failed; {counted(options.processes, 'worker')}; "
                  f"results: {options.folder}", soft_wrap=True)
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
                      soft_wrap=True)
    for outcome in failed:
        console.print(f"[red]failed[/red] {outcome.job.name}: {outcome.failure}", soft_wrap=True)
    return 1 if failed else 0
