"""A finished or interrupted run, as it stands in its folder: configuration, data, state."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from mlecs_jax import assemble, methods, runlog
from mlecs_jax import config as configs
from mlecs_jax.checkpoint import Checkpoints
from mlecs_jax.data import sources
from mlecs_jax.errors import UserError
from mlecs_jax.methods.method import Method, State
from mlecs_jax.setting import Setting

MEGA = "mega_ce2"
DEPLOYMENT = "deployment"
"""In the configuration of a deployed run: its identity and roster."""


@dataclasses.dataclass(frozen=True)
class Restored:
    """A run of ML-ECS or one of its relatives.

    Attributes:
      rounds: complete ones.
      state: after the last of them.
    """

    setting: Setting
    method: Method
    rounds: int
    state: State


def configuration(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A run's configuration and the identity of its data, as plain values.

    Of a deployed run the values have an entry :data:`DEPLOYMENT`; what data its nodes have, only
    they know.

    Raises:
      UserError: the folder holds no run.
    """
    path = folder / runlog.CONFIG
    try:
        values = json.loads(path.read_text())
        identity = values.pop("samples", {"source": ""} if DEPLOYMENT in values else {})
        complete = {"name"} <= set(values["method"]) and {"source"} <= set(identity)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        complete = False
    if not complete:
        raise UserError(f"{folder} is not the folder of a run: it has no readable {runlog.CONFIG}; "
                        "--run names the --workdir of python -m mlecs_jax.run")
    return values, identity


def check_simulated(folder: Path, values: Mapping[str, Any]) -> None:
    """Raises UserError for the folder of a deployed run, whose data are in no one place."""
    if DEPLOYMENT in values:
        raise UserError(f"{folder} is of a deployed run: its data are where its devices are, and "
                        "this command needs all of them; a node of it answers by its kit (predict "
                        "--kit=DIR)")


def pinned(values: Mapping[str, Any], identity: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with ``data.source=auto`` replaced by what the run found then."""
    source = values["data"]["source"]
    if source == "auto" and values["data"]["name"] != "table":
        source = identity["source"]
    return {**values, "data": {**values["data"], "source": source}}


def check_data(folder: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raises UserError where a run was trained on other data than are there now."""
    if dict(found) != dict(expected):
        raise UserError(
            f"{folder} was trained on other data: {expected['samples']} samples "
            f"({expected['source']}, {expected['sha256'][:8]}), here are {found['samples']} "
            f"({found['source']}, {found['sha256'][:8]}); restore them (MLECS_DATA_DIR), or the "
            "version of this program that dealt them")


def restored(folder: Path, *, unanswered: bool = False) -> Restored:
    """The run of a folder, with the data it was trained on, on one accelerator.

    Args:
      unanswered: see :class:`mlecs_jax.answers.Question`.

    Raises:
      UserError: no run, a run of Mega-CE², one in progress or without a complete round, or data
        that are gone.
    """
    values, identity = configuration(folder)
    check_simulated(folder, values)
    if values["method"]["name"] == MEGA:
        raise UserError(f"{folder} is a run of Mega-CE², which this command does not read")
    config = configs.parse(pinned(values, identity))
    samples = sources.load(config.data, config.captions)
    check_data(folder, runlog.data_identity(samples), identity)
    setting = assemble.from_samples(config, samples, jax.devices()[:1])
    setting = dataclasses.replace(setting, unanswered=unanswered)
    method = methods.build(setting)
    like = method.init(jax.random.fold_in(jax.random.key(config.seed), 0))
    rounds, state = load(folder, like)
    return Restored(setting, method, rounds, state)


def load(folder: Path, like: State) -> tuple[int, State]:
    """Complete rounds of a run and the state after them, of the structure of ``like``.

    Raises:
      UserError: no complete round, or the run goes on.
    """
    with resting(folder):
        if not (folder / "checkpoints").is_dir():
            raise UserError(f"{folder} has no checkpoints; run it first")
        with contextlib.closing(Checkpoints(folder / "checkpoints")) as checkpoints:
            rounds, state = checkpoints.restore(like)
    if not rounds:
        raise UserError(f"{folder} has no complete round yet; run it first")
    return rounds, state


@contextlib.contextmanager
def resting(folder: Path) -> Iterator[None]:
    """Keeps a run from going on meanwhile: opening checkpoints clears up half-saved ones."""
    try:
        lock = open(folder / ".lock")
    except FileNotFoundError:  # a copy of a run
        yield
        return
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{folder} is being trained now; wait for it to end") from None
        yield
