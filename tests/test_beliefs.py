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


def test_mixing_gives_each_its_share_also_when_the_other_is_silent():
    silent = jnp.zeros_like(A)
    np.testing.assert_allclose(beliefs.mix(A, B, 0.5), [[[0.375, 0.625]], [[0.7, 0.3]]], rtol=1e-6)
    np.testing.assert_allclose(beliefs.mix(A, silent, 0.75), [[[0.1875, 0.0625]], [[0.125, 0.125]]],
                               rtol=1e-6)
    assert not np.any(beliefs.mix(silent, silent, 0.5))


def test_alignment_reaches_the_prior_keeps_order_and_silence():
    """Within a class the order of samples stays; the mean over speaking samples is the prior."""
    rng = np.random.default_rng(0)
    p = rng.dirichlet([8.0, 1.0, 1.0], 50)[:, None].astype(np.float32)
    p[7] = 0
    prior = np.array([0.5, 0.3, 0.2], np.float32)
    aligned = np.asarray(beliefs.align(jnp.asarray(p), jnp.asarray(prior), 200))
    assert not np.any(aligned[7])
    speaking = np.arange(50) != 7
    np.testing.assert_allclose(aligned[speaking].mean((0, 1)), prior, atol=1e-3)
    ratio = aligned[speaking, 0] / p[speaking, 0]  # one factor per class, up to the row's norm
    np.testing.assert_allclose(ratio / ratio[:, :1], np.broadcast_to(
        ratio[0] / ratio[0, :1], ratio.shape), rtol=2e-2)
    np.testing.assert_allclose(beliefs.align(jnp.asarray(aligned), jnp.asarray(prior)), aligned,
                               atol=1e-3)


def test_what_was_said_is_matched_by_token():
    said = SoftTargets(ids=jnp.array([[[5, 9]]]), probabilities=jnp.array([[[0.7, 0.2]]]))
    np.testing.assert_allclose(beliefs.about(jnp.array([[[9, 4, 5]]]), said), [[[0.2, 0, 0.7]]])
