"""What a deployment of Mega-CE² shows on the terminal."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console

from mlecs_jax.deploy.display import of_the_network, simulated
from mlecs_jax.deploy.mega_app import checked
from mlecs_jax.deploy.session import Session
from mlecs_jax.mega.run import conclusion


class MegaDisplay:
    """Terminal output, fed by events; a context manager as :class:`~.display.Display`."""

    def __init__(self, session: Session, workdir: Path):
        self._session, self._workdir, self._warned = session, workdir, False
        self._console = Console(highlight=False)

    def __enter__(self) -> MegaDisplay:
        self._console.print(f"[dim]workdir {self._workdir}; preparing data and models …[/dim]")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def event(self, kind: str, values: dict[str, Any]) -> None:
        """Shows one event of the cloud or of its transport."""
        if line := of_the_network(kind, values, self._session.roster):
            self._say(line)
        elif kind == "start":
            config = checked(self._session.config)
            self._console.print(
                f"Mega-CE² on {config.data.name}, deployed: {len(self._session.roster)} edges of "
                f"{config.partition.ends} ends, {values['rounds']} versions"
                + (f", {values['complete']} done" if values["complete"] else ""))
        elif kind == "session":
            self._say(f"{', '.join(values['members'])} from version {values['round']}")
        elif kind == "fault":
            self._say(f"version {values['round']}, {values['device']}: {values['what']}")
        elif kind == "round":
            self._version(values)

    def finish(self, summary: dict[str, Any]) -> None:
        """The closing lines."""
        for line in conclusion(summary):
            self._console.print(line)
        self._console.print(f"report: {self._workdir / 'report.html'}")

    def _version(self, record: dict[str, Any]) -> None:
        if record["data_source"] == "simulated" and not self._warned:
            self._warned = True
            self._console.print(simulated())
        error = f"  val MAE {record['eval']['val']['mae']:.3f}" if "eval" in record else ""
        who = ", ".join(self._session.roster[edge] for edge in record["edges"])
        self._console.print(f"version {record['round'] + 1}/{record['rounds']}  "
                            f"{record['time']:8.1f} s  {who}, staleness "
                            f"{record['staleness'][0]}{error}")

    def _say(self, line: str) -> None:
        self._console.print(line, style="dim", markup=False)
