"""Aggregation against NumPy by hand."""

import jax.numpy as jnp
import numpy as np

from mlecs_jax import aggregate


def test_weighted_mean():
    trees = {"x": jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 9.0]])}
    got = aggregate.weighted_mean(trees, jnp.array([1, 2, 1]))
    np.testing.assert_allclose(got["x"], [(1 + 6 + 5) / 4, (2 + 8 + 9) / 4])


def test_modality_weights_are_eq_13():
    """Devices with 3, 1 and 2 modalities weigh 3/6, 1/6, 2/6."""
    counts = jnp.array([3, 1, 2])
    np.testing.assert_allclose(aggregate.modality_weights(counts), [3 / 6, 1 / 6, 2 / 6])
    np.testing.assert_allclose(aggregate.modality_weights(counts, equal=True), [1 / 3] * 3)


def test_equal_modality_counts_are_the_uniform_mean():
    trees = jnp.arange(12.0).reshape(4, 3)
    weights = aggregate.modality_weights(jnp.full(4, 3))
    np.testing.assert_allclose(aggregate.weighted_mean(trees, weights), trees.mean(0), rtol=1e-6)
