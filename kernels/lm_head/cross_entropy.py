"""Cross-entropy from hidden states and head, vocabulary in chunks, with a gradient of its own.

The gradient with respect to the hidden states is formed on the way forward (two products in all,
as many as with logits written out); that of the head needs a walk of its own, which jit removes
where the head is frozen.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from mlecs_jax.kernels.lm_head import vocabulary
from mlecs_jax.kernels.lm_head.vocabulary import Model


@dataclass(frozen=True)
class Options:
    ignore_index: int
    label_smoothing: float
    z_loss: float
    precision: Any
    chunk: int
    kernel: Callable[[Model, Any, bool], vocabulary.Sums] | None = None  # in place of the walk


def _sums(
    options: Options, model: Model, labels: jax.Array, with_rows: bool
) -> tuple[vocabulary.Sums, jax.Array]:
    """Sums over the vocabulary, and the logit [N] of each label."""
    if options.kernel is not None:
        sums = options.kernel(model, options.precision, with_rows)
        rows = model.head[jnp.maximum(labels, 0)].astype(sums.top.dtype)
        own = jnp.sum(model.hidden.astype(rows.dtype) * rows, axis=1)
        if model.bias is not None:
            own += model.bias[jnp.maximum(labels, 0)].astype(own.dtype)
        return sums, own

    def step(chunk: vocabulary.Chunk, carry: Any) -> Any:
        sums, own = carry
        x = vocabulary.logits(model.hidden, chunk, options.precision)
        own = own + vocabulary.gather(x, labels[:, None], chunk)[:, 0]
        return vocabulary.add(sums, x, chunk, options.precision), own

    sums = vocabulary.no_sums(model.hidden, with_rows)
    return vocabulary.walk(model, options.chunk, step, (sums, jnp.zeros_like(sums.top)))


def _value(
    options: Options, model: Model, labels: jax.Array, with_gradient: bool
) -> tuple[jax.Array, Any]:
    """The loss [N], and the gradient [N, D] of each token's loss and lse [N] if asked for."""
    hidden, head, bias = model
    smoothing = options.label_smoothing
    sums, own = _sums(options, model, labels, with_gradient)
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
def cross_entropy(options: Options, model: Model, labels: jax.Array) -> jax.Array:
    """Loss [N] of labels [N]."""
    return _value(options, model, labels, with_gradient=False)[0]


def _forward(options: Options, model: Model, labels: jax.Array) -> tuple[jax.Array, Any]:
    value, (gradient, lse) = _value(options, model, labels, with_gradient=True)
    return value, (model, labels, gradient, lse)


def _backward(options: Options, saved: Any, ct: jax.Array) -> tuple[Model, None]:
    model, labels, gradient, lse = saved
    ct = jnp.where(labels == options.ignore_index, 0, ct)
    smoothing, slope = options.label_smoothing, ct * (1 + 2 * options.z_loss * lse)

    def weights(chunk: vocabulary.Chunk, x: jax.Array) -> jax.Array:
        ids = chunk.start + jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
        target = jnp.where(ids == labels[:, None], 1 - smoothing, 0)
        target += smoothing / model.head.shape[0]
        return slope[:, None] * jnp.exp(x - lse[:, None]) - ct[:, None] * target

    grad_head, grad_bias = vocabulary.head_gradient(
        model, ct, options.chunk, options.precision, weights
    )
    grad_hidden = (ct[:, None] * gradient).astype(model.hidden.dtype)
    return Model(grad_hidden, grad_head, grad_bias), None


cross_entropy.defvjp(_forward, _backward)
