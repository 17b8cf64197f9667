"""The equations, naively: logits are written out, gradients are autodiff's."""

import jax
import jax.numpy as jnp


def logits(hidden: jax.Array, head: jax.Array, bias: jax.Array | None) -> jax.Array:
    """hidden [N, D], head [V, D], bias [V] -> [N, V] in float32 or wider."""
    dtype = jnp.result_type(jnp.float32, hidden.dtype, head.dtype)
    out = jnp.dot(hidden.astype(dtype), head.astype(dtype).T)
    return out if bias is None else out + bias.astype(dtype)


def cross_entropy(
    hidden: jax.Array,
    head: jax.Array,
    bias: jax.Array | None,
    labels: jax.Array,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
) -> jax.Array:
    x = logits(hidden, head, bias)
    lse = jax.nn.logsumexp(x, axis=1)
    own = jnp.take_along_axis(x, jnp.maximum(labels, 0)[:, None], axis=1)[:, 0]
    value = lse - (1 - label_smoothing) * own - label_smoothing * x.mean(1) + z_loss * lse**2
    return jnp.where(labels == ignore_index, 0, value)


def kl(p_log: jax.Array, q_log: jax.Array) -> jax.Array:
    """Sum over the last axis of p (log p - log q), 0 where p = 0."""
    p = jnp.exp(p_log)
    return jnp.sum(jnp.where(p > 0, p * (p_log - q_log), 0), axis=-1)


def pool(x: jax.Array, bins: int) -> jax.Array:
    """Means over `bins` runs of neighbouring outcomes: [N, V] -> [N, bins]."""
    size = x.shape[1]
    which = jnp.arange(size) * bins // size
    one_hot = (which[:, None] == jnp.arange(bins)).astype(x.dtype)
    return (x @ one_hot) / one_hot.sum(0)


def pooled_kl(teacher: jax.Array, student: jax.Array, pooling: str, k: int) -> jax.Array:
    """KL(teacher || student) of logits [N, V], already divided by the temperature."""
    if pooling == "adaptive_avg":
        teacher, student = pool(teacher, k), pool(student, k)
    if pooling == "sorted_topk":
        teacher, student = jax.lax.top_k(teacher, k)[0], jax.lax.top_k(student, k)[0]
    t_log, s_log = jax.nn.log_softmax(teacher), jax.nn.log_softmax(student)
    if pooling != "topk_rest":
        return kl(t_log, s_log)
    _, ids = jax.lax.top_k(t_log, k)

    def with_rest(log_p: jax.Array) -> jax.Array:
        kept = jnp.take_along_axis(log_p, ids, axis=1)
        inside = (ids[:, :, None] == jnp.arange(log_p.shape[1])).any(1)
        rest = jax.nn.logsumexp(jnp.where(inside, -jnp.inf, log_p), axis=1, keepdims=True)
        return jnp.concatenate([kept, rest], axis=1)

    return kl(with_rest(t_log), with_rest(s_log))
