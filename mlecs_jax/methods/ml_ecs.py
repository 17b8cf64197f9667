"""ML-ECS (2026), Algorithm 1: edge–cloud synergy of one LLM and N small language models.

A round, in the paper's order:

1. the server fuses every public sample into an omni-modal representation and sends them;
2. devices run CCL on public data: language-modelling loss + volume contrast to those anchors;
3. devices run AMT on private data: language-modelling loss;
4. devices upload their LoRA and the number of their modalities, nothing else;
5. the server averages them with weights ∝ modality counts (MMA, Eq. 13);
6. the server runs SE-CCL: LLM and SLM learn from the data and from each other (Eqs. 14–16);
7. the SLM's LoRA goes back, and devices overwrite theirs with it.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from mlecs_jax import aggregate, channel
from mlecs_jax.config import Config
from mlecs_jax.lora import Lora, Params
from mlecs_jax.methods.method import Diagnostics, Method, Predictions
from mlecs_jax.predict import Predictor
from mlecs_jax.setting import Setting
from mlecs_jax.stages import device_stage, fuse_public, se_ccl_stage
from mlecs_jax.train import decayed

CCL, AMT, SE_CCL = range(3)  # stage numbers, folded into keys


@struct.dataclass
class State:
    """What lives between rounds.

    Attributes:
      devices: per cohort, stacked trainable groups of each device, as AMT left them.
      server: ``llm`` (extractor, connector, generator, lora) and ``slm`` (generator, lora).
      broadcast: the SLM LoRA sent last; devices overwrite theirs with it when a round begins.
    """

    devices: tuple[Params, ...]
    server: dict[str, Params]
    broadcast: Lora


def build(setting: Setting) -> Method:
    """ML-ECS over a setting; ablations are ``config.method.{ccl,mma,se_ccl,kt}``."""
    options, topology = setting.config, setting.topology
    fuse = jax.jit(functools.partial(fuse_public, setting.llm))
    train_devices = setting.on_devices(device_stage)
    train_server = jax.jit(functools.partial(se_ccl_stage, setting), donate_argnums=1)
    predict = Predictor(setting)

    def init(key: jax.Array) -> State:
        llm_key, slm_key, device_key = jax.random.split(key, 3)
        llm = setting.llm.init(llm_key, setting.cloud["llm"], setting.example_inputs())
        slm = setting.slm.init(slm_key, setting.cloud["slm"], setting.example_inputs())
        slm = {"generator": slm["generator"], "lora": slm["lora"]}
        devices = setting.init_devices(device_key, slm["lora"])
        return State(devices=devices, server=topology.to_cloud({"llm": llm, "slm": slm}),
                     broadcast=topology.to_edge(slm["lora"]))

    def round(state: State, r: int, key: jax.Array) -> tuple[State, Diagnostics]:
        keys = [jax.random.fold_in(jax.random.fold_in(key, r), stage) for stage in range(3)]
        rate = decayed(options.train.learning_rate, options.train.final_rate_fraction, r,
                       options.train.rounds)
        devices = overwrite_lora(state.devices, state.broadcast)

        # 1. Fused omni-modal representations s' of the public samples, to every device.
        anchors = topology.to_edge(fuse(setting.cloud, state.server["llm"]))
        # 2. CCL on public data.
        devices, ccl = train_devices(
            devices, r, keys[CCL], on_public=True, anchors=anchors, steps=options.train.ccl_steps,
            rates=ccl_rates(options, rate), weights=ccl_weights(options))
        # 3. AMT on private data.
        devices, amt = train_devices(
            devices, r, keys[AMT], on_public=False, anchors=anchors, steps=options.train.amt_steps,
            rates=amt_rates(options, rate), weights=amt_weights())
        # 4. Upload LoRA and modality counts.
        uploads = topology.to_cloud({
            "lora": setting.join([params["lora"] for params in devices]),
            "modalities": setting.federation.owned_at(r).sum(axis=1)})
        # 5. MMA, Eq. 13.
        weights = aggregate.modality_weights(uploads["modalities"], equal=not options.method.mma)
        slm_lora = aggregate.weighted_mean(uploads["lora"], weights)
        # 6. SE-CCL, Eqs. 14–16.
        server = {"llm": state.server["llm"], "slm": state.server["slm"] | {"lora": slm_lora}}
        shared = setting.cloud | {"steps": options.train.server_steps,
                                  "rates": se_ccl_rates(options, rate),
                                  "weights": se_ccl_weights(options)}
        server, se_ccl = train_server(shared, server, topology.to_cloud(keys[SE_CCL]))
        # 7. Broadcast.
        broadcast = topology.to_edge(server["slm"]["lora"])

        return (State(devices=devices, server=server, broadcast=broadcast),
                {"devices": {"ccl": ccl, "amt": {"lm": amt["lm"]}}, "server": {"se_ccl": se_ccl}})

    def evaluate(state: State, r: int) -> Predictions:
        overwritten = overwrite_lora(state.devices, state.broadcast)
        return {"after_amt": predict.devices(state.devices, r),
                "after_broadcast": predict.devices(overwritten, r),
                "server": predict.server(state.server["llm"])}

    def communication(state: State) -> dict[str, int]:
        anchors = jax.eval_shape(fuse, setting.cloud, state.server["llm"])
        modalities = np.zeros(1, np.int32)
        return {"uplink": channel.num_bytes({"lora": state.broadcast, "modalities": modalities}),
                "downlink": channel.num_bytes({"lora": state.broadcast, "anchors": anchors})}

    return Method(init=init, round=round, evaluate=evaluate, communication=communication)


def ccl_rates(options: Config, rate: float) -> dict[str, float]:
    """CCL trains connector and LoRA; the extractor by option (the release freezes it)."""
    return {"extractor": rate * options.ccl.train_extractor, "connector": rate, "generator": rate,
            "lora": rate}


def ccl_weights(options: Config) -> dict[str, float]:
    """Without CCL only the language-modelling loss on public data is left."""
    return {"lm": 1.0, "volume": options.ccl.weight * options.method.ccl}


def amt_rates(options: Config, rate: float) -> dict[str, float]:
    """AMT trains extractor and LoRA; the connector is frozen in the paper."""
    connector = rate * options.amt.train_connector
    return {"extractor": rate, "connector": connector, "generator": connector, "lora": rate}


def amt_weights() -> dict[str, float]:
    """AMT has no anchors: private samples are unknown to the server."""
    return {"lm": 1.0, "volume": 0.0}


def se_ccl_rates(options: Config, rate: float) -> dict[str, float]:
    """Both learners train; without SE-CCL the aggregated SLM stays as it is."""
    return {"llm": rate, "slm": rate * options.method.se_ccl}


def se_ccl_weights(options: Config) -> dict[str, float]:
    """Without SE-CCL the LLM trains alone, on L_lb."""
    enabled = float(options.method.se_ccl)
    transfer = options.kt.weight * options.method.kt * enabled
    return {"llm_lm": 1.0, "slm_lm": enabled, "volume": options.ccl.weight * enabled,
            "kt_llm": transfer, "kt_slm": transfer}


def overwrite_lora(devices: tuple[Params, ...], lora: Lora) -> tuple[Params, ...]:
    """Every device's LoRA replaced by the broadcast one."""
    return tuple(
        params | {"lora": jax.tree.map(lambda own, new: jnp.broadcast_to(new, own.shape),
                                       params["lora"], lora)}
        for params in devices)
