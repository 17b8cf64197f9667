"""Many low-rank adapters on one frozen weight."""

from mlecs_jax.kernels.shared_lora.api import linear

__all__ = ["linear"]
