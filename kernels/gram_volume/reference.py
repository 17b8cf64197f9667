"""The equations, naively: every Gram matrix is built and its determinant taken.

Run it in float64 for values to trust; its gradients are those of autodiff through
`sqrt(det)`, which blow up where a volume is zero. Nothing here is fast or robust.
"""

import jax
import jax.numpy as jnp


def gram_volume(anchors: jax.Array, others: jax.Array, mask: jax.Array) -> jax.Array:
    """sqrt(det Gram{a, m_i present}) for broadcast batches.

    anchors [..., d], others [..., k, d], mask [..., k] -> [...]. An absent vector becomes an
    identity row and column, so the determinant is that of the present sub-matrix.
    """
    vectors = jnp.concatenate([anchors[..., None, :], others], axis=-2)
    present = jnp.concatenate([jnp.ones_like(mask[..., :1]), mask], axis=-1)
    vectors = jnp.where(present[..., None], vectors, 0)
    gram = jnp.einsum("...id,...jd->...ij", vectors, vectors, precision="highest")
    gram = gram + jnp.where(present, 0, 1)[..., None] * jnp.eye(gram.shape[-1], dtype=gram.dtype)
    return jnp.sqrt(jnp.maximum(jnp.linalg.det(gram), 0))


def volume_matrix(anchors: jax.Array, others: jax.Array, mask: jax.Array) -> jax.Array:
    """V[u, v] = volume of {a_u, others of v}: anchors [U, d], others [V, k, d] -> [U, V]."""
    u, v = anchors.shape[0], others.shape[0]
    return gram_volume(
        jnp.broadcast_to(anchors[:, None], (u, v, anchors.shape[1])),
        jnp.broadcast_to(others[None], (u, *others.shape)),
        jnp.broadcast_to(mask[None], (u, *mask.shape)),
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
