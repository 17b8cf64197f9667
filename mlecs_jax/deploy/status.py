"""``python -m mlecs_jax.deploy status``: what a deployment is doing, read from its run folder."""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any

from mlecs_jax.deploy.session import Session
from mlecs_jax.errors import UserError

FILE = "status.json"
KEPT = 50  # latest faults
CONNECTED = "connected"  # said of devices on the roster alone, also of those just added


class Status:
    """Keeps ``status.json`` in a run's folder.

    Args:
      workdir: created if absent.
      session: the deployment.
    """

    def __init__(self, workdir: Path, session: Session):
        self._path = workdir / FILE
        workdir.mkdir(parents=True, exist_ok=True)
        self._values: dict[str, Any] = {
            "run": session.run, "address": None, "complete": 0, "rounds": None,
            "session": None, "members": [], "faults": [],
            "devices": {name: "not seen" for name in session.roster}}

    def event(self, kind: str, values: dict[str, Any]) -> None:
        """Takes note of an event of the cloud or of its transport."""
        now = self._values
        if kind == "listening":
            now["address"] = values["address"]
        elif kind == "start":
            now["complete"], now["rounds"] = values["complete"], values["rounds"]
        elif kind == "session":
            now["session"], now["members"] = values["count"], list(values["members"])
        elif kind == "round":
            now["complete"] = values["round"] + 1
        elif kind == "device":
            if values["device"] in now["devices"] or values["what"] == CONNECTED:
                now["devices"][values["device"]] = values["what"]
            else:
                now["faults"].append({**values, "at": time.time()})
        elif kind == "fault":
            now["faults"].append({**values, "at": time.time()})
        now["faults"] = now["faults"][-KEPT:]
        self._write()

    def _write(self) -> None:
        temporary = self._path.with_name(f".{FILE}.new")
        temporary.write_text(json.dumps(self._values | {"at": time.time()}) + "\n")
        os.replace(temporary, self._path)


def main(argv: list[str]) -> int:
    """Prints the state of a run folder; returns the exit code."""
    from mlecs_jax.deploy.nodes import Arguments

    arguments = Arguments("status", "What a deployment is doing.")
    arguments.add_argument("--workdir", type=Path, required=True, help="the cloud's run folder")
    options = arguments.parse_args(argv[1:])
    values = read(options.workdir)
    show(values, running=is_running(options.workdir))
    return 0


def read(workdir: Path) -> dict[str, Any]:
    """The contents of ``status.json``.

    Raises:
      UserError: there is none, or it is damaged.
    """
    try:
        return json.loads((workdir / FILE).read_text())
    except FileNotFoundError:
        raise UserError(f"there is no {FILE} in {workdir}; give the folder of a deployed run by "
                        "--workdir=DIR") from None
    except (ValueError, OSError):
        raise UserError(f"{workdir / FILE} is damaged; the cloud writes it anew") from None


def is_running(workdir: Path) -> bool:
    """Whether a process holds the run."""
    try:
        with open(workdir / ".lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def show(values: dict[str, Any], *, running: bool) -> None:
    """Prints a status for people."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    complete, rounds = values["complete"], values["rounds"]
    state = ("running" if running else "finished" if complete == rounds
             else "stopped; the same command resumes it")
    console.print(f"{state} | round {complete}/{rounds or '?'} | cloud at {values['address']} | "
                  f"session {values['session'] or '-'} | "
                  f"{time.time() - values['at']:.0f} s ago", markup=False)
    table = Table()
    for column in ("device", "network", "in the session", "latest fault"):
        table.add_column(column)
    for name, network in values["devices"].items():
        own = [fault for fault in values["faults"] if fault["device"] == name]
        latest = f"round {own[-1].get('round', '-')}: {own[-1]['what']}" if own else ""
        # Texts: what devices say, a [path] for one, is no markup.
        table.add_row(name, Text(network if running else "-"),
                      "yes" if name in values["members"] else "no", Text(latest))
    console.print(table)
    for fault in values["faults"]:
        if fault["device"] not in values["devices"]:
            console.print(f"stranger {fault['device']}: {fault['what']}", markup=False)
