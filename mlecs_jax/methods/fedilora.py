"""FediLoRA (arXiv 2509.06984): adapters of different ranks, averaged dimension by dimension.

A round: devices train on their private data from the first r_k columns of A and rows of B they
received; from the second round on each edits the one A least like the received one; they upload
their r_k ranks; the server averages every rank over the devices that have it, weighted by their
numbers of samples, and sends each device its first r_k again.

The published code skips, for every client but the first, the columns of B beyond the smallest
rank; here every rank is averaged. Ours where the text is silent: ranks cycle 24, 16, 8 over the
devices (ML-ECS gives 24 as the largest), all adapters have the scale α/r of ``lora.alpha`` and
``lora.rank``, so that what is averaged means the same everywhere; encoders, connector and generator
stay local; steps and learning rates are those of all methods here.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from mlecs_jax import aggregate, channel, rounds
from mlecs_jax.answers import Predictor
from mlecs_jax.errors import UserError
from mlecs_jax.lora import Lora, LoraConfig, Params, count
from mlecs_jax.methods.method import Diagnostics, Method, Predictions
from mlecs_jax.models.multimodal import MultimodalModel
from mlecs_jax.setting import Setting


@struct.dataclass
class State:
    """What lives between rounds.

    Attributes:
      devices: per cohort, stacked trainable groups; adapters of the largest rank, zero beyond a
        device's own.
      broadcast: the aggregated adapter of the largest rank.
    """

    devices: tuple[Params, ...]
    broadcast: Lora


def build(setting: Setting) -> Method:
    """FediLoRA over a setting.

    Raises:
      UserError: ``method.fedilora.ranks`` is no list of positive numbers.
    """
    options, topology = setting.config.method.fedilora, setting.topology
    ranks = device_ranks(options.ranks, setting.federation.num_clients)
    setting = with_rank(setting, int(ranks.max()))
    samples = setting.federation.train.count
    train = rounds.private_training(setting)
    predict = Predictor(setting)

    def init(key: jax.Array) -> State:
        lora = rounds.initial_slm(setting, key)["lora"]
        return State(devices=rounds.initial_devices(setting, key, lora),
                     broadcast=topology.to_edge(lora))

    def receive(state: State) -> tuple[Params, ...]:
        devices = rounds.overwrite(state.devices, {"lora": state.broadcast})
        return tuple(
            params | {"lora": aggregate.keep_ranks(params["lora"],
                                                   jnp.asarray(ranks[cohort.clients]))}
            for params, cohort in zip(devices, setting.cohorts, strict=True))

    def round(state: State, r: int, key: jax.Array) -> tuple[State, Diagnostics]:
        received = receive(state)
        before = [params["lora"] for params in received] if r > 0 else None
        if before is not None:  # training donates its buffers
            before = jax.tree.map(jnp.copy, before)
        devices, losses = train(received, r, key)
        if before is not None:
            devices = tuple(
                params | {"lora": edit_least_alike(params["lora"], old, options.edit_below)}
                for params, old in zip(devices, before, strict=True))
        uploads = topology.to_cloud({"lora": setting.join([params["lora"] for params in devices]),
                                     "samples": samples, "ranks": ranks})
        lora = aggregate.dimension_wise(uploads["lora"], uploads["samples"], uploads["ranks"])
        return (State(devices=devices, broadcast=topology.to_edge(lora)),
                {"devices": {"private": losses}, "server": {}})

    def evaluate(state: State, r: int) -> Predictions:
        return {"after_amt": predict.devices(state.devices, r)} | predict.after_broadcast(
            lambda: receive(state), r)

    def communication(state: State) -> dict[str, int]:
        """Means over devices: each sends and receives its own ranks only."""
        sent = (channel.num_bytes(state.broadcast) * int(ranks.sum())
                // (int(ranks.max()) * len(ranks)))
        return {"uplink": sent + channel.num_bytes({"samples": samples[:1], "rank": ranks[:1]}),
                "downlink": sent}

    def beyond(state: State) -> list[int]:
        """Below 0: adapters are counted with the largest rank."""
        largest = count(state.broadcast)
        return [-largest * int(ranks.max() - own) // int(ranks.max()) for own in ranks]

    return Method(init=init, round=round, evaluate=evaluate, communication=communication,
                  beyond=beyond)


def device_ranks(cycle: str, num_clients: int) -> Int[np.ndarray, " C"]:
    """Ranks of the devices: the comma-separated ones in turn."""
    try:
        ranks = [int(x) for x in cycle.split(",")]
    except ValueError:
        ranks = []
    if not ranks or min(ranks) < 1:
        raise UserError(f"method.fedilora.ranks is '{cycle}'; give ranks of 1 or more, e.g. "
                        "24,16,8")
    return np.resize(np.array(ranks, np.int32), num_clients)


def with_rank(setting: Setting, rank: int) -> Setting:
    """The setting with adapters of another rank and the scale they had."""
    lora = setting.config.lora
    scaled = LoraConfig(alpha=lora.alpha * rank / lora.rank, dropout=lora.dropout)

    def wider(model: MultimodalModel) -> MultimodalModel:
        return dataclasses.replace(model, lora_rank=rank,
                                   decoder=model.decoder.clone(lora_config=scaled))

    cohorts = tuple(dataclasses.replace(cohort, model=wider(cohort.model))
                    for cohort in setting.cohorts)
    return dataclasses.replace(setting, cohorts=cohorts, slm=wider(setting.slm))


@jax.jit
def edit_least_alike(
    loras: Lora, received: Lora, edit_below: float | Float[Array, ""]
) -> Lora:
    """Each device's A least like the received one, blended with it (from the second round on).

    c = cos(A, A_received), flattened; where the smallest c of a device's layers is below
    ``edit_below``, that layer's A becomes c · A + (1 − c) · A_received, c cut to [0, 1].

    Args:
      loras, received: stacked ``[C, …]``, zero beyond each device's rank.
    """
    cosines = {path: _cosine(a, received_a) for path, a, received_a in _a_leaves(loras, received)}
    least = jnp.min(jnp.stack([c.min(axis=1) for c in cosines.values()]), axis=0)

    def edit(path, leaf, old):
        if jax.tree_util.keystr(path) not in cosines:
            return leaf
        c = cosines[jax.tree_util.keystr(path)]
        chosen = (c == least[:, None]) & (c < edit_below)
        share = jnp.where(chosen, jnp.clip(c, 0.0, 1.0), 1.0)
        share = share.reshape(*leaf.shape[:-2], 1, 1)
        return share * leaf + (1.0 - share) * old

    return jax.tree.map_with_path(edit, loras, received)


def _a_leaves(loras: Lora, received: Lora) -> list[tuple[str, Array, Array]]:
    pairs = zip(jax.tree.leaves_with_path(loras), jax.tree.leaves(received), strict=True)
    return [(jax.tree_util.keystr(path), leaf, old) for (path, leaf), old in pairs
            if path[-1].key == "a"]


def _cosine(a: Array, b: Array) -> Array:
    """Cosine of every device's and layer's A, ``[C, layers]``; layers = 1 unless stacked."""
    a, b = (x.reshape(len(x), -1 if x.ndim == 4 else 1, x.shape[-2] * x.shape[-1]) for x in (a, b))
    norms = jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
    return jnp.sum(a * b, axis=-1) / jnp.maximum(norms, 1e-12)
