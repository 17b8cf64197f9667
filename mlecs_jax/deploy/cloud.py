"""The cloud of a deployment: rounds, whoever answers; checkpoints and run log as in a simulation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlecs_jax.deploy.session import Session
from mlecs_jax.deploy.transport import Transport


class CloudApp:
    """The cloud's side of ML-ECS behind a transport.

    It holds what the server holds and nothing private: its model, the public data, what devices
    have sent. Its folder has the files of a simulated run (``metrics.jsonl``, ``summary.json``,
    ``report.html``, ``checkpoints/``), so that the same command resumes it.

    Args:
      session: what was provisioned.
      transport: the way to the devices.
      workdir: the run's folder.
      data_dir: the cloud's share of the dataset (:mod:`mlecs_jax.deploy.share`).
      on_event: called with ``(kind, values)`` for a display: ``('start', {'complete', 'rounds'})``,
        ``('round', the metrics record)``, ``('session', {'count', 'members', 'round'})``,
        ``('fault', {'device', 'round', 'what'})``.

    Raises:
      UserError: bad options or data, or a folder that holds another run.
    """

    def __init__(
        self, session: Session, transport: Transport, workdir: Path, data_dir: Path,
        on_event: Callable[[str, dict[str, Any]], None] = lambda kind, values: None,
    ):
        raise NotImplementedError

    def run(self) -> dict[str, Any]:
        """Trains to the end from the last complete round; returns ``summary.json``'s contents.

        Raises:
          UserError: no device answers for ``limits.wait_s`` seconds; the same command resumes.
        """
        raise NotImplementedError
