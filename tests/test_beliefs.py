"""Beliefs about public samples against values worked out by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from mlecs_jax import beliefs
from mlecs_jax.losses import SoftTargets

A = jnp.array([[[0.6, 0.2]], [[0.1, 0.1]]])  # [n=2, T=1, K=2], normalised (.75, .25), (.5, .5)
B = jnp.array([[[0.0, 0.8]], [[0.9, 0.1]]])  # (0, 1), (.9, .1)
BOTH = jnp.stack([A, B])


def test_pooling_counts_only_who_saw_the_sample():
    """Sample 0: device 0 saw 2 modalities, device 1 saw 1; sample 1: device 1 alone."""
    seen = jnp.array([[2.0, 0.0], [1.0, 3.0]])
    np.testing.assert_allclose(beliefs.pool(BOTH, seen, "modality"),
                               [[[0.5, 0.5]], [[0.9, 0.1]]], rtol=1e-6)
    np.testing.assert_allclose(beliefs.pool(BOTH, seen, "uniform"),
                               [[[0.375, 0.625]], [[0.9, 0.1]]], rtol=1e-6)


def test_confident_devices_weigh_more():
    """Weights 1 − H/ln 2 + .001: .18972 for (.75, .25), 1.001 for (0, 1)."""
    pooled = beliefs.pool(BOTH[:, :1], jnp.ones((2, 1)), "confidence")
    a = 1 + (0.75 * np.log2(0.75) + 0.25 * np.log2(0.25)) + 1e-3
    np.testing.assert_allclose(pooled[0, 0, 0], 0.75 * a / (a + 1.001), rtol=1e-5)


@pytest.mark.parametrize("weighting", ["uniform", "modality", "confidence"])
def test_nobody_saw_it_means_silence(weighting):
    assert not np.any(beliefs.pool(BOTH, jnp.zeros((2, 2)), weighting))
    assert not np.any(beliefs.pool(jnp.zeros_like(BOTH), jnp.ones((2, 2)), weighting))


def test_mixing_leaves_the_word_to_the_one_who_speaks():
    silent = jnp.zeros_like(A)
    np.testing.assert_allclose(beliefs.mix(A, B, 0.5), [[[0.375, 0.625]], [[0.7, 0.3]]], rtol=1e-6)
    np.testing.assert_allclose(beliefs.mix(A, silent, 0.5), [[[0.75, 0.25]], [[0.5, 0.5]]],
                               rtol=1e-6)
    np.testing.assert_allclose(beliefs.mix(A, B, 1.0), B / B.sum(-1, keepdims=True), rtol=1e-6)
    assert not np.any(beliefs.mix(silent, silent, 0.5))


def test_what_was_said_is_matched_by_token():
    said = SoftTargets(ids=jnp.array([[[5, 9]]]), probabilities=jnp.array([[[0.7, 0.2]]]))
    np.testing.assert_allclose(beliefs.about(jnp.array([[[9, 4, 5]]]), said), [[[0.2, 0, 0.7]]])
