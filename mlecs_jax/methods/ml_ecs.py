"""ML-ECS (2026), Algorithm 1: edge–cloud synergy of one LLM and N small language models.

A round, in the paper's order:

1. the server fuses every public sample into an omni-modal representation and sends them;
2. devices run CCL on public data: language-modelling loss + volume contrast to those anchors;
3. devices run AMT on private data: language-modelling loss;
4. devices upload their LoRA and the number of their modalities, nothing else; compressed, where
   ``channel.uplink`` says so, and with noise, where ``privacy`` does (both beyond the paper);
5. the server averages them with weights ∝ modality counts (MMA, Eq. 13);
6. the server runs SE-CCL: LLM and SLM learn from the data and from each other (Eqs. 14–16);
7. the SLM's LoRA goes back, and devices overwrite theirs with it.

Cloud and devices are two records of functions that know each other by messages alone. The
simulation composes them; a deployment (:mod:`mlecs_jax.deploy`) puts a network between them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import struct

from mlecs_jax import aggregate, channel, privacy, programs, robust, rounds
from mlecs_jax.answers import Predictor
from mlecs_jax.codecs import Uplink
from mlecs_jax.config import Config
from mlecs_jax.errors import UserError
from mlecs_jax.lora import Lora, Params
from mlecs_jax.methods.method import UPLOADS, Diagnostics, Method, Predictions
from mlecs_jax.setting import Setting
from mlecs_jax.stages import device_stage, fuse_public, se_ccl_stage


@struct.dataclass
class Nodes:
    """What the devices have: all of them in a simulation, one in a deployed device.

    Attributes:
      devices: per cohort, stacked trainable groups of each device, as AMT left them.
      broadcast: the SLM LoRA sent last; devices overwrite theirs with it when a round begins.
      kept: what compression left out of each device's uploads so far ``[C, …]``; else no leaves.
    """

    devices: tuple[Params, ...]
    broadcast: Lora
    kept: Lora


@struct.dataclass
class State(Nodes):
    """What lives between rounds: the devices', and the server's ``llm`` (extractor, connector,
    generator, lora) and ``slm`` (generator, lora)."""

    server: dict[str, Params]


@dataclasses.dataclass(frozen=True)
class CloudPart:
    """What the cloud does; needs nothing of a device but its uploads.

    Attributes:
      init: ``key → server``.
      speak: ``server → message`` that a round begins with: the anchors, or nothing.
      learn: ``(server, uploads, r, key) → (server, diagnostics)``; uploads ``[C, …]`` of the
        devices that are there, in the order of their numbers.
      broadcast: ``server → message`` that a round ends with: the LoRA.
      evaluate: ``(server, r) → answers`` on its held-out rows.
      upload: ``server →`` shapes of one device's upload.
    """

    init: Callable[[jax.Array], Params]
    speak: Callable[[Params], dict[str, Any]]
    learn: Callable[[Params, dict[str, Any], int, jax.Array], tuple[Params, dict[str, Any]]]
    broadcast: Callable[[Params], dict[str, Any]]
    evaluate: Callable[[Params, int], Any]
    upload: Callable[[Params], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class DevicePart:
    """What devices do; needs nothing of the cloud but its messages.

    Attributes:
      init: ``key → nodes``.
      train: ``(nodes, message, r, key) → (nodes, uploads [C, …], diagnostics)``. ``noise`` is the
        key of the noise where uploads are privatised; without it a function of ``key``, which the
        cloud knows: a deployed device draws its own.
      receive: ``(nodes, message) → nodes`` with what the cloud broadcast.
      evaluate: ``(nodes, r) → predictions`` on each device's held-out rows.
    """

    init: Callable[[jax.Array], Nodes]
    train: Callable[..., tuple[Nodes, dict[str, Any], dict[str, Any]]]
    receive: Callable[[Nodes, dict[str, Any]], Nodes]
    evaluate: Callable[[Nodes, int], Predictions]


def build(setting: Setting) -> Method:
    """ML-ECS over a setting; ablations are ``config.method.{ccl,mma,se_ccl,kt,public,broadcast}``.

    With all of them off, and the connector trained in AMT, it is Standalone step for step.
    """
    cloud, devices, topology = cloud_part(setting), device_part(setting), setting.topology

    def init(key: jax.Array) -> State:
        return _state(devices.init(key), cloud.init(key))

    def round(state: State, r: int, key: jax.Array) -> tuple[State, Diagnostics]:
        # 1. Fused representations s′ of the public samples, to every device.
        message = topology.to_edge(cloud.speak(state.server))
        # 2–4. CCL on public data, AMT on private data, upload.
        nodes, uploads, on_devices = devices.train(state, message, r, key)
        # 5–6. MMA, SE-CCL.
        server, on_server = cloud.learn(state.server, topology.to_cloud(uploads), r, key)
        # 7. Broadcast.
        nodes = devices.receive(nodes, topology.to_edge(cloud.broadcast(server)))
        return _state(nodes, server), {"devices": on_devices, "server": on_server}

    def evaluate(state: State, r: int) -> Predictions:
        return devices.evaluate(state, r) | {"server": cloud.evaluate(state.server, r)}

    def communication(state: State) -> dict[str, int]:
        down = cloud.broadcast(state.server) | jax.eval_shape(cloud.speak, state.server)
        return {"uplink": channel.num_bytes(cloud.upload(state.server)),
                "downlink": channel.num_bytes(down)}

    return Method(init=init, round=round, evaluate=evaluate, communication=communication,
                  honours=UPLOADS)


def cloud_part(setting: Setting) -> CloudPart:
    """The cloud of :func:`build`; of the setting's devices it reads nothing."""
    options = setting.config
    clients = options.partition.num_clients
    uplink = Uplink(options.channel)
    if clients <= 0:  # as many as the dataset has; a deployed cloud knows of none
        clients = len(setting.federation.partition.devices)
    combine = robust.rule(options.aggregation, clients or None)
    fuse = programs.compiled(fuse_public, setting.llm)
    train = programs.compiled(se_ccl_stage, setting.outline, donate_argnums=1)
    predict = Predictor(setting)

    def init(key: jax.Array) -> Params:
        slm = setting.topology.to_cloud(rounds.initial_slm(setting, key), split=True)
        return {"llm": rounds.initial_llm(setting, key), "slm": slm}

    def speak(server: Params) -> dict[str, Any]:
        return {"anchors": fuse(setting.cloud, server["llm"])} if hears_anchors(options) else {}

    def learn(server: Params, uploads: dict[str, Any], r: int, key: jax.Array):
        rate, known = rounds.rate_at(options, r), server["slm"]["lora"]
        # 5. MMA, Eq. 13.
        weights = aggregate.modality_weights(uploads["modalities"], equal=not options.method.mma)
        lora = combine(uplink.receive(uploads["lora"], known), weights, known)
        # 6. SE-CCL, Eqs. 14–16.
        shared = setting.cloud | {"steps": options.train.server_steps,
                                  "rates": se_ccl_rates(options, rate),
                                  "weights": se_ccl_weights(options)}
        server, se_ccl = train(
            shared, {"llm": server["llm"], "slm": server["slm"] | {"lora": lora}},
            setting.topology.to_cloud(rounds.stage_key(key, r, rounds.SERVER)))
        return server, {"se_ccl": se_ccl}

    def broadcast(server: Params) -> dict[str, Any]:
        return {"lora": server["slm"]["lora"]} if options.method.broadcast else {}

    def upload(server: Params) -> dict[str, Any]:
        return {"lora": uplink.message(server["slm"]["lora"]),
                "modalities": jax.ShapeDtypeStruct((), np.int32)}

    return CloudPart(init, speak, learn, broadcast,
                     lambda server, r: predict.server(server["llm"], r), upload)


