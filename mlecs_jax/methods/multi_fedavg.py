"""Multi-FedAvg: FedAvg of whole encoders, one modality at a time.

A round: devices train extractor, connector and LoRA on their private data; each uploads the
encoders and projectors of the modalities it owns and its LoRA; the server averages every
modality's over the devices that own it and the LoRA over all, weighted by numbers of samples, and
sends a device what it can use. Fusion and prompt generator stay local: their inputs depend on the
modalities a device has. Encoders meet only where they have the same structure.
"""

from __future__ import annotations

import jax
from flax import struct

from mlecs_jax import aggregate, channel, rounds
from mlecs_jax.answers import Predictor
from mlecs_jax.lora import Lora, Params
from mlecs_jax.methods.method import Diagnostics, Method, Predictions
from mlecs_jax.modality_exchange import ModalityExchange
from mlecs_jax.setting import Setting


@struct.dataclass
class State:
    """What lives between rounds.

    Attributes:
      devices: per cohort, stacked trainable groups of each device, as local training left them.
      encoders: the mean encoders and projectors, ``{modality: tree}`` per structure.
      lora: the mean LoRA.
    """

    devices: tuple[Params, ...]
    encoders: tuple[dict[str, Params], ...]
    lora: Lora


def build(setting: Setting) -> Method:
    """Multi-FedAvg over a setting."""
    topology, samples = setting.topology, setting.federation.train.count
    train = rounds.private_training(setting)
    predict = Predictor(setting)
    exchange = ModalityExchange(setting)

    def init(key: jax.Array) -> State:
        lora = rounds.initial_slm(setting, key)["lora"]
        devices = rounds.initial_devices(setting, key, lora)
        return State(devices=devices, encoders=exchange.first(devices),
                     lora=setting.topology.to_edge(lora))

    def receive(state: State, r: int) -> tuple[Params, ...]:
        devices = rounds.overwrite(state.devices, {"lora": state.lora})
        return exchange.receive(devices, state.encoders, r)

    def round(state: State, r: int, key: jax.Array) -> tuple[State, Diagnostics]:
        devices, losses = train(receive(state, r), r, key)
        uploads = topology.to_cloud({"lora": setting.join([params["lora"] for params in devices]),
                                     "samples": samples})
        lora = aggregate.weighted_mean(uploads["lora"], uploads["samples"])
        encoders = exchange.mean(devices, state.encoders, r)
        return (State(devices=devices, encoders=encoders, lora=topology.to_edge(lora)),
                {"devices": {"private": losses}, "server": {}})

    def evaluate(state: State, r: int) -> Predictions:
        return {"after_amt": predict.devices(state.devices, r)} | predict.after_broadcast(
            lambda: receive(state, r), r)

    def communication(state: State) -> dict[str, int]:
        sent = exchange.num_bytes(state.encoders, state.devices)
        return {"uplink": sent + channel.num_bytes({"lora": state.lora, "samples": samples[:1]}),
                "downlink": sent + channel.num_bytes({"lora": state.lora})}

    return Method(init=init, round=round, evaluate=evaluate, communication=communication)
