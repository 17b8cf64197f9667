"""Pallas kernels for GPU, by way of Triton.

A multiprocessor cannot hold a gradient as wide as a model beside a tile of logits, so one kernel
takes the softmax's sums without writing a logit, a second recomputes the probabilities of a slab
of tokens in the operand type, and a plain product finishes the gradient. Three products' work,
one of them by the vendor's library, where the walk in XLA does two and passes float32 logits
through memory.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from mlecs_jax.kernels import tiles
from mlecs_jax.kernels.lm_head.vocabulary import Model, Sums, product
from mlecs_jax.kernels.tiles import pad, round_up

SEGMENTS = 4  # ways the vocabulary is shared out among programs
SLAB_BYTES = 128 * 2**20  # of probabilities in flight
LOW = float(jnp.finfo(jnp.float32).min) / 4


def default_tile(d: int) -> tuple[int, int]:
    """(tokens, outcomes), powers of two."""
    del d
    return 128, 128


def _logits(refs: tuple[Any, ...], rows: Any, first: Any, tv: int, outcomes: int, precision: Any):
    """[rows, tv] from outcome `first` on; those past the vocabulary are low."""
    hidden, head, bias = refs
    columns = pl.ds(first, tv)
    x = tiles.product(hidden, (rows,), head, (columns,), precision) + bias[columns][None]
    ids = first + jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
    return jnp.where(ids < outcomes, x, LOW)


def _sums_kernel(
    *refs: Any, outcomes: int, precision: Any, tile: tuple[int, int], blocks: int
) -> None:
    inputs, (top, total) = refs[:3], refs[3:]
    tn, tv = tile
    block, segment = pl.program_id(0), pl.program_id(1)
    rows = pl.ds(block * tn, tn)

    def step(n: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        most, sum_ = carry
        x = _logits(inputs, rows, (segment * blocks + n) * tv, tv, outcomes, precision)
        new = jnp.maximum(most, x.max(1))
        return new, sum_ * jnp.exp(most - new) + jnp.exp(x - new[:, None]).sum(1)

    init = jnp.full((tn,), LOW, jnp.float32), jnp.zeros((tn,), jnp.float32)
    top[segment, rows], total[segment, rows] = jax.lax.fori_loop(0, blocks, step, init)


def _probabilities_kernel(
    *refs: Any, outcomes: int, precision: Any, tile: tuple[int, int]
) -> None:
    inputs, lse, out = refs[:3], refs[3], refs[4]
    rows = pl.ds(pl.program_id(0) * tile[0], tile[0])
    first = pl.program_id(1) * tile[1]
    x = _logits(inputs, rows, first, tile[1], outcomes, precision)
    out[rows, pl.ds(first, tile[1])] = jnp.exp(x - lse[rows][:, None]).astype(out.dtype)


def _params() -> plgpu.CompilerParams:
    return plgpu.CompilerParams(num_warps=8, num_stages=2)


def _sums(
    model: Model, precision: Any, with_rows: bool, tile: tuple[int, int], interpret: Any
) -> Sums:
    (n, d), v = model.hidden.shape, model.head.shape[0]
    tn, tv = tile
    segments = min(SEGMENTS, -(-v // tv))
    v_pad, d_pad = round_up(v, tv * segments), round_up(d, tiles.DEPTH)
    width = v_pad * model.hidden.dtype.itemsize
    slab = min(max(tn, SLAB_BYTES // width // tn * tn), round_up(n, tn))
    n_pad = round_up(n, slab)
    hidden = pad(pad(model.hidden, n_pad, 0), d_pad, 1)
    head = pad(pad(model.head.astype(hidden.dtype), v_pad, 0), d_pad, 1)
    bias = jnp.zeros(v, jnp.float32) if model.bias is None else model.bias.astype(jnp.float32)
    bias = pad(bias, v_pad, 0)
    options = {"outcomes": v, "precision": precision, "tile": tile}
    top, total = pl.pallas_call(
        functools.partial(_sums_kernel, **options, blocks=v_pad // (tv * segments)),
        out_shape=[jax.ShapeDtypeStruct((segments, n_pad), jnp.float32)] * 2,
        grid=(n_pad // tn, segments),
        compiler_params=_params(),
        interpret=interpret,
    )(hidden, head, bias)
    most = top.max(0)
    total = (total * jnp.exp(top - most)).sum(0)
    if not with_rows:
        return Sums(most[:n], total[:n], None)
    probabilities = pl.pallas_call(
        functools.partial(_probabilities_kernel, **options),
        out_shape=jax.ShapeDtypeStruct((slab, v_pad), hidden.dtype),
        grid=(slab // tn, v_pad // tv),
        compiler_params=_params(),
        interpret=interpret,
    )

    def mean_rows(own: tuple[jax.Array, jax.Array]) -> jax.Array:
        p = probabilities(own[0], head, bias, own[1])
        return product(p, head, (1, 0), precision, jnp.float32)

    lse = most + jnp.log(total)
    cut = hidden.reshape(-1, slab, d_pad), lse.reshape(-1, slab)
    rows = jax.lax.map(mean_rows, cut).reshape(n_pad, d_pad)[:n, :d]
    return Sums(most[:n], total[:n], rows * total[:n, None])


@functools.lru_cache
def kernel(tile: tuple[int, int], interpret: Any = False) -> Any:
    """(model, precision, with_rows) -> Sums, with tiles (tokens, outcomes), powers of two."""
    return functools.partial(_sums, tile=tile, interpret=interpret)
