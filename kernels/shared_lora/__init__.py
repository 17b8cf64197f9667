"""Many low-rank adapters on one frozen weight."""

from mlecs_jax.kernels.shared_lora.api import linear
from mlecs_jax.kernels.shared_lora.in_flight import in_chunks

__all__ = ["in_chunks", "linear"]
