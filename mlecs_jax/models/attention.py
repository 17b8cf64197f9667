"""Scaled dot-product attention and sinusoidal positions of the sentiment models."""

from __future__ import annotations

from collections.abc import Callable

import einops
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float


def attend(
    query: Float[Array, "B Tq d"],
    key: Float[Array, "B Tk d"],
    value: Float[Array, "B Tk d"],
    heads: int,
    mask: Bool[np.ndarray, "Tq Tk"] | None = None,
    drop: Callable[[Array], Array] = lambda weights: weights,
) -> Float[Array, "B Tq d"]:
    """Multi-head attention between projected streams.

    Args:
      heads: divides d.
      mask: True where a query may look; None: everywhere.
      drop: dropout of the attention weights ``[B, heads, Tq, Tk]``.
    """
    q, k, v = (einops.rearrange(x, "b t (h c) -> b h t c", h=heads) for x in (query, key, value))
    scores = jnp.einsum("bhqc,bhkc->bhqk", q, k) * (q.shape[-1] ** -0.5)
    if mask is not None:
        scores = jnp.where(mask, scores, -jnp.inf)
    weights = drop(jax.nn.softmax(scores, axis=-1))
    return einops.rearrange(jnp.einsum("bhqk,bhkc->bhqc", weights, v), "b h t c -> b t (h c)")


def future_mask(queries: int, keys: int) -> Bool[np.ndarray, "Tq Tk"]:
    """Which keys a query may see: MulT's upper triangle, moved by 1 + |Tq − Tk|."""
    offset = 1 + abs(queries - keys)
    return ~np.triu(np.ones((queries, keys), bool), offset)


def sinusoids(steps: int, width: int) -> Float[np.ndarray, "T d"]:
    """Positions 1…T: all sines, then all cosines (fairseq's form; an odd last channel is 0)."""
    half = width // 2
    rates = np.exp(np.arange(half) * -(np.log(10000.0) / max(half - 1, 1)))
    angles = np.arange(1, steps + 1)[:, None] * rates[None, :]
    table = np.concatenate([np.sin(angles), np.cos(angles), np.zeros((steps, width % 2))], axis=1)
    return table.astype(np.float32)
