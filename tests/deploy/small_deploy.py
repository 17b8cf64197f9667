"""A deployment of the small problem in one process."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax

from mlecs_jax import assemble
from mlecs_jax.config import Config
from mlecs_jax.deploy import session as sessions
from mlecs_jax.deploy import share
from mlecs_jax.deploy.cloud import CloudApp
from mlecs_jax.deploy.edge import EdgeApp
from mlecs_jax.deploy.memory import MemoryTransport
from mlecs_jax.deploy.session import Limits, Session
from tests.small import config, samples

ONE = jax.devices()[:1]
PATIENCE = Limits(deadline_s=10.0, first_deadline_s=10.0, misses=2, wait_s=0.5)


def options(**overrides: object) -> Config:
    return config(**({"train.rounds": 3} | overrides))


def provision(folder: Path, run_config: Config, limits: Limits = PATIENCE) -> Session:
    """Writes everyone's share below ``folder`` and agrees on a session."""
    dealt = assemble.from_samples(run_config, samples(), ONE).federation
    for part in share.split(dealt, public_labels=run_config.partition.public_labels):
        name = "cloud" if part.node == share.CLOUD else f"d{part.node}"
        share.save(part, folder / name)
    return sessions.create(dataclasses.asdict(run_config),
                           [f"d{j}" for j in range(dealt.num_clients)],
                           dealt.train.target.shape[1], limits)


def edge(folder: Path, session: Session, name: str) -> EdgeApp:
    return EdgeApp(session, name, folder / name, folder / name / "state", ONE)


def edges(folder: Path, session: Session) -> dict[str, EdgeApp]:
    return {name: edge(folder, session, name) for name in session.roster}


def cloud(folder: Path, session: Session, transport: MemoryTransport, **more: Any) -> CloudApp:
    return CloudApp(session, transport, folder / "run", folder / "cloud", devices=ONE, **more)


def close(transport: MemoryTransport) -> None:
    for app in transport.edges.values():
        if isinstance(app, EdgeApp):
            app.close()
