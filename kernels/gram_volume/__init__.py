"""Volumes of tuples of vectors, and the contrastive loss on them."""

from mlecs_jax.kernels.gram_volume.api import (
    sharded_volume_contrastive_loss,
    volume,
    volume_contrastive_loss,
)
from mlecs_jax.kernels.gram_volume.dispatch import IMPLEMENTATIONS

__all__ = [
    "IMPLEMENTATIONS",
    "sharded_volume_contrastive_loss",
    "volume",
    "volume_contrastive_loss",
]
