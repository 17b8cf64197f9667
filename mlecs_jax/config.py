"""Configuration at the boundary: a config file becomes frozen, typed, checked dataclasses.

The shipped files under ``configs/`` list every value with its unit or source. Fields here carry
no defaults, so that a config file is the one place where a value stands.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping
from typing import Any, Literal

from mlecs_jax.data.partition import PartitionConfig
from mlecs_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class FedMllmConfig:
    """FedMLLM: prompt clause, proximal term, rule of the server.

    ``missing_weight`` is μ_w; negative: each device's share of missing modalities.
    """

    clause: str
    mu: float
    missing_weight: float
    server: Literal["fedadagrad", "fedavg"]
    server_rate: float
    tau: float


@dataclasses.dataclass(frozen=True)
class FediLoraConfig:
    """FediLoRA: ``ranks`` of the devices in turn, and the cosine below which a layer is edited."""

    ranks: str
    edit_below: float


@dataclasses.dataclass(frozen=True)
class CoPlmsConfig:
    """Co-PLMs: the backbone of the distilled proxy model."""

    proxy: str


@dataclasses.dataclass(frozen=True)
class MethodConfig:
    """Which method, the parts of ML-ECS that are on (w/o … ablations), and what others need.

    ``name`` may also be a user's own: ``path/to/file.py`` or ``package.module:function``.
    """

    name: str
    ccl: bool
    mma: bool
    se_ccl: bool
    kt: bool
    public: bool
    broadcast: bool
    fedmllm: FedMllmConfig
    fedilora: FediLoraConfig
    co_plms: CoPlmsConfig


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which dataset in which form; ``split`` is read by the partition."""

    name: Literal["ur_fall", "table", "vast"]
    source: Literal["auto", "real", "simulated"]
    split: Literal["frame", "sequence"]
    acce: Literal["sample", "window"]
    rgb: str
    rgb_size: int
    depth: Literal["features", "image"]
    manifest: str
    simulated_seed: int
    simulated_sequences: int


