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


def test_tier_by_tier_is_fedavg_over_the_leaves():
    """Σ n_k w_k / Σ n_k over five ends, whatever edges stand between."""
    ends = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    counts = np.array([5.0, 1.0, 2.0, 8.0, 4.0], np.float32)
    parents = np.array([0, 0, 1, 2, 2])
    edges = aggregate.group_mean({"w": jnp.asarray(ends)}, jnp.asarray(counts),
                                 jnp.asarray(parents), 3)
    np.testing.assert_allclose(edges["w"][0], (5 * ends[0] + ends[1]) / 6, rtol=1e-5)
    np.testing.assert_allclose(edges["w"][1], ends[2], rtol=1e-5)
    cloud = aggregate.weighted_mean(edges, jnp.array([6.0, 2.0, 12.0]))
    np.testing.assert_allclose(cloud["w"], counts @ ends / counts.sum(), rtol=1e-5)


def test_staleness_discounts_and_zero_is_eq_4_as_printed():
    counts, staleness = jnp.array([10, 30]), jnp.array([0, 3])
    np.testing.assert_allclose(aggregate.staleness_weights(counts, staleness, 0.0), [0.25, 0.75])
    # a = 1/2: 10 · 1 and 30 · 4^(−1/2) = 15.
    np.testing.assert_allclose(aggregate.staleness_weights(counts, staleness, 0.5), [0.4, 0.6],
                               rtol=1e-6)
