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
) -> jax.Array:
    """A frozen linear layer with one adapter, or with an adapter a client.

    Args:
      x: [..., D] with adapters for one client, [C, ..., D] with adapters for C.
      weight: [D, F], frozen: under stop_gradient.
      a: [D, r] or [C, D, r]; b: [r, F] or [C, r, F], both batched or neither.
      bias: [F], frozen too, or None.
      scale: factor of the low-rank term (LoRA's alpha / r).

    Returns:
      [..., F] or [C, ..., F] in x's type. With C clients the product with `weight` is a single
      [C * rows, D] x [D, F] one; `jax.vmap(linear, in_axes=(0, None, 0, 0))` comes to the same.

    Raises:
      ValueError: shapes that disagree.
    """
    x, weight, a, b = (jnp.asarray(y) for y in (x, weight, a, b))
    _check(x, weight, a, b)
    weight = jax.lax.stop_gradient(weight)
    low = jnp.einsum("c...d,cdr->c...r", x, a) if a.ndim == 3 else jnp.dot(x, a)
    # The scale goes on the narrow side: [..., r], not [..., F].
    low = (low * jnp.asarray(scale, low.dtype)).astype(x.dtype)
    update = jnp.einsum("c...r,crf->c...f", low, b) if b.ndim == 3 else jnp.dot(low, b)
    out = jnp.dot(x, weight.astype(x.dtype)) + update.astype(x.dtype)
    if bias is None:
        return out
    return out + jax.lax.stop_gradient(jnp.asarray(bias)).astype(out.dtype)


def _check(x: jax.Array, weight: jax.Array, a: jax.Array, b: jax.Array) -> None:
    shapes = f"x {x.shape}, weight {weight.shape}, a {a.shape}, b {b.shape}"
    if weight.ndim != 2 or a.ndim not in (2, 3) or b.ndim != a.ndim:
        raise ValueError(
            f"expected weight [D, F], a [D, r] and b [r, F], or both batched [C, ...]; got {shapes}"
        )
    d, f = weight.shape
    if x.shape[-1] != d or a.shape[-2:] != (d, b.shape[-2]) or b.shape[-1] != f:
        raise ValueError(f"widths disagree: {shapes}")
    if a.ndim == 3 and not (x.ndim >= 2 and x.shape[0] == a.shape[0] == b.shape[0]):
        raise ValueError(f"numbers of clients disagree: {shapes}")