@dataclasses.dataclass(frozen=True)
class PartitionOptions:
    """See :class:`mlecs_jax.data.partition.PartitionConfig`."""

    num_clients: int
    rho: float
    seed: int
    mask_schedule: Literal["static", "per_round", "per_sample"]
    mask_draw: Literal["bernoulli", "stratified"]
    labelled: int
    public_labels: bool
    server_labelled: float


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Backbones by name (:mod:`mlecs_jax.models.zoo`) and the widths of extractor and connector.

    ``dtype`` is of frozen parameters that are loaded from a directory; None, as runs of before have
    it, is float32.

    ``cohorts`` gives some devices another structure: ``'0,1=encoder_hidden:256,connector_hidden:
    128;4=…'``, device numbers and the widths that differ.
    """

    slm: str
    llm: str
    backbone_seed: int
    latent: int
    encoder_hidden: int
    connector_hidden: int
    soft_tokens: int
    prompt_dropout: float
    prompt: str
    cohorts: str
    dtype: Literal["float32", "bfloat16"] | None = None

    def __post_init__(self) -> None:
        if self.dtype == "float32":
            object.__setattr__(self, "dtype", None)  # one value says it


@dataclasses.dataclass(frozen=True)
class LoraOptions:
    rank: int
    alpha: float
    dropout: float
    slm_targets: str
    llm_targets: str


@dataclasses.dataclass(frozen=True)
class CclConfig:
    """Volume contrast on devices and server."""

    weight: float
    temperature: float
    label_smoothing: float
    negatives: Literal["all", "other_class"]
    train_extractor: bool


@dataclasses.dataclass(frozen=True)
class AmtConfig:
    train_connector: bool


@dataclasses.dataclass(frozen=True)
class PlusConfig:
    """The levers of our own variant, :mod:`mlecs_jax.methods.ml_ecs_plus`.

    ``encoders`` and ``volume`` are off where they are None, as runs of before have them.
    """

    distil: float
    devices_share: float
    server_distil: float
    weighting: Literal["uniform", "modality", "confidence"]
    align: bool
    public_share: float
    lora: bool
    tokens: int
    encoders: bool | None = None
    volume: float | None = None

    def __post_init__(self) -> None:
        for name in ("encoders", "volume"):
            if not getattr(self, name):
                object.__setattr__(self, name, None)  # one value says off


@dataclasses.dataclass(frozen=True)
class KtConfig:
    """Pooled-logit knowledge transfer between LLM and SLM."""

    weight: float
    pooling: Literal["topk_rest", "adaptive_avg", "sorted_topk"]
    k: int
    temperature: float


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    rounds: int
    ccl_steps: int
    amt_steps: int
    server_steps: int
    batch_size: int
    learning_rate: float
    final_rate_fraction: float
    clip: float


@dataclasses.dataclass(frozen=True)
class ClientsConfig:
    """How devices are simulated; changes speed, and results by rounding alone."""

    backend: Literal["loop", "scan", "shard_map"]
    chunk: int


@dataclasses.dataclass(frozen=True)
class ChannelConfig:
    """How uploads are encoded (:mod:`mlecs_jax.codecs`)."""

    uplink: Literal["none", "bf16", "int8", "topk"]
    topk_fraction: float

    def __post_init__(self) -> None:
        if not 0 < self.topk_fraction <= 1:
            raise UserError(f"channel.topk_fraction is {self.topk_fraction}; give a share in "
                            "(0, 1]")


@dataclasses.dataclass(frozen=True)
class AggregationConfig:
    """How uploads become one (:mod:`mlecs_jax.robust`); ``mean`` without ``clip`` is the paper's.

    Attributes:
      clip: longest difference of a device to what was broadcast, in multiples of the round's
        median length; 0 takes any.
      trim: share of the devices that ``trimmed_mean`` leaves out at each end.
      liars: devices that ``krum`` stands up to; it needs 2 · liars + 3 devices.
      selected: devices that ``krum`` averages; 1 is Krum, more is multi-Krum.
    """

    rule: Literal["mean", "median", "trimmed_mean", "krum"]
    clip: float
    trim: float
    liars: int
    selected: int

    def __post_init__(self) -> None:
        if self.clip < 0:
            raise UserError(f"aggregation.clip is {self.clip}; give a positive multiple, or 0")
        if not 0 <= self.trim < 0.5:
            raise UserError(f"aggregation.trim is {self.trim}; give a share in [0, 0.5)")
        if self.liars < 0 or self.selected < 1:
            raise UserError(f"aggregation.liars is {self.liars} and selected {self.selected}; give "
                            "0 or more, and 1 or more")


@dataclasses.dataclass(frozen=True)
class PrivacyConfig:
    """Noise on uploads (:mod:`mlecs_jax.privacy`).

    Attributes:
      clip: longest difference of a device's LoRA to what was broadcast, L2; 0 is no privacy.
      noise: standard deviation of the noise on every number, in multiples of ``clip``.
      delta: δ of the (ε, δ) that is told.
    """

    clip: float
    noise: float
    delta: float

    def __post_init__(self) -> None:
        if self.clip < 0 or self.noise < 0:
            raise UserError(f"privacy.clip is {self.clip} and privacy.noise {self.noise}; give "
                            "positive numbers, or clip=0 for none")
        if self.clip and not self.noise:
            raise UserError("privacy.noise is 0: clipping alone is no privacy; give a positive "
                            "multiple, or use aggregation.clip")
        if not 0 < self.delta < 1:
            raise UserError(f"privacy.delta is {self.delta}; give a probability in (0, 1)")


@dataclasses.dataclass(frozen=True)
class TopologyConfig:
    cloud_devices: int


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """``ceiling_steps``: training steps of the single-modality classifiers; 0 leaves them out."""

    ceiling_steps: int


@dataclasses.dataclass(frozen=True)
class CaptionsConfig:
    """The captioning task: its data, the length of its targets and how they are scored.

    Without ``clips``, which runs of before do not have, or with 0 all clips are taken.
    """

    corpora: str
    annotations: str
    features: str
    featuriser: str
    feature_width: int
    simulated_clips: int
    vocabulary: int
    max_tokens: int
    val_rows: int
    test_every: int
    shown: int
    bertscore: str
    pretrain_steps: int
    clips: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "clips", self.clips or None)  # one value says "all"
        for name in ("feature_width", "simulated_clips", "vocabulary", "max_tokens", "val_rows",
                     "pretrain_steps"):
            if getattr(self, name) < 1:
                raise UserError(f"captions.{name} is {getattr(self, name)}; give a positive number")
        for name in ("test_every", "shown", "clips"):
            if (getattr(self, name) or 0) < 0:
                raise UserError(f"captions.{name} is {getattr(self, name)}; give 0 or a positive "
                                "number")


@dataclasses.dataclass(frozen=True)
class Config:
    """One experiment, whole. A task without captions has no group ``captions``; without groups
    ``aggregation`` and ``privacy``, which runs of before do not have, both are off."""

    seed: int
    method: MethodConfig
    data: DataConfig
    partition: PartitionOptions
    model: ModelConfig
    lora: LoraOptions
    ccl: CclConfig
    amt: AmtConfig
    kt: KtConfig
    plus: PlusConfig
    train: TrainConfig
    clients: ClientsConfig
    channel: ChannelConfig
    topology: TopologyConfig
    eval: EvalConfig
    captions: CaptionsConfig | None = None
    aggregation: AggregationConfig | None = None
    privacy: PrivacyConfig | None = None

    def partition_config(self) -> PartitionConfig:
        """The partition's own options, checked."""
        options = dataclasses.asdict(self.partition)
        del options["public_labels"]  # who holds the labels, not how rows are dealt
        return PartitionConfig(split=self.data.split, **options)


