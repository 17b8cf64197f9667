"""A volume as a product: the others' own volume times the anchor's distance from their span.

With [Q_v, s_v] the Gram-Schmidt factorisation of the present others of v, the Schur complement
of the Gram matrix gives V_uv = s_v rho_uv with rho_uv^2 = |a_u|^2 - sum_i (a_u . q_vi)^2. No
determinant, no square root of a cancelled number at the positives, and gradients that stay
bounded: |dV_uv / da_u| <= s_v everywhere.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


def accumulation_dtype(*dtypes: Any) -> Any:
    """float32, or the widest of the inputs' types when that is wider."""
    return jnp.result_type(jnp.float32, *dtypes)


def limit(dtype: Any) -> float:
    """Where lengths saturate (4e9 in float32, 1e77 in float64): four of them still multiply."""
    return float(jnp.finfo(dtype).max) ** 0.25


def safe_norm(x: jax.Array) -> jax.Array:
    """|x| over the last axis, with gradient 0 rather than NaN at x = 0."""
    square = jnp.sum(x * x, axis=-1)
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)


def _dot(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.sum(x * y, axis=-1)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _bounded_gradient(x: jax.Array, bound: float) -> jax.Array:
    """The identity; its cotangent saturates at +-bound, so that a cast cannot make it inf."""
    return x


def _bounded_gradient_fwd(x: jax.Array, bound: float) -> tuple[jax.Array, None]:
    return x, None


def _bounded_gradient_bwd(bound: float, _: None, ct: jax.Array) -> tuple[jax.Array]:
    return (jnp.clip(ct, -bound, bound),)


_bounded_gradient.defvjp(_bounded_gradient_fwd, _bounded_gradient_bwd)


def widen(x: jax.Array, dtype: Any) -> jax.Array:
    """x in the accumulation type, with cotangents that fit x's own type."""
    return _bounded_gradient(x.astype(dtype), float(jnp.finfo(x.dtype).max) / 2)


@jax.custom_vjp
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
      vector is degenerate; it saturates at `limit`.
    """
    return _factor_fwd(others, mask)[0]


class _Factored(NamedTuple):
    """What the way back needs: unit others = lower @ q, all [B] a number."""

    q: jax.Array  # [k, B, d]
    s: jax.Array  # [B], 0 where saturated
    lower: list[list[jax.Array]]  # lower[i][j], j <= i; the identity's row where not live
    live: list[jax.Array]
    scale: jax.Array  # [B, k]


def _factor_fwd(
    others: jax.Array, mask: jax.Array
) -> tuple[tuple[jax.Array, jax.Array], _Factored]:
    eps, top = float(jnp.finfo(others.dtype).eps), limit(others.dtype)
    # An absent vector may hold anything, NaN too: it is replaced, not multiplied by zero.
    vectors = jnp.swapaxes(jnp.where(mask[..., None], others, 0), 0, 1)
    peak = jnp.max(jnp.abs(vectors), axis=-1)
    scale = jnp.where(peak > 0, peak, 1)
    q: list[jax.Array] = []
    lower: list[list[jax.Array]] = []
    live: list[jax.Array] = []
    s = jnp.ones_like(others[:, 0, 0])
    for i in range(others.shape[1]):
        unit = vectors[i] / scale[i][:, None]
        rest, row = unit, [jnp.zeros_like(s)] * i
        for _ in range(2):
            along = [_dot(direction, rest) for direction in q]
            rest = rest - sum(c[:, None] * direction for c, direction in zip(along, q, strict=True))
            row = [total + c for total, c in zip(row, along, strict=True)]
        length = safe_norm(rest)
        live.append(length > 16 * eps * safe_norm(unit))
        safe = jnp.where(live[i], length, 1)
        q.append(jnp.where(live[i], 1 / safe, 0)[:, None] * rest)
        lower.append([jnp.where(live[i], c, 0) for c in row] + [safe])
        # Saturate after every factor: eight lengths of 1e9 must not pass through inf.
        own = jnp.where(live[i], length, 0) * jnp.minimum(scale[i], top)
        s = jnp.where(mask[:, i], jnp.minimum(s * jnp.minimum(own, top), top), s)
    stacked = jnp.stack(q)
    return (stacked, s), _Factored(stacked, jnp.where(s < top, s, 0), lower, live, scale)


def _factor_bwd(f: _Factored, ct: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
    """The transpose of an LQ factorisation M = L Q whose volume is prod L_ii.

    dM = L^-T (dQ + C Q), C symmetric with the lower triangle of diag(s ds) - dQ Q^T; for each
    sample k x k numbers, so that [B, d] arrays are read twice and no more.
    """
    grad_q, grad_s = ct
    k, volume_part = len(f.live), grad_s * f.s
    inner = [[-_dot(grad_q[i], f.q[j]) for j in range(i + 1)] for i in range(k)]
    out: list[jax.Array] = [jnp.zeros(())] * k
    for i in reversed(range(k)):
        row = grad_q[i]
        for j in range(k):
            c = inner[max(i, j)][min(i, j)]
            row = row + (c + volume_part if i == j else c)[:, None] * f.q[j]
        for j in range(i + 1, k):
            row = row - f.lower[j][i][:, None] * out[j]
        out[i] = jnp.where(f.live[i], 1 / f.lower[i][i], 0)[:, None] * row
    return jnp.stack([x / f.scale[i][:, None] for i, x in enumerate(out)], axis=1), None


factor.defvjp(_factor_fwd, _factor_bwd)


@jax.custom_vjp
def own_distance(anchors: jax.Array, q: jax.Array) -> jax.Array:
    """|a_u - Q_u^T Q_u a_u|: anchors [B, d], q [k, B, d] -> [B].

    The explicit residual, projected twice, is what keeps matched tuples exact near collapse,
    where |a|^2 - |Q a|^2 has lost every digit.
    """
    return _own_distance_fwd(anchors, q)[0]


def _own_distance_fwd(anchors: jax.Array, q: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    rest, first = anchors, [_dot(direction, anchors) for direction in q]
    for along in (first, None):
        along = [_dot(direction, rest) for direction in q] if along is None else along
        rest = rest - sum(c[:, None] * direction for c, direction in zip(along, q, strict=True))
    length = safe_norm(rest)
    unit = jnp.where(length > 0, 1 / jnp.where(length > 0, length, 1), 0)[:, None] * rest
    return length, (unit, *first)


def _own_distance_bwd(saved: tuple[jax.Array, ...], ct: jax.Array) -> tuple[jax.Array, jax.Array]:
    unit, *along = saved
    return ct[:, None] * unit, jnp.stack([-(ct * c)[:, None] * unit for c in along])


own_distance.defvjp(_own_distance_fwd, _own_distance_bwd)
