"""One config-driven decoder-only language model: GPT-2 and GPT-J families.

Shape letters: B batch, S tokens, P soft-prompt vectors before them, T = P + S, D width, N heads,
H head width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mlecs_jax import lora
from mlecs_jax.lora import LoraConfig

Family = Literal["gpt2", "gptj"]


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The shape of a decoder.

    Attributes:
      family: ``gpt2`` (learned positions, sequential residual, fused query-key-value projection,
        head tied to the embedding) or ``gptj`` (interleaved rotary positions on the first
        ``rotary_dim`` channels of a head, attention and MLP in parallel on one LayerNorm, separate
        projections without bias, untied head with bias).
      vocab_size, num_layers, width, num_heads: V, layers, D, N; D is a multiple of N.
      max_positions: longest T for learned positions.
      rotary_dim: rotated channels of a head (``gptj``), even.
      embedding_std: standard deviation of a seeded embedding. Kernels are drawn at fan-in scale
        1/√d: at GPT-2's .02 a *frozen random* backbone passes next to nothing of a soft prompt.
      scan_layers: one compiled block scanned over stacked parameters (path ``blocks/…``) instead
        of unrolled blocks (``block_0/…``): shorter compiles, slower steps on CPU.
      remat: recompute activations in the backward pass (needs ``scan_layers``).
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

    @property
    def head_width(self) -> int:
        """H = D / N."""
        return self.width // self.num_heads

    @property
    def lora_targets(self) -> tuple[str, ...]:
        """PEFT's default targets for the family, as path patterns."""
        return ("c_attn$",) if self.family == "gpt2" else ("q_proj$", "v_proj$")


class Dense(nn.Module):
    """``x W + b`` with a LoRA side path where the ``lora`` collection holds leaves of this path.

    ``features`` may have several axes: the fused GPT-2 projection is ``[D, 3, D]``, so that a
    tensor-parallel mesh axis never cuts across query, key and value.
    """

    features: int | tuple[int, ...]
    lora_config: LoraConfig
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "*batch d_in"], *, deterministic: bool) -> Array:
        features = (self.features,) if isinstance(self.features, int) else self.features
        kernel = self.param("kernel", nn.initializers.lecun_normal(in_axis=0),
                            (x.shape[-1], *features))
        y = jnp.tensordot(x, kernel.astype(x.dtype), axes=1)
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, features).astype(x.dtype)
        if self.has_variable("lora", "a"):
            a, b = self.get_variable("lora", "a"), self.get_variable("lora", "b")
            dropped = nn.Dropout(self.lora_config.dropout)(x, deterministic=deterministic)
            y = y + lora.side_path(dropped, jnp.asarray(a, x.dtype), jnp.asarray(b, x.dtype),
                                   self.lora_config.alpha)
        return y


def rotate_interleaved(
    x: Float[Array, "B T N H"], positions: Int[Array, "B T"], rotary_dim: int
) -> Float[Array, "B T N H"]:
    """Rotary embedding on channel pairs (0,1), (2,3), … of the first ``rotary_dim`` channels."""
    frequencies = 10_000.0 ** (-jnp.arange(0, rotary_dim, 2) / rotary_dim)
    angles = positions[..., None, None] * frequencies  # [B, T, 1, rotary_dim / 2]
    cos, sin = jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)
    even, odd = x[..., 0:rotary_dim:2], x[..., 1:rotary_dim:2]
    rotated = jnp.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1)
    rotated = rotated.reshape(*x.shape[:-1], rotary_dim)
    return jnp.concatenate([rotated, x[..., rotary_dim:]], axis=-1)


class Attention(nn.Module):
    """Causal multi-head self-attention of either family."""

    config: DecoderConfig
    lora_config: LoraConfig

    @nn.compact
    def __call__(self, x, positions, keep, *, deterministic: bool):
        c = self.config

        def dense(features, name, use_bias=True):
            return Dense(features, self.lora_config, use_bias, name=name)

        if c.family == "gpt2":
            qkv = dense((3, c.width), "c_attn")(x, deterministic=deterministic)
            q, k, v = (qkv[..., i, :] for i in range(3))
        else:
            q, k, v = (dense(c.width, name, False)(x, deterministic=deterministic)
                       for name in ("q_proj", "k_proj", "v_proj"))
        q, k, v = (t.reshape(*t.shape[:-1], c.num_heads, c.head_width) for t in (q, k, v))
        if c.family == "gptj":
            rotary_dim = min(c.rotary_dim, c.head_width)
            q = rotate_interleaved(q, positions, rotary_dim)
            k = rotate_interleaved(k, positions, rotary_dim)
        mask = None if keep is None else keep[:, None, None, :]
        y = jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=True)
        y = y.reshape(*y.shape[:-2], c.width)
        if c.family == "gpt2":
            return dense(c.width, "c_proj")(y, deterministic=deterministic)
        return dense(c.width, "out_proj", False)(y, deterministic=deterministic)


