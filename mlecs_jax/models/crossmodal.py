"""MulT, the cross-modal transformer: the backbone of Mega-CE².

Tsai et al., "Multimodal Transformer for Unaligned Multimodal Language Sequences", ACL 2019, as
the authors' published code computes it. For every target modality one cross-modal transformer per
source reads the source into the target; their outputs, side by side, pass through a
self-attention transformer, whose last step is the target's summary. Sources are always read at
layer 0.

Parameters, with layers stacked on a leading axis::

    {'project_text': {'kernel': [k, d_text, d]}, …,
     'text_with_audio': {'layers': {'norm_attention', 'attention', 'norm_ffn', 'ffn_in',
                                    'ffn_out'}, 'norm'}, …,
     'text_memory': the same, as wide as the sources side by side, …,
     'head_in', 'head_out', 'head'}
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mlecs_jax.data.sentiment import MODALITIES, SentimentBatch
from mlecs_jax.errors import UserError
from mlecs_jax.models import adapters as adapter_blocks
from mlecs_jax.models import initial
from mlecs_jax.models.attention import attend, future_mask, sinusoids
from mlecs_jax.models.sentiment import SentimentModel, absolute_error


@dataclasses.dataclass(frozen=True)
class CrossModalConfig:
    """The shape of a cross-modal transformer; defaults are the published code's.

    Attributes:
      width: d, of every modality's stream; even, and a multiple of ``heads``.
      layers: D, of each cross-modal transformer; the self-attention ones have max(D, 3).
      heads: of every attention.
      ffn_ratio: inner width of the feed-forward part, in multiples of d.
      kernels: of the convolutions that bring text, audio and vision to width d; a modality that
        is d wide already has none.
      embed_dropout: share, of the text input and of every transformer's input.
      attention_dropout: share, of attention to text, audio and vision; the self-attention
        transformers take the first.
      relu_dropout, residual_dropout, output_dropout: shares.
      future_mask: keeps a step from later ones (on in the published code).
      residual_norm: adds LN(Z) rather than Z (Mega-CE²'s Eq. 2 as printed).
      last_steps: how many last steps are averaged into the summary (1 in MulT).
      modalities: what the model reads; one alone is the unimodal ablation.
      targets: whose streams are summarised; one alone is the single-target ablation.
    """

    width: int = 30
    layers: int = 5
    heads: int = 5
    ffn_ratio: int = 4
    kernels: tuple[int, int, int] = (1, 1, 1)
    embed_dropout: float = 0.25
    attention_dropout: tuple[float, float, float] = (0.1, 0.0, 0.0)
    relu_dropout: float = 0.1
    residual_dropout: float = 0.1
    output_dropout: float = 0.0
    future_mask: bool = True
    residual_norm: bool = False
    last_steps: int = 1
    modalities: tuple[str, ...] = MODALITIES
    targets: tuple[str, ...] = MODALITIES

    def __post_init__(self) -> None:
        if self.width < 4 or self.width % 2 or self.width % self.heads:
            raise UserError(f"width {self.width} with {self.heads} heads: give an even width of 4 "
                            "or more that is a multiple of the heads")
        for name in ("layers", "heads", "ffn_ratio", "last_steps"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name} is {getattr(self, name)}; give 1 or more")
        for name in ("modalities", "targets"):
            chosen = getattr(self, name)
            if not chosen or chosen != tuple(m for m in MODALITIES if m in chosen):
                raise UserError(f"model.{name} is {chosen}; give some of {MODALITIES}, in order")
        if not set(self.targets) & set(self.modalities):
            raise UserError(f"no target of {self.targets} is among the modalities "
                            f"{self.modalities}; give one that is")

    def streams(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Every target that is read, with its sources."""
        return tuple((target, tuple(m for m in self.modalities if m != target))
                     for target in self.targets if target in self.modalities)

    def pairs(self) -> tuple[str, ...]:
        """Names of the cross-modal transformers, ``target_with_source``: the adapters' places."""
        return tuple(f"{target}_with_{source}"
                     for target, sources in self.streams() for source in sources)


_PUBLISHED = CrossModalConfig(width=40, layers=4, output_dropout=0.1)

PRESETS: Mapping[str, CrossModalConfig] = {
    "default": CrossModalConfig(),  # the published code's arguments
    "mosei": dataclasses.replace(  # the published table
        _PUBLISHED, heads=8, kernels=(1, 3, 3), embed_dropout=0.3,
        attention_dropout=(0.1, 0.1, 0.1), relu_dropout=0.1, residual_dropout=0.1),
    "mosi": dataclasses.replace(
        _PUBLISHED, heads=10, kernels=(1, 3, 3), embed_dropout=0.2,
        attention_dropout=(0.2, 0.2, 0.2), relu_dropout=0.2, residual_dropout=0.2),
    "small": CrossModalConfig(width=32, layers=2, heads=4, output_dropout=0.1),
    # The size behind Mega-CE²'s Table 5: 19,483,200 parameters of attention.
    "paper": CrossModalConfig(width=300, layers=3, heads=10, ffn_ratio=2),
}


def preset(name: str, **changes: Any) -> CrossModalConfig:
    """A named shape, with changes.

    Raises:
      UserError: an unknown name.
    """
    if name not in PRESETS:
        raise UserError(f"model.preset is '{name}'; use {', '.join(PRESETS)}")
    return dataclasses.replace(PRESETS[name], **changes)


class Attention(nn.Module):
    """Multi-head attention with biases; query, key and value share one projection matrix."""

    heads: int
    dropout: float

    @nn.compact
    def __call__(
        self,
        query: Float[Array, "B Tq d"],
        key: Float[Array, "B Tk d"],
        value: Float[Array, "B Tk d"],
        mask: Bool[Any, "Tq Tk"] | None,
        deterministic: bool,
    ) -> Float[Array, "B Tq d"]:
        d = query.shape[-1]
        kernel = self.param("in_kernel", nn.initializers.xavier_uniform(), (d, 3 * d))
        bias = self.param("in_bias", nn.initializers.zeros, (3 * d,))
        q, k, v = (x @ w + b for x, w, b in zip(
            (query, key, value), jnp.split(kernel, 3, axis=1), jnp.split(bias, 3), strict=True))
        drop = nn.Dropout(self.dropout, deterministic=deterministic)
        return nn.Dense(d, name="out")(attend(q, k, v, self.heads, mask, drop))


class Layer(nn.Module):
    """Pre-norm attention and feed-forward; one LayerNorm serves query, key and value."""

    heads: int
    hidden: int
    config: CrossModalConfig
    attention_dropout: float
    mask_future: bool
    deterministic: bool

    @nn.compact
    def __call__(self, x: Float[Array, "B Tq d"], source: tuple[Array, Array] | None):
        drop = functools.partial(nn.Dropout, deterministic=self.deterministic)
        norm = nn.LayerNorm(epsilon=1e-5, name="norm_attention")
        query = norm(x)
        key, value = (query, query) if source is None else (norm(source[0]), norm(source[1]))
        mask = future_mask(query.shape[1], key.shape[1]) if self.mask_future else None
        attended = Attention(self.heads, self.attention_dropout, name="attention")(
            query, key, value, mask, self.deterministic)
        x = (query if self.config.residual_norm else x) + drop(self.config.residual_dropout)(
            attended)
        normed = nn.LayerNorm(epsilon=1e-5, name="norm_ffn")(x)
        inner = drop(self.config.relu_dropout)(
            nn.relu(nn.Dense(self.hidden, name="ffn_in")(normed)))
        inner = drop(self.config.residual_dropout)(nn.Dense(x.shape[-1], name="ffn_out")(inner))
        return (normed if self.config.residual_norm else x) + inner, None


class Transformer(nn.Module):
    """Layers over one stream, attending to a source at layer 0 or to the stream itself."""

    layers: int
    config: CrossModalConfig
    attention_dropout: float
    mask_future: bool
    deterministic: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, "B Tq d"], source: Float[Array, "B Tk d"] | None = None
    ) -> Float[Array, "B Tq d"]:
        d = x.shape[-1]
        drop = nn.Dropout(self.config.embed_dropout, deterministic=self.deterministic)
        # Key and value are the same source under dropout masks of their own.
        read = None if source is None else (drop(embed(source)), drop(embed(source)))
        stack = nn.scan(Layer, variable_axes={"params": 0}, in_axes=nn.broadcast,
                        split_rngs={"params": True, "dropout": True}, length=self.layers)
        x, _ = stack(self.config.heads, self.config.ffn_ratio * d, self.config,
                     self.attention_dropout, self.mask_future, self.deterministic,
                     name="layers")(drop(embed(x)), read)
        return nn.LayerNorm(epsilon=1e-5, name="norm")(x)


