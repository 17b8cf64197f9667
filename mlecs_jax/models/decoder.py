"""One config-driven decoder-only language model: GPT-2, GPT-J, and the Llama and Qwen families.

Shape letters: B batch, S tokens, P soft-prompt vectors before them, T = P + S, C columns of a
cache, D width, N query heads, K key-value heads, H head width, V vocabulary, L layers.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from mlecs_jax import sharding
from mlecs_jax.lora import LoraConfig
from mlecs_jax.models.layers import (
    Dense,
    RMSNorm,
    RopeScaling,
    attend_cached,
    rotary_frequencies,
    rotate,
)

Family = Literal["gpt2", "gptj", "llama", "qwen2", "qwen3"]
Activation = Literal["gelu_tanh", "gelu", "silu", "relu"]
ACTIVATIONS = {"gelu_tanh": lambda x: nn.gelu(x, approximate=True),
               "gelu": lambda x: nn.gelu(x, approximate=False), "silu": nn.silu, "relu": nn.relu}
LORA_TARGETS: dict[str, tuple[str, ...]] = {"gpt2": ("c_attn$",)}


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The shape of a decoder.

    Attributes:
      family: ``gpt2`` (learned positions, sequential residual, fused query-key-value projection),
        ``gptj`` (interleaved rotary positions on the first ``rotary_dim`` channels of a head,
        attention and MLP in parallel on one LayerNorm, untied head with bias) or, with rotary
        positions on whole heads, RMSNorm and a gated MLP, ``llama`` (SmolLM2 too), ``qwen2``
        (biased query, key and value) and ``qwen3`` (RMSNorm on each head's query and key).
      vocab_size, num_layers, width, num_heads: V, L, D, N.
      max_positions: longest T for learned positions; what the model is made for otherwise.
      rotary_dim: rotated channels of a head (``gptj``), even.
      embedding_std: standard deviation of a seeded embedding. Kernels are drawn at fan-in scale
        1/√d: at GPT-2's .02 a *frozen random* backbone passes next to nothing of a soft prompt.
      scan_layers: one compiled block scanned over stacked parameters (path ``blocks/…``) instead
        of unrolled blocks (``block_0/…``): shorter compiles, slower steps on CPU.
      remat: recompute activations in the backward pass (needs ``scan_layers``).
      num_kv_heads: K, a divisor of N; None: N.
      head_dim: H; None: D / N.
      mlp_width: hidden units of the MLP; None: 4 D.
      activation: None: SiLU for the gated families, tanh-approximated GELU for the others.
      rope_theta, rope_scaling: rotary base, and how positions are stretched.
      norm_epsilon: added to variances.
      attention_bias: biases on all four attention projections (Llama variants).
      tied: the head is the embedding; None: as ``gpt2`` has it, and no other family.
      dtype: of seeded frozen parameters, and so of the activations; adapters stay float32.
    """

    family: Family
    vocab_size: int
    num_layers: int
    width: int
    num_heads: int
    max_positions: int = 1024
    rotary_dim: int = 64
    embedding_std: float = 0.15
    scan_layers: bool = False
    remat: bool = False
    num_kv_heads: int | None = None
    head_dim: int | None = None
    mlp_width: int | None = None
    activation: Activation | None = None
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm_epsilon: float = 1e-5
    attention_bias: bool = False
    tied: bool | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"

    @property
    def head_width(self) -> int:
        """H."""
        return self.head_dim or self.width // self.num_heads

    @property
    def kv_heads(self) -> int:
        """K."""
        return self.num_kv_heads or self.num_heads

    @property
    def gated(self) -> bool:
        """Of the Llama line: RMSNorm, gated MLP, rotary positions on whole heads."""
        return self.family not in ("gpt2", "gptj")

    @property
    def tied_head(self) -> bool:
        """Whether the head is the embedding table."""
        return self.family == "gpt2" if self.tied is None else self.tied

    @property
    def lora_targets(self) -> tuple[str, ...]:
        """PEFT's default targets for the family, as path patterns."""
        return LORA_TARGETS.get(self.family, ("q_proj$", "v_proj$"))


