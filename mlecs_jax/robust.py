"""Aggregation among devices that may lie: ``(stacked trees, weights, centre) → tree``.

Each rule is the weighted mean where devices are honest and alike, up to noise, and stays near the
honest ones where some send anything they like. Weights are those of the mean (ML-ECS Eq. 13); with
equal ones the rules are the published ones.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num, Shaped

from mlecs_jax import aggregate
from mlecs_jax.config import AggregationConfig
from mlecs_jax.errors import UserError

Tree = Any
Rule = Callable[[Tree, Num[Array, " C"], Tree], Tree]
FAR = 1e15  # beyond what any model holds; its square, times all numbers of a model, is finite
HALF = 1e-6  # sums of float32 weights come this near to exact halves


def rule(options: AggregationConfig | None, num_clients: int | None = None) -> Rule:
    """The rule that the configuration names: ``(trees [C, …], weights [C], centre […]) → tree``.

    ``centre`` is what all devices began from; only clipping reads it. Where C is less than
    ``num_clients`` (devices were away), the rule stands up to as many liars as with all of them:
    trimming cuts as many, Krum gives way to the median of equal weights below 2 · liars + 3.

    Args:
      options: None is the weighted mean.
      num_clients: how many devices there are, where it is known.

    Raises:
      UserError: see :func:`check`; the rule itself raises it where C is less than :func:`fewest`.
    """
    if options is None:
        return lambda trees, weights, centre: aggregate.weighted_mean(trees, weights)
    if num_clients is not None:
        check(options, num_clients)
    rules: dict[str, Callable[[Tree, Array], Tree]] = {
        "mean": aggregate.weighted_mean,
        "median": jax.jit(median),
        "trimmed_mean": jax.jit(functools.partial(
            trimmed_mean, share=options.trim, among=num_clients or 0)),
        "krum": jax.jit(functools.partial(
            krum_or_median, liars=options.liars, selected=options.selected))}
    combine = rules[options.rule]
    clip = jax.jit(functools.partial(clip_norms, multiple=options.clip))

    def combined(trees: Tree, weights: Num[Array, " C"], centre: Tree) -> Tree:
        there, needed = weights.shape[0], fewest(options, num_clients or weights.shape[0])
        if there < needed:
            raise UserError(f"aggregation.rule={options.rule} (clip {options.clip:g}) needs "
                            f"{needed} devices, {there} are there")
        return combine(clip(trees, centre) if options.clip else trees, weights)

    return combined


def check(options: AggregationConfig | None, num_clients: int) -> None:
    """Raises UserError for a rule that so few devices would make another one, or nothing at all."""
    if options is None:
        return
    liars, selected = options.liars, options.selected
    if options.rule == "krum" and not selected <= num_clients - liars - 2 >= liars + 1:
        raise UserError(
            f"aggregation.rule=krum stands up to {liars} liars among {2 * liars + 3} devices or "
            f"more and averages {selected}, which {selected + liars + 2} devices allow; there are "
            f"{num_clients}: lower aggregation.liars or selected")
    if options.rule == "trimmed_mean" and math.floor(options.trim * num_clients) < 1:
        raise UserError(
            f"aggregation.rule=trimmed_mean with trim {options.trim:g} cuts none of {num_clients} "
            f"devices: raise aggregation.trim to 1/{num_clients} or more (below one half), or use "
            "median")
    if num_clients < fewest(options, num_clients):
        raise UserError(
            f"aggregation.rule={options.rule} with clip {options.clip:g} needs "
            f"{fewest(options, num_clients)} devices to tell a liar from the others, there are "
            f"{num_clients}: use rule=mean and clip=0")


def fewest(options: AggregationConfig | None, num_clients: int) -> int:
    """Answers without which no round can be made: with fewer, liars could be the majority that
    the rule follows.

    Args:
      num_clients: devices that there are, with those that are away.
    """
    if options is None:
        return 1
    needed = {"mean": 1, "median": 3, "krum": max(3, 2 * options.liars + 1),
              "trimmed_mean": 2 * _cut(options.trim, num_clients) + 1}[options.rule]
    return max(needed, 3 if options.clip else 1)


def clip_norms(trees: Tree, centre: Tree, *, multiple: float) -> Tree:
    """Differences to ``centre`` no longer than ``multiple`` times their median length.

    Relative, since how far honest devices move depends on learning rate and round. Half of the
    devices would have to lie to move the median where they like. Numbers that differ by more
    than :data:`FAR` count as that far, NaN as no difference: their squares have no float32.
    """
    def difference(leaf: Array, c: Any) -> Array:
        far = leaf.astype(jnp.float32) - c
        return jnp.where(jnp.isnan(far), 0.0, jnp.clip(far, -FAR, FAR))

    differences = jax.tree.map(difference, trees, centre)
    lengths = jnp.sqrt(sum(jnp.sum(_rows(leaf)**2, axis=1)
                           for leaf in jax.tree.leaves(differences)))
    limit = multiple * jnp.median(lengths)
    factors = jnp.minimum(1.0, limit / jnp.maximum(lengths, jnp.finfo(jnp.float32).tiny))
    return jax.tree.map(
        lambda leaf, difference, c: (c + _along(factors, difference) * difference).astype(
            leaf.dtype), trees, differences, centre)


def median(trees: Tree, weights: Num[Array, " C"]) -> Tree:
    """Coordinate by coordinate the weighted median (Yin et al. 2018): half of the weight lies on
    either side; where a cut falls exactly between two values, their mean."""
    shares = weights.astype(jnp.float32) / jnp.sum(weights)

    def one(leaf: Array) -> Array:
        order = jnp.argsort(leaf, axis=0)
        ranked = jnp.take_along_axis(leaf, order, axis=0).astype(jnp.float32)
        reached = jnp.cumsum(shares[order], axis=0)
        lower = jnp.argmax(reached >= 0.5 - HALF, axis=0)
        upper = jnp.argmax(reached > 0.5 + HALF, axis=0)
        picked = [jnp.take_along_axis(ranked, at[None], axis=0)[0] for at in (lower, upper)]
        return (picked[0] / 2 + picked[1] / 2).astype(leaf.dtype)

    return jax.tree.map(one, trees)


def trimmed_mean(
    trees: Tree, weights: Num[Array, " C"], *, share: float, among: int = 0
) -> Tree:
    """Coordinate by coordinate the weighted mean without the ⌊share · C⌋ largest values, at least
    one, and as many smallest (Yin et al. 2018).

    Args:
      among: of how many devices ``share`` is, where some of them are away.
    """
    def one(leaf: Array) -> Array:
        count = leaf.shape[0]
        cut = _cut(share, max(among, count))
        order = jnp.argsort(leaf, axis=0)
        ranked = jnp.take_along_axis(leaf, order, axis=0).astype(jnp.float32)
        kept = weights.astype(jnp.float32)[order][cut:count - cut]
        mean = jnp.sum(kept * ranked[cut:count - cut], axis=0) / jnp.sum(kept, axis=0)
        return mean.astype(leaf.dtype)

    return jax.tree.map(one, trees)


def krum_or_median(
    trees: Tree, weights: Num[Array, " C"], *, liars: int, selected: int
) -> Tree:
    """:func:`krum` where C ≥ 2 · liars + 3, which it needs, of no more devices than it can tell
    from liars; with fewer, the median of equal weights, which needs 2 · liars + 1."""
    count = weights.shape[0]
    if count < 2 * liars + 3:
        return median(trees, jnp.ones(count))
    return krum(trees, weights, liars=liars, selected=min(selected, count - liars - 2))


def krum(trees: Tree, weights: Num[Array, " C"], *, liars: int, selected: int) -> Tree:
    """The weighted mean of the ``selected`` devices that lie nearest to the others (Krum and
    multi-Krum, Blanchard et al. 2017).

    A device's score is the sum of squared distances to its C − liars − 2 nearest; with fewer
    devices than that asks for, to its nearest one.
    """
    scores = krum_scores(trees, liars)
    chosen = jnp.argsort(scores)[:selected]
    return aggregate.weighted_mean(jax.tree.map(lambda leaf: leaf[chosen], trees), weights[chosen])


def krum_scores(trees: Tree, liars: int) -> Float[Array, " C"]:
    """Krum's score of each device; low is trusted, and infinite is the score of one that is
    farther from its nearest than float32 has squares for (values of 1e20, or no numbers)."""
    leaves = [_rows(leaf).astype(jnp.float32) for leaf in jax.tree.leaves(trees)]
    count = leaves[0].shape[0]
    squares = sum(jnp.sum((leaf[:, None] - leaf[None])**2, axis=-1) for leaf in leaves)
    itself = jnp.eye(count, dtype=bool)
    others = jnp.where(itself | jnp.isnan(squares), jnp.inf, squares)
    nearest = min(max(count - liars - 2, 1), max(count - 1, 1))
    return jnp.sum(jnp.sort(others, axis=1)[:, :nearest], axis=1)


def _cut(share: float, count: int) -> int:
    """How many values are trimmed at each end."""
    return max(1, math.floor(share * count))


def _rows(leaf: Array) -> Array:
    """A stacked leaf as one row per device."""
    return leaf.reshape(leaf.shape[0], -1)


def _along(values: Shaped[Array, " C"], leaf: Array) -> Array:
    """Values per device, shaped to broadcast against a stacked leaf."""
    return values.reshape(-1, *(1,) * (leaf.ndim - 1))
