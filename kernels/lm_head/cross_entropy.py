"""Cross-entropy from hidden states and head, vocabulary in chunks, with a gradient of its own.

The gradient with respect to the hidden states is formed on the way forward (two products in all,
as many as with logits written out); that of the head needs a walk of its own, which jit removes
where the head is frozen.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from mlecs_jax.kernels.lm_head import vocabulary


@dataclass(frozen=True)
class Options:
    ignore_index: int
    label_smoothing: float
    z_loss: float
    precision: Any
    chunk: int


def _value(
    options: Options,
    hidden: jax.Array,
    head: jax.Array,
    bias: jax.Array | None,
    labels: jax.Array,
    with_gradient: bool,
) -> tuple[jax.Array, Any]:
    """The loss [N], and the gradient [N, D] of each token's loss and lse [N] if asked for."""
    precision, smoothing = options.precision, options.label_smoothing
    sums = vocabulary.no_sums(hidden, with_gradient)

    def step(chunk: vocabulary.Chunk, carry: Any) -> Any:
        sums, own = carry
        x = vocabulary.logits(hidden, chunk, precision)
        own = own + vocabulary.gather(x, labels[:, None], chunk)[:, 0]
        return vocabulary.add(sums, x, chunk, precision), own

    init = (sums, jnp.zeros_like(sums.top))
    sums, own = vocabulary.walk(head, bias, options.chunk, step, init)
    lse = sums.lse()
    value = lse - (1 - smoothing) * own + options.z_loss * lse**2
    mean_head = jnp.zeros((), lse.dtype)
    if smoothing:  # the mean logit is the logit of the mean row
        mean_head = head.astype(lse.dtype).mean(0)
        mean = jnp.dot(hidden.astype(lse.dtype), mean_head, precision="highest")
        value -= smoothing * (mean if bias is None else mean + bias.astype(lse.dtype).mean())
    counted = labels != options.ignore_index
    value = jnp.where(counted, value, 0)
    if not with_gradient:
        return value, None
    slope = (1 + 2 * options.z_loss * lse)[:, None]
    gradient = slope * sums.mean_row() - smoothing * mean_head
    gradient -= (1 - smoothing) * head[labels].astype(lse.dtype)
    return value, (jnp.where(counted[:, None], gradient, 0), lse)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def cross_entropy(
    options: Options,
    hidden: jax.Array,
    head: jax.Array,
    bias: jax.Array | None,
    labels: jax.Array,
) -> jax.Array:
    """hidden [N, D], head [V, D], bias [V] or None, labels [N] int -> loss [N]."""
    return _value(options, hidden, head, bias, labels, with_gradient=False)[0]


def _forward(
    options: Options,
    hidden: jax.Array,
    head: jax.Array,
    bias: jax.Array | None,
    labels: jax.Array,
) -> tuple[jax.Array, Any]:
    value, (gradient, lse) = _value(options, hidden, head, bias, labels, with_gradient=True)
    return value, (hidden, head, bias, labels, gradient, lse)


def _backward(options: Options, saved: Any, ct: jax.Array) -> tuple[Any, ...]:
    hidden, head, bias, labels, gradient, lse = saved
    ct = jnp.where(labels == options.ignore_index, 0, ct)
    grad_hidden = (ct[:, None] * gradient).astype(hidden.dtype)
    grad_head, grad_bias = _head_gradient(options, hidden, head, bias, labels, lse, ct)
    return grad_hidden, grad_head, grad_bias, None


def _head_gradient(
    options: Options,
    hidden: jax.Array,
    head: jax.Array,
    bias: jax.Array | None,
    labels: jax.Array,
    lse: jax.Array,
    ct: jax.Array,
) -> tuple[jax.Array, jax.Array | None]:
    """d head [V, D] and d bias [V]: logits once more, chunk by chunk."""
    smoothing, slope = options.label_smoothing, ct * (1 + 2 * options.z_loss * lse)

    def step(chunk: vocabulary.Chunk, carry: Any) -> Any:
        grad_head, grad_bias = carry
        x = vocabulary.logits(hidden, chunk, options.precision)
        ids = chunk.start + jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
        grad = slope[:, None] * jnp.exp(x - lse[:, None])
        target = jnp.where(ids == labels[:, None], 1 - smoothing, 0) + smoothing / head.shape[0]
        grad -= ct[:, None] * target
        rows = jax.lax.dot_general(
            grad.astype(hidden.dtype),
            hidden,
            (((0,), (0,)), ((), ())),
            precision=options.precision,
            preferred_element_type=x.dtype,
        ).astype(head.dtype)
        grad_head = jax.lax.dynamic_update_slice_in_dim(grad_head, rows, chunk.start, 0)
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
    return vocabulary.walk(head, bias, options.chunk, step, init)


cross_entropy.defvjp(_forward, _backward)
