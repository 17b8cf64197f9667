"""FedMLLM: proximal term and FedAdagrad by hand, the clause in the prompt."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlecs_jax import losses
from mlecs_jax.data.text import ByteTokenizer
from mlecs_jax.methods import fedmllm
from tests.methods.rounds import build, run

NAME = {"method.name": "fedmllm"}


def test_proximal_term_of_the_middle_layers():
    """By hand. L = 7 layers, so s = round(7/7) = 1 and layers 1 … 5 are held; each adapter is one
    number θ_l = l + 1, the received ones 0. With μ = .01 and a device that has one of three
    modalities, μ_w = 1 − 1/3 = 2/3::

        (μ/2) · μ_w · Σ_{l=1..5} (l + 1)² = .005 · 2/3 · (4 + 9 + 16 + 25 + 36) = .3
    """
    theta = {f"block_{i}": {"a": jnp.array([[i + 1.0]])} for i in range(7)}
    zero = jax.tree.map(jnp.zeros_like, theta)
    middle = fedmllm.middle_layers(theta, 7)
    weight = jax.tree.map(lambda m: 0.01 * (1 - 1 / 3) * m, middle)
    np.testing.assert_allclose(losses.proximal(theta, zero, weight), 0.3, rtol=1e-6)
    # The same numbers stacked over layers, as scanned blocks hold them.
    stacked = {"blocks": {"a": jnp.arange(1.0, 8).reshape(7, 1, 1)}}
    weight = jax.tree.map(lambda m: 0.01 * (1 - 1 / 3) * m, fedmllm.middle_layers(stacked, 7))
    term = losses.proximal(stacked, jax.tree.map(jnp.zeros_like, stacked), weight)
    np.testing.assert_allclose(term, 0.3, rtol=1e-6)


def test_fed_adagrad():
    """By hand: devices moved by .3 and .1, Δ = .2; v = τ² + Δ² = .01 + .04 = .05 with τ = .1;
    θ = 1 + η Δ/(√.05 + τ), η = .5."""
    centre, v = {"w": jnp.array(1.0)}, {"w": jnp.array(0.01)}
    theta, v = fedmllm.fed_adagrad(centre, v, {"w": jnp.array([1.3, 1.1])}, 0.5, 0.1)
    np.testing.assert_allclose(v["w"], 0.05, rtol=1e-6)
    np.testing.assert_allclose(theta["w"], 1 + 0.5 * 0.2 / (0.05**0.5 + 0.1), rtol=1e-6)


def test_clause_is_read_first():
    setting, _, _ = build(**NAME)
    asked = fedmllm.with_clause(setting).cohorts[0].model.prompt
    assert ByteTokenizer().decode(asked) == "Disregard modality. " + setting.config.model.prompt


@pytest.mark.slow
def test_a_heavy_proximal_term_holds_the_adapter():
    _, method, state = build(**NAME, **{"method.fedmllm.mu": 0.0})

    def drift(after, received):
        own = after.devices[0]["lora"]
        return max(float(np.abs(x - y).max()) for x, y in zip(
            jax.tree.leaves(own), jax.tree.leaves(received), strict=True))

    received = jax.device_get(state.broadcast)
    free = drift(run(method, state, rounds=1)[0], received)
    _, method, state = build(**NAME, **{
        "method.fedmllm.mu": 1e6, "method.fedmllm.missing_weight": 1.0})
    held = drift(run(method, state, rounds=1)[0], received)
    assert held < free


def test_fedavg_server_is_the_weighted_mean():
    setting, method, state = build(**NAME, **{"method.fedmllm.server": "fedavg"})
    after, _ = run(method, state, rounds=1)
    weights = setting.federation.train.count / setting.federation.train.count.sum()
    jax.tree.map(lambda got, own: np.testing.assert_allclose(
        got, np.tensordot(weights, own, axes=1), atol=1e-6),
        after.broadcast, after.devices[0]["lora"])
