"""Pallas kernels for TPU: the forward pass, and one kernel for each gradient.

Grids are sequential on a TPU, so an output block stays in VMEM while the inner grid axis turns:
row statistics and dA while tuples pass by, dQ while anchors do. Column statistics of the forward
pass live in one block that holds every column, for a block must not be returned to after it has
been left. Products are recomputed in either gradient: five products' work in all, memory linear.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from mlecs_jax.kernels.gram_volume import pairs
from mlecs_jax.kernels.gram_volume.padded import Padded, pad_sides, padded
from mlecs_jax.kernels.gram_volume.pairs import Pairs, Settings, matmul
from mlecs_jax.kernels.tiles import round_up

VMEM_BYTES = 12 * 2**20  # of the 16 MiB a kernel may use by default on v5e


def default_tile(k: int, d: int) -> tuple[int, int] | None:
    """The largest tile (anchors, tuples) whose working set fits VMEM, or None."""
    wide = round_up(d, 128)
    for tile in ((512, 256), (256, 256), (256, 128), (128, 128)):
        blocks = 2 * 4 * wide * (2 * tile[0] + 2 * k * tile[1])  # double-buffered, float32
        if blocks + 4 * tile[0] * tile[1] * (2 * k + 4) <= VMEM_BYTES:
            return tile
    return None


def _tile(
    refs: tuple[Any, ...], row_block: jax.Array, rows: int, settings: Settings
) -> tuple[list[jax.Array], jax.Array, jax.Array, jax.Array]:
    """c_i, rho, x and which pairs count, all [Tu, Tv]."""
    a, square, least, q, t, own = refs
    c = [matmul(a[...], q[i], settings, (1, 1), jnp.float32) for i in range(q.shape[0])]
    inside = square[...] - functools.reduce(jnp.add, (ci * ci for ci in c))
    rho = jnp.sqrt(jnp.maximum(inside, least[...]))
    row = row_block * a.shape[0] + jax.lax.broadcasted_iota(jnp.int32, rho.shape, 0)
    valid = (row != own[...]) & (own[...] >= 0) & (row < rows)
    return c, rho, jnp.where(valid, -t[...] * rho, pairs.floor(rho.dtype)), valid


def _online(top: jax.Array, total: jax.Array, x: jax.Array, axis: int) -> tuple[jax.Array, ...]:
    new = jnp.maximum(top, x.max(axis, keepdims=True))
    return new, total * jnp.exp(top - new) + jnp.exp(x - new).sum(axis, keepdims=True)


def _statistics_kernel(*refs: Any, rows: int, settings: Settings) -> None:
    inputs, (row_top, row_total, row_sum, top, total, column_sum) = refs[:6], refs[6:]
    i, j = pl.program_id(0), pl.program_id(1)
    x, valid = _tile(inputs, i, rows, settings)[2:]

    @pl.when((i == 0) & (j == 0))
    def _() -> None:
        top[...] = jnp.full_like(top, pairs.floor(x.dtype))
        total[...] = jnp.zeros_like(total)
        column_sum[...] = jnp.zeros_like(column_sum)

    @pl.when(j == 0)
    def _() -> None:
        row_top[...] = jnp.full_like(row_top, pairs.floor(x.dtype))
        row_total[...] = jnp.zeros_like(row_total)
        row_sum[...] = jnp.zeros_like(row_sum)

    row_top[...], row_total[...] = _online(row_top[...], row_total[...], x, 1)
    here = (slice(None), pl.ds(pl.multiple_of(j * x.shape[1], 128), x.shape[1]))
    top[here], total[here] = _online(top[here], total[here], x, 0)
    if settings.smooth:
        plain = jnp.where(valid, x, 0)
        row_sum[...] += plain.sum(1, keepdims=True)
        column_sum[here] += plain.sum(0, keepdims=True)


def _halves(refs: tuple[Any, ...], x: jax.Array, valid: jax.Array) -> list[jax.Array]:
    """The row and the column half of G."""
    sides = pairs.Side(*refs[:3]), pairs.Side(*refs[3:])
    return [pairs.half(x, valid, jax.tree.map(lambda ref: ref[...], side)) for side in sides]


def _grad_a_kernel(*refs: Any, rows: int, settings: Settings) -> None:
    inputs, sides, grad = refs[:6], refs[6:12], refs[12]
    a, q, t = inputs[0], inputs[3], inputs[4]
    c, rho, x, valid = _tile(inputs, pl.program_id(0), rows, settings)
    row, column = _halves(sides, x, valid)
    w = -(row if settings.parity else row + column) * t[...] / rho
    update = a[...].astype(jnp.float32) * w.sum(1, keepdims=True)
    for i, ci in enumerate(c):
        update -= matmul(w * ci, q[i], settings, (1, 0))

    @pl.when(pl.program_id(1) == 0)
    def _() -> None:
        grad[...] = jnp.zeros_like(grad)

    grad[...] += update


def _grad_q_kernel(*refs: Any, rows: int, settings: Settings) -> None:
    inputs, sides, (grad, row_t, column_t) = refs[:6], refs[6:12], refs[12:]
    a, t = inputs[0], inputs[4]
    c, rho, x, valid = _tile(inputs, pl.program_id(1), rows, settings)

    @pl.when(pl.program_id(1) == 0)
    def _() -> None:
        grad[...] = jnp.zeros_like(grad)
        row_t[...] = jnp.zeros_like(row_t)
        column_t[...] = jnp.zeros_like(column_t)

    row, column = _halves(sides, x, valid)
    if settings.parity:
        row_t[...] -= (row * rho).sum(0, keepdims=True)
    else:
        column = row + column
    column_t[...] -= (column * rho).sum(0, keepdims=True)
    w = -column * t[...] / rho
    for i, ci in enumerate(c):
        grad[i] -= matmul(w * ci, a[...], settings, (0, 0))


class _Call:
    """Shapes and block maps of one problem; `swap` runs tuples in the outer grid axis."""

    def __init__(self, settings: Settings, p: Pairs, tile: tuple[int, int], interpret: Any) -> None:
        self.settings, self.interpret = settings, interpret
        self.rows = p.a.shape[0]
        self.k, _, self.d = p.q.shape
        self.tu = min(tile[0], round_up(self.rows, 16))
        self.tv = min(tile[1], round_up(p.t.shape[0], 128))
        self.u, self.v = round_up(self.rows, self.tu), round_up(p.t.shape[0], self.tv)
        x: Padded = padded(settings, p, self.u, self.v, self.d)
        self.inputs = [x.a, x.square[:, None], x.least[:, None], x.q, x.t[None], x.own[None]]

    def spec(self, kind: str, swap: bool) -> pl.BlockSpec:
        """'a' [U, d], 'row' [U, 1], 'q' [k, V, d], 'column' [1, V], or 'columns', all of it."""
        blocks = {
            "a": ((self.tu, self.d), lambda i, j: (i, 0)),
            "row": ((self.tu, 1), lambda i, j: (i, 0)),
            "q": ((self.k, self.tv, self.d), lambda i, j: (0, j, 0)),
            "column": ((1, self.tv), lambda i, j: (0, j)),
            "columns": ((1, self.v), lambda i, j: (0, 0)),
        }
        shape, where = blocks[kind]
        return pl.BlockSpec(shape, (lambda j, i: where(i, j)) if swap else where)

    def shape(self, kind: str) -> jax.ShapeDtypeStruct:
        shapes = {
            "a": (self.u, self.d),
            "row": (self.u, 1),
            "q": (self.k, self.v, self.d),
            "column": (1, self.v),
            "columns": (1, self.v),
        }
        return jax.ShapeDtypeStruct(shapes[kind], jnp.float32)

    def __call__(self, kernel: Any, extra: list[jax.Array], out: list[str], swap: bool) -> Any:
        kinds = ["a", "row", "row", "q", "column", "column"]
        kinds += ["row"] * 3 + ["column"] * 3 if extra else []
        grid = (self.u // self.tu, self.v // self.tv)
        return pl.pallas_call(
            functools.partial(kernel, rows=self.rows, settings=self.settings),
            out_shape=[self.shape(kind) for kind in out],
            grid=grid[::-1] if swap else grid,
            in_specs=[self.spec(kind, swap) for kind in kinds],
            out_specs=[self.spec(kind, swap) for kind in out],
            compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary", "arbitrary")),
            interpret=self.interpret,
        )(*self.inputs, *extra)


def _statistics(
    settings: Settings, p: Pairs, tile: tuple[int, int], interpret: Any
) -> tuple[pairs.Statistics, Any]:
    call = _Call(settings, p, tile, interpret)
    out = ["row"] * 3 + ["columns"] * 3
    row_top, row_total, row_sum, top, total, column_sum = call(
        _statistics_kernel, [], out, swap=False
    )
    u, v = p.a.shape[0], p.t.shape[0]
    return pairs.Statistics(
        row_top=row_top[:u, 0],
        row_total=row_total[:u, 0],
        column_top=top[0, :v],
        column_total=total[0, :v],
        row_sum=row_sum[:u, 0] if settings.smooth else None,
        column_sum=column_sum[0, :v] if settings.smooth else None,
    ), None


def _gradients(
    settings: Settings, p: Pairs, w: pairs.Weights, tile: tuple[int, int], interpret: Any
) -> pairs.Gradients:
    call = _Call(settings, p, tile, interpret)
    sides = pad_sides(w, call.u, call.v)
    extra = [x[:, None] for x in sides[:3]] + [x[None] for x in sides[3:]]
    (grad_a,) = call(_grad_a_kernel, extra, ["a"], swap=False)
    grad_q, row_t, column_t = call(_grad_q_kernel, extra, ["q", "column", "column"], swap=True)
    u, v = p.a.shape[0], p.t.shape[0]
    return pairs.Gradients(
        grad_a[:u],
        grad_q[:, :v],
        row_t[0, :v],
        column_t[0, :v],
    )


@functools.lru_cache
def solver(tile: tuple[int, int], interpret: Any = False) -> pairs.Solver:
    """The kernels with tiles of (anchors, tuples), multiples of 16 and 128."""
    return pairs.Solver(
        f"pallas_tpu{tile[0]}x{tile[1]}",
        lambda settings, p: _statistics(settings, p, tile, interpret),
        lambda settings, p, saved, w: _gradients(settings, p, w, tile, interpret),
    )