def embed(x: Float[Array, "B T d"]) -> Float[Array, "B T d"]:
    """√d x plus positions; a step whose first channel is exactly zero is padding, without one."""
    positions = jnp.where(x[..., :1] == 0, 0.0, sinusoids(x.shape[1], x.shape[2]))
    return math.sqrt(x.shape[-1]) * x + positions


class CrossModalTransformer(nn.Module):
    """The whole model; see the module's docstring."""

    config: CrossModalConfig

    @nn.compact
    def __call__(
        self,
        batch: SentimentBatch,
        adapters: Mapping[str, Any] | None = None,
        *,
        deterministic: bool = True,
    ) -> Float[Array, " B"]:
        config = self.config
        drop = functools.partial(nn.Dropout, deterministic=deterministic)
        projected = {m: self._project(m, batch, deterministic) for m in config.modalities}
        rate: dict[str, float] = dict(zip(MODALITIES, config.attention_dropout, strict=True))
        memory_layers = max(config.layers, 3)
        summaries, read_at = [], {}
        for target, sources in config.streams():
            read = []
            for source in sources:
                place = f"{target}_with_{source}"
                read_at[place] = projected[target]
                out = Transformer(config.layers, config, rate[source], config.future_mask,
                                  deterministic, name=place)(projected[target], projected[source])
                read.append(out + adapter_blocks.to_hidden(
                    adapters, place, projected[target], config.heads))
            stream = jnp.concatenate(read, axis=-1) if read else projected[target]
            stream = Transformer(memory_layers, config, config.attention_dropout[0],
                                 config.future_mask, deterministic,
                                 name=f"{target}_memory")(stream)
            summaries.append(stream[:, -config.last_steps:].mean(axis=1))
        h = jnp.concatenate(summaries, axis=-1)
        hidden = drop(config.output_dropout)(nn.relu(nn.Dense(h.shape[-1], name="head_in")(h)))
        h = h + nn.Dense(h.shape[-1], name="head_out")(hidden)
        return nn.Dense(1, name="head")(h)[:, 0] + adapter_blocks.to_output(
            adapters, read_at, config.heads)

    def _project(
        self, modality: str, batch: SentimentBatch, deterministic: bool
    ) -> Float[Array, "B t d"]:
        """The modality's sequence at width d, its steps fewer by the kernel's length less one."""
        x = getattr(batch, modality)
        size = self.config.kernels[MODALITIES.index(modality)]
        if modality == "text":
            x = nn.Dropout(self.config.embed_dropout, deterministic=deterministic)(x)
        if x.shape[-1] == self.config.width:
            return x
        if x.shape[1] < size:
            raise UserError(f"{modality} has {x.shape[1]} steps and its convolution a kernel of "
                            f"{size}; set its entry of model.kernels to 1")
        return nn.Conv(self.config.width, (size,), padding="VALID", use_bias=False,
                       name=f"project_{modality}")(x)


