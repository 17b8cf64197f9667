"""Drawn inputs, degenerate families among them: finite always, and right where smooth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlecs_jax.kernels import gram_volume
from mlecs_jax.kernels.gram_volume import reference

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


def _probe(implementation):
    """Slopes along a direction: gradient's and central difference's, of volumes and of the loss."""
    step = 1e-5

    def loss(a, m, mask, tau):
        return gram_volume.volume_contrastive_loss(
            a, m, mask, temperature=tau, label_smoothing=0.1, implementation=implementation
        )

    def volumes(a, m, mask):
        return gram_volume.volume(a, m, mask)

    def along(grads, da, dm):
        return (grads[0] * da).sum(1) + (grads[1] * dm).sum((1, 2))

    def probe(a, m, mask, tau, da, dm):
        to_volumes = jax.grad(lambda *args: volumes(*args).sum(), argnums=(0, 1))(a, m, mask)
        to_loss = jax.grad(loss, argnums=(0, 1))(a, m, mask, tau)
        ahead, behind = ((a + h * da, m + h * dm, mask) for h in (step, -step))
        return (
            reference.volume_matrix(a, m, mask),
            (along(to_volumes, da, dm), (volumes(*ahead) - volumes(*behind)) / (2 * step)),
            (
                along(to_loss, da, dm).sum(),
                (loss(*ahead, tau) - loss(*behind, tau)) / (2 * step),
            ),
        )

    return jax.jit(probe)


PROBES = {name: _probe(name) for name in IMPLEMENTATIONS}


def check_slopes(problem, implementation, temperature):
    """Rows whose volume is well above 0, and whether the loss was smooth enough to be checked.

    "Above 0" is relative to the lengths, V / (|a| prod |m|) > 0.01: nearer the kink a difference
    in float64 measures its own truncation.
    """
    a, m, mask = problem
    r = np.random.default_rng(0)
    length_a, length_m = (np.linalg.norm(x, axis=-1, keepdims=True) for x in (a, m))
    da, dm = length_a * r.normal(size=a.shape), length_m * r.normal(size=m.shape)
    with jax.enable_x64(True):
        args = [jnp.asarray(x) for x in (a, m, mask, temperature, da, dm)]
        own, of_volumes, of_loss = jax.tree.map(np.asarray, PROBES[implementation](*args))
    span = length_a * np.prod(np.where(mask, length_m[..., 0], 1), axis=1)
    angle = np.divide(own, span, out=np.zeros_like(own), where=span > 0)
    smooth = (np.diag(angle) > 0.01) & (np.diag(own) > 1e-200) & (np.diag(own) < 1e70)
    np.testing.assert_allclose(
        of_volumes[0][smooth] / np.diag(own)[smooth],
        of_volumes[1][smooth] / np.diag(own)[smooth],
        rtol=1e-3, atol=1e-4)
    steepest = own.max() / temperature
    checked = (angle > 0.01).all() and 1e-3 < steepest < 1e3
    if checked:
        np.testing.assert_allclose(*of_loss, rtol=1e-3, atol=1e-4 * max(1, steepest))
    return smooth.sum(), checked


problems_of_the_loss = given(
    problems(), st.sampled_from(IMPLEMENTATIONS), st.sampled_from([0.07, 0.005, 1.0])
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@problems_of_the_loss
def test_never_nan_nor_inf(problem, implementation, temperature):
    check_finite(problem, implementation, temperature)


@pytest.mark.slow
def test_ten_thousand_draws_are_finite_and_sloped_as_differences_say(capsys):
    seen = {"draws": 0, "volumes": 0, "losses": 0}

    @settings(max_examples=10_000, deadline=None, suppress_health_check=list(HealthCheck))
    @problems_of_the_loss
    def draw(problem, implementation, temperature):
        check_finite(problem, implementation, temperature)
        rows, loss = check_slopes(problem, implementation, temperature)
        for name, more in (("draws", 1), ("volumes", rows), ("losses", loss)):
            seen[name] += int(more)

    draw()
    with capsys.disabled():
        print(f" {seen['draws']} draws, slopes checked: {seen['volumes']} volumes, "
              f"{seen['losses']} losses", end=" ")
    assert seen["volumes"] > seen["draws"] and seen["losses"] > seen["draws"] // 100


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
