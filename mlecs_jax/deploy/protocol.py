"""What the messages of ML-ECS hold, kind by kind: one place that both ends and the tests read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from mlecs_jax import captions
from mlecs_jax.config import Config
from mlecs_jax.deploy.admission import Template
from mlecs_jax.federation import Federation
from mlecs_jax.methods import ml_ecs
from mlecs_jax.metrics import rouge
from mlecs_jax.scoring import CLASS_METRICS, NodeScores

ANSWERS = ("after_amt", "after_broadcast")
SPLITS = ("val", "test")
COUNTED = "counted"
FACTS = ("rounds", "train_samples", "val_samples", "test_samples", "parameters")
"""What a device says of itself when a session begins: rounds of training that its encoders have
seen, three counts, and the size of its models."""


def shapes(tree: Any) -> Template:
    """The template of a tree of arrays or shapes, by path."""
    flat = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(str(key.key) for key in path): jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
            for path, leaf in flat}


def anchors(config: Config, public_rows: int) -> Template:
    """What the cloud says when a round begins."""
    if not ml_ecs.hears_anchors(config):
        return {}
    return {"anchors": jax.ShapeDtypeStruct((public_rows, config.model.latent), np.float32)}


def facts() -> Template:
    """What a device answers to ``begin``."""
    return {name: jax.ShapeDtypeStruct((), np.int64) for name in FACTS}


def counted(config: Config, num_devices: int) -> Template:
    """What the cloud says beside its LoRA where devices keep back what an encoding leaves out: the
    last round in which the upload of each device counted, by number; -1: none has."""
    if config.channel.uplink == "none":
        return {}
    return {COUNTED: jax.ShapeDtypeStruct((num_devices,), np.int32)}


def losses(config: Config) -> dict[str, tuple[str, ...]]:
    """Names of the losses of each stage of a device's round."""
    if not config.method.public:
        return {"amt": ("lm",)}
    return {"ccl": ("lm", "volume") if ml_ecs.hears_anchors(config) else ("lm",), "amt": ("lm",)}


def figures(config: Config) -> tuple[str, ...]:
    """Names of the scores, each in [0, 1]: of class answers, or of captions."""
    return CLASS_METRICS if config.captions is None else rouge.NAMES


def splits(config: Config, r: int) -> tuple[str, ...]:
    """What is scored after round ``r``: test rows are not captioned after every one."""
    due = config.captions is None or captions.tests_due(config, r)
    return SPLITS if due else SPLITS[:1]


def metrics(config: Config, num_classes: int, num_modalities: int, r: int) -> Template:
    """What a device answers to ``evaluate``: means and counts, nothing of a single row.

    ``losses/STAGE/NAME`` are means over the round's batches, NaN where the device missed the round;
    ``scores/SPLIT/WHEN/NAME`` are over its held-out rows, NaN where it has none; ``readings [M]``
    is how many of its training rows have each modality in this round; ``sent``, where uploads are
    privatised, how many have left the device, late and refused ones and those sent again too.
    """
    number = jax.ShapeDtypeStruct((), np.float64)
    template: dict[str, Any] = {
        "readings": jax.ShapeDtypeStruct((num_modalities,), np.int64)}
    if config.privacy and config.privacy.clip:
        template["sent"] = jax.ShapeDtypeStruct((), np.int64)
    for stage, names in losses(config).items():
        template |= {f"losses/{stage}/{name}": number for name in names}
    for split in splits(config, r):
        for when in ANSWERS:
            scores = no_scores(config, num_classes)
            template |= {f"scores/{split}/{when}/{name}": jax.ShapeDtypeStruct(x.shape, x.dtype)
                         for name, x in packed_scores(scores).items()}
    return template


def readings(federation: Federation, owned: np.ndarray) -> np.ndarray:
    """How many training rows of one device have each modality, int64 ``[M]``."""
    rows = federation.train
    real = np.arange(rows.available.shape[1]) < rows.count[0]
    return (np.asarray(rows.available)[0] & real[:, None] & owned).sum(axis=0).astype(np.int64)


def packed_scores(found: NodeScores) -> dict[str, np.ndarray]:
    """Scores of one split as arrays."""
    return {name: np.asarray(value, np.float64) for name, value in found.metrics.items()} | {
        name: np.asarray(value, np.int64) for name, value in found.details.items()}


def unpacked_scores(
    config: Config, arrays: Mapping[str, np.ndarray], split: str, when: str
) -> NodeScores:
    """The inverse of :func:`packed_scores`, from an answer to ``evaluate``."""
    place = f"scores/{split}/{when}/"
    found = {path.removeprefix(place): values.tolist() for path, values in arrays.items()
             if path.startswith(place)}
    return NodeScores({name: found.pop(name) for name in figures(config)}, found)


def no_scores(config: Config, num_classes: int) -> NodeScores:
    """Of a device that did not answer, or has no such rows."""
    none = dict.fromkeys(figures(config), math.nan)
    if config.captions is not None:
        return NodeScores(none)
    return NodeScores(none, {"confusion": np.zeros((num_classes, num_classes + 1), int).tolist(),
                             "unparsable": 0})
