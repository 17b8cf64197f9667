"""Aggregation rules: ``(stacked trees, weights) → tree``. Nothing here knows a method."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

Tree = Any


def weighted_mean(trees: Tree, weights: Num[Array, " C"]) -> Tree:
    """Σ_j w_j θ_j / Σ_j w_j over the leading client axis of every leaf."""
    weights = weights.astype(jnp.float32) / jnp.sum(weights)
    return jax.tree.map(
        lambda leaf: jnp.tensordot(weights, leaf.astype(jnp.float32), axes=1).astype(leaf.dtype),
        trees)


def modality_weights(counts: Int[Array, " C"], *, equal: bool = False) -> Float[Array, " C"]:
    """w_j = |M_j| / Σ_i |M_i|: multimodal-aware aggregation (MMA), ML-ECS Eq. 13.

    Args:
      counts: number of modalities |M_j| of each device.
      equal: the ablation w/o MMA, 1 / N each.
    """
    weights = jnp.ones(counts.shape) if equal else counts.astype(jnp.float32)
    return weights / jnp.sum(weights)
