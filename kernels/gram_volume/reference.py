"""The equations, naively: every Gram matrix is built and its determinant taken.

Run it in float64 for values to trust; its gradients are those of autodiff through
`sqrt(det)`, which blow up where a volume is zero. Nothing here is fast or robust.
"""

import jax
import jax.numpy as jnp


def _root_of_determinant(square: jax.Array, cross: jax.Array, inner: jax.Array) -> jax.Array:
    """sqrt(det) of [[square, cross^T], [cross, inner]]: [...], [..., k], [..., k, k] -> [...]."""
    top = jnp.concatenate([square[..., None], cross], axis=-1)[..., None, :]
    rest = jnp.concatenate([cross[..., None], inner], axis=-1)
    return jnp.sqrt(jnp.maximum(jnp.linalg.det(jnp.concatenate([top, rest], axis=-2)), 0))


def _inner(others: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Present others, and their Gram matrices [B, k, k] with identity rows for absent ones."""
    others = jnp.where(mask[..., None], others, 0)
    inner = jnp.einsum("bid,bjd->bij", others, others, precision="highest")
    absent = jnp.where(mask, 0, 1)[..., None] * jnp.eye(mask.shape[-1], dtype=inner.dtype)
    return others, inner + absent


def gram_volume(anchors: jax.Array, others: jax.Array, mask: jax.Array) -> jax.Array:
    """sqrt(det Gram{a, m_i present}): anchors [B, d], others [B, k, d], mask [B, k] -> [B].

    An absent vector becomes an identity row and column, so the determinant is that of the
    present sub-matrix.
    """
    others, inner = _inner(others, mask)
    cross = jnp.einsum("bd,bkd->bk", anchors, others, precision="highest")
    return _root_of_determinant(jnp.sum(anchors**2, axis=-1), cross, inner)


def volume_matrix(anchors: jax.Array, others: jax.Array, mask: jax.Array) -> jax.Array:
    """V[u, v] = volume of {a_u, others of v}: anchors [U, d], others [V, k, d] -> [U, V]."""
    others, inner = _inner(others, mask)
    cross = jnp.einsum("ud,vkd->uvk", anchors, others, precision="highest")
    square = jnp.broadcast_to(jnp.sum(anchors**2, axis=-1)[:, None], cross.shape[:2])
    return _root_of_determinant(
        square, cross, jnp.broadcast_to(inner, (*square.shape, *inner.shape[1:]))
    )


def _cross_entropy(logits: jax.Array, counted: jax.Array, label_smoothing: float) -> jax.Array:
    """Mean cross-entropy of the rows of logits [B, B] with the diagonal as targets."""
    targets = (1 - label_smoothing) * jnp.eye(logits.shape[0], dtype=logits.dtype)
    targets += label_smoothing * counted / counted.sum(1, keepdims=True)
    logits = jnp.where(counted, logits, -jnp.inf)
    log_p = jax.nn.log_softmax(logits, axis=1)
    return -jnp.where(counted, targets * log_p, 0).sum() / logits.shape[0]


def volume_contrastive_loss(
    anchors: jax.Array,
    others: jax.Array,
    mask: jax.Array,
    *,
    temperature: jax.Array | float,
    label_smoothing: float = 0.0,
    negatives_mask: jax.Array | None = None,
    mode: str = "exact",
) -> jax.Array:
    """Half the row plus half the column cross-entropy of -V/temperature."""
    counted = jnp.eye(anchors.shape[0], dtype=bool)
    counted |= jnp.ones_like(counted) if negatives_mask is None else negatives_mask
    stop = jax.lax.stop_gradient if mode == "gram_parity" else lambda x: x
    by_row = volume_matrix(anchors, stop(others), mask)
    by_column = volume_matrix(stop(anchors), others, mask)
    return 0.5 * (
        _cross_entropy(-by_row / temperature, counted, label_smoothing)
        + _cross_entropy(-by_column.T / temperature, counted.T, label_smoothing)
    )
