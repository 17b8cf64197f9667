"""Aggregation rules: ``(stacked trees, weights) → tree``. Nothing here knows a method.

Rules that hold against devices that lie are in :mod:`mlecs_jax.robust`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num, Shaped

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


def per_modality(
    trees: Mapping[str, Tree],
    weights: Num[Array, " C"],
    owned: Bool[Array, "C M"],
    previous: Mapping[str, Tree],
    modalities: tuple[str, ...],
) -> dict[str, Tree]:
    """The mean of each modality's tree over the devices that own the modality (Multi-FedAvg).

    Args:
      trees: ``{modality: stacked tree}``.
      weights: of the devices, e.g. their numbers of samples; renormalised over the owners.
      previous: what a modality keeps that nobody owns.
      modalities: names of the columns of ``owned`` (JAX sorts the keys of ``trees``).
    """
    result = {}
    for i, name in enumerate(modalities):
        shares = jnp.where(owned[:, i], weights.astype(jnp.float32), 0.0)
        anyone = jnp.sum(shares) > 0
        mean = weighted_mean(trees[name], jnp.where(anyone, shares, 1.0))
        result[name] = jax.tree.map(
            lambda new, old, anyone=anyone: jnp.where(anyone, new, old), mean, previous[name])
    return result


def keep_ranks(loras: Tree, ranks: Int[Array, " C"]) -> Tree:
    """Stacked LoRA trees of one maximal rank with all but the first ``ranks[j]`` columns of A and
    rows of B of device j zero: adapters of different ranks in one array. A zero pair stays zero in
    training, since each factor's gradient is a multiple of the other."""
    return jax.tree.map_with_path(
        lambda path, leaf: leaf * _along_rank(path, leaf, _within(path, leaf, ranks)), loras)


def dimension_wise(
    loras: Tree, weights: Num[Array, " C"], ranks: Int[Array, " C"]
) -> Tree:
    """Each rank's column of A and row of B, averaged over the devices that have it (FediLoRA).

    A[:, i] = Σ_{k: r_k > i} p_k A_k[:, i] / Σ_{k: r_k > i} p_k, and B[i, :] likewise: devices whose
    rank ends before i count in neither sum. A rank that no device has is zero.

    Args:
      loras: stacked trees of the maximal rank; what lies beyond a device's own rank is not read.
      weights: p_k, e.g. numbers of samples.
      ranks: r_k.
    """
    def mean(path, leaf):
        shares = _within(path, leaf, ranks) * weights.astype(jnp.float32)[:, None]
        total = jnp.sum(shares, axis=0)
        shares = jnp.where(total > 0, shares / jnp.where(total > 0, total, 1.0), 0.0)
        return jnp.sum(leaf * _along_rank(path, leaf, shares), axis=0).astype(leaf.dtype)

    return jax.tree.map_with_path(mean, loras)


def _rank_axis(path: tuple[Any, ...], leaf: Array) -> int:
    """Where the rank lies in a stacked LoRA leaf: A ``[C, …, d, r]``, B ``[C, (layers,) r, …]``."""
    names = [str(getattr(key, "key", key)) for key in path]
    return leaf.ndim - 1 if names[-1] == "a" else 1 + ("blocks" in names)


def _within(path: tuple[Any, ...], leaf: Array, ranks: Int[Array, " C"]) -> Bool[Array, "C r"]:
    """Which ranks of the leaf each device has."""
    return jnp.arange(leaf.shape[_rank_axis(path, leaf)]) < ranks[:, None]


def _along_rank(path: tuple[Any, ...], leaf: Array, values: Shaped[Array, "C r"]) -> Array:
    """Values per device and rank, shaped to broadcast against the leaf."""
    shape = [1] * leaf.ndim
    shape[0], shape[_rank_axis(path, leaf)] = values.shape
    return values.reshape(shape)


def group_mean(
    trees: Tree, weights: Num[Array, " C"], parents: Int[Array, " C"], num_parents: int
) -> Tree:
    """The weighted mean of each parent's children: one tier of a tree of nodes, all at once.

    Applied tier by tier, with the sums of the weights as the next tier's, it ends at the root with
    the weighted mean of all leaves (FedAvg), whatever the tree between them.

    Args:
      trees: stacked over children.
      weights: of the children, e.g. their numbers of samples; every parent needs a positive sum.
      parents: the parent of each child, from 0.

    Returns:
      Trees stacked over the ``num_parents`` parents.
    """
    member = (parents == jnp.arange(num_parents)[:, None]) * weights.astype(jnp.float32)
    shares = member / jnp.sum(member, axis=1, keepdims=True)
    return jax.tree.map(
        lambda leaf: jnp.tensordot(shares, leaf.astype(jnp.float32), axes=1).astype(leaf.dtype),
        trees)


def staleness_weights(
    counts: Num[Array, " E"], staleness: Num[Array, " E"], exponent: Float[Array, ""] | float
) -> Float[Array, " E"]:
    """α_i of Mega-CE² Eq. 4, w = Σ_i α_i w_i over the last model of every edge.

    α_i ∝ n_i (1 + τ_i)^(−a). At a = 0, Eq. 4 as printed: α_i is the edge's share of the samples.

    Args:
      counts: n_i.
      staleness: τ_i, cloud versions made since the one from which w_i was trained.
      exponent: a ≥ 0.
    """
    weights = counts.astype(jnp.float32) * (1.0 + staleness.astype(jnp.float32)) ** -exponent
    return weights / jnp.sum(weights)
