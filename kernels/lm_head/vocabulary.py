"""A walk over the vocabulary in chunks, and the online sums taken along it.

With weights w_v = exp(x_v) and x = h W^T, the sums  sum_v w_v  and  sum_v w_v W_v  are those of
attention with the head as keys and values: kept under a running maximum they need one chunk of
logits at a time. The second is the gradient of the log-sum-exp with respect to h, so a loss and
its gradient cost two products together, however often the chunk is thrown away.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# Bytes of logits in flight. A CPU wants them near its caches, an accelerator few, large products.
CHUNK_BYTES = {"cpu": 16 * 2**20}
CHUNK_BYTES_ELSEWHERE = 128 * 2**20


def _limit() -> int:
    return CHUNK_BYTES.get(jax.default_backend(), CHUNK_BYTES_ELSEWHERE)


def chunk_size(tokens: int, vocabulary: int) -> int:
    """Outcomes at a time, for all tokens."""
    size = max(512, _limit() // (4 * max(tokens, 1)) // 128 * 128)
    return min(size, vocabulary)


def token_block(vocabulary: int) -> int:
    """Tokens at a time, for the whole vocabulary."""
    return max(16, _limit() // (4 * vocabulary))


class Chunk(NamedTuple):
    start: jax.Array  # int32, id of the first row
    head: jax.Array  # [size, D]
    bias: jax.Array | None  # [size]


def walk(
    head: jax.Array,
    bias: jax.Array | None,
    size: int,
    step: Callable[[Chunk, Any], Any],
    init: Any,
) -> Any:
    """Folds `step` over the chunks of the vocabulary; the last may be shorter, none is padded."""
    whole = head.shape[0] // size

    def at(start: Any, length: int) -> Chunk:
        def cut(x: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(x, start, length)

        return Chunk(jnp.asarray(start, jnp.int32), cut(head), None if bias is None else cut(bias))

    def body(i: Any, carry: Any) -> Any:
        return step(at(i * size, size), carry)

    carry = body(0, init) if whole == 1 else jax.lax.fori_loop(0, whole, body, init)
    rest = head.shape[0] - whole * size
    return step(at(whole * size, rest), carry) if rest else carry


def logits(hidden: jax.Array, chunk: Chunk, precision: Any) -> jax.Array:
    """[N, size] in float32 or wider."""
    dtype = jnp.result_type(jnp.float32, hidden.dtype)
    x = jax.lax.dot_general(
        hidden,
        chunk.head.astype(hidden.dtype),
        (((1,), (1,)), ((), ())),
        precision=precision,
        preferred_element_type=dtype,
    )
    return x if chunk.bias is None else x + chunk.bias.astype(dtype)


def weighted_rows(weights: jax.Array, chunk: Chunk, precision: Any) -> jax.Array:
    """sum_v weights[:, v] head_v: [N, size] -> [N, D], in the weights' type."""
    return jax.lax.dot_general(
        weights.astype(chunk.head.dtype),
        chunk.head,
        (((1,), (0,)), ((), ())),
        precision=precision,
        preferred_element_type=weights.dtype,
    )


class Sums(NamedTuple):
    """Online sums over the vocabulary seen so far."""

    top: jax.Array  # [N] largest logit
    total: jax.Array  # [N] sum of exp(x - top)
    rows: jax.Array | None  # [N, D] sum of exp(x - top) head, where a gradient will be wanted

    def lse(self) -> jax.Array:
        return self.top + jnp.log(self.total)

    def mean_row(self) -> jax.Array:
        """Gradient of lse with respect to hidden."""
        assert self.rows is not None
        return self.rows / self.total[:, None]


def no_sums(hidden: jax.Array, with_rows: bool) -> Sums:
    dtype = jnp.result_type(jnp.float32, hidden.dtype)
    zero = jnp.zeros_like(hidden[:, 0], dtype)
    low = zero - float(jnp.finfo(dtype).max) / 4
    return Sums(low, zero, jnp.zeros_like(hidden, dtype) if with_rows else None)


def add(sums: Sums, x: jax.Array, chunk: Chunk, precision: Any) -> Sums:
    """`sums` with a chunk of logits x [N, size]."""
    top = jnp.maximum(sums.top, x.max(1))
    shrink, weights = jnp.exp(sums.top - top), jnp.exp(x - top[:, None])
    rows = sums.rows
    if rows is not None:
        rows = rows * shrink[:, None] + weighted_rows(weights, chunk, precision)
    return Sums(top, sums.total * shrink + weights.sum(1), rows)


def gather(x: jax.Array, ids: jax.Array, chunk: Chunk) -> jax.Array:
    """x [N, size] at vocabulary ids [N, K] that lie in the chunk, 0 for those that do not."""
    local = ids - chunk.start
    inside = (local >= 0) & (local < x.shape[1])
    kept = jnp.take_along_axis(x, jnp.clip(local, 0, x.shape[1] - 1), axis=1)
    return jnp.where(inside, kept, 0)
