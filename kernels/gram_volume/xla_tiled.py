"""Plain XLA in tiles: memory linear in the batch, products recomputed going back.

Both passes walk over tiles [Tu anchors, Tv tuples]. Forward keeps online log-sum-exps of rows and
columns; backward forms each tile's weights once and uses them for both gradients, so that
forward and backward together are four matrix products' work where the dense version does three.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mlecs_jax.kernels.gram_volume import pairs
from mlecs_jax.kernels.gram_volume.pairs import Pairs, Settings, match_varying, matmul


class Blocks(NamedTuple):
    """`Pairs`, cut: nu blocks of Tu anchors, nv blocks of Tv tuples, zero-padded."""

    a: jax.Array  # [nu, Tu, d]
    square: jax.Array  # [nu, Tu] |a|^2
    least: jax.Array  # [nu, Tu] clamp of rho^2
    q: jax.Array  # [nv, k * Tv, d]
    t: jax.Array  # [nv, Tv]
    negatives: jax.Array | None  # [nu, nv, Tu, Tv]


def _split(size: int, tile: int) -> tuple[int, int]:
    """Number of blocks and their size, evened out so that padding stays small."""
    count = -(-size // tile)
    even = -(-size // count)
    return count, even if count == 1 else -(-even // 8) * 8


def _cut(x: jax.Array, count: int, size: int, axis: int = 0, fill: float = 0.0) -> jax.Array:
    """Pads `axis` to count * size and splits it in two."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, count * size - x.shape[axis])
    shape = (*x.shape[:axis], count, size, *x.shape[axis + 1 :])
    return jnp.pad(x, widths, constant_values=fill).reshape(shape)


def cut(p: Pairs, tile: tuple[int, int]) -> Blocks:
    k, v, d = p.q.shape
    (nu, tu), (nv, tv) = _split(p.a.shape[0], tile[0]), _split(v, tile[1])
    square, least = pairs.floors(p.a)
    negatives = None
    if p.negatives is not None:
        rows = _cut(p.negatives, nu, tu)
        negatives = jnp.swapaxes(_cut(rows, nv, tv, axis=2), 1, 2)
    q = jnp.swapaxes(_cut(p.q, nv, tv, axis=1), 0, 1).reshape(nv, k * tv, d)
    return Blocks(
        a=_cut(p.a, nu, tu),
        square=_cut(square, nu, tu),
        least=_cut(least, nu, tu, fill=1.0),  # a padded anchor must not divide by zero
        q=q,
        t=_cut(p.t, nv, tv),
        negatives=negatives,
    )


