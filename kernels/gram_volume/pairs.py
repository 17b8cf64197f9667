"""The loss over all pairs, given the factorisation: what every fast implementation shares.

The matched pairs (the positives) come in from outside, exact. What remains, the off-diagonal
pairs, is one small problem that an implementation solves twice: log-sum-exps going forward, and
three weighted sums going back. `loss` ties them together with one custom_vjp.

Shapes: U anchors, V tuples of others (U = V unless sharded), k vectors a tuple, width d.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Pairs(NamedTuple):
    """The off-diagonal pairs (u, v), u != v + offset, with logits x_uv = -t_v rho_uv."""

    a: jax.Array  # [U, d] anchors, in the accumulation type
    q: jax.Array  # [k, V, d] orthonormal directions
    t: jax.Array  # [V] volume of the others over temperature
    offset: jax.Array  # int32: v's own anchor is row v + offset
    negatives: jax.Array | None  # [U, V] bool: which pairs count, or None for all


class Statistics(NamedTuple):
    """Sums over the counted off-diagonal pairs, of exp(x - top) and of x.

    The largest logit stays apart from the sum: their logarithm's rounding, tiny beside the loss,
    would be the same for a whole row and so the gradient's largest error. A row without any pair
    has top = floor(dtype) and any finite total.
    """

    row_top: jax.Array  # [U]
    row_total: jax.Array  # [U]
    column_top: jax.Array  # [V]
    column_total: jax.Array  # [V]
    row_sum: jax.Array | None  # [U], where label smoothing asks for it
    column_sum: jax.Array | None  # [V]


class Side(NamedTuple):
    """One softmax's numbers: exp(x - top) factor - smooth is what a pair owes it."""

    top: jax.Array  # largest logit of the row or column, the positive included
    factor: jax.Array  # 1 / sum of exp(x - top)
    smooth: jax.Array  # label smoothing / counted pairs


class Weights(NamedTuple):
    """What turns a pair into its share of the gradient.

    G_uv = row half + column half, see `half`, is dL/dx_uv but for the factor cotangent / 2B,
    which `loss` applies. In the mode `gram_parity` the anchors see the row half, the others the
    column half.
    """

    row: Side  # of [U]
    column: Side  # of [V]


class Gradients(NamedTuple):
    a: jax.Array  # [U, d]
    q: jax.Array  # [k, V, d]
    row_t: jax.Array  # [V] the share of G's row half (zero unless parity)
    column_t: jax.Array  # [V] the rest


@dataclass(frozen=True)
class Settings:
    """Static choices."""

    label_smoothing: float
    parity: bool
    operand: Any  # dtype of the matrix products' inputs
    precision: jax.lax.Precision
    axis_name: str | None = None

    @property
    def smooth(self) -> bool:
        return self.label_smoothing != 0.0


@dataclass(frozen=True)
class Solver:
    """An implementation: two functions over `Pairs`; `saved` is whatever it wants back."""

    name: str
    statistics: Callable[[Settings, Pairs], tuple[Statistics, Any]]
    gradients: Callable[[Settings, Pairs, Any, Weights], Gradients]


def floor(dtype: Any) -> float:
    """The logit of a pair that does not count: finite, and far below every logit that does."""
    return -float(jnp.finfo(dtype).max) / 4


def half(x: jax.Array, valid: jax.Array, side: Side) -> jax.Array:
    """One softmax's half of G, `side` broadcast to x; a probability is never more than 1."""
    p = jnp.exp(jnp.minimum(x - side.top, 0)) * side.factor
    return jnp.where(valid, p - side.smooth, 0)


