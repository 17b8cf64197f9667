"""Configuration of Mega-CE²: plain values become frozen, checked dataclasses.

As in :mod:`mlecs_jax.config`, fields carry no defaults: the config files are the one place where a
value stands.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from mlecs_jax.config import ClientsConfig, TopologyConfig, typed
from mlecs_jax.errors import UserError
from mlecs_jax.mega import links
from mlecs_jax.models import crossmodal


@dataclasses.dataclass(frozen=True)
class MethodConfig:
    """What the cloud does.

    Attributes:
      name: ``mega_ce2``; other names are centralised models (see the artefacts).
      mode: ``async``: every arrival makes a version (Eq. 4); ``sync``: a barrier every round.
      staleness_exponent: a of the discount (1 + τ)^(−a); 0 is Eq. 4 as printed.
    """

    name: str
    mode: Literal["async", "sync"]
    staleness_exponent: float


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """See :mod:`mlecs_jax.data.sentiment_sources`; ``window`` 0 is the dataset's own."""

    name: Literal["mosi", "mosei"]
    source: Literal["auto", "real", "simulated"]
    form: str
    split: Literal["segment", "video", "canonical", "heldout"]
    window: int
    simulated_seed: int
    simulated_segments: int


@dataclasses.dataclass(frozen=True)
class PartitionConfig:
    """Edges, ends of each, and how unequal their sentiments are."""

    edges: int
    ends: int
    alpha: float
    minimum: int
    seed: int


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A preset of :mod:`mlecs_jax.models.crossmodal`, the ablations on it, and what the papers
    leave open.

    Attributes:
      kernels: of the convolutions over text, audio and vision, ``'1,3,3'``, or one for all; empty:
        the preset's.
      residual_norm, last_steps: see :class:`crossmodal.CrossModalConfig`.
    """

    preset: str
    modalities: str
    targets: str
    kernels: str
    residual_norm: bool
    last_steps: int


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Local training.

    Attributes:
      rounds: synchronous rounds; an asynchronous run is given their simulated time.
      local_epochs: passes of an end over its data before it reports.
      learning_rate, final_rate_fraction: linear in simulated time.
      centralised_epochs: at most, of the models that are trained on one machine; 0: as many as
        they were published with.
      recipe: of those models: ``published``, each with the settings of its authors, or ``tiers``:
        batches, rates, clipping and passes over the data of the three-tier run.
    """

    rounds: int
    local_epochs: int
    batch_size: int
    learning_rate: float
    final_rate_fraction: float
    clip: float
    centralised_epochs: int
    recipe: Literal["published", "tiers"]


@dataclasses.dataclass(frozen=True)
class CloudConfig:
    """Training in the cloud, which Mega-CE² speaks of and gives no recipe for.

    Attributes:
      steps: batches that every version is trained on after Eq. 4; 0: none.
      share: of the training segments, drawn at random, that the cloud has and no end.
    """

    steps: int
    share: float


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """Personalisation of each edge after the last version.

    Attributes:
      kind: the two readings of ⊕ in Eq. 5, ``block``: adapters add to hidden states beside the
        frozen transformers, ``output``: to the prediction; ``bias``: a constant does (a control).
      scope: ``edge``: each edge its own; ``pooled``: one on the segments of all (a control).
      share: one block for all places, or one each.
    """

    kind: Literal["block", "output", "bias"]
    scope: Literal["edge", "pooled"]
    share: bool
    epochs: int
    batch_size: int
    learning_rate: float


@dataclasses.dataclass(frozen=True)
class ClockConfig:
    """Simulated time.

    Attributes:
      step_seconds: of one training step of one end at speed 1.
      speeds: of the edges, e.g. ``'1,1,0.25'``; repeated if there are more edges.
      links: presets of :mod:`mlecs_jax.mega.links` of the edges, e.g. ``'realistic,paper'``;
        repeated if there are more edges.
      jitter: standard deviation of the logarithm of training times.
      seed: of the jitter.
    """

    step_seconds: float
    speeds: str
    links: str
    jitter: float
    seed: int

    def speed(self, edge: int) -> float:
        """Speed of an edge, relative to ``step_seconds``."""
        try:
            speeds = [float(part) for part in self.speeds.split(",")]
        except ValueError:
            raise UserError(f"clock.speeds is '{self.speeds}'; give numbers with commas, e.g. "
                            "1,1,0.25") from None
        if not all(0 < speed < float("inf") for speed in speeds):
            raise UserError(f"clock.speeds is '{self.speeds}'; give positive numbers")
        return speeds[edge % len(speeds)]

    def link(self, edge: int) -> str:
        """Name of the links of an edge, to its ends and to the cloud.

        Raises:
          UserError: an unknown one, of any edge.
        """
        names = self.links.split(",")
        for name in names:
            links.preset(name.strip())
        return names[edge % len(names)].strip()


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """``every``: cloud versions between evaluations; the last one is always evaluated.
    ``latency``: preset of :mod:`mlecs_jax.mega.latency`."""

    every: int
    latency: Literal["smoke", "cpu", "paper"]


