"""The six models of Mega-CE²'s Tables 1 and 2 by name, with their published settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from mlecs_jax.errors import UserError
from mlecs_jax.models import crossmodal, mctn, sentiment_baselines, v2em_lite
from mlecs_jax.models.sentiment import SentimentModel


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """How a model is trained on one machine.

    Attributes:
      epochs: passes over the training segments, at most.
      batch_size: segments.
      learning_rate: of Adam.
      weight_decay: L2, added to the gradient.
      clip: global gradient norm.
      patience: epochs without a better validation error before training stops.
      plateau_patience: the same before the rate is divided by ten (10⁶: never).
      final_rate_fraction: of the rate in the last epoch, linearly approached; 1: it stays.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    clip: float
    patience: int
    plateau_patience: int
    final_rate_fraction: float = 1.0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "learning_rate", "clip", "patience",
                     "plateau_patience", "final_rate_fraction"):
            if not getattr(self, name) > 0:
                raise UserError(f"train.{name} is {getattr(self, name)}; give a positive number")
        if not self.weight_decay >= 0:
            raise UserError(f"train.weight_decay is {self.weight_decay}; give 0 or more")


_BASE = TrainOptions(epochs=100, batch_size=32, learning_rate=1e-3, weight_decay=0.0, clip=1.0,
                     patience=8, plateau_patience=10**6)

BASELINES = ("ef_lstm", "lf_lstm", "raven", "mctn", "v2em_lite")
MODELS = (*BASELINES, "mult")

_OPTIONS: Mapping[str, Mapping[str, TrainOptions]] = {
    "ef_lstm": {  # MMSA
        "mosi": dataclasses.replace(_BASE, weight_decay=5e-3),
        "mosei": dataclasses.replace(_BASE, batch_size=128, learning_rate=5e-3,
                                     weight_decay=1e-4)},
    "lf_lstm": {},  # ours: no canonical code
    "raven": {"any": dataclasses.replace(_BASE, batch_size=20, epochs=500)},
    "mctn": {"any": dataclasses.replace(_BASE, learning_rate=1e-4, epochs=200, patience=20)},
    "v2em_lite": {},  # ours: the original's rate is for a pretrained language model
    # The published table, and a patience of ours: ten epochs beyond the first drop of the rate.
    "mult": {
        "mosi": dataclasses.replace(_BASE, batch_size=128, clip=0.8, patience=30,
                                    plateau_patience=20),
        "mosei": dataclasses.replace(_BASE, batch_size=16, epochs=20, patience=30,
                                     plateau_patience=20)},
}

_WIDTHS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "ef_lstm": {"mosei": {"hidden": 256, "layers": 2, "dropout": 0.4}},  # MMSA
}


def published_options(name: str, dataset: str) -> TrainOptions:
    """The training settings a model was published with.

    Raises:
      UserError: an unknown model.
    """
    known = _OPTIONS[_known(name)]
    return known.get(dataset, known.get("any", _BASE))


def build(
    name: str, dataset: str, *, align: bool = False,
    crossmodal_config: crossmodal.CrossModalConfig | None = None, **widths: Any,
) -> SentimentModel:
    """A model by name.

    Args:
      name: one of :data:`MODELS`.
      dataset: ``mosi`` or ``mosei``; some widths were published per dataset.
      align: whether models that need streams of equal lengths learn a CTC alignment.
      crossmodal_config: of ``mult``; the dataset's published shape where None.
      widths: other arguments of a baseline's builder, to shrink it.

    Raises:
      UserError: an unknown model.
    """
    if _known(name) == "mult":
        return crossmodal.model(crossmodal_config or crossmodal.preset(dataset))
    widths = {**_WIDTHS.get(name, {}).get(dataset, {}), **widths}
    aligned: dict[str, Callable[..., SentimentModel]] = {
        "ef_lstm": sentiment_baselines.ef_lstm, "raven": sentiment_baselines.raven,
        "mctn": mctn.mctn}
    if name in aligned:
        return aligned[name](align=align, **widths)
    free = {"lf_lstm": sentiment_baselines.lf_lstm, "v2em_lite": v2em_lite.v2em_lite}
    return free[name](**widths)


def _known(name: str) -> str:
    if name not in MODELS:
        raise UserError(f"method.name is '{name}'; use {', '.join(MODELS)}")
    return name
