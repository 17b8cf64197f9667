"""What a deployment shows on the terminal: the run's display, and who is there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.panel import Panel

from mlecs_jax.deploy.session import Session
from mlecs_jax.metrics import rouge
from mlecs_jax.progress import Progress


def of_the_network(kind: str, values: dict[str, Any], roster: Sequence[str]) -> str | None:
    """The line of an event that says who is there; None of any other kind."""
    if kind == "listening":
        return f"cloud at {values['address']}, mutual TLS; waiting for {', '.join(roster)}"
    if kind == "device":
        return f"{values['device']}: {values['what']}"
    return None


def simulated() -> Panel:
    """What is said once of a run on simulated data."""
    return Panel("SIMULATED DATA: no figure of this run says anything about real data.",
                 style="bold yellow")


class Display(Progress):
    """Terminal output of a deployment, fed by events; a context manager.

    Args:
      session: the deployment.
      workdir: the run's folder.
    """

    def __init__(self, session: Session, workdir: Path):
        super().__init__(workdir)
        self._session = session
        self._metric = "f1" if session.experiment.captions is None else rouge.PRIMARY
        self._begun = self._warned = False

    def __enter__(self) -> Display:
        super().__enter__()
        return self

    def event(self, kind: str, values: dict[str, Any]) -> None:
        """Shows one event of the cloud or of its transport."""
        if line := of_the_network(kind, values, self._session.roster):
            self._say(line)
        elif kind == "start":
            self._begin(values["complete"], values["rounds"])
        elif kind == "session":
            self._say(f"session {values['count']}: {', '.join(values['members'])} from round "
                      f"{values['round'] + 1}")
        elif kind == "fault":
            self._say(f"round {values['round'] + 1}, {values['device']}: {values['what']}")
        elif kind == "round":
            if values["data_source"] == "simulated" and not self._warned:
                self._warned = True
                self._console.print(simulated())
            self.round(values)

    def _begin(self, complete: int, rounds: int) -> None:
        config = self._session.experiment
        self._console.print(f"{config.method.name} on {config.data.name}, deployed: "
                            f"{len(self._session.roster)} devices ({config.model.slm}), cloud "
                            f"({config.model.llm})")
        if complete:
            self._console.print(f"resuming after round {complete}")
        if not self._begun:
            self._bar.start()
            self._task = self._bar.add_task("compiling …", total=rounds, completed=complete)
        self._begun = True

    def _say(self, line: str) -> None:
        self._console.print(line, style="dim", markup=False)
