"""KL between two models' next-token distributions from their hidden states and heads.

`topk_rest` walks the vocabulary like the cross-entropy; `full` needs both models' normalisers
before a gradient weight exists, so it takes all outcomes of a block of tokens at a time instead
and forms the gradient there: three products either way, as many as with logits written out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mlecs_jax.kernels.lm_head import reference, vocabulary


class Model(NamedTuple):
    hidden: jax.Array  # [N, D], already divided by the temperature
    head: jax.Array  # [V, D]
    bias: jax.Array | None  # [V], already divided by the temperature


class TopK(NamedTuple):
    """The teacher, told in K + 1 numbers a token."""

    ids: jax.Array  # [N, K] its likeliest outcomes
    log_p: jax.Array  # [N, K]
    log_rest: jax.Array  # [N] the mass of all others; -inf-like where there are none


@dataclass(frozen=True)
class Options:
    precision: Any
    chunk: int


def teacher_topk(options: Options, teacher: Model, k: int) -> TopK:
    """One walk: normaliser and the K largest logits; their mass apart from the rest's."""
    sums = vocabulary.no_sums(teacher.hidden, with_rows=False)
    best = jnp.broadcast_to(sums.top[:, None], (sums.top.shape[0], k))
    ids = jnp.zeros_like(best, jnp.int32)

    def step(chunk: vocabulary.Chunk, carry: Any) -> Any:
        sums, best, ids = carry
        x = vocabulary.logits(teacher.hidden, chunk, options.precision)
        # The chunk's own best first: one top-k over [K + size] would copy the chunk to join them.
        found, where = jax.lax.top_k(x, min(k, x.shape[1]))
        every = jnp.concatenate([best, found], axis=1)
        named = jnp.concatenate([ids, where.astype(jnp.int32) + chunk.start], axis=1)
        best, order = jax.lax.top_k(every, k)
        ids = jnp.take_along_axis(named, order, axis=1)
        return vocabulary.add(sums, x, chunk, options.precision), best, ids

    init = (sums, best, ids)
    sums, best, ids = vocabulary.walk(teacher.head, teacher.bias, options.chunk, step, init)
    lse = sums.lse()
    log_p = best - lse[:, None]
    # Where K is the whole vocabulary there is no rest, not even rounding's.
    everything = k == teacher.head.shape[0]
    rest = jnp.maximum(1 - jnp.exp(log_p).sum(1), 0) * (0 if everything else 1)
    low = float(jnp.finfo(lse.dtype).min) / 4
    return TopK(ids, log_p, jnp.where(rest > 0, jnp.log(jnp.where(rest > 0, rest, 1)), low))


def _student(
    options: Options, student: Model, topk: TopK, with_gradient: bool
) -> tuple[jax.Array, Any]:
    """KL [N]; and its gradient [N, D], with what the head's gradient needs, if asked for."""
    n, k = topk.ids.shape
    low = float(jnp.finfo(topk.log_p.dtype).min) / 4
    token = jnp.arange(n)[:, None]

    def step(chunk: vocabulary.Chunk, carry: Any) -> Any:
        sums, kept = carry
        x = vocabulary.logits(student.hidden, chunk, options.precision)
        kept = kept + vocabulary.gather(x, topk.ids, chunk)
        local = topk.ids - chunk.start
        local = jnp.where(local >= 0, local, x.shape[1])  # negative would count from the end
        rest = x.at[token, local].set(low, mode="drop")
        return vocabulary.add(sums, rest, chunk, options.precision), kept

    init = (vocabulary.no_sums(student.hidden, with_gradient), jnp.zeros_like(topk.log_p))
    sums, kept = vocabulary.walk(student.head, student.bias, options.chunk, step, init)
    lse_rest = sums.lse()
    lse = jnp.logaddexp(lse_rest, jax.nn.logsumexp(kept, axis=1))
    p, rest = jnp.exp(topk.log_p), jnp.exp(topk.log_rest)
    value = jnp.sum(p * (topk.log_p - kept + lse[:, None]), axis=1)
    # 0 log 0 = 0, whatever the student's rest.
    value += jnp.where(rest > 0, rest * (topk.log_rest - lse_rest + lse), 0)
    if not with_gradient:
        return value, None
    of_rest = jnp.exp(lse_rest - lse) - rest
    of_kept = jnp.exp(kept - lse[:, None]) - p
    gradient = of_rest[:, None] * sums.mean_row() + _rows(student.head, topk.ids, of_kept)
    return value, (gradient, lse_rest, of_rest, of_kept)


def _rows(head: jax.Array, ids: jax.Array, weights: jax.Array) -> jax.Array:
    """sum_j weights[n, j] head[ids[n, j]], a block of tokens at a time: [N, D]."""

    def block(args: tuple[jax.Array, jax.Array]) -> jax.Array:
        own, w = args
        return jnp.einsum("k,kd->d", w, head[own].astype(w.dtype), precision="highest")

    return jax.lax.map(block, (ids, weights), batch_size=min(64, ids.shape[0]))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def topk_rest(options: Options, student: Model, topk: TopK) -> jax.Array:
    """KL over the teacher's K likeliest outcomes and one for all others: [N]."""
    return _student(options, student, topk, with_gradient=False)[0]


def _topk_forward(options: Options, student: Model, topk: TopK) -> tuple[jax.Array, Any]:
    value, kept = _student(options, student, topk, with_gradient=True)
    return value, (student, topk, kept)


