"""KL between two models' next-token distributions from their hidden states and heads.

`topk_rest` and `sorted_topk` walk the vocabulary like the cross-entropy; `full` needs both models'
normalisers before a gradient weight exists, so it takes all outcomes of a block of tokens at a time
instead and forms the gradient there: three products, as many as with logits written out.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mlecs_jax.kernels.lm_head import reference, vocabulary
from mlecs_jax.kernels.lm_head.vocabulary import Model


class TopK(NamedTuple):
    """The teacher, told in K + 1 numbers a token."""

    ids: jax.Array  # [N, K] its likeliest outcomes
    log_p: jax.Array  # [N, K]
    log_rest: jax.Array  # [N] the mass of all others; -inf-like where there are none


@dataclass(frozen=True)
class Options:
    precision: Any
    chunk: int


def largest(
    options: Options, model: Model, k: int
) -> tuple[jax.Array, jax.Array, vocabulary.Sums]:
    """The k largest logits [N, k] in order, their ids, and the sums over all: one walk."""
    sums = vocabulary.no_sums(model.hidden, with_rows=False)
    best = jnp.broadcast_to(sums.top[:, None], (sums.top.shape[0], k))

    def step(chunk: vocabulary.Chunk, carry: Any) -> Any:
        best, ids, sums = carry
        x = vocabulary.logits(model.hidden, chunk, options.precision)
        # The chunk's own best first: one top-k over [K + size] would copy the chunk to join them.
        found, where = jax.lax.top_k(x, min(k, x.shape[1]))
        every = jnp.concatenate([best, found], axis=1)
        named = jnp.concatenate([ids, where.astype(jnp.int32) + chunk.start], axis=1)
        best, order = jax.lax.top_k(every, k)
        ids = jnp.take_along_axis(named, order, axis=1)
        return best, ids, vocabulary.add(sums, x, chunk, options.precision)

    ids = jnp.zeros_like(best, jnp.int32)
    return vocabulary.walk(model, options.chunk, step, (best, ids, sums))


def teacher_topk(options: Options, teacher: Model, k: int) -> TopK:
    """The K largest logits, and their mass apart from the rest's."""
    best, ids, sums = largest(options, teacher, k)
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
    sums, kept = vocabulary.walk(student, options.chunk, step, init)
    lse_rest = sums.lse()
    lse = jnp.logaddexp(lse_rest, jax.nn.logsumexp(kept, axis=1))
    p, rest = jnp.exp(topk.log_p), jnp.exp(topk.log_rest)
    value = jnp.sum(p * (topk.log_p - kept + lse[:, None]), axis=1)
    # 0 log 0 = 0, whatever the student's rest.
    value += jnp.where(rest > 0, rest * (topk.log_rest - lse_rest + lse), 0)
    if not with_gradient:
        return value, None
    of_kept = jnp.exp(kept - lse[:, None]) - p
    # Both distributions sum to one: the small differences say it better than two large rests.
    of_rest = -of_kept.sum(1)
    gradient = of_rest[:, None] * sums.mean_row() + vocabulary.rows_at(
        student.head, topk.ids, of_kept
    )
    return value, (gradient, lse_rest, of_rest, of_kept)


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

    grad_head, grad_bias = vocabulary.head_gradient(
        student, ct, options.chunk, options.precision, weights
    )
    grad_hidden = (ct[:, None] * gradient).astype(student.hidden.dtype)
    return Model(grad_hidden, grad_head, grad_bias), None


topk_rest.defvjp(_topk_forward, _topk_backward)


# --- sorted_topk ------------------------------------------------------------------------------


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def sorted_topk(options: Options, student: Model, teacher_log_p: jax.Array) -> jax.Array:
    """KL of the softmax over the student's K largest logits from the teacher's [N, K]: [N]."""
    return _sorted_forward(options, student, teacher_log_p)[0]


def _sorted_forward(
    options: Options, student: Model, teacher_log_p: jax.Array
) -> tuple[jax.Array, Any]:
    best, ids, _ = largest(options, student, teacher_log_p.shape[1])
    log_q = jax.nn.log_softmax(best)
    slope = jnp.exp(log_q) - jnp.exp(teacher_log_p)
    return reference.kl(teacher_log_p, log_q), (student, ids, slope)


