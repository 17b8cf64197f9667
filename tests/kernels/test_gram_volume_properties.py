"""Drawn inputs, degenerate families among them: finite always, and right where smooth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlecs_jax.kernels import gram_volume

FAMILIES = ("normal", "duplicate", "zero", "equal", "one_hot", "sparse", "tiny", "huge", "line")


@st.composite
def problems(draw):
    """(anchors [4, 6], others [4, 2 or 3, 6], mask): one family a row."""
    k = draw(st.sampled_from([2, 3]))
    r = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    a, m = r.normal(size=(4, 6)), r.normal(size=(4, k, 6))
    mask = r.random((4, k)) < draw(st.sampled_from([0.0, 0.6, 1.0]))
    for row in range(4):
        family = draw(st.sampled_from(FAMILIES))
        if family == "duplicate":
            m[row, 1] = m[row, 0] * r.choice([1, -1, 1 + 1e-7])
        elif family == "zero":
            m[row, r.integers(k)] = 0
            a[row] *= r.integers(2)
        elif family == "equal":
            m[row] = a[row]
        elif family == "one_hot":
            a[row], m[row] = np.eye(6)[0], np.eye(6)[r.integers(0, 3, k)]
        elif family == "sparse":
            m[row] *= r.random(m[row].shape) < 0.3
        elif family == "tiny":
            a[row], m[row] = a[row] * 1e-30, m[row] * 1e-35
        elif family == "huge":
            a[row], m[row] = a[row] * 1e30, m[row] * 1e37
        elif family == "line":
            m[row] = a[row] + 10.0 ** r.uniform(-9, -1) * m[row]
    return a, m, mask


IMPLEMENTATIONS = ("xla_dense", "xla_tiled")


def _value_and_grads(name):
    def loss(a, m, mask, tau):
        return gram_volume.volume_contrastive_loss(
            a, m, mask, temperature=tau, label_smoothing=0.1, implementation=name
        )

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 3)))


LOSSES = {name: _value_and_grads(name) for name in IMPLEMENTATIONS}


def check_finite(problem, implementation, temperature):
    a, m, mask = problem
    args = jnp.asarray(a, jnp.float32), jnp.asarray(m, jnp.float32), jnp.asarray(mask)
    value, grads = LOSSES[implementation](*args, jnp.float32(temperature))
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in grads)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(problems(), st.sampled_from(IMPLEMENTATIONS), st.sampled_from([0.07, 0.005, 1.0]))
def test_never_nan_nor_inf(problem, implementation, temperature):
    check_finite(problem, implementation, temperature)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(problems(), st.sampled_from(IMPLEMENTATIONS), st.sampled_from([0.07, 0.005, 1.0]))
def test_never_nan_nor_inf_ten_thousand(problem, implementation, temperature):
    check_finite(problem, implementation, temperature)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_gradient_is_that_of_finite_differences_where_volumes_are_positive(seed):
    r = np.random.default_rng(seed)
    with jax.enable_x64(True):
        a, m = jnp.asarray(r.normal(size=(4, 6))), jnp.asarray(r.normal(size=(4, 3, 6)))
        mask = jnp.asarray(r.random((4, 3)) < 0.6)
        da, dm = jnp.asarray(r.normal(size=a.shape)), jnp.asarray(r.normal(size=m.shape))
        loss = LOSSES["xla_dense"]
        _, (grad_a, grad_m, grad_tau) = loss(a, m, mask, jnp.asarray(1.0))
        h = 1e-5

        def at(step):
            return loss(a + step * da, m + step * dm, mask, jnp.asarray(1 + 0.3 * step))[0]

        slope = (at(h) - at(-h)) / (2 * h)
        own = jnp.sum(grad_a * da) + jnp.sum(grad_m * dm) + 0.3 * grad_tau
        np.testing.assert_allclose(own, slope, rtol=1e-5, atol=1e-6)
