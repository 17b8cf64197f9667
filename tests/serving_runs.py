"""Run folders for tests of serving: what a run leaves, configuration, data identity, checkpoint.

A state is trained for a moment where answers must be classes. Elsewhere that is not worth its
compiling: parameters are drawn and moved at random, LoRA included, so that a part left out of an
answer is seen.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mlecs_jax import assemble, methods, runlog
from mlecs_jax.checkpoint import Checkpoints
from mlecs_jax.config import Config
from mlecs_jax.methods.method import Method, State
from mlecs_jax.setting import Setting


def write(
    config: Config, folder: Path, *, trained: bool = False
) -> tuple[Setting, Method, State]:
    """The folder of a run that has ended, and what is in it."""
    setting = assemble.setting(config, jax.devices()[:1])
    method = methods.build(setting)
    state = method.init(jax.random.fold_in(jax.random.key(config.seed), 0))
    if trained:
        for r in range(config.train.rounds):
            state, _ = method.round(state, r, jax.random.fold_in(jax.random.key(config.seed), 1))
    else:
        state = moved(state)
    folder.mkdir(parents=True)
    (folder / runlog.CONFIG).write_text(json.dumps(dataclasses.asdict(config) | {
        "samples": runlog.data_identity(setting.federation.samples)}))
    save(folder, config.train.rounds, state)
    return setting, method, state


def save(folder: Path, rounds: int, state: Any) -> None:
    with contextlib.closing(Checkpoints(folder / "checkpoints")) as checkpoints:
        checkpoints.save(rounds, state)


def moved(state: Any) -> Any:
    """The state with noise on every floating-point leaf, placed as before."""
    rng = np.random.default_rng(0)

    def move(x):
        if not np.issubdtype(x.dtype, np.floating):
            return x
        noise = 0.2 * rng.standard_normal(x.shape)
        return jax.device_put((np.asarray(x) + noise).astype(x.dtype), x.sharding)

    return jax.tree.map(move, state)
