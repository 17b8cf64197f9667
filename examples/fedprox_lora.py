"""FedProx (Li et al., 2020) of LoRA: local training held near the adapter that arrived.

Run it: python -m mlecs_jax.run --config=ur_fall --config.method.name=examples/fedprox_lora.py
"""

import jax
from flax import struct

from mlecs_jax import aggregate, channel, rounds
from mlecs_jax.answers import Predictor
from mlecs_jax.methods.method import Method

MU = 0.1  # weight of ½ ‖θ − θ_received‖²


@struct.dataclass
class State:
    devices: tuple  # per cohort, stacked trainable groups of each device
    broadcast: dict  # the mean LoRA, with which the next round begins


def build(setting):
    train, predict = rounds.private_training(setting), Predictor(setting)
    samples = setting.federation.train.count

    def init(key):
        lora = rounds.initial_slm(setting, key)["lora"]
        return State(rounds.initial_devices(setting, key, lora), setting.topology.to_edge(lora))

    def round(state, r, key):
        received = {"lora": state.broadcast}
        devices, losses = train(rounds.overwrite(state.devices, received), r, key,
                                proximal={"centre": received, "weight": MU})
        uploads = setting.topology.to_cloud(setting.join([own["lora"] for own in devices]))
        lora = jax.jit(aggregate.weighted_mean)(uploads, samples)
        return (State(devices, setting.topology.to_edge(lora)),
                {"devices": {"private": losses}, "server": {}})

    def evaluate(state, r):
        return {"after_amt": predict.devices(state.devices, r)}

    def communication(state):
        sent = channel.num_bytes(state.broadcast)
        return {"uplink": sent + channel.num_bytes(samples[:1]), "downlink": sent}

    return Method(init, round, evaluate, communication)