@dataclasses.dataclass(frozen=True)
class MegaConfig:
    """One experiment of Mega-CE², whole."""

    seed: int
    method: MethodConfig
    data: DataConfig
    partition: PartitionConfig
    model: ModelConfig
    train: TrainConfig
    adapter: AdapterConfig
    clock: ClockConfig
    clients: ClientsConfig
    topology: TopologyConfig
    eval: EvalConfig
    cloud: CloudConfig | None = None

    @property
    def cloud_steps(self) -> int:
        """Batches that the cloud trains every version on."""
        return self.cloud.steps if self.cloud else 0

    def model_config(self) -> crossmodal.CrossModalConfig:
        """The model's shape.

        Raises:
          UserError: unknown names.
        """
        return crossmodal.preset(
            self.model.preset, modalities=_names(self.model.modalities),
            targets=_names(self.model.targets), residual_norm=self.model.residual_norm,
            last_steps=self.model.last_steps, **self._kernels())

    def _kernels(self) -> dict[str, Any]:
        """The change of a preset that ``model.kernels`` is."""
        try:
            sizes = tuple(int(part) for part in _names(self.model.kernels))
        except ValueError:
            sizes = (0,)
        if not sizes and not self.model.kernels.strip():
            return {}
        if len(sizes) not in (1, 3) or min(sizes) < 1:
            raise UserError(f"model.kernels is '{self.model.kernels}'; give one number or three, "
                            "of text, audio and vision, e.g. 1,3,3")
        return {"kernels": sizes * 3 if len(sizes) == 1 else sizes}


def parse(values: Mapping[str, Any]) -> MegaConfig:
    """Typed configuration of nested plain values.

    Raises:
      UserError: an unknown or missing key, a value of the wrong type or out of range.
    """
    config = typed(MegaConfig, values)
    assert isinstance(config, MegaConfig)
    positive = {
        "data.simulated_segments": config.data.simulated_segments,
        "partition.edges": config.partition.edges, "partition.ends": config.partition.ends,
        "partition.alpha": config.partition.alpha, "partition.minimum": config.partition.minimum,
        "train.rounds": config.train.rounds, "train.local_epochs": config.train.local_epochs,
        "train.batch_size": config.train.batch_size, "train.clip": config.train.clip,
        "train.learning_rate": config.train.learning_rate,
        "adapter.batch_size": config.adapter.batch_size,
        "adapter.learning_rate": config.adapter.learning_rate,
        "clock.step_seconds": config.clock.step_seconds, "eval.every": config.eval.every,
        "clients.chunk": config.clients.chunk}
    not_negative = {
        "seed": config.seed, "partition.seed": config.partition.seed,
        "clock.seed": config.clock.seed, "clock.jitter": config.clock.jitter,
        "data.simulated_seed": config.data.simulated_seed, "data.window": config.data.window,
        "adapter.epochs": config.adapter.epochs,
        "train.centralised_epochs": config.train.centralised_epochs,
        "train.final_rate_fraction": config.train.final_rate_fraction,
        "method.staleness_exponent": config.method.staleness_exponent}
    for name, value in positive.items():
        if not value > 0:
            raise UserError(f"{name} is {value}; give a positive number")
    for name, value in not_negative.items():
        if not value >= 0:
            raise UserError(f"{name} is {value}; give 0 or a positive number")
    if config.cloud and not (config.cloud.steps >= 0 and 0 < config.cloud.share < 1):
        raise UserError(f"cloud.steps is {config.cloud.steps} and cloud.share {config.cloud.share};"
                        " give 0 or more steps and a share between 0 and 1")
    config.clock.speed(0)
    config.clock.link(0)
    config.model_config()
    return config


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())
