"""FedMLLM (arXiv 2411.14717): federated fine-tuning that is told not to mind the modality.

A round: devices train on their private data from the LoRA they received, upload it, and the server
moves its own by FedAdagrad over the mean of what they changed (or takes their mean, FedAvg).

- Prompt strategy: a clause in the instruction asks the model to disregard modality.
- Regularisation: (μ/2) · μ_w · ‖θ_l − θ_l,global‖² over adapters of the middle layers
  l ∈ [s, L − 1 − s]; the first and last s = round(L/7) layers are free (4 of 28 in the published
  code). μ_w is the share of modalities the device misses, 1 − |M_j| / |M|, as ML-ECS describes it;
  the published code has the constant 0.1 (``method.fedmllm.missing_weight``).

Ours where the text is silent: encoders, connector and generator stay local and train with the
LoRA; learning rates, steps and batches are those of all methods here.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from mlecs_jax import aggregate, channel, rounds
from mlecs_jax.answers import Predictor
from mlecs_jax.errors import UserError
from mlecs_jax.lora import Lora, Params
from mlecs_jax.methods.method import Diagnostics, Method, Predictions
from mlecs_jax.models.multimodal import MultimodalModel
from mlecs_jax.setting import Outline, Setting
from mlecs_jax.stages import device_stage


@struct.dataclass
class State:
    """What lives between rounds.

    Attributes:
      devices: per cohort, stacked trainable groups of each device, as local training left them.
      broadcast: the server's LoRA, with which the next round begins.
      accumulator: FedAdagrad's sums of squared mean changes, a tree like ``broadcast``.
    """

    devices: tuple[Params, ...]
    broadcast: Lora
    accumulator: Lora


def build(setting: Setting) -> Method:
    """FedMLLM over a setting.

    Raises:
      UserError: with the clause the instruction is longer than the model's positions.
    """
    setting = with_clause(setting)
    options, topology = setting.config.method.fedmllm, setting.topology
    samples = setting.federation.train.count
    train = rounds.private_training(setting, near_global_stage)
    predict = Predictor(setting)

    def init(key: jax.Array) -> State:
        lora = rounds.initial_slm(setting, key)["lora"]
        return State(
            devices=rounds.initial_devices(setting, key, lora),
            broadcast=topology.to_edge(lora),
            accumulator=topology.to_cloud(
                jax.tree.map(lambda x: jnp.full_like(x, options.tau**2), lora)))

    def round(state: State, r: int, key: jax.Array) -> tuple[State, Diagnostics]:
        devices = rounds.overwrite(state.devices, {"lora": state.broadcast})
        devices, losses = train(devices, r, key, centre=state.broadcast)
        uploads = topology.to_cloud({"lora": setting.join([params["lora"] for params in devices]),
                                     "samples": samples})
        broadcast, accumulator = topology.to_cloud(state.broadcast), state.accumulator
        if options.server == "fedavg":
            broadcast = aggregate.weighted_mean(uploads["lora"], uploads["samples"])
        else:
            broadcast, accumulator = fed_adagrad(
                broadcast, accumulator, uploads["lora"], options.server_rate, options.tau)
        return (State(devices=devices, broadcast=topology.to_edge(broadcast),
                      accumulator=accumulator),
                {"devices": {"private": losses}, "server": {}})

    def evaluate(state: State, r: int) -> Predictions:
        return {"after_amt": predict.devices(state.devices, r)} | predict.after_broadcast(
            lambda: rounds.overwrite(state.devices, {"lora": state.broadcast}), r)

    def communication(state: State) -> dict[str, int]:
        return {"uplink": channel.num_bytes({"lora": state.broadcast, "samples": samples[:1]}),
                "downlink": channel.num_bytes({"lora": state.broadcast})}

    return Method(init=init, round=round, evaluate=evaluate, communication=communication)


def with_clause(setting: Setting) -> Setting:
    """The setting with the clause before every device's instruction."""
    clause = tuple(setting.tokenizer.encode(setting.config.method.fedmllm.clause))

    def asked(model: MultimodalModel) -> MultimodalModel:
        shape = model.decoder.config
        length = (model.generator.num_tokens + len(clause) + len(model.prompt)
                  + setting.federation.train.target.shape[-1])
        if shape.family == "gpt2" and length > shape.max_positions:
            raise UserError(f"method.fedmllm.clause makes {length} positions, model.slm has "
                            f"{shape.max_positions}; shorten it or model.prompt")
        return dataclasses.replace(model, prompt=clause + model.prompt)

    cohorts = tuple(dataclasses.replace(cohort, model=asked(cohort.model))
                    for cohort in setting.cohorts)
    return dataclasses.replace(setting, cohorts=cohorts, slm=asked(setting.slm))


def near_global_stage(setting: Outline, model: MultimodalModel, shared, params: Params, device):
    """A device's stage with the proximal term to ``shared['centre']``, weighted by what it
    misses."""
    options, owned = setting.config.method.fedmllm, device["owned"]
    missing = 1.0 - jnp.mean(owned.astype(jnp.float32))
    if options.missing_weight >= 0:
        missing = options.missing_weight
    layers = middle_layers(shared["centre"], model.decoder.config.num_layers)
    weight = jax.tree.map(lambda middle: options.mu * missing * middle, layers)
    shared = shared | {"proximal": {"centre": {"lora": shared["centre"]},
                                    "weight": {"lora": weight}}}
    return device_stage(setting, model, shared, params, device)


def middle_layers(lora: Lora, num_layers: int) -> Any:
    """1 for adapters of layers [s, L − 1 − s], s = round(L/7), and 0 for the others: a scalar per
    leaf, or ``[L, 1, …]`` for leaves stacked over layers."""
    free = round(num_layers / 7)

    def weight(path, leaf):
        names = [str(key.key) for key in path]
        if "blocks" in names:
            layer = jnp.arange(num_layers).reshape(-1, *(1,) * (leaf.ndim - 1))
        else:
            block = next(name for name in names if name.startswith("block_"))
            layer = jnp.asarray(int(block.removeprefix("block_")))
        return ((layer >= free) & (layer <= num_layers - 1 - free)).astype(jnp.float32)

    return jax.tree.map_with_path(weight, lora)


@jax.jit
def fed_adagrad(
    centre: Lora, accumulator: Lora, uploads: Lora, rate: float | Float[Array, ""],
    tau: float | Float[Array, ""],
) -> tuple[Lora, Lora]:
    """θ ← θ + η Δ / (√v + τ), v ← v + Δ², Δ the uniform mean of the devices' changes
    (Reddi et al., 2021, Algorithm 2 with β₁ = 0).

    Args:
      uploads: stacked ``[C, …]``.
    """
    change = jax.tree.map(lambda new, old: jnp.mean(new - old, axis=0), uploads, centre)
    accumulator = jax.tree.map(lambda v, d: v + d**2, accumulator, change)
    moved = jax.tree.map(lambda x, d, v: x + rate * d / (jnp.sqrt(v) + tau), centre, change,
                         accumulator)
    return moved, accumulator
