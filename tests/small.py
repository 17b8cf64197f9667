"""Small problems shared by tests: a simulated dataset of three easy modalities, a tiny config."""

from __future__ import annotations

import numpy as np

from mlecs_jax import config as configs
from mlecs_jax.config import Config
from mlecs_jax.configs import ur_fall
from mlecs_jax.data.samples import Samples


def samples(n: int = 240, seed: int = 0, groups: int = 12) -> Samples:
    """Three classes; a signal, a picture and a feature vector that each show the class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n).astype(np.int32)
    code = np.eye(3)[labels]
    acce = (code + 0.3 * rng.standard_normal((n, 3))).astype(np.float32)
    rgb = np.clip(80 + 100 * code[:, None, None] + 20 * rng.standard_normal((n, 8, 8, 3)), 0, 255)
    depth = (np.tile(code, 2)[:, :5] * 3 + rng.standard_normal((n, 5))).astype(np.float32)
    present = np.ones((n, 3), bool)
    present[: n // 20, 0] = False
    acce[: n // 20] = 0
    return Samples(
        name="small", source="simulated",
        inputs={"acce": acce, "rgb": rgb.astype(np.uint8), "depth": depth},
        present=present, labels=labels, class_names=("a", "b", "c"),
        groups=(np.arange(n) * groups // n).astype(np.int32), strata=np.zeros(n, np.int32))


SHRUNK = {
    "data.source": "simulated", "model.slm": "gpt2-1x16x2", "model.llm": "gptj-1x24x2",
    "model.latent": 8, "model.encoder_hidden": 12, "model.connector_hidden": 16,
    "model.soft_tokens": 2, "lora.rank": 2, "train.batch_size": 4, "train.ccl_steps": 3,
    "train.amt_steps": 3, "train.server_steps": 3, "kt.k": 8, "data.simulated_sequences": 8}


def config(**overrides: object) -> Config:
    """The smoke config shrunk further; overrides by dotted name, e.g. ``{'train.rounds': 1}``."""
    values = ur_fall.get_config("smoke")
    for name, value in (SHRUNK | overrides).items():
        group, _, key = name.rpartition(".")
        target = values[group] if group else values
        with target.unlocked():
            target[key] = value
    return configs.parse(values.to_dict())
