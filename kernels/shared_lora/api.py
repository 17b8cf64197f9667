"""y = x W + scale (x A) B + bias, W frozen and held once for all clients.

XLA does this best already, given the right shape of the problem, so the op is thin: it fixes the
order of the products, keeps the clients' axis out of the one large product, and takes W out of
differentiation, so that nothing ever asks for a gradient or a copy of it. A hand-written kernel
(BGMV and its relatives) gathers adapters per row, which pays in decoding with many adapters at
once; here rows come grouped by client and the low-rank terms are two small batched products.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def linear(
    x: ArrayLike,
    weight: ArrayLike,
    a: ArrayLike,
    b: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    scale: float = 1.0,
    adapter_input: ArrayLike | None = None,
) -> jax.Array:
    """A frozen linear layer with one adapter, or with an adapter a client.

    Args:
      x: [..., D] with adapters for one client, [C, ..., D] with adapters for C.
      weight: [D, *F], frozen: under stop_gradient. F may be several axes, which stay apart (a
        sharded one is never merged with its neighbours).
      a: [D, r] or [C, D, r]; b: [r, *F] or [C, r, *F], both batched or neither.
      bias: [*F], frozen too, or None.
      scale: factor of the low-rank term (LoRA's alpha / r).
      adapter_input: what the adapter sees in place of x (x after LoRA's dropout), of x's shape.

    Returns:
      [..., *F] or [C, ..., *F] in x's type. With C clients the product with `weight` is a single
      [C * rows, D] x [D, F] one; `jax.vmap(linear, in_axes=(0, None, 0, 0))` comes to the same.

    Raises:
      ValueError: shapes that disagree.
    """
    x, weight, a, b = (jnp.asarray(y) for y in (x, weight, a, b))
    seen = x if adapter_input is None else jnp.asarray(adapter_input)
    _check(x, weight, a, b, seen)
    weight = jax.lax.stop_gradient(weight)
    low = jnp.einsum("c...d,cdr->c...r", seen, a) if a.ndim == 3 else jnp.dot(seen, a)
    # The scale goes on the narrow side: [..., r], not [..., F].
    low = (low * jnp.asarray(scale, low.dtype)).astype(x.dtype)
    if a.ndim == 3:
        update = jax.vmap(lambda low, b: jnp.tensordot(low, b, axes=1))(low, b)
    else:
        update = jnp.tensordot(low, b, axes=1)
    out = jnp.tensordot(x, weight.astype(x.dtype), axes=1) + update.astype(x.dtype)
    if bias is None:
        return out
    return out + jax.lax.stop_gradient(jnp.asarray(bias)).astype(out.dtype)


def _check(x: jax.Array, weight: jax.Array, a: jax.Array, b: jax.Array, seen: jax.Array) -> None:
    shapes = f"x {x.shape}, weight {weight.shape}, a {a.shape}, b {b.shape}"
    if weight.ndim < 2 or a.ndim not in (2, 3) or b.ndim != a.ndim + weight.ndim - 2:
        raise ValueError(
            "expected weight [D, *F], a [D, r] and b [r, *F], or both batched [C, ...]; "
            f"got {shapes}"
        )
    rank, *f = b.shape[a.ndim - 2 :]
    if a.shape[-2:] != (x.shape[-1], rank) or weight.shape != (x.shape[-1], *f):
        raise ValueError(f"widths disagree: {shapes}")
    if a.ndim == 3 and not (x.ndim >= 2 and x.shape[0] == a.shape[0] == b.shape[0]):
        raise ValueError(f"numbers of clients disagree: {shapes}")
    if seen.shape != x.shape:
        raise ValueError(f"the adapter's input {seen.shape} is not of x's shape {x.shape}")
