"""ML-ECS (2026), Algorithm 1: edge–cloud synergy of one LLM and N small language models.

A round, in the paper's order:

1. the server fuses every public sample into an omni-modal representation and sends them;
2. devices run CCL on public data: language-modelling loss + volume contrast to those anchors;
3. devices run AMT on private data: language-modelling loss;
4. devices upload their LoRA and the number of their modalities, nothing else; compressed, where
   ``channel.uplink`` says so (beyond the paper);
5. the server averages them with weights ∝ modality counts (MMA, Eq. 13);
6. the server runs SE-CCL: LLM and SLM learn from the data and from each other (Eqs. 14–16);
7. the SLM's LoRA goes back, and devices overwrite theirs with it.
"""

from __future__ import annotations

import jax
import numpy as np
from flax import struct

from mlecs_jax import aggregate, channel, programs, rounds
from mlecs_jax.answers import Predictor
from mlecs_jax.codecs import Uplink
from mlecs_jax.config import Config
from mlecs_jax.errors import UserError
from mlecs_jax.lora import Lora, Params
from mlecs_jax.methods.method import Diagnostics, Method, Predictions
from mlecs_jax.setting import Setting
from mlecs_jax.stages import device_stage, fuse_public, se_ccl_stage


@struct.dataclass
class State:
    """What lives between rounds.

    Attributes:
      devices: per cohort, stacked trainable groups of each device, as AMT left them.
      server: ``llm`` (extractor, connector, generator, lora) and ``slm`` (generator, lora).
      broadcast: the SLM LoRA sent last; devices overwrite theirs with it when a round begins.
      kept: what compression left out of each device's uploads so far ``[C, …]``; else no leaves.
    """

    devices: tuple[Params, ...]
    server: dict[str, Params]
    broadcast: Lora
    kept: Lora


def build(setting: Setting) -> Method:
    """ML-ECS over a setting; ablations are ``config.method.{ccl,mma,se_ccl,kt,public,broadcast}``.

    With all of them off, and the connector trained in AMT, it is Standalone step for step.
    """
    options, topology = setting.config, setting.topology
    fuse = programs.compiled(fuse_public, setting.llm)
    train_devices = setting.on_devices(device_stage)
    train_server = programs.compiled(se_ccl_stage, setting.outline, donate_argnums=1)
    predict, uplink = Predictor(setting), Uplink(options.channel)
    if options.channel.uplink != "none" and not options.method.broadcast:
        raise UserError("channel.uplink sends differences to what was broadcast; set "
                        "method.broadcast=True, or channel.uplink=none")

    def init(key: jax.Array) -> State:
        slm = rounds.initial_slm(setting, key)
        server = {"llm": rounds.initial_llm(setting, key), "slm": topology.to_cloud(slm)}
        return State(devices=rounds.initial_devices(setting, key, slm["lora"]), server=server,
                     broadcast=topology.to_edge(slm["lora"]), kept=topology.to_edge(
                         uplink.nothing_kept(slm["lora"], setting.federation.num_clients)))

    def receive(state: State) -> tuple[Params, ...]:
        if not options.method.broadcast:
            return state.devices
        return rounds.overwrite(state.devices, {"lora": state.broadcast})

    def round(state: State, r: int, key: jax.Array) -> tuple[State, Diagnostics]:
        rate = rounds.rate_at(options, r)
        keys = [rounds.stage_key(key, r, stage) for stage in range(3)]
        devices, on_devices, messages = receive(state), {}, {}
        amt_steps = rounds.local_steps(options)

        if options.method.public:
            # 1. Fused omni-modal representations s' of the public samples, to every device.
            messages["anchors"] = topology.to_edge(fuse(setting.cloud, state.server["llm"]))
            # 2. CCL on public data.
            devices, on_devices["ccl"] = train_devices(
                devices, r, keys[rounds.PUBLIC], on_public=True, steps=options.train.ccl_steps,
                rates=rounds.public_rates(options, rate), weights=ccl_weights(options), **messages)
            amt_steps = options.train.amt_steps
        # 3. AMT on private data.
        devices, amt = train_devices(
            devices, r, keys[rounds.PRIVATE], on_public=False, steps=amt_steps,
            rates=rounds.private_rates(options, rate), weights=amt_weights(), **messages)
        on_devices["amt"] = {"lm": amt["lm"]}
        # 4. Upload LoRA and modality counts.
        loras, kept = uplink.send(setting.join([params["lora"] for params in devices]),
                                  state.broadcast, state.kept)
        uploads = topology.to_cloud({
            "lora": loras, "modalities": setting.federation.owned_at(r).sum(axis=1)})
        received = uplink.receive(uploads["lora"], state.server["slm"]["lora"])
        # 5. MMA, Eq. 13.
        weights = aggregate.modality_weights(uploads["modalities"], equal=not options.method.mma)
        slm_lora = aggregate.weighted_mean(received, weights)
        # 6. SE-CCL, Eqs. 14–16.
        server = {"llm": state.server["llm"], "slm": state.server["slm"] | {"lora": slm_lora}}
        shared = setting.cloud | {"steps": options.train.server_steps,
                                  "rates": se_ccl_rates(options, rate),
                                  "weights": se_ccl_weights(options)}
        server, se_ccl = train_server(shared, server, topology.to_cloud(keys[rounds.SERVER]))
        # 7. Broadcast.
        broadcast = topology.to_edge(server["slm"]["lora"])

        return (State(devices=devices, server=server, broadcast=broadcast, kept=kept),
                {"devices": on_devices, "server": {"se_ccl": se_ccl}})

    def evaluate(state: State, r: int) -> Predictions:
        return {"after_amt": predict.devices(state.devices, r),
                "after_broadcast": predict.devices(receive(state), r),
                "server": predict.server(state.server["llm"], r)}

    def communication(state: State) -> dict[str, int]:
        up = {"lora": uplink.message(state.broadcast), "modalities": np.zeros(1, np.int32)}
        down = {}
        if options.method.broadcast:
            down["lora"] = state.broadcast
        if options.method.public:
            down["anchors"] = jax.eval_shape(fuse, setting.cloud, state.server["llm"])
        return {"uplink": channel.num_bytes(up), "downlink": channel.num_bytes(down)}

    return Method(init=init, round=round, evaluate=evaluate, communication=communication)


def ccl_weights(options: Config) -> dict[str, float]:
    """Without CCL only the language-modelling loss on public data is left."""
    return {"lm": 1.0, "volume": options.ccl.weight * options.method.ccl}


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
