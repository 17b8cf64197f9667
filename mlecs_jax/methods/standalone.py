"""Nodes that learn apart: the published baseline Standalone and three controls. Nothing is sent.

- ``standalone``: every node minimises L_lb on its own data, devices on private and the server on
  public data, for as many steps as in ML-ECS.
- ``private_only``: the same devices, without server and public data.
- ``localpub``: the same devices with *labelled* public data: ML-ECS's two device stages with
  their learning rates, but no anchors, no upload, no broadcast. What ML-ECS gains over this control
  is what its communication is worth. It keeps the public labels even where
  ``partition.public_labels=False`` takes them from the other methods: an upper control there.
- ``localpub_mixed``: the same data in ML-ECS+'s schedule, one stage of as many steps in which every
  group trains and private batches alternate with labelled public ones; its server goes through all
  public samples as ML-ECS+'s does, those without a label teaching nothing. What ML-ECS+ gains over
  ``localpub`` is in part its schedule; what it gains over this control is communication.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
from flax import struct

from mlecs_jax import rounds
from mlecs_jax.answers import Predictor
from mlecs_jax.lora import Params
from mlecs_jax.methods.method import Diagnostics, Method, Predictions
from mlecs_jax.setting import Setting
from mlecs_jax.stages import device_stage

TrainDevices = Callable[..., tuple[tuple[Params, ...], Diagnostics]]


@struct.dataclass
class State:
    """What lives between rounds.

    Attributes:
      devices: per cohort, stacked trainable groups of each device.
      server: trainable groups of the server's LLM; None without a server.
    """

    devices: tuple[Params, ...]
    server: Params | None


def standalone(setting: Setting) -> Method:
    """Every node on its own data."""
    return _apart(setting, _on_private(setting), server=True)


def private_only(setting: Setting) -> Method:
    """The devices of :func:`standalone` alone."""
    return _apart(setting, _on_private(setting), server=False)


def localpub(setting: Setting) -> Method:
    """Devices on labelled public data, then on their own; the server by itself."""
    return _apart(setting, _on_public_then_private(setting), server=True)


def localpub_mixed(setting: Setting) -> Method:
    """Devices on labelled public and private data in turn; the server by itself, in batches of all
    public samples."""
    known = float(rounds.has_public_label(setting).mean())
    return _apart(setting, _on_public_and_private(setting), server=True, weights={"lm": known})


def _apart(
    setting: Setting, train_devices: TrainDevices, *, server: bool, **terms: Mapping[str, float]
) -> Method:
    """``terms``: of the server's stage, see :func:`mlecs_jax.rounds.lone_llm`."""
    train_llm = rounds.lone_llm(setting)
    predict = Predictor(setting)

    def init(key: jax.Array) -> State:
        lora = rounds.initial_slm(setting, key)["lora"]
        devices = rounds.initial_devices(setting, key, lora)
        return State(devices=devices, server=rounds.initial_llm(setting, key) if server else None)

    def round(state: State, r: int, key: jax.Array) -> tuple[State, Diagnostics]:
        devices, on_devices = train_devices(state.devices, r, key)
        llm, on_server = state.server, {}
        if llm is not None:
            llm, losses = train_llm(llm, r, key, **terms)
            on_server = {"alone": losses}
        return State(devices=devices, server=llm), {"devices": on_devices, "server": on_server}

    def evaluate(state: State, r: int) -> Predictions:
        answers = {"after_amt": predict.devices(state.devices, r)}
        if state.server is not None:
            answers["server"] = predict.server(state.server, r)
        return answers

    def communication(state: State) -> dict[str, int]:
        del state
        return {"uplink": 0, "downlink": 0}

    return Method(init=init, round=round, evaluate=evaluate, communication=communication)


def _on_private(setting: Setting) -> TrainDevices:
    train = rounds.private_training(setting)

    def run(devices, r, key):
        devices, losses = train(devices, r, key)
        return devices, {"private": losses}

    return run


def _on_public_then_private(setting: Setting) -> TrainDevices:
    options = setting.config
    train = setting.on_devices(device_stage)
    labelled = setting.topology.to_edge(setting.cloud["public"])

    def run(devices, r, key):
        rate = rounds.rate_at(options, r)
        devices, public = train(
            devices, r, rounds.stage_key(key, r, rounds.PUBLIC), on_public=True, public=labelled,
            steps=options.train.ccl_steps, rates=rounds.public_rates(options, rate),
            weights={"lm": 1.0})
        devices, private = train(
            devices, r, rounds.stage_key(key, r, rounds.PRIVATE), on_public=False, public=labelled,
            steps=options.train.amt_steps, rates=rounds.private_rates(options, rate),
            weights={"lm": 1.0})
        return devices, {"public": public, "private": private}

    return run


def _on_public_and_private(setting: Setting) -> TrainDevices:
    options = setting.config
    train = setting.on_devices(device_stage)
    labelled = setting.topology.to_edge(setting.cloud["public"])

    def run(devices, r, key):
        devices, losses = train(
            devices, r, rounds.stage_key(key, r, rounds.PUBLIC),
            on_public=options.plus.public_share, public=labelled,
            steps=rounds.local_steps(options),
            rates=rounds.every_group(rounds.rate_at(options, r)), weights={"lm": 1.0})
        return devices, {"both": losses}

    return run
