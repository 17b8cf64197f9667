"""FedAvg of LoRA (McMahan et al., 2017): the plainest way to share a language model's adapter.

A round: devices train on their private data from the LoRA they received, upload it, and the server
sends back its mean, weighted by their numbers of samples. Everything else stays local; there is no
model at the server and no public data.
"""

from __future__ import annotations

import jax
from flax import struct

from mlecs_jax import aggregate, channel, rounds
from mlecs_jax.answers import Predictor
from mlecs_jax.lora import Lora, Params
from mlecs_jax.methods.method import Diagnostics, Method, Predictions
from mlecs_jax.setting import Setting


@struct.dataclass
class State:
    """What lives between rounds.

    Attributes:
      devices: per cohort, stacked trainable groups of each device, as local training left them.
      broadcast: the mean LoRA, with which the next round begins.
    """

    devices: tuple[Params, ...]
    broadcast: Lora


def build(setting: Setting) -> Method:
    """FedAvg of LoRA over a setting."""
    topology, samples = setting.topology, setting.federation.train.count
    train = rounds.private_training(setting)
    predict = Predictor(setting)

    def init(key: jax.Array) -> State:
        lora = rounds.initial_slm(setting, key)["lora"]
        return State(devices=rounds.initial_devices(setting, key, lora),
                     broadcast=setting.topology.to_edge(lora))

    def round(state: State, r: int, key: jax.Array) -> tuple[State, Diagnostics]:
        devices = rounds.overwrite(state.devices, {"lora": state.broadcast})
        devices, losses = train(devices, r, key)
        uploads = topology.to_cloud({"lora": setting.join([params["lora"] for params in devices]),
                                     "samples": samples})
        lora = aggregate.weighted_mean(uploads["lora"], uploads["samples"])
        return (State(devices=devices, broadcast=topology.to_edge(lora)),
                {"devices": {"private": losses}, "server": {}})

    def evaluate(state: State, r: int) -> Predictions:
        return {"after_amt": predict.devices(state.devices, r)} | predict.after_broadcast(
            lambda: rounds.overwrite(state.devices, {"lora": state.broadcast}), r)

    def communication(state: State) -> dict[str, int]:
        return {"uplink": channel.num_bytes({"lora": state.broadcast, "samples": samples[:1]}),
                "downlink": channel.num_bytes({"lora": state.broadcast})}

    return Method(init=init, round=round, evaluate=evaluate, communication=communication)