def _sorted_backward(options: Options, saved: Any, ct: jax.Array) -> tuple[Model, None]:
    """Only K rows of the head a token matter: they are gathered, and scattered to."""
    del options
    (hidden, head, bias), ids, slope = saved
    slope = ct[:, None] * slope
    grad_hidden = vocabulary.rows_at(head, ids, slope).astype(hidden.dtype)

    def add(n: jax.Array, grad: jax.Array) -> jax.Array:
        return grad.at[ids[n]].add((slope[n][:, None] * hidden[n]).astype(grad.dtype))

    zero = jnp.zeros_like(ct, shape=())
    grad_head = jnp.zeros_like(head) + zero.astype(head.dtype)
    grad_head = jax.lax.fori_loop(0, ids.shape[0], add, grad_head)
    grad_bias = None
    if bias is not None:
        grad_bias = (jnp.zeros_like(bias) + zero.astype(bias.dtype)).at[ids].add(
            slope.astype(bias.dtype)
        )
    return Model(grad_hidden, grad_head, grad_bias), None


sorted_topk.defvjp(_sorted_forward, _sorted_backward)


# --- full -------------------------------------------------------------------------------------


def _by_tokens(
    options: Options, student: Model, teacher: Model, with_gradient: bool
) -> tuple[jax.Array, Any]:
    """KL [N] over all outcomes, and its gradient [N, D] with both lse [N] if asked for.

    All outcomes of `options.chunk` tokens at a time: the gradient's weights need both
    normalisers, and so the logits of a block are used where they stand.
    """
    every, all_of_teacher = vocabulary.whole(student), vocabulary.whole(teacher)

    def block(own: jax.Array, theirs: jax.Array) -> tuple[jax.Array, Any]:
        t = vocabulary.logits(theirs, all_of_teacher, options.precision)
        x = vocabulary.logits(own, every, options.precision)
        t_lse, x_lse = jax.nn.logsumexp(t, axis=1), jax.nn.logsumexp(x, axis=1)
        t_log, x_log = t - t_lse[:, None], x - x_lse[:, None]
        value = reference.kl(t_log, x_log)
        if not with_gradient:
            return value, None
        weights = jnp.exp(x_log) - jnp.exp(t_log)
        return value, (vocabulary.weighted_rows(weights, every, options.precision), x_lse, t_lse)

    return vocabulary.in_blocks(block, (student.hidden, teacher.hidden), options.chunk)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def full(options: Options, student: Model, teacher: Model) -> jax.Array:
    """KL(teacher || student) over the whole vocabulary: [N]. The teacher gets no gradient."""
    return _by_tokens(options, student, teacher, with_gradient=False)[0]


def _full_forward(options: Options, student: Model, teacher: Model) -> tuple[jax.Array, Any]:
    value, kept = _by_tokens(options, student, teacher, with_gradient=True)
    return value, (student, teacher, kept)


def _full_backward(options: Options, saved: Any, ct: jax.Array) -> tuple[Model, None]:
    student, teacher, (gradient, x_lse, t_lse) = saved
    size = vocabulary.chunk_size(ct.shape[0], student.head.shape[0])

    def weights(chunk: vocabulary.Chunk, x: jax.Array) -> jax.Array:
        def cut(y: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(y, chunk.start, x.shape[1])

        bias = None if teacher.bias is None else cut(teacher.bias)
        theirs = vocabulary.Chunk(chunk.start, cut(teacher.head), bias)
        t = vocabulary.logits(teacher.hidden, theirs, options.precision)
        return ct[:, None] * (jnp.exp(x - x_lse[:, None]) - jnp.exp(t - t_lse[:, None]))

    grad_head, grad_bias = vocabulary.head_gradient(student, ct, size, options.precision, weights)
    grad_hidden = (ct[:, None] * gradient).astype(student.hidden.dtype)
    return Model(grad_hidden, grad_head, grad_bias), None


full.defvjp(_full_forward, _full_backward)