@struct.dataclass
class Cache:
    """Keys and values of the columns seen so far.

    Attributes:
      layers: ``(keys, values)``, each ``[B, K, C, H]``, of every layer: a list, or one pair
        stacked over a leading layer axis under ``scan_layers``.
      keep: bool ``[B, C]``, True at columns that may be attended to.
      length: int32 scalar, columns filled.
      count: int32 ``[B]``, kept columns, which is the position of the next token.
    """

    layers: Any
    keep: Any
    length: Any
    count: Any


class Attention(nn.Module):
    """Causal self-attention; ``cache`` is None or ``(keys, values, column, visible)``, ``last`` how
    many of the last positions ask."""

    config: DecoderConfig
    lora_config: LoraConfig
    mesh: Mesh | None = None

    @nn.compact
    def __call__(self, x, positions, keep, cache, last: int | None, *, deterministic: bool):
        c = self.config
        q, k, v = self._heads(x, last, deterministic)
        if c.family == "qwen3":
            q, k = RMSNorm(c.norm_epsilon, name="q_norm")(q), RMSNorm(
                c.norm_epsilon, name="k_norm")(k)
        if c.family != "gpt2":
            dim = min(c.rotary_dim, c.head_width) if c.family == "gptj" else c.head_width
            frequencies = rotary_frequencies(dim, c.rope_theta, c.rope_scaling)
            q, k = (rotate(t, at, frequencies, interleaved=c.family == "gptj")
                    for t, at in ((q, tail(positions, last)), (k, positions)))
        if cache is None:
            mask = None if keep is None else keep[:, None, None, :]
            if last is not None:  # is_causal would count queries from the first key on
                columns = jnp.arange(k.shape[1])
                causal = columns <= columns[-last:, None]
                mask = causal[None, None] if mask is None else mask & causal
            y = jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=last is None)
            kept = (jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2))
        else:
            keys, values, column, visible = cache
            keys, values = (
                jax.lax.dynamic_update_slice_in_dim(
                    old, jnp.swapaxes(new, 1, 2).astype(old.dtype), column, axis=2)
                for old, new in ((keys, k), (values, v)))
            kept = (keys, values)
            y = attend_cached(q, keys, values, visible)
        y = y.reshape(*y.shape[:-2], c.num_heads * c.head_width)
        name = {"gpt2": "c_proj", "gptj": "out_proj"}.get(c.family, "o_proj")
        out = Dense(c.width, self.lora_config, c.family == "gpt2" or c.attention_bias, self.mesh,
                    name=name)
        return out(y, deterministic=deterministic), kept

    def _heads(self, x, last: int | None, deterministic: bool):
        """Queries ``[B, S or last, N, H]``, keys and values ``[B, S, K, H]``."""
        c = self.config
        if c.family == "gpt2":
            fused = Dense((3, c.width), self.lora_config, mesh=self.mesh, name="c_attn")
            qkv = fused(x, deterministic=deterministic)
            parts = [tail(qkv[..., 0, :], last), qkv[..., 1, :], qkv[..., 2, :]]
        else:
            bias = c.family == "qwen2" or c.attention_bias
            parts = [
                Dense(heads * c.head_width, self.lora_config, bias, self.mesh, name=name)(
                    read, deterministic=deterministic)
                for name, heads, read in (("q_proj", c.num_heads, tail(x, last)),
                                          ("k_proj", c.kv_heads, x), ("v_proj", c.kv_heads, x))]
        return (t.reshape(*t.shape[:-1], -1, c.head_width) for t in parts)


class Block(nn.Module):
    """One layer: ``(x, (keys, values))``, the latter None unless collected or cached; of ``last``
    positions alone, x is theirs."""

    config: DecoderConfig
    lora_config: LoraConfig
    deterministic: bool
    collect: bool = False
    mesh: Mesh | None = None

    @nn.compact
    def __call__(self, x, positions, keep, cache_at, cache, last: int | None = None):
        c = self.config
        x = sharding.constrain(x, self.mesh, sharding.FSDP)
        attention = Attention(c, self.lora_config, self.mesh, name="attention")
        h = norm(c, "ln_1")(x)
        attended, kept = attention(h, positions, keep, cache and (*cache, *cache_at), last,
                                   deterministic=self.deterministic)
        x, h = tail(x, last), tail(h, last)
        if c.family == "gptj":
            x = x + attended + self._mlp(h)
        else:
            x = x + attended
            x = x + self._mlp(norm(c, "ln_2")(x))
        x = sharding.constrain(x, self.mesh, sharding.FSDP)
        return x, kept if self.collect or cache else None

    def _mlp(self, h):
        c = self.config
        width = c.mlp_width or 4 * c.width
        act = ACTIVATIONS[c.activation or ("silu" if c.gated else "gelu_tanh")]

        def dense(h, features, name, bias):
            return Dense(features, self.lora_config, bias, self.mesh, name=f"mlp_{name}")(
                h, deterministic=self.deterministic)

        if c.gated:
            h = act(dense(h, width, "gate_proj", False)) * dense(h, width, "up_proj", False)
            return dense(h, c.width, "down_proj", False)
        up, down = ("c_fc", "c_proj") if c.family == "gpt2" else ("fc_in", "fc_out")
        return dense(act(dense(h, width, up, True)), c.width, down, True)


