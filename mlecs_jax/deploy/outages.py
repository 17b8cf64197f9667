"""``python -m mlecs_jax.deploy outages``: real processes that die or hang, and what that costs.

The same deployment on this machine, once undisturbed and once for every outage:

========= =========================================================================================
device    one device's process is killed (SIGKILL) after a third of the rounds; its machine starts
          it again
cloud     the cloud's process alone is killed and started again, devices stay and find it
all       the cloud's process is killed, devices end, and the same command is given again
hung      one device is stopped (SIGSTOP) until it has missed two rounds, then goes on (SIGCONT)
========= =========================================================================================

A process takes half a minute to start and to compile: let rounds be long, or many, to see a device
come back.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlecs_jax import cli
from mlecs_jax.deploy import provision, systems, wire
from mlecs_jax.deploy.local import Deployment, prepare
from mlecs_jax.errors import UserError

USAGE = """usage: python -m mlecs_jax.deploy outages --config=NAME [--config.KEY=VALUE …]
         --workdir=DIR [--devices=3] [--deadline=10] [--only=NAME,NAME,…]

  --workdir   a folder with one run per outage; finished ones are not repeated
  --deadline  seconds a device has for an answer
  --only      of clean, device, cloud, all, hung; the others are compared with the clean run"""

VICTIM = 1  # of the devices
MISSES = 2  # rounds that the hung device misses
OUTAGES = ("clean", "device", "cloud", "all", "hung")
CLOUDS = ("cloud", "all")  # of them the cloud's


def main(argv: list[str]) -> int:
    """Runs the outages and prints a table; returns the exit code."""
    values, options = cli.parse(argv, USAGE, {"workdir": "", "devices": "3", "deadline": "10",
                                              "only": ",".join(OUTAGES)}, (cli.ML_ECS,))
    if not options["workdir"]:
        raise UserError("no folder given; use --workdir=DIR")
    chosen = options["only"].split(",")
    if unknown := set(chosen) - set(OUTAGES):
        raise UserError(f"unknown outage '{min(unknown)}'; use {', '.join(OUTAGES)}")
    names = provision.roster(options["devices"])
    if len(names) <= VICTIM:
        raise UserError("outages need at least two devices")
    values = systems.with_devices(values, len(names))
    deadline = provision.number("deadline", options["deadline"], float)
    from mlecs_jax.deploy.nodes import stopping_on_signals

    rows = []
    with stopping_on_signals():
        for name in chosen:
            folder = Path(options["workdir"]) / name
            if not (folder / "summary.json").exists():
                print(f"{name} …", flush=True)
                suffer(name, folder, values, names, deadline)
            rows.append(row(name, folder))
    show(rows)
    (Path(options["workdir"]) / "outages.json").write_text(json.dumps(rows, indent=1) + "\n")
    return 0


def suffer(
    outage: str, workdir: Path, values: Mapping[str, Any], names: tuple[str, ...], deadline: float
) -> None:
    """One run with one outage, to its end."""
    folders = prepare(workdir, values, names, {"deadline_s": deadline, "misses": MISSES})
    at, victim = values["train"]["rounds"] // 3, names[VICTIM]
    done: list[float] = []

    with Deployment(folders, workdir) as deployment:
        def strike(signum: int, name: str) -> None:
            os.kill(deployment.processes[name].pid, signum)
            done.append(time.monotonic())

        def on_event(kind: str, event: dict[str, Any]) -> None:
            if kind == "round" and event["round"] == at and not done:
                if outage == "device":
                    strike(signal.SIGKILL, victim)
                elif outage in CLOUDS:
                    strike(signal.SIGKILL, wire.CLOUD)
                elif outage == "hung":
                    strike(signal.SIGSTOP, victim)
            elif kind == "round" and outage == "hung" and event["round"] == at + MISSES:
                strike(signal.SIGCONT, victim)

        try:
            deployment.run(on_event)
        except UserError:
            if outage not in CLOUDS or not done:
                raise
            if outage == "cloud":
                deployment.start_cloud()
                deployment.run(lambda kind, event: None)
    if outage == "all":
        with Deployment(folders, workdir) as deployment:
            deployment.run(lambda kind, event: None)


@dataclasses.dataclass(frozen=True)
class Cost:
    """What an outage cost: rounds made and how often an upload was missing or refused."""

    outage: str
    rounds: int
    sessions: int
    uploads: int
    missed: dict[str, int]
    refused: dict[str, int]
    metric: str
    devices: float
    server: float
    slowest_round_s: float


def row(outage: str, workdir: Path) -> dict[str, Any]:
    """A finished run's line of the table."""
    summary = json.loads((workdir / "summary.json").read_text())
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    faults, metric = summary["deployment"], summary["primary_metric"]
    return dataclasses.asdict(Cost(
        outage, len(records), faults["sessions"], sum(faults["uploads"].values()),
        faults["missed"], faults["refused"], metric, summary["client"][f"avg_{metric}"],
        summary["server"][metric], max(record["seconds"] for record in records[1:])))


def show(rows: list[dict[str, Any]]) -> None:
    """Prints the table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Outages of real processes")
    for key in rows[0]:
        table.add_column(key.replace("_", " "))
    for values in rows:
        table.add_row(*map(_text, values.values()))
    Console(highlight=False, width=140).print(table)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {count}" for key, count in value.items()) or "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
