"""A small Mega-CE² setting for tests: simulated MOSI, a tiny model, three edges of two ends."""

from __future__ import annotations

import contextlib
import dataclasses
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np

from mlecs_jax.data import sentiment_simulated
from mlecs_jax.mega import config, setting
from mlecs_jax.models import adapters as adapter_blocks
from mlecs_jax.models import crossmodal, initial
from mlecs_jax.models.sentiment import SentimentModel, absolute_error

FILE = Path(__file__).parents[2] / "configs" / "mosi.py"


def values(**changes: Any) -> dict[str, Any]:
    """Plain configuration values; ``changes`` by name with ``__`` for the dot."""
    result = runpy.run_path(str(FILE))["get_config"]("smoke").to_dict()
    result["data"]["source"] = "simulated"
    result["train"]["batch_size"] = result["adapter"]["batch_size"] = 8
    result["partition"]["minimum"] = 8
    result["model"].update(modalities="text,vision", targets="text")
    for name, value in changes.items():
        *groups, key = name.split("__")
        place = result
        for group in groups:
            place = place[group]
        assert key in place
        place[key] = value
    return result


DATA = sentiment_simulated.simulate("mosi", seed=3, segments=120)


def build(devices=None, **changes: Any) -> setting.MegaSetting:
    return setting.build(config.parse(values(**changes)), DATA, devices or jax.devices()[:1])


def toy(width: int = 8) -> SentimentModel:
    """A model that compiles in a second: text, projected, through an adapter if there is one."""

    def init(key, example):
        rng = initial.rng(key)
        return {"project": 0.05 * rng.standard_normal(
                    (example.text.shape[-1], width)).astype(np.float32),
                "head": rng.standard_normal(width).astype(np.float32)}

    def apply(params, batch, *, train=False, key=None, adapters=None):
        x = batch.text @ params["project"]
        place = "text_with_vision"
        shift = adapter_blocks.to_output(adapters, {place: x}, heads=2)
        x = x + adapter_blocks.to_hidden(adapters, place, x, heads=2)
        if train:
            x = x * jax.random.bernoulli(key, 0.9, x.shape)
        return x.mean(axis=1) @ params["head"] + shift

    return SentimentModel("toy", init, apply, absolute_error(apply))


def build_toy(devices=None, **changes: Any) -> setting.MegaSetting:
    """As :func:`build`, with the toy in place of the cross-modal transformer."""
    made = build(devices, **changes)
    shape = dataclasses.replace(made.shape, width=8)
    return dataclasses.replace(made, model=toy(), shape=shape)


@contextlib.contextmanager
def toys() -> Iterator[None]:
    """The toy wherever a model is built from a configuration."""
    shape = config.MegaConfig.model_config
    with (mock.patch.object(config.MegaConfig, "model_config",
                            lambda self: dataclasses.replace(shape(self), width=8)),
          mock.patch.object(crossmodal, "model", lambda shape, name: toy())):
        yield