def _tile(
    settings: Settings, p: Pairs, b: Blocks, i: jax.Array, j: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """c [Tu, k, Tv], rho, x and which pairs count [Tu, Tv] of one tile."""
    tu, tv = b.a.shape[1], b.t.shape[1]
    c = matmul(b.a[i], b.q[j], settings, (1, 1)).reshape(tu, -1, tv)
    inside = b.square[i][:, None] - jnp.sum(c * c, axis=1)
    rho = jnp.sqrt(jnp.maximum(inside, b.least[i][:, None]))
    row = i * tu + jax.lax.broadcasted_iota(jnp.int32, (tu, tv), 0)
    column = j * tv + jax.lax.broadcasted_iota(jnp.int32, (tu, tv), 1)
    valid = row != column + p.offset
    if b.a.shape[0] * tu != p.a.shape[0]:
        valid &= row < p.a.shape[0]
    if b.t.size != p.t.shape[0]:
        valid &= column < p.t.shape[0]
    if b.negatives is not None:
        valid &= b.negatives[i, j]
    return c, rho, jnp.where(valid, -b.t[j] * rho, pairs.floor(p.a.dtype)), valid


def _online(top: jax.Array, total: jax.Array, x: jax.Array, axis: int) -> tuple[jax.Array, ...]:
    """One step of the online log-sum-exp of x [Tu, Tv] over `axis`."""
    new = jnp.maximum(top, x.max(axis))
    shifted = jnp.exp(x - jnp.expand_dims(new, axis)).sum(axis)
    return new, total * jnp.exp(top - new) + shifted


def _loop(count: int, body: Callable[[jax.Array, Any], Any], init: Any) -> Any:
    """fori_loop; a single turn is not a loop at all."""
    return body(jnp.int32(0), init) if count == 1 else jax.lax.fori_loop(0, count, body, init)


def tiled_statistics(settings: Settings, p: Pairs, tile: tuple[int, int]) -> pairs.Statistics:
    b = cut(p, tile)
    (nu, tu), (nv, tv) = b.a.shape[:2], b.t.shape
    low, dtype = pairs.floor(p.a.dtype), p.a.dtype

    def fresh(shape: tuple[int, ...], value: float) -> jax.Array:
        return match_varying(jnp.full(shape, value, dtype), p.a, p.t)

    def step(i: jax.Array, j: jax.Array, row: Any, column: Any) -> tuple[Any, Any]:
        _, _, x, valid = _tile(settings, p, b, i, j)
        top, total = _online(row[0], row[1], x, 1)
        own_top, own_total = _online(column[0][j], column[1][j], x, 0)
        plain = jnp.where(valid, x, 0) if settings.smooth else jnp.zeros_like(x)
        row = (top, total, row[2] + plain.sum(1))
        column = (
            column[0].at[j].set(own_top),
            column[1].at[j].set(own_total),
            column[2].at[j].add(plain.sum(0)),
        )
        return row, column

    def one_row(i: jax.Array, carry: Any) -> Any:
        rows, column = carry
        row = tuple(r[i] for r in rows)
        row, column = _loop(nv, lambda j, c: step(i, j, *c), (row, column))
        return tuple(r.at[i].set(x) for r, x in zip(rows, row, strict=True)), column

    rows = (fresh((nu, tu), low), fresh((nu, tu), 0.0), fresh((nu, tu), 0.0))
    columns = (fresh((nv, tv), low), fresh((nv, tv), 0.0), fresh((nv, tv), 0.0))
    rows, columns = _loop(nu, one_row, (rows, columns))
    u, v = p.a.shape[0], p.t.shape[0]
    row, column = (tuple(x.ravel() for x in xs) for xs in (rows, columns))
    smooth = settings.smooth
    return pairs.Statistics(
        row_top=row[0][:u],
        row_total=row[1][:u],
        column_top=column[0][:v],
        column_total=column[1][:v],
        row_sum=row[2][:u] if smooth else None,
        column_sum=column[2][:v] if smooth else None,
    )


def tiled_gradients(
    settings: Settings, p: Pairs, w: pairs.Weights, tile: tuple[int, int]
) -> pairs.Gradients:
    b = cut(p, tile)
    (nu, tu, d), (nv, tv) = b.a.shape, b.t.shape
    k = p.q.shape[0]
    row_sides = jax.tree.map(lambda x: _cut(x, nu, tu), w.row)
    column_sides = jax.tree.map(lambda x: _cut(x, nv, tv), w.column)

    def step(i: jax.Array, j: jax.Array, grad_a: jax.Array, rest: Any) -> tuple[jax.Array, Any]:
        grad_q, row_t, column_t = rest
        c, rho, x, valid = _tile(settings, p, b, i, j)
        row = pairs.half(x, valid, jax.tree.map(lambda y: y[i][:, None], row_sides))
        column = pairs.half(x, valid, jax.tree.map(lambda y: y[j], column_sides))
        if settings.parity:
            row_t = row_t.at[j].add(-(row * rho).sum(0))
        else:
            row = column = row + column
        column_t = column_t.at[j].add(-(column * rho).sum(0))
        for_a = -row * b.t[j] / rho
        weighted = (for_a[:, None] * c).reshape(tu, k * tv)
        grad_a += b.a[i] * for_a.sum(1)[:, None] - matmul(weighted, b.q[j], settings, (1, 0))
        if settings.parity:
            weighted = ((-column * b.t[j] / rho)[:, None] * c).reshape(tu, k * tv)
        grad_q = grad_q.at[j].add(-matmul(weighted, b.a[i], settings, (0, 0)))
        return grad_a, (grad_q, row_t, column_t)

    def one_row(i: jax.Array, carry: Any) -> Any:
        grad_a, rest = carry
        own = match_varying(jnp.zeros((tu, d), p.a.dtype), p.a, p.t)
        own, rest = _loop(nv, lambda j, c: step(i, j, *c), (own, rest))
        return grad_a.at[i].set(own), rest

    def fresh(*shape: int) -> jax.Array:
        return match_varying(jnp.zeros(shape, p.a.dtype), p.a, p.t)

    init = fresh(nu, tu, d), (fresh(nv, k * tv, d), fresh(nv, tv), fresh(nv, tv))
    grad_a, (grad_q, row_t, column_t) = _loop(nu, one_row, init)
    u, v = p.a.shape[0], p.t.shape[0]
    grad_q = jnp.swapaxes(grad_q.reshape(nv, k, tv, d), 0, 1).reshape(k, nv * tv, d)[:, :v]
    return pairs.Gradients(
        grad_a.reshape(nu * tu, d)[:u], grad_q, row_t.ravel()[:v], column_t.ravel()[:v]
    )


@functools.lru_cache
def tiled(tile: tuple[int, int]) -> pairs.Solver:
    """The solver for tiles of at most `tile` = (anchors, tuples)."""
    return pairs.Solver(
        f"xla_tiled{tile[0]}x{tile[1]}",
        lambda settings, p: (tiled_statistics(settings, p, tile), None),
        lambda settings, p, saved, w: tiled_gradients(settings, p, w, tile),
    )
