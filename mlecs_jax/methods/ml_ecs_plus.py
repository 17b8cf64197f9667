"""ML-ECS+, our own variant of ML-ECS: collaboration by beliefs about the public samples.

Not part of the published method. Where ML-ECS sends fused representations and LoRA, nodes here
exchange what they *think* of each public sample (:mod:`mlecs_jax.beliefs`): C probabilities in
place of d anchor numbers. Of the public samples' labels only the server needs some. A round:

1. the server's LLM learns from the public labels it has and, elsewhere, from the devices' pooled
   beliefs of the round before;
2. its beliefs, mixed with theirs, go to the devices, with the averaged LoRA;
3. devices learn from private labels and from that teacher on public samples, in turn;
4. devices upload their beliefs on public samples, how many modalities they have of each, LoRA and
   their numbers of modalities and of labels of each class;
5. the server pools beliefs per sample, by the modalities that a device has of it, aligns their mean
   with the class frequencies, and averages LoRA with weights ∝ modality counts (MMA, Eq. 13).

Private knowledge travels in step 4: a device that has seen other falls, or has a camera where its
neighbour has an accelerometer, changes what all are taught in the next round.

Two levers are off: ``plus.encoders`` averages encoders over the owners of their modality as well
(:mod:`mlecs_jax.modality_exchange`); ``plus.volume`` sends the LLM's fused representations as
ML-ECS does and adds the volume contrast to step 3, with ``ccl.negatives=other_class`` between
samples of unlike classes alone, by the teacher where there is no label.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from mlecs_jax import aggregate, beliefs, channel, programs, rounds
from mlecs_jax.answers import Predictor
from mlecs_jax.errors import UserError
from mlecs_jax.lora import Lora, Params
from mlecs_jax.losses import SoftTargets
from mlecs_jax.methods.method import Diagnostics, Method, Predictions
from mlecs_jax.modality_exchange import Encoders, ModalityExchange
from mlecs_jax.setting import Outline, Setting
from mlecs_jax.stages import device_stage, fuse_public

WIRE = jnp.bfloat16  # of beliefs between tiers: 3 digits are more than a probability is worth


@struct.dataclass
class State:
    """What lives between rounds.

    Attributes:
      devices: per cohort, stacked trainable groups of each device.
      llm: trainable groups of the server's LLM.
      broadcast: the averaged LoRA, on the edge.
      pooled: pooled beliefs of the devices on public samples ``[n, T, K]``, on the cloud; of
        probability 0 before the first upload.
    """

    devices: tuple[Params, ...]
    llm: Params
    broadcast: Lora
    pooled: SoftTargets


@struct.dataclass
class SharingState(State):
    """With ``plus.encoders`` also the mean encoders and projectors, per structure."""

    encoders: Encoders


def build(setting: Setting) -> Method:
    """ML-ECS+ over a setting; its levers are ``config.plus``.

    Raises:
      UserError: captions that the devices do not hold for the public samples, or of which they are
        asked one token, while how sure they are is to count.
    """
    options, levers, topology = setting.config, setting.config.plus, setting.topology
    if not setting.answer_ids and not options.partition.public_labels:
        raise UserError("ml_ecs_plus teaches captions along the public ones, which devices must "
                        "hold; set partition.public_labels=True")
    if not setting.answer_ids and levers.weighting == "confidence" and levers.tokens < 2:
        raise UserError("plus.weighting=confidence needs a choice to be sure of; set plus.tokens "
                        "to 2 or more")
    train_llm = rounds.lone_llm(setting)
    train_devices = setting.on_devices(device_stage)
    ask_devices = setting.on_devices(_device_beliefs)
    ask_server = programs.compiled(_server_beliefs, setting.outline)
    pool = programs.compiled(_pooled, setting.outline)
    mix = programs.compiled(_teacher)
    fuse = programs.compiled(fuse_public, setting.llm)
    exchange = ModalityExchange(setting)
    predict = Predictor(setting)
    counts = label_counts(setting)
    counted = np.min_scalar_type(len(setting.federation.modalities))  # uint8: of a sample's "seen"
    has_label = rounds.has_public_label(setting)
    no_label = topology.to_cloud(~has_label[:, None, None])
    known = float(has_label.mean())  # share of D′ that the server has labels of

    def init(key: jax.Array) -> State:
        lora = rounds.initial_slm(setting, key)["lora"]
        llm = rounds.initial_llm(setting, key)
        asked = jax.eval_shape(ask_server, setting.cloud, llm)
        devices = rounds.initial_devices(setting, key, lora)
        pooled = topology.to_cloud(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), asked))
        return state_of(devices, llm, topology.to_edge(lora), pooled,
                        exchange.first(devices) if levers.encoders else None)

    def state_of(devices, llm, broadcast, pooled, encoders: Encoders | None) -> State:
        common = {"devices": devices, "llm": llm, "broadcast": broadcast, "pooled": pooled}
        return State(**common) if encoders is None else SharingState(**common, encoders=encoders)

    def received(state: State, r: int) -> tuple[Params, ...]:
        """The devices with what was sent to all: LoRA, and the encoders of what they own."""
        devices = rounds.overwrite(state.devices, {"lora": state.broadcast}) \
            if levers.lora else state.devices
        if isinstance(state, SharingState):
            devices = exchange.receive(devices, state.encoders, r)
        return devices

    def round(state: State, r: int, key: jax.Array) -> tuple[State, Diagnostics]:
        rate = rounds.rate_at(options, r)
        # 1. The LLM learns from public labels and, where there are none, from the devices.
        lesson = state.pooled.replace(
            probabilities=jnp.where(no_label, state.pooled.probabilities, 0.0))
        llm, server = train_llm(state.llm, r, key, teacher=lesson, weights={
            "lm": known, "distil": (1.0 - known) * levers.server_distil})
        # 2. The teacher: beliefs of the LLM, the more the more labels it has, and of the devices.
        share = 1.0 - known * (1.0 - levers.devices_share)
        teacher = topology.to_edge(mix(ask_server(setting.cloud, llm), state.pooled, share))
        # 3. Devices learn from both sources in turn.
        anchors, volume = {}, {}
        if levers.volume:
            anchors = {"anchors": topology.to_edge(fuse(setting.cloud, llm))}
            volume = {"volume": levers.volume}
        devices, losses = train_devices(
            received(state, r), r, rounds.stage_key(key, r, rounds.PUBLIC),
            on_public=levers.public_share, teacher=teacher, steps=rounds.local_steps(options),
            rates=rounds.every_group(rate), weights={"lm": 1.0, "distil": levers.distil, **volume},
            **anchors)
        # 4. They upload beliefs, LoRA and modality counts.
        devices, (own, seen) = ask_devices(
            devices, r, rounds.stage_key(key, r, rounds.PUBLIC), ids=teacher.ids)
        uploads = topology.to_cloud({
            "beliefs": own.astype(WIRE), "seen": seen.astype(counted),
            "lora": setting.join([params["lora"] for params in devices]),
            "modalities": setting.federation.owned_at(r).sum(axis=1), "labels": counts})
        # 5. One belief and one LoRA of all.
        pooled = SoftTargets(ids=topology.to_cloud(teacher.ids), probabilities=pool(
            uploads["beliefs"], uploads["seen"], uploads["labels"]))
        weights = aggregate.modality_weights(uploads["modalities"])
        lora = topology.to_edge(aggregate.weighted_mean(uploads["lora"], weights))
        encoders = exchange.mean(devices, state.encoders, r) \
            if isinstance(state, SharingState) else None
        return (state_of(devices, llm, lora, pooled, encoders),
                {"devices": {"both": losses}, "server": {"llm": server}})

    def evaluate(state: State, r: int) -> Predictions:
        predictions = {"after_amt": predict.devices(state.devices, r),
                       "server": predict.server(state.llm, r)}
        if levers.lora or levers.encoders:
            predictions |= predict.after_broadcast(lambda: received(state, r), r)
        return predictions

    def communication(state: State) -> dict[str, int]:
        said = {"beliefs": jax.ShapeDtypeStruct(state.pooled.ids.shape, WIRE),
                "lora": state.broadcast if levers.lora else {}}
        # Class tokens are known to all; those of captions travel down.
        ids = {} if setting.answer_ids else {"ids": jax.ShapeDtypeStruct(
            state.pooled.ids.shape, np.min_scalar_type(setting.llm.decoder.config.vocab_size - 1))}
        anchors = {"anchors": jax.eval_shape(fuse, setting.cloud, state.llm)} \
            if levers.volume else {}
        encoders = exchange.num_bytes(state.encoders, state.devices) \
            if isinstance(state, SharingState) else 0
        own = {"seen": jax.ShapeDtypeStruct(state.pooled.ids.shape[:1], counted),
               "modalities": np.zeros(1, np.int32), "labels": counts[0]}
        return {"uplink": encoders + channel.num_bytes(said | own),
                "downlink": encoders + channel.num_bytes(said | ids | anchors)}

    return Method(init=init, round=round, evaluate=evaluate, communication=communication)


def label_counts(setting: Setting) -> np.ndarray:
    """How many training samples of each class a device has, int32 ``[N, C]``; C = 0 for captions.
    Like the number of modalities, this is told to the server."""
    samples, devices = setting.federation.samples, setting.federation.partition.devices
    if samples.labels is None:
        return np.zeros((len(devices), 0), np.int32)
    classes = len(samples.class_names)
    return np.stack([np.bincount(samples.labels[share.train], minlength=classes)
                     for share in devices]).astype(np.int32)


def _pooled(setting: Outline, said, seen, labels):
    """One belief of all devices, its mean aligned with the class frequencies of their data."""
    levers = setting.config.plus
    pooled = beliefs.pool(said.astype(jnp.float32), seen.astype(jnp.float32), levers.weighting)
    if not (levers.align and setting.answer_ids):
        return pooled
    counts = labels.sum(axis=0) + 1.0  # a class that no device has is rare and not impossible
    return beliefs.align(pooled, counts / counts.sum())


def _teacher(server: SoftTargets, pooled: SoftTargets, share) -> SoftTargets:
    """The LLM's beliefs with the devices' as their ``share``, as exact as they travel."""
    mixed = beliefs.mix(server.probabilities, beliefs.about(server.ids, pooled), share)
    return server.replace(probabilities=mixed.astype(WIRE).astype(jnp.float32))


def _device_beliefs(setting: Outline, model, shared, params: Params, device):
    """A device's beliefs on public samples; its parameters pass through."""
    rows = shared["public"]
    if device["public_available"] is not None:
        rows = rows.replace(available=device["public_available"])
    said, seen = beliefs.of_rows(model, shared["slm"], params, rows, device["owned"],
                                 shared["moments"], shared["ids"])
    return params, (said.probabilities, seen)


def _server_beliefs(setting: Outline, cloud, llm: Params) -> SoftTargets:
    """The LLM's beliefs on public samples, with every modality: of the classes, or of its
    ``plus.tokens`` likeliest tokens along a caption."""
    rows = cloud["public"]
    classes = jnp.asarray(setting.answer_ids, jnp.int32)
    asked = jnp.broadcast_to(classes, (rows.target.shape[0], 1, len(classes))) \
        if setting.answer_ids else setting.config.plus.tokens
    every = jnp.ones(rows.available.shape[-1], bool)
    return beliefs.of_rows(setting.llm, cloud["llm"], llm, rows, every, cloud["moments"], asked)[0]
