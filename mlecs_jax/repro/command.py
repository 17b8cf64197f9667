"""The command: plan, run, show, write."""

from __future__ import annotations

import dataclasses
import datetime
import json
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mlecs_jax.report.axes import duration
from mlecs_jax.report.sweep_report import write_sweep_report
from mlecs_jax.repro import engine, render, results
from mlecs_jax.repro.display import SweepDisplay
from mlecs_jax.repro.docs_page import write_docs
from mlecs_jax.repro.engine import Outcome
from mlecs_jax.repro.options import Options, parse
from mlecs_jax.repro.results import Results
from mlecs_jax.repro.systems import SYSTEMS
from mlecs_jax.repro.tables import Findings

SWEEP, TABLES = "sweep.json", "tables.md"


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code: 0, or 1 where a run failed.

    Raises:
      UserError: bad options or data.
    """
    options = parse(arguments, {system: tuple(found) for system, found in SYSTEMS.items()})
    artefact = SYSTEMS[options.system][options.artefact]
    console = Console(highlight=False)
    jobs = artefact.jobs(options)
    begun = time.monotonic()
    with SweepDisplay(console) as display:
        outcomes = engine.execute(jobs, options.workdir, processes=options.processes,
                                  display=display, any_code=options.any_code)
    found = results.read(outcomes)
    findings = artefact.findings(options, found)
    write(options, artefact.title, outcomes, found, findings, time.monotonic() - begun)
    render.print_findings(findings, console)
    if options.write_docs:
        write_docs(options.write_docs, options, artefact.title, findings, found,
                   sum(outcome.cost for outcome in outcomes))
    return _finish(options, outcomes, found, time.monotonic() - begun, console)


def write(options: Options, title: str, outcomes: Sequence[Outcome], found: Results,
          findings: Findings, seconds: float) -> None:
    """The artefact's folder: results, tables and what ran."""
    options.folder.mkdir(parents=True, exist_ok=True)
    results.write(results.tidy(found, options.workdir), options.folder)
    (options.folder / TABLES).write_text(f"# {title}\n\n{render.markdown(findings)}", "utf-8")
    (options.folder / SWEEP).write_text(json.dumps(dataclasses.asdict(findings) | {
        "system": options.system, "artefact": options.artefact, "title": title,
        "preset": options.preset, "data": options.data, "seeds": options.seeds,
        "command": options.command, "processes": options.processes,
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "runs": [_entry(outcome, options) for outcome in outcomes],
    }, indent=1) + "\n", "utf-8")
    write_sweep_report(options.folder)


def _entry(outcome: Outcome, options: Options) -> dict[str, object]:
    folder = Path("..", outcome.folder.relative_to(options.workdir)).as_posix()
    return {"labels": outcome.job.labels, "run": folder, "failure": outcome.failure,
            "cached": outcome.cached, "seconds": round(outcome.seconds, 1),
            "data_source": outcome.provenance.data["source"] if outcome.provenance else None}


def _finish(options: Options, outcomes: Sequence[Outcome], found: Results, seconds: float,
            console: Console) -> int:
    """Says what was done, on which data, and what failed."""
    failed = [outcome for outcome in outcomes if outcome.failure]
    cached = sum(outcome.cached for outcome in outcomes)
    console.print(f"{len(outcomes) - cached - len(failed)} runs in {duration(seconds)} with "
                  f"{options.processes} workers, {cached} done before, {len(failed)} failed; "
                  f"results: {options.folder}", soft_wrap=True)
    if "simulated" in found.sources:
        console.print("[bold yellow]SIMULATED DATA: these figures say nothing about real "
                      "ones.[/bold yellow]")
    codes: dict[str, set[str]] = {}
    for run in found.runs:
        codes.setdefault(str(run.labels["method"]), set()).add(run.code)
    mixed = [method for method, versions in codes.items() if len(versions) > 1]
    if mixed:
        console.print(f"runs of {', '.join(mixed)} were made by several versions of the sources",
                      soft_wrap=True)
    for outcome in failed:
        console.print(f"[red]failed[/red] {outcome.job.name}: {outcome.failure}", soft_wrap=True)
    return 1 if failed else 0
