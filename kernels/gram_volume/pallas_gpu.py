"""Pallas kernels for GPU, by way of Triton.

Forward: one kernel forms products, distances and online log-sum-exps and never leaves the chip.
Backward: the gradients of the others alone are k wide tiles of float32, more than a multiprocessor
holds, so a kernel recomputes the products of a slab of anchors and writes their weighted form
(W o C, in the operand type), and two plain matrix products finish it. Four products' work in all,
two of them by the vendor's library; memory is linear in the batch, the slab being of fixed bytes.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from mlecs_jax.kernels.gram_volume import pairs
from mlecs_jax.kernels.gram_volume.padded import Padded, pad_sides, padded
from mlecs_jax.kernels.gram_volume.pairs import Pairs, Settings, match_varying, matmul
from mlecs_jax.kernels.tiles import DEPTH, product, round_up

SEGMENTS = 4  # ways the tuples are shared out among programs in the forward pass
SLAB_BYTES = 192 * 2**20  # of weighted products in flight in the backward pass


def default_tile(k: int, d: int) -> tuple[int, int]:
    """(anchors, tuples), powers of two; the backward kernel keeps k tiles in registers."""
    del d
    return (128, 64) if k <= 3 else (64, 32)


def _logits(
    refs: tuple[Any, ...],
    inside: jax.Array,
    first_row: Any,
    columns: Any,
    bound: int,
    rows: Any,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """rho, x and which pairs count, from sum_i c_i^2 of one tile."""
    _, square, least, _, t, own = refs
    rho = jnp.sqrt(jnp.maximum(square[rows][:, None] - inside, least[rows][:, None]))
    row = first_row + jax.lax.broadcasted_iota(jnp.int32, rho.shape, 0)
    mine = jnp.broadcast_to(own[columns][None], rho.shape)
    valid = (row != mine) & (mine >= 0) & (row < bound)
    return rho, jnp.where(valid, -t[columns][None] * rho, pairs.floor(rho.dtype)), valid


def _statistics_kernel(
    *refs: Any, bound: int, settings: Settings, tile: tuple[int, int], blocks: int
) -> None:
    inputs = refs[:6]
    row_top, row_total, row_sum, top, total, column_sum = refs[6:]
    tu, tv = tile
    block, segment = pl.program_id(0), pl.program_id(1)
    rows = pl.ds(block * tu, tu)
    low = pairs.floor(jnp.dtype(jnp.float32))

    def step(n: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        row_m, row_l, row_s = carry
        columns = pl.ds((segment * blocks + n) * tv, tv)
        inside = jnp.zeros(tile, jnp.float32)
        for i in range(inputs[3].shape[0]):
            c = product(inputs[0], (rows,), inputs[3], (i, columns), settings.precision)
            inside += c * c
        _, x, valid = _logits(inputs, inside, block * tu, columns, bound, rows)
        new = jnp.maximum(row_m, x.max(1))
        row_l = row_l * jnp.exp(row_m - new) + jnp.exp(x - new[:, None]).sum(1)
        own_top = x.max(0)
        top[block, columns] = own_top
        total[block, columns] = jnp.exp(x - own_top[None]).sum(0)
        if settings.smooth:
            plain = jnp.where(valid, x, 0.0)
            row_s += plain.sum(1)
            column_sum[block, columns] = plain.sum(0)
        return new, row_l, row_s

    zero = jnp.zeros((tu,), jnp.float32)
    init = (jnp.full((tu,), low, jnp.float32), zero, zero)
    own_top, own_total, own_sum = jax.lax.fori_loop(0, blocks, step, init)
    row_top[segment, rows] = own_top
    row_total[segment, rows] = own_total
    row_sum[segment, rows] = own_sum


def _weights_kernel(*refs: Any, bound: int, settings: Settings, tile: tuple[int, int]) -> None:
    """Weighted products of one tile, and its share of the sums along rows and columns."""
    inputs, row_side, column_side, first = refs[:6], refs[6:9], refs[9:12], refs[12]
    out_a, out_q, sums, row_t, column_t = refs[13:]
    tu, tv = tile
    i, j = pl.program_id(0), pl.program_id(1)
    rows, columns = pl.ds(i * tu, tu), pl.ds(j * tv, tv)
    c = [
        product(inputs[0], (rows,), inputs[3], (n, columns), settings.precision)
        for n in range(inputs[3].shape[0])
    ]
    inside = functools.reduce(jnp.add, (x * x for x in c))
    rho, x, valid = _logits(inputs, inside, first[0] + i * tu, columns, bound, rows)
    row = pairs.half(x, valid, pairs.Side(*(y[rows][:, None] for y in row_side)))
    column = pairs.half(x, valid, pairs.Side(*(y[columns][None] for y in column_side)))
    if settings.parity:
        row_t[i, columns] = -(row * rho).sum(0)
    else:
        row = column = row + column
        row_t[i, columns] = jnp.zeros((tv,), jnp.float32)
    column_t[i, columns] = -(column * rho).sum(0)
    slope = -inputs[4][columns][None] / rho
    sums[j, rows] = (row * slope).sum(1)
    for n, ci in enumerate(c):
        out_a[rows, n, columns] = (row * slope * ci).astype(out_a.dtype)
        if settings.parity:
            out_q[rows, n, columns] = (column * slope * ci).astype(out_q.dtype)


def _compiler_params(tile: tuple[int, int]) -> plgpu.CompilerParams:
    return plgpu.CompilerParams(num_warps=8 if tile[0] >= 128 else 4, num_stages=2)


def _statistics(
    settings: Settings, p: Pairs, tile: tuple[int, int], interpret: Any
) -> tuple[pairs.Statistics, Any]:
    k, v, d = p.q.shape
    bound = p.a.shape[0]
    (tu, tv), u_pad = tile, round_up(bound, tile[0])
    segments = min(SEGMENTS, -(-v // tv))
    v_pad = round_up(v, tv * segments)
    x: Padded = padded(settings, p, u_pad, v_pad, round_up(d, DEPTH))
    nu, blocks = u_pad // tu, v_pad // (tv * segments)
    by_row = jax.ShapeDtypeStruct((segments, u_pad), jnp.float32)
    by_column = jax.ShapeDtypeStruct((nu, v_pad), jnp.float32)
    unused = jax.ShapeDtypeStruct((1, 1), jnp.float32)  # nobody writes it, nobody reads it
    row_top, row_total, row_sum, top, total, column_sum = pl.pallas_call(
        functools.partial(
            _statistics_kernel, bound=bound, settings=settings, tile=tile, blocks=blocks
        ),
        out_shape=[by_row] * 3 + [by_column] * 2 + [by_column if settings.smooth else unused],
        grid=(nu, segments),
        compiler_params=_compiler_params(tile),
        interpret=interpret,
    )(*x)

    row_top, row_total = pairs.merge(row_top, row_total)
    top, total = pairs.merge(top, total)
    return pairs.Statistics(
        row_top=row_top[:bound],
        row_total=row_total[:bound],
        column_top=top[:v],
        column_total=total[:v],
        row_sum=row_sum.sum(0)[:bound] if settings.smooth else None,
        column_sum=column_sum.sum(0)[:v] if settings.smooth else None,
    ), None


def _slab_rows(k: int, u: int, v: int, tu: int, settings: Settings) -> int:
    width = jnp.dtype(settings.operand).itemsize * (2 if settings.parity else 1)
    rows = max(tu, SLAB_BYTES // (k * v * width) // tu * tu)
    return min(rows, round_up(u, tu))


def _gradients(
    settings: Settings, p: Pairs, w: pairs.Weights, tile: tuple[int, int], interpret: Any
) -> pairs.Gradients:
    k, v, d = p.q.shape
    bound = p.a.shape[0]
    tu, tv = tile
    v_pad, d_pad = round_up(v, tv), round_up(d, DEPTH)
    slab = _slab_rows(k, bound, v_pad, tu, settings)
    u_pad = round_up(bound, slab)
    x: Padded = padded(settings, p, u_pad, v_pad, d_pad)
    sides = pad_sides(w, u_pad, v_pad)
    flat_q = x.q.reshape(k * v_pad, d_pad)
    nu, nv = slab // tu, v_pad // tv

    def shape(*size: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(size, dtype)

    weighted = shape(slab, k, v_pad, dtype=settings.operand)
    kernel = pl.pallas_call(
        functools.partial(_weights_kernel, bound=bound, settings=settings, tile=tile),
        out_shape=[
            weighted,
            weighted if settings.parity else shape(1, 1, 1, dtype=settings.operand),
            shape(nv, slab),
            shape(nu, v_pad),
            shape(nu, v_pad),
        ],
        grid=(nu, nv),
        compiler_params=_compiler_params(tile),
        interpret=interpret,
    )

    def step(n: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        grad_a, grad_q, row_t, column_t = carry
        start = n * slab

        def rows(y: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(y, start, slab)

        a = rows(x.a)
        out_a, out_q, sums, own_row_t, own_column_t = kernel(
            a,
            rows(x.square),
            rows(x.least),
            *x[3:],
            *(rows(y) for y in sides[:3]),
            *sides[3:],
            start[None],
        )
        wide = out_a.reshape(slab, k * v_pad)
        own = a * sums.sum(0)[:, None] - matmul(wide, flat_q, settings, (1, 0), jnp.float32)
        wide = out_q.reshape(slab, k * v_pad) if settings.parity else wide
        grad_a = jax.lax.dynamic_update_slice_in_dim(grad_a, own, start, 0)
        grad_q -= matmul(wide, a, settings, (0, 0), jnp.float32)
        return grad_a, grad_q, row_t + own_row_t.sum(0), column_t + own_column_t.sum(0)

    zeros = jnp.zeros((v_pad,), jnp.float32)
    init = (jnp.zeros((u_pad, d_pad)), jnp.zeros((k * v_pad, d_pad)), zeros, zeros)
    init = tuple(match_varying(y.astype(jnp.float32), p.a, p.t) for y in init)
    grad_a, grad_q, row_t, column_t = jax.lax.fori_loop(0, u_pad // slab, step, init)
    return pairs.Gradients(
        grad_a[:bound, :d],
        grad_q.reshape(k, v_pad, d_pad)[:, :v, :d],
        row_t[:v],
        column_t[:v],
    )


@functools.lru_cache
def solver(tile: tuple[int, int], interpret: Any = False) -> pairs.Solver:
    """The kernels with tiles of (anchors, tuples), powers of two of at least 16."""
    return pairs.Solver(
        f"pallas_gpu{tile[0]}x{tile[1]}",
        lambda settings, p: _statistics(settings, p, tile, interpret),
        lambda settings, p, saved, w: _gradients(settings, p, w, tile, interpret),
    )
