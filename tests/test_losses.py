"""Losses of ML-ECS against values worked out by hand or in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlecs_jax import losses
from mlecs_jax.models.multimodal import Answer

RNG = np.random.default_rng(0)


def says(logits):
    """An answer whose logits are those given: an identity head."""
    logits = jnp.asarray(logits, jnp.float32)
    return Answer(logits, jnp.eye(logits.shape[-1]))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_language_modelling_averages_over_answer_tokens_only():
    """Two of three positions count: −(ln .5 + ln .25) / 2."""
    logits = jnp.log(jnp.array([[[0.5, 0.25, 0.25], [0.5, 0.25, 0.25], [0.9, 0.05, 0.05]]]))
    target = jnp.array([[0, 1, -1]])
    np.testing.assert_allclose(losses.language_modelling(says(logits), target),
                               -(np.log(0.5) + np.log(0.25)) / 2, rtol=1e-6)


def test_volume_contrast_equals_two_cross_entropies_over_determinants():
    """Eqs. 7–8 with the minus sign restored, from det of explicit Gram matrices."""
    b, k, d, tau = 5, 2, 7, 0.1
    anchors, others = RNG.standard_normal((b, d)), RNG.standard_normal((b, k, d))
    mask = np.array([[1, 1], [1, 0], [0, 1], [1, 1], [1, 1]], bool)
    volume = np.zeros((b, b))
    for u in range(b):
        for v in range(b):
            vectors = np.concatenate([anchors[u:u + 1], others[v][mask[v]]])
            vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
            volume[u, v] = np.sqrt(np.linalg.det(vectors @ vectors.T))
    rows, columns = softmax(-volume / tau), softmax(-volume.T / tau)
    expected = -0.5 * (np.log(np.diag(rows)).mean() + np.log(np.diag(columns)).mean())
    got = losses.volume_contrast(jnp.asarray(anchors, jnp.float32),
                                 jnp.asarray(others, jnp.float32), jnp.asarray(mask),
                                 temperature=tau)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_volume_contrast_of_absent_modalities_is_finite():
    zeros = jnp.zeros((4, 3, 6))
    grads = jax.grad(losses.volume_contrast, argnums=(0, 1))(
        jnp.zeros((4, 6)), zeros, jnp.zeros((4, 3), bool))
    assert all(bool(jnp.isfinite(g).all()) for g in grads)


def test_topk_rest_transfer_keeps_token_identity():
    """Teacher (.6, .3, .06, .04), k=2: KL over the outcomes {0, 1, rest}."""
    teacher = np.array([0.6, 0.3, 0.06, 0.04])
    student = np.array([0.2, 0.2, 0.3, 0.3])
    p, q = np.array([0.6, 0.3, 0.1]), np.array([0.2, 0.2, 0.6])
    got = losses.knowledge_transfer(says(np.log(teacher)[None, None]),
                                    says(np.log(student)[None, None]), jnp.array([[0]]),
                                    pooling="topk_rest", k=2)
    np.testing.assert_allclose(got, np.sum(p * np.log(p / q)), rtol=1e-4)


def test_adaptive_average_transfer():
    teacher, student = RNG.standard_normal((1, 1, 6)), RNG.standard_normal((1, 1, 6))
    p, q = (softmax(x.reshape(3, 2).mean(1)) for x in (teacher, student))
    got = losses.knowledge_transfer(says(teacher), says(student), jnp.array([[0]]),
                                    pooling="adaptive_avg", k=3)
    np.testing.assert_allclose(got, np.sum(p * np.log(p / q)), rtol=1e-4)


@pytest.mark.parametrize("pooling", ["topk_rest", "adaptive_avg", "sorted_topk"])
def test_transfer_is_zero_between_equals_teaches_only_the_student_and_skips_padding(pooling):
    logits = jnp.asarray(RNG.standard_normal((2, 3, 8)), jnp.float32)
    other = logits.at[0, 0].add(1.0 + jnp.arange(8.0))
    target = jnp.array([[-1, 1, 2], [0, 1, -1]])  # the changed position is padding

    def transfer(teacher, student):
        return losses.knowledge_transfer(says(teacher), says(student), target, pooling=pooling, k=3)

    np.testing.assert_allclose(transfer(logits, logits), 0, atol=1e-6)
    np.testing.assert_allclose(transfer(logits, other), 0, atol=1e-6)
    to_teacher, to_student = jax.grad(transfer, argnums=(0, 1))(logits, -logits)
    assert not np.any(to_teacher) and np.any(to_student)


def test_vocabularies_of_different_padding_share_a_prefix():
    teacher = jnp.asarray(RNG.standard_normal((1, 2, 10)), jnp.float32)
    target = jnp.array([[1, 2]])
    np.testing.assert_allclose(
        losses.knowledge_transfer(says(teacher), says(teacher[..., :8]), target, k=4), 0, atol=1e-6)


def test_unit_of_zero_is_zero_with_zero_gradient():
    assert not np.any(jax.jacobian(losses.unit)(jnp.zeros(3)))
    np.testing.assert_allclose(losses.unit(jnp.array([3.0, 4.0])), [0.6, 0.8], rtol=1e-6)


def test_distillation_is_cross_entropy_with_soft_labels():
    """Probabilities (.7, .2) on tokens (2, 0) of a three-token softmax; a silent row counts not."""
    logits = RNG.standard_normal((2, 1, 3))
    q = softmax(logits[0, 0])
    teacher = losses.SoftTargets(ids=jnp.array([[[2, 0]], [[2, 0]]]),
                                 probabilities=jnp.array([[[0.7, 0.2]], [[0.0, 0.0]]]))
    np.testing.assert_allclose(losses.distillation(says(logits), teacher),
                               -(0.7 * np.log(q[2]) + 0.2 * np.log(q[0])), rtol=1e-5)


def test_distillation_with_head_bias_and_its_gradient():
    """d/dz of −Σ p log softmax(z) is (Σ p) softmax(z) − p."""
    hidden, head = RNG.standard_normal((1, 1, 4)), RNG.standard_normal((5, 4))
    bias = RNG.standard_normal(5)
    teacher = losses.SoftTargets(jnp.array([[[1, 4]]]), jnp.array([[[0.25, 0.75]]]))

    def loss(hidden):
        return losses.distillation(
            Answer(hidden, jnp.asarray(head, jnp.float32), jnp.asarray(bias, jnp.float32)), teacher)

    p = np.array([0, 0.25, 0, 0, 0.75])
    expected = (softmax(head @ hidden[0, 0] + bias) - p) @ head
    got = jax.grad(loss)(jnp.asarray(hidden, jnp.float32))
    np.testing.assert_allclose(got[0, 0], expected, rtol=1e-4, atol=1e-6)


def test_proximal_term_weighs_groups():
    """½ (2 · (1² + 2²) + 3 · 1²) = 6.5."""
    params = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([4.0])}
    centre = {"a": jnp.zeros(2), "b": jnp.array([3.0])}
    np.testing.assert_allclose(losses.proximal(params, centre, {"a": 2.0, "b": 3.0}), 6.5)
