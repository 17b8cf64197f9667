"""Losses on a language model's vocabulary head that never write [tokens, vocabulary] logits."""

from mlecs_jax.kernels.lm_head.api import IMPLEMENTATIONS, linear_cross_entropy, linear_kl

__all__ = ["IMPLEMENTATIONS", "linear_cross_entropy", "linear_kl"]