class Block(nn.Module):
    """One layer; returns ``(x, None)`` so that ``nn.scan`` can carry ``x``."""

    config: DecoderConfig
    lora_config: LoraConfig
    deterministic: bool

    @nn.compact
    def __call__(self, x, positions, keep):
        c, deterministic = self.config, self.deterministic

        def mlp(h):
            up, down = ("c_fc", "c_proj") if c.family == "gpt2" else ("fc_in", "fc_out")
            h = Dense(4 * c.width, self.lora_config, name=f"mlp_{up}")(
                h, deterministic=deterministic)
            h = nn.gelu(h, approximate=True)
            return Dense(c.width, self.lora_config, name=f"mlp_{down}")(
                h, deterministic=deterministic)

        attention = Attention(c, self.lora_config, name="attention")
        h = nn.LayerNorm(epsilon=1e-5, name="ln_1")(x)
        if c.family == "gptj":
            attended = attention(h, positions, keep, deterministic=deterministic)
            return x + attended + mlp(h), None
        x = x + attention(h, positions, keep, deterministic=deterministic)
        return x + mlp(nn.LayerNorm(epsilon=1e-5, name="ln_2")(x)), None


class Decoder(nn.Module):
    """Token ids, optionally behind a soft prompt, to hidden states and logits.

    Variables: ``params`` (frozen) and, optionally, ``lora`` (see :mod:`mlecs_jax.lora`).
    """

    config: DecoderConfig
    lora_config: LoraConfig = LoraConfig()

    def setup(self) -> None:
        c = self.config
        embedding = nn.initializers.normal(c.embedding_std)
        self.wte = self.param("wte", embedding, (c.vocab_size, c.width))
        if c.family == "gpt2":
            self.wpe = self.param("wpe", embedding, (c.max_positions, c.width))
        else:
            self.lm_head = self.param(
                "lm_head", nn.initializers.normal(c.embedding_std), (c.vocab_size, c.width))
            self.lm_head_bias = self.param("lm_head_bias", nn.initializers.zeros, (c.vocab_size,))
        self.ln_f = nn.LayerNorm(epsilon=1e-5)

    @nn.compact
    def hidden(
        self,
        tokens: Int[Array, "B S"],
        *,
        prefix: Float[Array, "B P D"] | None = None,
        keep: Bool[Array, "B T"] | None = None,
        deterministic: bool = True,
    ) -> Float[Array, "B T D"]:
        """Final hidden states, after the last LayerNorm.

        Args:
          tokens: token ids.
          prefix: soft prompt placed before the tokens.
          keep: False at padding; positions count kept entries only, so left padding is harmless.
          deterministic: False turns dropout on (rng ``dropout``).
        """
        c = self.config
        x = jnp.take(self.wte, tokens, axis=0)
        if prefix is not None:
            x = jnp.concatenate([prefix.astype(x.dtype), x], axis=1)
        if keep is None:
            positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
        else:
            positions = jnp.maximum(jnp.cumsum(keep, axis=1) - 1, 0)
        if c.family == "gpt2":
            x = x + jnp.take(self.wpe, positions, axis=0)
        if c.scan_layers:
            block = nn.remat(Block, prevent_cse=False) if c.remat else Block
            in_axes = cast(Any, (nn.broadcast, nn.broadcast))  # untyped in flax: its default is int
            scanned = nn.scan(block, variable_axes={"params": 0, "lora": 0},
                              split_rngs={"params": True, "dropout": True},
                              in_axes=in_axes, length=c.num_layers)
            x, _ = scanned(c, self.lora_config, deterministic, name="blocks")(x, positions, keep)
        else:
            for i in range(c.num_layers):
                block = Block(c, self.lora_config, deterministic, name=f"block_{i}")
                x, _ = block(x, positions, keep)
        return self.ln_f(x)

    def head(self) -> tuple[Float[Array, "V D"], Float[Array, " V"] | None]:
        """The vocabulary head as :mod:`mlecs_jax.kernels.lm_head` takes it: rows and bias."""
        if self.config.family == "gpt2":
            return self.wte, None
        return self.lm_head, self.lm_head_bias

    def logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """Scores over the vocabulary for given hidden states."""
        head, bias = self.head()
        logits = hidden @ head.astype(hidden.dtype).T
        return logits if bias is None else logits + bias.astype(hidden.dtype)

    def __call__(self, tokens: Int[Array, "B S"], **kwargs) -> Float[Array, "B T V"]:
        """Logits at every position, soft prompt included."""
        return self.logits(self.hidden(tokens, **kwargs))
