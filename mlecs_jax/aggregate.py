"""Aggregation rules: ``(stacked trees, weights) → tree``. Nothing here knows a method."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

Tree = Any


def weighted_mean(trees: Tree, weights: Num[Array, " C"]) -> Tree:
    """Σ_j w_j θ_j / Σ_j w_j over the leading client axis of every leaf."""
    weights = weights.astype(jnp.float32) / jnp.sum(weights)
    return jax.tree.map(
        lambda leaf: jnp.tensordot(weights, leaf.astype(jnp.float32), axes=1).astype(leaf.dtype),
        trees)


def modality_weights(modalities: Bool[Array, "C M"]) -> Float[Array, " C"]:
    """w_j = |M_j| / Σ_i |M_i|: multimodal-aware aggregation, ML-ECS Eq. 13."""
    counts = jnp.sum(modalities, axis=1).astype(jnp.float32)
    return counts / jnp.sum(counts)
