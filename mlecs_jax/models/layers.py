"""Layers of the decoder: adapted linear maps, norms, rotary positions, attention with a cache.

Shape letters: B batch, S queries, T keys, D width, N query heads, K key-value heads (K divides N),
H head width.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from mlecs_jax import sharding
from mlecs_jax.kernels import shared_lora
from mlecs_jax.lora import LoraConfig


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Stretched rotary positions.

    Attributes:
      kind: ``linear`` (every frequency divided by ``factor``) or ``llama3`` (Llama 3.1: only
        wavelengths above ``original_positions / low``, smoothly from ``original_positions / high``
        on).
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low: float = 1.0
    high: float = 4.0
    original_positions: int = 8192


class Dense(nn.Module):
    """``x W + b`` with a LoRA side path where the ``lora`` collection holds leaves of this path.

    ``features`` may have several axes: the fused GPT-2 projection is ``[D, 3, D]``, so that a
    tensor-parallel mesh axis never cuts across query, key and value. An adapted layer is frozen.
    ``mesh`` is what the kernel is split over, if it is.
    """

    features: int | tuple[int, ...]
    lora_config: LoraConfig
    use_bias: bool = True
    mesh: Mesh | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "*batch d_in"], *, deterministic: bool) -> Array:
        features = (self.features,) if isinstance(self.features, int) else self.features
        kernel = self.param("kernel", nn.initializers.lecun_normal(in_axis=0),
                            (x.shape[-1], *features))
        kernel = sharding.gathered(kernel, f"{'/'.join(self.path)}/kernel", self.mesh)
        bias = self.param("bias", nn.initializers.zeros, features) if self.use_bias else None
        if self.has_variable("lora", "a"):
            a, b = (jnp.asarray(self.get_variable("lora", name), x.dtype) for name in "ab")
            rate = self.lora_config.dropout
            dropped = None if deterministic or not rate else nn.Dropout(rate)(
                x, deterministic=False)
            return shared_lora.linear(x, kernel, a, b, bias=bias, adapter_input=dropped,
                                      scale=self.lora_config.alpha / a.shape[-1])
        y = jnp.tensordot(x, kernel.astype(x.dtype), axes=1)
        return y if bias is None else y + bias.astype(x.dtype)


class RMSNorm(nn.Module):
    """``scale · x / rms(x)``, the mean square in float32 (Zhang & Sennrich, 2019)."""

    epsilon: float

    @nn.compact
    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.epsilon)
        return wide.astype(x.dtype) * scale.astype(x.dtype)


def rotary_frequencies(dim: int, theta: float, scaling: RopeScaling | None = None) -> np.ndarray:
    """Radians a position of each rotated channel pair, float32 ``[dim / 2]``."""
    frequencies = theta ** (-np.arange(0, dim, 2) / dim)
    if scaling is not None and scaling.kind == "linear":
        frequencies = frequencies / scaling.factor
    elif scaling is not None:
        turns = scaling.original_positions * frequencies / (2 * math.pi)  # over the old window
        kept = np.clip((turns - scaling.low) / (scaling.high - scaling.low), 0, 1)
        frequencies = frequencies * (kept + (1 - kept) / scaling.factor)
    return frequencies.astype(np.float32)


def rotate(
    x: Float[Array, "B S N H"], positions: Int[Array, "B S"], frequencies: np.ndarray, *,
    interleaved: bool,
) -> Float[Array, "B S N H"]:
    """Rotary embedding of the first ``2 len(frequencies)`` channels (Su et al., 2021).

    Args:
      interleaved: channel pairs are (0,1), (2,3), … (GPT-J); else channel i goes with i + half
        (Llama).
    """
    half = len(frequencies)
    angles = positions[..., None, None] * frequencies  # [B, S, 1, half]
    cos, sin = jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)
    turned, rest = x[..., :2 * half], x[..., 2 * half:]
    if interleaved:
        first, second = turned[..., 0::2], turned[..., 1::2]
    else:
        first, second = turned[..., :half], turned[..., half:]
    pair = [first * cos - second * sin, second * cos + first * sin]
    rotated = (jnp.stack(pair, axis=-1).reshape(turned.shape) if interleaved
               else jnp.concatenate(pair, axis=-1))
    return jnp.concatenate([rotated, rest], axis=-1) if rest.shape[-1] else rotated


def attend_cached(
    q: Float[Array, "B S N H"], keys: Float[Array, "B K T H"], values: Float[Array, "B K T H"],
    visible: Bool[Array, "B S T"],
) -> Float[Array, "B S N H"]:
    """Attention of few queries to a cache, whose layout spares a transposition every step."""
    batch, queries, heads, head_width = q.shape
    kv_heads = keys.shape[1]
    q = q.reshape(batch, queries, kv_heads, -1, head_width) / math.sqrt(head_width)
    scores = jnp.einsum("bskgh,bkth->bkgst", q, keys).astype(jnp.float32)
    scores = jnp.where(visible[:, None, None], scores, jnp.finfo(scores.dtype).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
    mixed = jnp.einsum("bkgst,bkth->bskgh", weights, values)
    return mixed.reshape(batch, queries, heads, head_width)
