"""What the rounds of all methods share: keys, budgets, learning rates, nodes as they begin.

A method is judged by what it does differently, so everything else is here once: the same initial
nodes, the same number of steps, the same learning rates, the same random numbers of a stage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mlecs_jax import programs
from mlecs_jax.config import Config
from mlecs_jax.federation import has_label
from mlecs_jax.lora import Lora, Params
from mlecs_jax.setting import Setting
from mlecs_jax.stages import device_stage, lone_stage
from mlecs_jax.train import decayed

PUBLIC, PRIVATE, SERVER, NOISE = range(4)
"""Stages of a round, folded into keys: devices on public data, on their own, the server's, the
noise of private uploads."""

Tree = Any


def stage_key(key: jax.Array, r: int, stage: int) -> jax.Array:
    """The key of a stage of round ``r``, a function of these numbers alone."""
    return jax.random.fold_in(jax.random.fold_in(key, r), stage)


def rate_at(options: Config, r: int) -> float:
    """Learning rate of round ``r``."""
    return decayed(options.train.learning_rate, options.train.final_rate_fraction, r,
                   options.train.rounds)


def every_group(rate: float) -> dict[str, float]:
    """One learning rate for all that a node trains."""
    return {"extractor": rate, "connector": rate, "generator": rate, "lora": rate}


def public_rates(options: Config, rate: float) -> dict[str, float]:
    """ML-ECS on public data (CCL) trains connector and LoRA; the extractor by option (the release
    freezes it)."""
    return every_group(rate) | {"extractor": rate * options.ccl.train_extractor}


def private_rates(options: Config, rate: float) -> dict[str, float]:
    """ML-ECS on private data (AMT) trains extractor and LoRA; the paper freezes the connector."""
    connector = rate * options.amt.train_connector
    return every_group(rate) | {"connector": connector, "generator": connector}


def local_steps(options: Config) -> int:
    """Batches of a device and round: as many as both of ML-ECS's device stages have."""
    return options.train.ccl_steps + options.train.amt_steps


def has_public_label(setting: Setting) -> np.ndarray:
    """Public samples that the server has the label of, bool ``[n]``."""
    return np.asarray(has_label(setting.federation.public))


def initial_slm(setting: Setting, key: jax.Array) -> Params:
    """``generator`` and ``lora`` of the server's SLM as every method begins, on the host."""
    _, slm_key, _ = jax.random.split(key, 3)
    slm = setting.slm.init(slm_key, setting.edge["slm"], setting.example_inputs())
    return {"generator": slm["generator"], "lora": slm["lora"]}


def initial_llm(setting: Setting, key: jax.Array) -> Params:
    """The server's LLM as every method begins, split as its backbone is."""
    llm_key, _, _ = jax.random.split(key, 3)
    llm = setting.llm.init(llm_key, setting.cloud["llm"], setting.example_inputs())
    return setting.topology.to_cloud(llm, split=True)


def initial_devices(setting: Setting, key: jax.Array, lora: Lora) -> tuple[Params, ...]:
    """Devices as every method begins: groups of their own, and one LoRA in common."""
    _, _, device_key = jax.random.split(key, 3)
    return setting.init_devices(device_key, lora)


def private_training(setting: Setting, stage=device_stage) -> Callable[..., Any]:
    """All devices on their private data alone, every group training.

    Args:
      stage: :func:`mlecs_jax.stages.device_stage`, or a method's own around it.

    Returns:
      ``(devices, r, key, **terms) → (devices, diagnostics)``; ``terms`` are further terms of the
      stage's loss. The buffers of ``devices`` are donated.
    """
    options = setting.config
    train = setting.on_devices(stage)

    def run(devices: tuple[Params, ...], r: int, key: jax.Array, **terms: Tree):
        return train(devices, r, stage_key(key, r, PRIVATE), on_public=False,
                     steps=local_steps(options), rates=every_group(rate_at(options, r)),
                     weights={"lm": 1.0}, **terms)

    return run


def lone_llm(setting: Setting) -> Callable[..., tuple[Params, Tree]]:
    """The server's LLM on the public data: ``(llm, r, key, **terms) → (llm, diagnostics)``.

    Without further terms of :func:`mlecs_jax.stages.lone_stage` (``weights``, a ``teacher``) it is
    helped by nobody: step for step what SE-CCL without its synergy does. The buffers of ``llm`` are
    donated.
    """
    options, cloud = setting.config, setting.cloud
    train = programs.compiled(lone_stage, setting.outline, setting.llm, donate_argnums=1)
    shared = {"backbone": cloud["llm"], "rows": cloud["public"], "moments": cloud["moments"],
              "owned": setting.topology.to_cloud(
                  jnp.ones(len(setting.federation.modalities), bool)),
              "steps": options.train.server_steps}

    def run(llm: Params, r: int, key: jax.Array, **terms: Tree):
        rates = every_group(rate_at(options, r))
        return train(shared | terms | {"rates": rates}, llm,
                     setting.topology.to_cloud(stage_key(key, r, SERVER)))

    return run


def overwrite(devices: tuple[Params, ...], received: Mapping[str, Tree]) -> tuple[Params, ...]:
    """Devices with what they received in place of their own groups, e.g. ``{'lora': tree}``."""
    return tuple(
        params | {group: jax.tree.map(lambda own, new: jnp.broadcast_to(new, own.shape),
                                      params[group], tree)
                  for group, tree in received.items()}
        for params in devices)
