"""Plain XLA: a dense version that keeps the pairs' products, for batches where they fit.

Two matrix products' worth of memory traffic is avoided by laying Q out as [kV, d], so that
everything heavy is one 2-D product: forward a Q^T, backward W Q and W^T a.
"""

from typing import Any

import jax
import jax.numpy as jnp

from mlecs_jax.kernels.gram_volume import pairs
from mlecs_jax.kernels.gram_volume.pairs import Pairs, Settings, matmul


def counted(p: Pairs) -> jax.Array:
    """[U, V] bool: off-diagonal pairs that count."""
    u, v = p.a.shape[0], p.t.shape[0]
    off = jax.lax.broadcasted_iota(jnp.int32, (u, v), 0) != (
        jax.lax.broadcasted_iota(jnp.int32, (u, v), 1) + p.offset
    )
    return off if p.negatives is None else off & p.negatives


def products(settings: Settings, p: Pairs) -> jax.Array:
    """c [U, k, V] = a_u . q_vi."""
    k, v, d = p.q.shape
    return matmul(p.a, p.q.reshape(k * v, d), settings, (1, 1)).reshape(-1, k, v)


def distances(p: Pairs, c: jax.Array) -> jax.Array:
    """rho [U, V], clamped where the difference of squares is rounding."""
    square, least = pairs.floors(p.a)
    return jnp.sqrt(jnp.maximum(square[:, None] - jnp.sum(c * c, axis=1), least[:, None]))


def _sums(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    top = x.max(axis, keepdims=True)
    return jnp.squeeze(top, axis), jnp.exp(x - top).sum(axis)


def dense_statistics(settings: Settings, p: Pairs) -> tuple[pairs.Statistics, Any]:
    c = products(settings, p)
    valid = counted(p)
    x = jnp.where(valid, -p.t * distances(p, c), pairs.floor(p.a.dtype))
    row_sum = column_sum = None
    if settings.smooth:
        plain = jnp.where(valid, x, 0)
        row_sum, column_sum = plain.sum(1), plain.sum(0)
    return pairs.Statistics(*_sums(x, 1), *_sums(x, 0), row_sum, column_sum), c


def dense_gradients(settings: Settings, p: Pairs, saved: Any, w: pairs.Weights) -> pairs.Gradients:
    c: jax.Array = saved
    k, v, d = p.q.shape
    rho = distances(p, c)
    valid, x = counted(p), -p.t * rho
    row = pairs.half(x, valid, jax.tree.map(lambda y: y[:, None], w.row))
    column = pairs.half(x, valid, w.column)
    if settings.parity:
        row_t, column_t = -(row * rho).sum(0), -(column * rho).sum(0)
    else:
        row = column = row + column
        column_t = -(row * rho).sum(0)
        row_t = jnp.zeros_like(column_t)
    for_a, for_q = -row * p.t / rho, -column * p.t / rho
    flat_q = p.q.reshape(k * v, d)
    weighted = (for_a[:, None] * c).reshape(-1, k * v)
    grad_a = p.a * for_a.sum(1)[:, None] - matmul(weighted, flat_q, settings, (1, 0))
    if settings.parity:
        weighted = (for_q[:, None] * c).reshape(-1, k * v)
    grad_q = -matmul(weighted, p.a, settings, (0, 0)).reshape(k, v, d)
    return pairs.Gradients(grad_a, grad_q, row_t, column_t)


DENSE = pairs.Solver("xla_dense", dense_statistics, dense_gradients)