def _topk_backward(options: Options, saved: Any, ct: jax.Array) -> tuple[Any, None]:
    student, topk, (gradient, lse_rest, of_rest, of_kept) = saved
    token = jnp.arange(ct.shape[0])[:, None]

    def weights(chunk: vocabulary.Chunk, x: jax.Array) -> jax.Array:
        local = topk.ids - chunk.start
        local = jnp.where(local >= 0, local, x.shape[1])
        grad = of_rest[:, None] * jnp.exp(x - lse_rest[:, None])
        return ct[:, None] * grad.at[token, local].set(of_kept, mode="drop")

    grad_head, grad_bias = _head_gradient(options, student, ct, weights)
    grad_hidden = (ct[:, None] * gradient).astype(student.hidden.dtype)
    return Model(grad_hidden, grad_head, grad_bias), None


topk_rest.defvjp(_topk_forward, _topk_backward)


def _head_gradient(
    options: Options,
    student: Model,
    ct: jax.Array,
    weights: Callable[[vocabulary.Chunk, jax.Array], jax.Array],
) -> tuple[jax.Array, jax.Array | None]:
    """d head and d bias from d logits, a chunk at a time; jit drops it where nobody asks."""
    hidden, head, bias = student

    def step(chunk: vocabulary.Chunk, carry: Any) -> Any:
        grad_head, grad_bias = carry
        grad = weights(chunk, vocabulary.logits(hidden, chunk, options.precision))
        rows = jnp.dot(grad.T, hidden.astype(grad.dtype), precision=options.precision)
        grad_head = jax.lax.dynamic_update_slice_in_dim(
            grad_head, rows.astype(head.dtype), chunk.start, 0
        )
        if grad_bias is not None:
            own = grad.sum(0).astype(grad_bias.dtype)
            grad_bias = jax.lax.dynamic_update_slice_in_dim(grad_bias, own, chunk.start, 0)
        return grad_head, grad_bias

    zero = jnp.zeros_like(ct, shape=())
    init = (
        jnp.zeros_like(head) + zero.astype(head.dtype),
        None if bias is None else jnp.zeros_like(bias) + zero.astype(bias.dtype),
    )
    return vocabulary.walk(head, bias, options.chunk, step, init)


# --- full -------------------------------------------------------------------------------------


def _by_tokens(
    options: Options, student: Model, teacher: Model, with_gradient: bool
) -> tuple[jax.Array, jax.Array | None]:
    """KL [N] over all outcomes and its gradient [N, D], `options.chunk` tokens at a time."""
    n = student.hidden.shape[0]
    size = min(options.chunk, n)

    def block(own: jax.Array, theirs: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        t_log = jax.nn.log_softmax(reference.logits(theirs, teacher.head, teacher.bias))

        def divergence(hidden: jax.Array) -> jax.Array:
            x = reference.logits(hidden, student.head, student.bias)
            return reference.kl(t_log, jax.nn.log_softmax(x))

        if not with_gradient:
            return divergence(own), None
        value, pull = jax.vjp(divergence, own)
        return value, pull(jnp.ones_like(value))[0]

    def one(args: tuple[jax.Array, jax.Array]) -> Any:
        value, gradient = block(args[0][None], args[1][None])
        return value[0], None if gradient is None else gradient[0]

    return jax.lax.map(one, (student.hidden, teacher.hidden), batch_size=size)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def full(options: Options, student: Model, teacher: Model) -> jax.Array:
    """KL(teacher || student) over the whole vocabulary: [N]. The teacher gets no gradient."""
    return _by_tokens(options, student, teacher, with_gradient=False)[0]


def _full_forward(options: Options, student: Model, teacher: Model) -> tuple[jax.Array, Any]:
    value, gradient = _by_tokens(options, student, teacher, with_gradient=True)
    return value, (student, teacher, gradient)


def _full_backward(options: Options, saved: Any, ct: jax.Array) -> tuple[Any, None]:
    student, teacher, gradient = saved
    grad_hidden = (ct[:, None] * gradient).astype(student.hidden.dtype)
    walk = Options(options.precision, vocabulary.chunk_size(ct.shape[0], student.head.shape[0]))
    lse = {}
    for name, model in (("student", student), ("teacher", teacher)):

        def step(chunk: vocabulary.Chunk, sums: vocabulary.Sums, model: Model = model) -> Any:
            x = vocabulary.logits(model.hidden, chunk, walk.precision)
            return vocabulary.add(sums, x, chunk, walk.precision)

        start = vocabulary.no_sums(model.hidden, with_rows=False)
        lse[name] = vocabulary.walk(model.head, model.bias, walk.chunk, step, start).lse()

    def weights(chunk: vocabulary.Chunk, x: jax.Array) -> jax.Array:
        def cut(y: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(y, chunk.start, x.shape[1])

        bias = None if teacher.bias is None else cut(teacher.bias)
        theirs = vocabulary.Chunk(chunk.start, cut(teacher.head), bias)
        t = vocabulary.logits(teacher.hidden, theirs, walk.precision)
        p_student = jnp.exp(x - lse["student"][:, None])
        return ct[:, None] * (p_student - jnp.exp(t - lse["teacher"][:, None]))

    grad_head, grad_bias = _head_gradient(walk, student, ct, weights)
    return Model(grad_hidden, grad_head, grad_bias), None


full.defvjp(_full_forward, _full_backward)