def device_part(setting: Setting) -> DevicePart:
    """The devices of :func:`build`: all of a setting's, be they N or one."""
    options, topology = setting.config, setting.topology
    privacy.check(options.privacy)
    uplink, private = Uplink(options.channel), privacy.mechanism(options.privacy)
    stage = setting.on_devices(device_stage)
    predict = Predictor(setting)
    numbers = np.sort(np.concatenate([cohort.clients for cohort in setting.cohorts]))
    if not options.method.broadcast and (
            options.channel.uplink != "none" or private or options.aggregation.clip):
        raise UserError("channel.uplink, aggregation.clip and privacy speak of differences to what "
                        "was broadcast; set method.broadcast=True, or channel.uplink=none, "
                        "aggregation.clip=0 and privacy.clip=0")

    def init(key: jax.Array) -> Nodes:
        lora = rounds.initial_slm(setting, key)["lora"]
        return Nodes(devices=rounds.initial_devices(setting, key, lora),
                     broadcast=topology.to_edge(lora),
                     kept=topology.to_edge(uplink.nothing_kept(lora, len(numbers))))

    def adopted(nodes: Nodes) -> tuple[Params, ...]:
        """The devices with what was broadcast in place of their own."""
        if not options.method.broadcast:
            return nodes.devices
        return rounds.overwrite(nodes.devices, {"lora": nodes.broadcast})

    def train(
        nodes: Nodes, message: dict[str, Any], r: int, key: jax.Array,
        noise: jax.Array | None = None,
    ):
        rate, diagnostics = rounds.rate_at(options, r), {}
        keys = [rounds.stage_key(key, r, part) for part in (rounds.PUBLIC, rounds.PRIVATE)]
        devices, amt_steps = adopted(nodes), rounds.local_steps(options)
        if options.method.public:
            # 2. CCL on public data.
            devices, diagnostics["ccl"] = stage(
                devices, r, keys[0], on_public=True, steps=options.train.ccl_steps,
                rates=rounds.public_rates(options, rate), weights=ccl_weights(options), **message)
            amt_steps = options.train.amt_steps
        # 3. AMT on private data.
        devices, amt = stage(
            devices, r, keys[1], on_public=False, steps=amt_steps,
            rates=rounds.private_rates(options, rate), weights=amt_weights(), **message)
        diagnostics["amt"] = {"lm": amt["lm"]}
        # 4. Upload LoRA and modality counts.
        loras = setting.join([params["lora"] for params in devices])
        if private:
            noise = rounds.stage_key(key, r, rounds.NOISE) if noise is None else noise
            own = setting.join([setting.client_keys(noise, cohort) for cohort in setting.cohorts])
            loras = private(loras, nodes.broadcast, own)
        loras, kept = uplink.send(loras, nodes.broadcast, nodes.kept)
        counts = setting.federation.owned_at(r)[numbers].sum(axis=1)
        return (Nodes(devices=devices, broadcast=nodes.broadcast, kept=kept),
                {"lora": loras, "modalities": counts}, diagnostics)

    def receive(nodes: Nodes, message: dict[str, Any]) -> Nodes:
        if not options.method.broadcast:
            return nodes
        return dataclasses.replace(nodes, broadcast=message["lora"])

    def evaluate(nodes: Nodes, r: int) -> Predictions:
        return {"after_amt": predict.devices(nodes.devices, r)} | predict.after_broadcast(
            lambda: adopted(nodes), r)

    return DevicePart(init, train, receive, evaluate)


def _state(nodes: Nodes, server: Params) -> State:
    return State(devices=nodes.devices, broadcast=nodes.broadcast, kept=nodes.kept, server=server)


def hears_anchors(options: Config) -> bool:
    """Whether devices make anything of the server's representations: CCL does, on public data."""
    return options.method.public and ccl_weights(options)["volume"] > 0


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