def model(config: CrossModalConfig, name: str = "MulT") -> SentimentModel:
    """The cross-modal transformer behind the common interface.

    ``apply`` takes ``adapters=`` besides: a tree of :func:`mlecs_jax.models.adapters.init` with a
    block for each of ``config.pairs()`` or a shared one, of whichever kind, or a constant.
    """
    module = CrossModalTransformer(config)

    def init(key, example):
        return initial.draw_uniform(lambda key: module.init(key, example), key, xavier="layers")

    def apply(params, batch, *, train=False, key=None, adapters=None):
        return module.apply({"params": params}, batch, adapters, deterministic=not train,
                            rngs={"dropout": key} if train else None)

    return SentimentModel(name, init, apply, absolute_error(apply))


def count_parameters(config: CrossModalConfig, example: SentimentBatch) -> dict[str, int]:
    """Parameters by kind, by shape alone: ``attention``, ``feed_forward``, ``norm``,
    ``projection``, ``head`` and their ``total``."""
    module = CrossModalTransformer(config)
    shapes = jax.eval_shape(module.init, jax.random.key(0), example)["params"]
    counts = dict.fromkeys(("attention", "feed_forward", "norm", "projection", "head"), 0)
    for path, leaf in jax.tree.leaves_with_path(shapes):
        names = [str(entry.key) for entry in path]
        kind = ("projection" if names[0].startswith("project_")
                else "head" if names[0].startswith("head")
                else "norm" if "norm" in names[-2]
                else "attention" if "attention" in names
                else "feed_forward")
        counts[kind] += math.prod(leaf.shape)
    return counts | {"total": sum(counts.values())}
