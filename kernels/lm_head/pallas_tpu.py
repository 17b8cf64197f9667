"""Pallas kernel for TPU: logits, their softmax's sums and the mean row of the head in one pass.

It is attention with the head as keys and values. The grid is sequential, so a block of tokens and
its running sums stay in VMEM while the vocabulary passes by; a logit is never written. Loss and
gradient of the hidden states cost two products, and the head is read once per block of tokens.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from mlecs_jax.kernels.lm_head.vocabulary import Model, Sums, product
from mlecs_jax.kernels.tiles import pad, round_up

VMEM_BYTES = 12 * 2**20  # of the 16 MiB a kernel may use by default on v5e
LOW = float(jnp.finfo(jnp.float32).min) / 4


def default_tile(d: int) -> tuple[int, int] | None:
    """The largest tile (tokens, outcomes) whose working set fits VMEM, or None."""
    wide = round_up(d, 128)
    for tile in ((512, 512), (512, 256), (256, 256), (128, 256), (128, 128)):
        tokens, outcomes = tile
        blocks = 2 * 4 * wide * (2 * tokens + outcomes)  # double-buffered, float32
        if blocks + 3 * 4 * tokens * outcomes <= VMEM_BYTES:
            return tile
    return None


def _kernel(*refs: Any, outcomes: int, precision: Any) -> None:
    (hidden, head, bias), (top, total), rows = refs[:3], refs[3:5], refs[5:]
    j = pl.program_id(1)

    @pl.when(j == 0)
    def _() -> None:
        top[...] = jnp.full_like(top, LOW)
        for ref in (total, *rows):
            ref[...] = jnp.zeros_like(ref)

    x = product(hidden[...], head[...], (1, 1), precision, jnp.float32) + bias[...]
    ids = j * x.shape[1] + jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
    x = jnp.where(ids < outcomes, x, LOW)
    new = jnp.maximum(top[...], x.max(1, keepdims=True))
    shrink, weights = jnp.exp(top[...] - new), jnp.exp(x - new)
    top[...] = new
    total[...] = total[...] * shrink + weights.sum(1, keepdims=True)
    for ref in rows:
        own = product(weights.astype(head.dtype), head[...], (1, 0), precision, jnp.float32)
        ref[...] = ref[...] * shrink + own


def _sums(
    model: Model, precision: Any, with_rows: bool, tile: tuple[int, int], interpret: Any
) -> Sums:
    (n, d), v = model.hidden.shape, model.head.shape[0]
    tn, tv = min(tile[0], round_up(n, 16)), min(tile[1], round_up(v, 128))
    n_pad, v_pad = round_up(n, tn), round_up(v, tv)
    bias = jnp.zeros(v, jnp.float32) if model.bias is None else model.bias.astype(jnp.float32)

    def by_token(width: int) -> tuple[jax.ShapeDtypeStruct, pl.BlockSpec]:
        shape = jax.ShapeDtypeStruct((n_pad, width), jnp.float32)
        return shape, pl.BlockSpec((tn, width), lambda i, j: (i, 0))

    out = [by_token(1), by_token(1), *([by_token(d)] if with_rows else [])]
    top, total, *rows = pl.pallas_call(
        functools.partial(_kernel, outcomes=v, precision=precision),
        out_shape=[shape for shape, _ in out],
        grid=(n_pad // tn, v_pad // tv),
        in_specs=[
            pl.BlockSpec((tn, d), lambda i, j: (i, 0)),
            pl.BlockSpec((tv, d), lambda i, j: (j, 0)),
            pl.BlockSpec((1, tv), lambda i, j: (0, j)),
        ],
        out_specs=[spec for _, spec in out],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
    )(
        pad(model.hidden, n_pad, 0),
        pad(model.head.astype(model.hidden.dtype), v_pad, 0),
        pad(bias, v_pad, 0)[None],
    )
    return Sums(top[:n, 0], total[:n, 0], rows[0][:n] if rows else None)


@functools.lru_cache
def kernel(tile: tuple[int, int], interpret: Any = False) -> Any:
    """(model, precision, with_rows) -> Sums, with tiles (tokens, outcomes) of 16s and 128s."""
    return functools.partial(_sums, tile=tile, interpret=interpret)