def merge(top: jax.Array, total: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sums of exp(x - top) taken in parts, [parts, X] each, as one: [X] each."""
    most = top.max(0)
    return most, (total * jnp.exp(top - most)).sum(0)


def matmul(
    x: jax.Array,
    y: jax.Array,
    settings: Settings,
    dims: tuple[int, int],
    dtype: Any = None,
) -> jax.Array:
    """x . y contracting the two given axes: `settings.operand` in, sums in dtype or x's own."""
    return jax.lax.dot_general(
        x.astype(settings.operand),
        y.astype(settings.operand),
        (((dims[0],), (dims[1],)), ((), ())),
        precision=settings.precision,
        preferred_element_type=dtype or x.dtype,
    )


def floors(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """|a_u|^2 and the least rho_uv^2 worth having, below which the difference is rounding."""
    square = jnp.sum(a * a, axis=-1)
    eps = {4: 1e-6, 8: 1e-14}[a.dtype.itemsize]
    return square, jnp.maximum(eps**2 * square, float(jnp.finfo(a.dtype).tiny))


def match_varying(x: jax.Array, *others: jax.Array) -> jax.Array:
    """x, varying over the mesh axes that `others` vary over (for loop carries in `shard_map`)."""
    for other in others:
        x = x + jnp.zeros_like(other, shape=(), dtype=x.dtype)
    return x


def _combine_rows(stats: Statistics, axis_name: str | None) -> Statistics:
    """Row sums over all shards: every shard holds all anchors and its own others."""
    if axis_name is None:
        return stats
    top = jax.lax.pmax(stats.row_top, axis_name)
    total = jax.lax.psum(stats.row_total * jnp.exp(stats.row_top - top), axis_name)
    row_sum = stats.row_sum
    if row_sum is not None:
        row_sum = jax.lax.psum(row_sum, axis_name)
    return stats._replace(row_top=top, row_total=total, row_sum=row_sum)


def _counts(settings: Settings, p: Pairs) -> tuple[jax.Array, jax.Array]:
    """Pairs counted in each row [U] and column [V], the positive among them."""
    dtype, (u, v) = p.a.dtype, (p.a.shape[0], p.t.shape[0])
    if p.negatives is None:  # as many tuples as anchors, over all shards
        return jnp.full(u, u, dtype), jnp.full(v, u, dtype)
    own = jnp.arange(u)[:, None] == jnp.arange(v) + p.offset
    counted = p.negatives | own
    rows = counted.sum(1, dtype=dtype)
    if settings.axis_name is not None:
        rows = jax.lax.psum(rows, settings.axis_name)
    return rows, counted.sum(0, dtype=dtype)


class Inputs(NamedTuple):
    """What `loss` is a function of."""

    a: jax.Array  # [U, d] anchors of all shards
    q: jax.Array  # [k, V, d] directions of this shard's others
    # Others' volume over temperature [V], and the logits of the matched pairs [V], for either
    # direction: equal in value, and two so that `gram_parity` can stop the gradient of one.
    row_t: jax.Array
    column_t: jax.Array
    row_positive: jax.Array
    column_positive: jax.Array
    offset: jax.Array  # as in `Pairs`
    negatives: jax.Array | None


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def loss(solver: Solver, settings: Settings, inputs: Inputs) -> jax.Array:
    """Mean over B of half the row and half the column cross-entropy: a scalar, equal everywhere."""
    return _loss_fwd(solver, settings, inputs)[0]


def _loss_fwd(solver: Solver, settings: Settings, inputs: Inputs) -> tuple[jax.Array, Any]:
    axis, offset, positive = settings.axis_name, inputs.offset, inputs.column_positive
    p = Pairs(inputs.a, inputs.q, inputs.column_t, offset, inputs.negatives)
    stats, saved = solver.statistics(settings, p)
    stats = _combine_rows(stats, axis)
    everyone = positive if axis is None else jax.lax.all_gather(positive, axis, tiled=True)

    def with_positive(top: jax.Array, total: jax.Array, own: jax.Array) -> tuple[jax.Array, ...]:
        return merge(jnp.stack([top, own]), jnp.stack([total, jnp.ones_like(own)]))

    row_top, row_total = with_positive(stats.row_top, stats.row_total, everyone)
    column_top, column_total = with_positive(stats.column_top, stats.column_total, positive)
    row_count, column_count = _counts(settings, p)
    smoothing = settings.label_smoothing
    row = Side(row_top, 1 / row_total, smoothing / row_count)
    column = Side(column_top, 1 / column_total, smoothing / column_count)

    def mine(x: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(x, (offset,), positive.shape)

    value = mine(row_top) - positive + jnp.log(mine(row_total))
    value += column_top - positive + jnp.log(column_total)
    if settings.smooth:
        assert stats.row_sum is not None and stats.column_sum is not None
        value += 2 * smoothing * positive
        value -= mine(stats.row_sum * row.smooth) + mine(row.smooth) * positive
        value -= (stats.column_sum + positive) * column.smooth
    total = value.sum() / (2 * p.a.shape[0])
    if axis is not None:
        total = jax.lax.psum(total, axis)
    return total, (p, saved, Weights(row, column), positive)


def _loss_bwd(solver: Solver, settings: Settings, kept: Any, ct: jax.Array) -> tuple[Inputs]:
    p, saved, weights, positive = kept
    scale = ct / (2 * p.a.shape[0])
    g = solver.gradients(settings, p, saved, weights)
    own = jax.tree.map(
        lambda x: jax.lax.dynamic_slice(x, (p.offset,), positive.shape), weights.row
    )
    target = 1 - settings.label_smoothing
    everywhere = jnp.ones_like(positive, bool)
    return (
        Inputs(
            a=scale * g.a,
            q=scale * g.q,
            row_t=scale * g.row_t,
            column_t=scale * g.column_t,
            row_positive=scale * (half(positive, everywhere, own) - target),
            column_positive=scale * (half(positive, everywhere, weights.column) - target),
            offset=None,  # pyright: ignore[reportArgumentType]  (an integer has no cotangent)
            negatives=None,
        ),
    )


loss.defvjp(_loss_fwd, _loss_bwd)
