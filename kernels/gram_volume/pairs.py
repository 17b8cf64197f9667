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
    """Sums over the counted off-diagonal pairs; a row without any has lse = floor(dtype)."""

    row_lse: jax.Array  # [U]
    column_lse: jax.Array  # [V]
    row_sum: jax.Array | None  # [U] sum of x, where label smoothing asks for it
    column_sum: jax.Array | None  # [V]


class Weights(NamedTuple):
    """What turns a pair into its share of the gradient.

    G_uv = scale * (exp(x - row_lse_u) - row_smooth_u + exp(x - column_lse_v) - column_smooth_v)
    is dL/dx_uv. In the mode `gram_parity` the anchors see its row half, the others its column half.
    """

    scale: jax.Array  # scalar: cotangent of the loss / 2B
    row_lse: jax.Array  # [U], positives included
    column_lse: jax.Array  # [V], positives included
    row_smooth: jax.Array  # [U] label smoothing / counted pairs of the row
    column_smooth: jax.Array  # [V]


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


def share(x: jax.Array, lse: jax.Array) -> jax.Array:
    """exp(x - lse), a probability: rounding of huge logits must not make it more than 1."""
    return jnp.exp(jnp.minimum(x - lse, 0))


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
    top = jax.lax.pmax(stats.row_lse, axis_name)
    total = jax.lax.psum(jnp.exp(stats.row_lse - top), axis_name)
    row_sum = stats.row_sum
    if row_sum is not None:
        row_sum = jax.lax.psum(row_sum, axis_name)
    return stats._replace(row_lse=top + jnp.log(total), row_sum=row_sum)


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


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def loss(
    solver: Solver,
    settings: Settings,
    a: jax.Array,
    q: jax.Array,
    row_t: jax.Array,
    column_t: jax.Array,
    row_positive: jax.Array,
    column_positive: jax.Array,
    offset: jax.Array,
    negatives: jax.Array | None,
) -> jax.Array:
    """Mean over B of half the row and half the column cross-entropy.

    Args:
      a, q, offset, negatives: see `Pairs`; a holds the anchors of all shards.
      row_t, column_t [V]: others' volume over temperature, for either direction. Equal in value;
        two arguments so that `gram_parity` can stop the gradient of one.
      row_positive, column_positive [V]: logits of the matched pairs, likewise.

    Returns:
      Scalar, equal on all shards.
    """
    return _loss_fwd(
        solver, settings, a, q, row_t, column_t, row_positive, column_positive, offset, negatives
    )[0]


def _loss_fwd(
    solver: Solver,
    settings: Settings,
    a: jax.Array,
    q: jax.Array,
    row_t: jax.Array,
    column_t: jax.Array,
    row_positive: jax.Array,
    column_positive: jax.Array,
    offset: jax.Array,
    negatives: jax.Array | None,
) -> tuple[jax.Array, Any]:
    del row_t, row_positive  # equal to the column ones
    axis, v = settings.axis_name, column_t.shape[0]
    p = Pairs(a, q, column_t, offset, negatives)
    stats, saved = solver.statistics(settings, p)
    stats = _combine_rows(stats, axis)
    positive = column_positive
    everyone = positive if axis is None else jax.lax.all_gather(positive, axis, tiled=True)
    row_lse = jnp.logaddexp(stats.row_lse, everyone)
    column_lse = jnp.logaddexp(stats.column_lse, positive)
    row_count, column_count = _counts(settings, p)

    smoothing = settings.label_smoothing
    own_row_lse = jax.lax.dynamic_slice(row_lse, (offset,), (v,))
    value = own_row_lse + column_lse - 2 * (1 - smoothing) * positive
    row_smooth, column_smooth = smoothing / row_count, smoothing / column_count
    if settings.smooth:
        assert stats.row_sum is not None and stats.column_sum is not None
        own = jax.lax.dynamic_slice(stats.row_sum * row_smooth, (offset,), (v,))
        own_smooth = jax.lax.dynamic_slice(row_smooth, (offset,), (v,))
        value -= own + own_smooth * positive
        value -= (stats.column_sum + positive) * column_smooth
    total = value.sum() / (2 * a.shape[0])
    if axis is not None:
        total = jax.lax.psum(total, axis)
    kept = (p, saved, row_lse, column_lse, row_smooth, column_smooth, positive)
    return total, kept


def _loss_bwd(solver: Solver, settings: Settings, kept: Any, ct: jax.Array) -> tuple[Any, ...]:
    p, saved, row_lse, column_lse, row_smooth, column_smooth, positive = kept
    scale = ct / (2 * p.a.shape[0])
    v = positive.shape[0]
    weights = Weights(scale, row_lse, column_lse, row_smooth, column_smooth)
    g = solver.gradients(settings, p, saved, weights)
    target = 1 - settings.label_smoothing

    def of_positive(lse: jax.Array, smooth: jax.Array) -> jax.Array:
        return scale * (share(positive, lse) - target - smooth)

    own_lse = jax.lax.dynamic_slice(row_lse, (p.offset,), (v,))
    own_smooth = jax.lax.dynamic_slice(row_smooth, (p.offset,), (v,))
    row_positive = of_positive(own_lse, own_smooth)
    column_positive = of_positive(column_lse, column_smooth)
    return g.a, g.q, g.row_t, g.column_t, row_positive, column_positive, None, None


loss.defvjp(_loss_fwd, _loss_bwd)
