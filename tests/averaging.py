"""A method without a model: it compiles in a moment, and its numbers cross every path between the
tiers: devices and cloud, split and whole, host and back. For tests of many processes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from mlecs_jax import aggregate, rounds
from mlecs_jax.methods.method import Method
from mlecs_jax.setting import Setting


@struct.dataclass
class State:
    devices: tuple
    server: dict
    broadcast: dict


def build(setting: Setting) -> Method:
    """Devices drift with their private readings, the cloud averages and adds what its LLM says."""
    topology = setting.topology
    samples = setting.federation.samples

    def drift(shared, params, device):
        rows = device["train"].available.sum(0) / device["train"].available.shape[0]
        moved = 0.1 * jnp.tanh(rows.sum()) + 0.01 * jax.random.normal(device["key"])
        lora = jax.tree.map(lambda own, sent: 0.5 * own + 0.5 * sent + moved, params["lora"],
                            shared["broadcast"])
        return params | {"lora": lora}, {"drift": moved, "size": jnp.abs(_first(lora)).mean()}

    train = setting.for_each_client(drift)

    @jax.jit
    def digest(llm, slm):
        head = jnp.tanh(llm["wte"]).mean(0)
        return jax.tree.map(lambda x: x * 0.9 + (head @ head) / 1e3, slm), head.sum()

    def init(key):
        del key
        rng = np.random.default_rng(setting.config.seed)
        lora = {name: rng.standard_normal(shape, np.float32)
                for name, shape in (("a", (6, 2)), ("b", (2, 6)))}
        names = setting.federation.modalities
        device = {"lora": lora, "extractor": {name: np.zeros(2, np.float32) for name in names},
                  "connector": {f"projector_{name}": np.ones(3, np.float32) for name in names}}
        count = setting.federation.num_clients
        stacked = jax.tree.map(lambda x: np.stack([x] * count), device)
        return State(devices=(topology.to_edge(stacked, per_client=True),),
                     server={"lora": topology.to_cloud(lora)}, broadcast=topology.to_edge(lora))

    def round(state, r, key):
        (cohort,), (params,) = setting.cohorts, state.devices
        keys = setting.client_keys(rounds.stage_key(key, r, 0), cohort)
        params, drifts = train({"broadcast": state.broadcast}, params,
                               {"train": cohort.train, "key": keys})
        uploads = topology.to_cloud({"lora": params["lora"],
                                     "counts": setting.federation.owned_at(r).sum(axis=1)})
        mean = aggregate.weighted_mean(uploads["lora"], uploads["counts"])
        lora, head = digest(setting.cloud["llm"], mean)
        return (State((params,), {"lora": lora}, topology.to_edge(lora)),
                {"devices": {"drift": drifts}, "server": {"digest": {"head": head}}})

    def evaluate(state, r):
        count = setting.federation.held_out.target.shape[-2]
        seen = jax.vmap(_first)(state.devices[0]["lora"]).mean((1, 2))
        answers = (jnp.arange(count) + jnp.floor(seen * 100).astype(jnp.int32)[:, None]) % len(
            samples.class_names)
        rows = setting.federation.public_held_out.target.shape[0]
        return {"after_amt": answers,
                "server": jnp.full(rows, 1) + 0 * _first(state.server["lora"]).astype(int)[0, 0]}

    def communication(state):
        return {"uplink": 1, "downlink": 1}

    return Method(init=init, round=round, evaluate=evaluate, communication=communication)


def _first(lora):
    return jax.tree.leaves(lora)[0]