SPEED_ONLY = ("clients", "topology")
"""Groups that do not change what is learnt: a run may be resumed with other values."""


def is_off(group: str, values: Any) -> bool:
    """Whether a group's plain values leave everything as it is without the group."""
    if values is None:
        return True
    return {"aggregation": lambda: values["rule"] == "mean" and not values["clip"],
            "privacy": lambda: not values["clip"],
            "cloud": lambda: not values["steps"]}.get(group, lambda: False)()


# Options that came after runs were made, and the values that leave those as they were.
_OFF: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "model": {"dtype": (None, "float32")}, "captions": {"clips": (None, 0)},
    "plus": {"encoders": (None, False), "volume": (None, 0.0)}}


def in_effect(values: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values without groups and options that leave everything as it is without them."""
    return {group: {k: v for k, v in own.items() if v not in _OFF.get(group, {}).get(k, ())}
            if isinstance(own, Mapping) else own
            for group, own in values.items() if not is_off(group, own)}


def parse(values: Mapping[str, Any]) -> Config:
    """Typed configuration of nested plain values.

    Raises:
      UserError: an unknown or missing key, a value of the wrong type or out of range.
    """
    config = typed(Config, values)
    assert isinstance(config, Config)
    config.partition_config()
    positive = {"lora.rank": config.lora.rank, "train.rounds": config.train.rounds,
                "train.batch_size": config.train.batch_size,
                "train.learning_rate": config.train.learning_rate, "train.clip": config.train.clip,
                "train.ccl_steps": config.train.ccl_steps,
                "train.amt_steps": config.train.amt_steps,
                "train.server_steps": config.train.server_steps,
                "ccl.temperature": config.ccl.temperature, "kt.temperature": config.kt.temperature,
                "kt.k": config.kt.k, "plus.tokens": config.plus.tokens,
                "model.latent": config.model.latent,
                "model.soft_tokens": config.model.soft_tokens,
                "clients.chunk": config.clients.chunk,
                "data.rgb_size": config.data.rgb_size,
                "data.simulated_sequences": config.data.simulated_sequences,
                "model.encoder_hidden": config.model.encoder_hidden,
                "model.connector_hidden": config.model.connector_hidden,
                "lora.alpha": config.lora.alpha}
    for name, value in positive.items():
        if not value > 0:
            raise UserError(f"{name} is {value}; give a positive number")
    for name, value in (("plus.distil", config.plus.distil),
                        ("plus.server_distil", config.plus.server_distil),
                        ("plus.volume", config.plus.volume or 0.0),
                        ("ccl.weight", config.ccl.weight), ("kt.weight", config.kt.weight),
                        ("train.final_rate_fraction", config.train.final_rate_fraction),
                        ("eval.ceiling_steps", config.eval.ceiling_steps)):
        if not value >= 0:
            raise UserError(f"{name} is {value}; give 0 or a positive number")
    for name, value in (("lora.dropout", config.lora.dropout),
                        ("model.prompt_dropout", config.model.prompt_dropout),
                        ("ccl.label_smoothing", config.ccl.label_smoothing)):
        if not 0 <= value < 1:
            raise UserError(f"{name} is {value}; give a share in [0, 1)")
    for name, value in (("plus.devices_share", config.plus.devices_share),
                        ("plus.public_share", config.plus.public_share)):
        if not 0 <= value <= 1:
            raise UserError(f"{name} is {value}; give a share in [0, 1]")
    for name, value in (("seed", config.seed), ("partition.seed", config.partition.seed),
                        ("model.backbone_seed", config.model.backbone_seed),
                        ("data.simulated_seed", config.data.simulated_seed)):
        if not 0 <= value < 2**31:
            raise UserError(f"{name} is {value}; give a whole number from 0 to 2147483647")
    for name, backbone in (("model.slm", config.model.slm), ("model.llm", config.model.llm),
                           ("method.co_plms.proxy", config.method.co_plms.proxy)):
        check_backbone(name, backbone)
    return config


def check_backbone(key: str, name: str) -> None:
    """Raises UserError, naming the key, for the name of no backbone; directories are looked at
    where they are read."""
    from mlecs_jax.models import zoo  # imports jax

    shape = name.removeprefix(zoo.PRETRAINED)
    if shape.startswith(zoo.DIRECTORY):
        return
    try:
        zoo.decoder_config(shape, 1)
    except UserError as error:
        raise UserError(f"{key}: {error}") from None


def typed(kind: type, values: Mapping[str, Any], where: str = "") -> Any:
    """A (nested) dataclass ``kind`` of plain values, checked by its type hints; ``where`` is the
    dotted place of ``values``, for errors.

    Raises:
      UserError: an unknown or missing key, or a value of the wrong type.
    """
    hints = typing.get_type_hints(kind)
    optional = {f.name for f in dataclasses.fields(kind) if f.default is None}
    wrong = {name: "unknown" for name in values if name not in hints} | {
        name: "missing" for name in hints if name not in values and name not in optional}
    for name, problem in wrong.items():
        raise UserError(f"config key '{where}{name}' is {problem}; known keys: {', '.join(hints)}")
    fields = {}
    for name, hint in hints.items():
        value = values.get(name)
        if name in optional:
            if value is None:
                continue
            hint = next(part for part in typing.get_args(hint) if part is not type(None))
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, Mapping):
                raise UserError(f"config key '{where}{name}' is {value!r}; give a group of "
                                f"{', '.join(f.name for f in dataclasses.fields(hint))}")
            fields[name] = typed(typing.cast(type, hint), value, f"{where}{name}.")
        else:
            fields[name] = _scalar(hint, value, where + name)
    return kind(**fields)


def _scalar(hint: Any, value: Any, name: str) -> Any:
    if typing.get_origin(hint) is Literal:
        if value not in typing.get_args(hint):
            raise UserError(f"{name} is {value!r}; use {' or '.join(typing.get_args(hint))}")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise UserError(f"{name} is {value!r}; give a value of type {hint.__name__}")
    if hint is float and not math.isfinite(value):
        raise UserError(f"{name} is {value}; give a finite number")
    return value
