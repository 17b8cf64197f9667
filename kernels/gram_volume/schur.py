"""A volume as a product: the others' own volume times the anchor's distance from their span.

With [Q_v, s_v] the Gram-Schmidt factorisation of the present others of v, the Schur complement
of the Gram matrix gives V_uv = s_v rho_uv with rho_uv^2 = |a_u|^2 - sum_i (a_u . q_vi)^2. No
determinant, no square root of a cancelled number at the positives, and gradients that stay
bounded: |dV_uv / da_u| <= s_v everywhere.
"""

from functools import partial

import jax
import jax.numpy as jnp


def accumulation_dtype(*dtypes: jnp.dtype) -> jnp.dtype:
    """float32, or the widest of the inputs' types when that is wider."""
    return jnp.result_type(jnp.float32, *dtypes)


def limit(dtype: jnp.dtype) -> float:
    """Where lengths saturate (4e9 in float32, 1e77 in float64): four of them still multiply."""
    return float(jnp.finfo(dtype).max) ** 0.25


def safe_norm(x: jax.Array) -> jax.Array:
    """|x| over the last axis, with gradient 0 rather than NaN at x = 0."""
    square = jnp.sum(x * x, axis=-1)
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _bounded_gradient(x: jax.Array, bound: float) -> jax.Array:
    """The identity; its cotangent saturates at +-bound, so that a cast cannot make it inf."""
    return x


def _bounded_gradient_fwd(x: jax.Array, bound: float) -> tuple[jax.Array, None]:
    return x, None


def _bounded_gradient_bwd(bound: float, _: None, ct: jax.Array) -> tuple[jax.Array]:
    return (jnp.clip(ct, -bound, bound),)


_bounded_gradient.defvjp(_bounded_gradient_fwd, _bounded_gradient_bwd)


def widen(x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """x in the accumulation type, with cotangents that fit x's own type."""
    return _bounded_gradient(x.astype(dtype), float(jnp.finfo(x.dtype).max) / 2)


@jax.custom_vjp
def _bounded_product(factors: jax.Array) -> jax.Array:
    """Product over the last axis, saturating at `limit`, with bounded cotangents."""
    return _bounded_product_fwd(factors)[0]


def _bounded_product_fwd(factors: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    # Saturate after every factor: eight lengths of 1e9 must not pass through inf on their way.
    top = limit(factors.dtype)
    product = jnp.ones_like(factors[..., 0])
    for i in range(factors.shape[-1]):
        product = jnp.minimum(product * jnp.minimum(factors[..., i], top), top)
    return product, (product, factors)


def _bounded_product_bwd(saved: tuple[jax.Array, ...], ct: jax.Array) -> tuple[jax.Array]:
    product, factors = saved
    top = limit(factors.dtype)
    live = (factors > 0) & (product < top)[..., None]
    slope = jnp.where(live, product[..., None] / jnp.where(live, factors, 1), 0)
    return (ct[..., None] * jnp.minimum(slope, top),)


_bounded_product.defvjp(_bounded_product_fwd, _bounded_product_bwd)


def factor(others: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Orthonormal directions and volume of each tuple's present others.

    Classical Gram-Schmidt, twice (CGS2): one pass loses the direction of near-collinear
    vectors, two keep it to rounding error.

    Args:
      others: [B, k, d] float32 or float64, any scale.
      mask: [B, k] bool, True where present.

    Returns:
      q [k, B, d]: directions; zero where the vector is absent, zero, or (to rounding) inside
      the span of those before it. s [B]: the volume, 1 for an all-absent row, 0 where a present
      vector is degenerate.
    """
    eps = float(jnp.finfo(others.dtype).eps)
    peak = jax.lax.stop_gradient(jnp.max(jnp.abs(others), axis=-1, keepdims=True))
    scale = jnp.where(mask[..., None] & (peak > 0), peak, 1)
    # An absent vector may hold anything, NaN too: it is replaced, not multiplied by zero.
    unit = jnp.where(mask[..., None], others, 0) / scale
    directions: list[jax.Array] = []
    factors: list[jax.Array] = []
    for i in range(others.shape[1]):
        rest = unit[:, i]
        for _ in range(2):
            along = [jnp.sum(q * rest, axis=-1, keepdims=True) for q in directions]
            for c, q in zip(along, directions, strict=True):
                rest = rest - c * q
        length = safe_norm(rest)
        live = mask[:, i] & (length > 16 * eps * safe_norm(unit[:, i]))
        directions.append(
            jnp.where(live[:, None], rest / jnp.where(live, length, 1)[:, None], 0)
        )
        top = limit(others.dtype)
        absolute = jnp.where(live, length, 0) * jnp.minimum(scale[:, i, 0], top)
        factors.append(jnp.where(mask[:, i], absolute, 1))
    return jnp.stack(directions), _bounded_product(jnp.stack(factors, axis=-1))


def own_distance(anchors: jax.Array, q: jax.Array) -> jax.Array:
    """|a_u - Q_u Q_u^T a_u|, the residual itself and not |a|^2 - |Q^T a|^2: anchors [B, d] -> [B].

    The explicit residual, projected twice, is what keeps matched tuples exact near collapse,
    where the difference of squares has lost every digit.
    """
    rest = anchors
    for _ in range(2):
        along = [jnp.sum(direction * rest, axis=-1, keepdims=True) for direction in q]
        for c, direction in zip(along, q, strict=True):
            rest = rest - c * direction
    return safe_norm(rest)
