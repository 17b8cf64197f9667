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
# Blocks of tokens pass the whole head through the caches each time: fewer, larger ones.
CHUNK_BYTES, BLOCK_BYTES = 16 * 2**20, 32 * 2**20
BYTES_ELSEWHERE = 128 * 2**20
TILE = 64  # tokens; products of other multiples are slower


def _limit(on_cpu: int) -> int:
    return on_cpu if jax.default_backend() == "cpu" else BYTES_ELSEWHERE


def chunk_size(tokens: int, vocabulary: int) -> int:
    """Outcomes at a time, for all tokens."""
    size = max(512, _limit(CHUNK_BYTES) // (4 * max(tokens, 1)) // 128 * 128)
    return min(size, vocabulary)


def token_block(vocabulary: int) -> int:
    """Tokens at a time, for the whole vocabulary."""
    size = max(16, _limit(BLOCK_BYTES) // (4 * vocabulary))
    return max(size // TILE * TILE, min(size, TILE))


class Model(NamedTuple):
    """What logits are made of."""

    hidden: jax.Array  # [N, D], divided by the temperature where there is one
    head: jax.Array  # [V, D]
    bias: jax.Array | None  # [V], likewise divided


class Chunk(NamedTuple):
    start: jax.Array  # int32, id of the first row
    head: jax.Array  # [size, D]
    bias: jax.Array | None  # [size]


def walk(model: Model, size: int, step: Callable[[Chunk, Any], Any], init: Any) -> Any:
    """Folds `step` over the chunks of the vocabulary; the last may be shorter, none is padded."""
    _, head, bias = model
    size = min(size, head.shape[0])
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


def in_blocks(function: Callable[..., Any], arrays: tuple[Any, ...], size: int) -> Any:
    """`function` of blocks of at most `size` tokens, results joined: no more is in flight."""
    n = jax.tree.leaves(arrays)[0].shape[0]
    size = min(size, n)
    whole = n - n % size
    cut = jax.tree.map(lambda x: x[:whole].reshape(-1, size, *x.shape[1:]), arrays)
    out = jax.lax.map(lambda own: function(*own), cut)
    out = jax.tree.map(lambda x: x.reshape(whole, *x.shape[2:]), out)
    if whole == n:
        return out
    rest = function(*jax.tree.map(lambda x: x[whole:], arrays))
    return jax.tree.map(lambda x, y: jnp.concatenate([x, y]), out, rest)


def whole(model: Model) -> Chunk:
    """The vocabulary as a single chunk."""
    return Chunk(jnp.int32(0), model.head, model.bias)


def logits(hidden: jax.Array, chunk: Chunk, precision: Any) -> jax.Array:
    """[N, size] in float32 or wider."""
    dtype = jnp.result_type(jnp.float32, hidden.dtype)
    head = chunk.head.astype(hidden.dtype)
    x = product(hidden, head, (1, 1), precision, dtype)
    return x if chunk.bias is None else x + chunk.bias.astype(dtype)


def product(
    x: jax.Array, y: jax.Array, axes: tuple[int, int], precision: Any, dtype: Any
) -> jax.Array:
    """x y contracting the two given axes, sums in `dtype`."""
    dims = (((axes[0],), (axes[1],)), ((), ()))
    return jax.lax.dot_general(x, y, dims, precision=precision, preferred_element_type=dtype)


def weighted_rows(weights: jax.Array, chunk: Chunk, precision: Any) -> jax.Array:
    """sum_v weights[:, v] head_v: [N, size] -> [N, D], in the weights' type."""
    narrow = weights.astype(chunk.head.dtype)
    return product(narrow, chunk.head, (1, 0), precision, weights.dtype)


def rows_at(head: jax.Array, ids: jax.Array, weights: jax.Array) -> jax.Array:
    """sum_j weights[n, j] head[ids[n, j]]: ids, weights [N, K] -> [N, D], 64 tokens at a time."""

    def block(own: jax.Array, w: jax.Array) -> jax.Array:
        return jnp.einsum("nk,nkd->nd", w, head[own].astype(w.dtype), precision="highest")

    return in_blocks(block, (ids, weights), 64)


def head_gradient(
    model: Model,
    ct: jax.Array,
    size: int,
    precision: Any,
    weights: Callable[[Chunk, jax.Array], jax.Array],
) -> tuple[jax.Array, jax.Array | None]:
    """d head [V, D] and d bias [V]: logits once more, chunk by chunk; `jit` drops it unless asked.

    Args:
      ct: [N], the cotangent of the loss.
      weights: d loss / d logits [N, size] of a chunk and its logits, times the cotangent.
    """
    hidden, head, bias = model

    def step(chunk: Chunk, carry: Any) -> Any:
        grad_head, grad_bias = carry
        grad = weights(chunk, logits(hidden, chunk, precision))
        rows = product(grad.astype(hidden.dtype), hidden, (0, 0), precision, grad.dtype)
        grad_head = jax.lax.dynamic_update_slice_in_dim(
            grad_head, rows.astype(head.dtype), chunk.start, 0
        )
        if grad_bias is not None:
            own = grad.sum(0).astype(grad_bias.dtype)
            grad_bias = jax.lax.dynamic_update_slice_in_dim(grad_bias, own, chunk.start, 0)
        return grad_head, grad_bias

    # Zeros taken from the data, so that they vary over the mesh axes the data vary over.
    zero = jnp.zeros_like(ct, shape=())
    init = (
        jnp.zeros_like(head) + zero.astype(head.dtype),
        None if bias is None else jnp.zeros_like(bias) + zero.astype(bias.dtype),
    )
    return walk(model, size, step, init)


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
