"""The equation, naively: every client merges its adapter into a weight of its own."""

import jax
import jax.numpy as jnp


def merged_linear(
    x: jax.Array,
    weight: jax.Array,
    a: jax.Array,
    b: jax.Array,
    bias: jax.Array | None,
    scale: float,
) -> jax.Array:
    """x (W + scale A B) + bias: x [..., D], weight [D, F], a [D, r], b [r, F] -> [..., F]."""
    out = jnp.dot(x, weight + scale * jnp.dot(a, b))
    return out if bias is None else out + bias