def tail(x: Array, last: int | None) -> Array:
    """The last positions of ``[B, T, …]``; all for None."""
    return x if last is None else x[:, -last:]


def norm(config: DecoderConfig, name: str | None = None) -> RMSNorm | nn.LayerNorm:
    """The family's normalisation."""
    if config.gated:
        return RMSNorm(config.norm_epsilon, name=name)
    return nn.LayerNorm(epsilon=config.norm_epsilon, name=name)


class Decoder(nn.Module):
    """Token ids, optionally behind a soft prompt, to hidden states and logits.

    Variables: ``params`` (frozen) and, optionally, ``lora`` (see :mod:`mlecs_jax.lora`).

    Attributes:
      mesh: what the variables are sharded over (:mod:`mlecs_jax.sharding`); activations then split
        the batch over its axis ``fsdp``. None: they lie on one device.
    """

    config: DecoderConfig
    lora_config: LoraConfig = LoraConfig()
    mesh: Mesh | None = None

    def setup(self) -> None:
        c = self.config
        table = nn.initializers.normal(c.embedding_std)
        self.wte = self.param("wte", table, (c.vocab_size, c.width))
        if c.family == "gpt2":
            self.wpe = self.param("wpe", table, (c.max_positions, c.width))
        if not c.tied_head:
            self.lm_head = self.param("lm_head", table, (c.vocab_size, c.width))
        if c.family == "gptj":
            self.lm_head_bias = self.param("lm_head_bias", nn.initializers.zeros, (c.vocab_size,))
        self.ln_f = norm(c)

    def hidden(
        self,
        tokens: Int[Array, "B S"],
        *,
        prefix: Float[Array, "B P D"] | None = None,
        keep: Bool[Array, "B T"] | None = None,
        deterministic: bool = True,
        last: int | None = None,
    ) -> Float[Array, "B _ D"]:
        """Final hidden states, after the last norm.

        Args:
          tokens: token ids.
          prefix: soft prompt placed before the tokens.
          keep: False at padding; positions count kept entries only, so left padding is harmless.
          deterministic: False turns dropout on (rng ``dropout``).
          last: states of that many last positions alone, ``[B, last, D]``. The top layer then
            computes keys and values of the others and nothing else, which spares a third of the
            work of two layers; scanned layers are all alike and spare nothing.

        Raises:
          ValueError: more entries, padding included, than learned positions.
        """
        x, positions = self._embed(tokens, prefix, keep)
        x, _ = self._layers(x, positions, keep, (), None, deterministic, False, last)
        return self.ln_f(x)

    def prefill(
        self,
        tokens: Int[Array, "B S"],
        *,
        capacity: int,
        prefix: Float[Array, "B P D"] | None = None,
        keep: Bool[Array, "B T"] | None = None,
        last: int | None = None,
    ) -> tuple[Float[Array, "B _ D"], Cache]:
        """As :meth:`hidden`, and a cache of ``capacity`` ≥ T columns for :meth:`extend`."""
        self._check_length(capacity)
        x, positions = self._embed(tokens, prefix, keep)
        batch, length = x.shape[:2]
        x, kept = self._layers(x, positions, keep, (), None, True, True, last)
        keep = jnp.ones((batch, length), bool) if keep is None else keep

        def widen(t):  # [..., T, H]
            return jnp.pad(t, [(0, 0)] * (t.ndim - 2) + [(0, capacity - length), (0, 0)])

        return self.ln_f(x), Cache(
            layers=jax.tree.map(widen, kept),
            keep=jnp.pad(keep, ((0, 0), (0, capacity - length))),
            length=jnp.asarray(length, jnp.int32), count=keep.sum(1, dtype=jnp.int32))

    def extend(
        self, tokens: Int[Array, "B S"], cache: Cache
    ) -> tuple[Float[Array, "B S D"], Cache]:
        """Final hidden states of further tokens, none of them padding, and the longer cache.

        The cache must have room: columns beyond its capacity would overwrite the last ones.
        """
        batch, new = tokens.shape
        positions = cache.count[:, None] + jnp.arange(new)
        x = self._embed_at(tokens, positions)
        keep = jax.lax.dynamic_update_slice_in_dim(
            cache.keep, jnp.ones((batch, new), bool), cache.length, axis=1)
        columns = jnp.arange(keep.shape[1])
        visible = keep[:, None] & (columns <= cache.length + jnp.arange(new)[:, None])
        x, kept = self._layers(x, positions, None, (cache.length, visible), cache.layers, True,
                               False)
        return self.ln_f(x), Cache(layers=kept, keep=keep, length=cache.length + new,
                                   count=cache.count + new)

    def head(self) -> tuple[Float[Array, "V D"], Float[Array, " V"] | None]:
        """Rows of the vocabulary head and its bias, as :mod:`mlecs_jax.kernels.lm_head` takes
        them."""
        return (self.wte if self.config.tied_head else self.lm_head,
                self.lm_head_bias if self.config.family == "gptj" else None)

    def logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """Scores over the vocabulary for given hidden states."""
        head, bias = self.head()
        logits = hidden @ head.astype(hidden.dtype).T
        return logits if bias is None else logits + bias.astype(hidden.dtype)

    def __call__(self, tokens: Int[Array, "B S"], **kwargs) -> Float[Array, "B T V"]:
        """Logits at every position, soft prompt included."""
        return self.logits(self.hidden(tokens, **kwargs))

    def _embed(self, tokens, prefix, keep):
        """Embeddings ``[B, T, D]`` and the position of each, kept entries counted alone."""
        length = tokens.shape[1] + (0 if prefix is None else prefix.shape[1])
        self._check_length(length)
        if keep is None:
            positions = jnp.broadcast_to(jnp.arange(length), (tokens.shape[0], length))
        else:
            positions = jnp.maximum(jnp.cumsum(keep, axis=1) - 1, 0)
        return self._embed_at(tokens, positions, prefix), positions

    def _check_length(self, length: int) -> None:
        """Raises ValueError beyond the learned positions: reading them there would give NaN."""
        c = self.config
        if c.family == "gpt2" and length > c.max_positions:
            raise ValueError(f"{length} positions, the backbone has {c.max_positions}; shorten the "
                             "tokens or the soft prompt")

    def _embed_at(self, tokens, positions, prefix=None):
        x = jnp.take(self.wte, tokens, axis=0)
        if prefix is not None:
            x = jnp.concatenate([prefix.astype(x.dtype), x], axis=1)
        if self.config.family == "gpt2":
            x = x + jnp.take(self.wpe, positions, axis=0)
        return x

    @nn.compact
    def _layers(self, x, positions, keep, cache_at, cache, deterministic, collect, last=None):
        """All blocks: ``(x, layers)`` with ``layers`` as in :class:`Cache`, or of None."""
        c = self.config
        options = (c, self.lora_config, deterministic, collect, self.mesh)
        if c.scan_layers:
            block = nn.remat(Block, prevent_cse=False) if c.remat else Block
            in_axes = cast(Any, (nn.broadcast, nn.broadcast, nn.broadcast, 0))  # flax says int
            scanned = nn.scan(block, variable_axes={"params": 0, "lora": 0},
                              split_rngs={"params": True, "dropout": True},
                              in_axes=in_axes, length=c.num_layers)
            x, layers = scanned(*options, name="blocks")(x, positions, keep, cache_at, cache)
            return tail(x, last), layers
        layers = []
        for i in range(c.num_layers):
            x, kept = Block(*options, name=f"block_{i}")(
                x, positions, keep, cache_at, cache and cache[i],
                last if i == c.num_layers - 1 else None)
            layers.append(kept)
        return x, layers
