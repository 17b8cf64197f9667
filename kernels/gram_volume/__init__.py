"""Volumes of tuples of vectors, and the contrastive loss on them."""

from mlecs_jax.kernels.gram_volume.api import (
    IMPLEMENTATIONS,
    volume,
    volume_contrastive_loss,
)

__all__ = ["IMPLEMENTATIONS", "volume", "volume_contrastive_loss"]
