"""FedMLLM: proximal term and FedAdagrad by hand, the clause in the prompt."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlecs_jax import losses, methods, stages
from mlecs_jax.data.text import ByteTokenizer
from mlecs_jax.methods import fedmllm
from tests.methods.rounds import KEY, UNEQUAL, add_number, assert_close, begun, build, run

NAME = {"method.name": "fedmllm"}


@pytest.mark.parametrize(("constant", "expected"), [(-1.0, [0.3, 0.15, 0.0]), (0.1, [0.045] * 3)])
def test_proximal_term_of_a_device(monkeypatch, constant, expected):
    """By hand. L = 7 layers, so s = round(7/7) = 1 and layers 1 … 5 are held; of each adapter one
    number θ_l has moved by l + 1 from the received one. With μ = .01 and a device that has one of
    three modalities, μ_w = 1 − 1/3 = 2/3::

        (μ/2) · μ_w · Σ_{l=1..5} (l + 1)² = .005 · 2/3 · (4 + 9 + 16 + 25 + 36) = .3

    With two of three it is half of that, with all nothing; with the constant .1 of the published
    code .005 · .1 · 90 = .045 for everyone. It is all that L_lb is not of a device's loss.
    """
    def moved_by_hand(loss, params, batch_at, steps, rates, key, *, transform):
        lora = jax.tree.map(jnp.asarray, params["lora"])
        for i in range(7):
            layer = lora[f"block_{i}"]["attention"]["c_attn"]
            layer["a"] = layer["a"].at[0, 0].add(i + 1.0)
        total, terms = loss(params | {"lora": lora}, batch_at(jnp.array(0)), key)
        return params, {"proximal": total - terms["lm"]}

    # No other test has this model: its programs are kept with what stands in for training.
    setting, _, _ = build(**NAME, **{
        "model.slm": "gpt2-7x16x2", "method.fedmllm.missing_weight": constant})
    owned = np.array([[[True, False, False], [True, False, True], [True, True, True]]])
    setting = dataclasses.replace(
        setting, federation=dataclasses.replace(setting.federation, owned=owned))
    monkeypatch.setattr(stages, "fit", moved_by_hand)
    method = methods.build(setting)
    _, diagnostics = run(method, method.init(KEY), rounds=1)
    np.testing.assert_allclose(diagnostics["devices"]["private"]["proximal"], expected, atol=1e-5)


def test_middle_layers_stacked_for_a_scan():
    """The same numbers as scanned blocks hold them, and a device that misses everything:
    .005 · 90 = .45."""
    stacked = {"blocks": {"a": jnp.arange(1.0, 8).reshape(7, 1, 1)}}
    weight = jax.tree.map(lambda middle: 0.01 * middle, fedmllm.middle_layers(stacked, 7))
    term = losses.proximal(stacked, jax.tree.map(jnp.zeros_like, stacked), weight)
    np.testing.assert_allclose(term, 0.45, rtol=1e-6)


def test_fed_adagrad():
    """By hand: devices moved by .3 and .1, Δ = .2; v = τ² + Δ² = .01 + .04 = .05 with τ = .1;
    θ = 1 + η Δ/(√.05 + τ), η = .5."""
    centre, v = {"w": jnp.array(1.0)}, {"w": jnp.array(0.01)}
    theta, v = fedmllm.fed_adagrad(centre, v, {"w": jnp.array([1.3, 1.1])}, 0.5, 0.1)
    np.testing.assert_allclose(v["w"], 0.05, rtol=1e-6)
    np.testing.assert_allclose(theta["w"], 1 + 0.5 * 0.2 / (0.05**0.5 + 0.1), rtol=1e-6)


def test_server_keeps_what_it_has_summed(monkeypatch):
    """By hand, of the defaults η = τ = .001. Devices add 1, 2 and 3 to what they receive, Δ = 2
    whatever their numbers of samples::

        round 1: v = τ² + 4, θ ← θ + η · 2/(√v + τ)      round 2: v = τ² + 8
    """
    begun(monkeypatch, add_number)
    _, method, state = build(**NAME, **UNEQUAL)
    first = jax.device_get(state.broadcast)
    after, _ = run(method, state)
    sums = 1e-6 + np.array([4, 8])
    assert_close(after.accumulator, jax.tree.map(lambda x: np.full_like(x, sums[1]), first), 1e-6)
    by_hand = (1e-3 * 2 / (np.sqrt(sums) + 1e-3)).sum()
    assert_close(jax.tree.map(np.subtract, after.broadcast, first),
                 jax.tree.map(lambda x: np.full_like(x, by_hand), first), 1e-6)


def test_clause_is_read_first():
    setting, _, _ = build(**NAME)
    asked = fedmllm.with_clause(setting).cohorts[0].model.prompt
    assert ByteTokenizer().decode(asked) == "Disregard modality. " + setting.config.model.prompt


@pytest.mark.slow
def test_a_heavy_proximal_term_holds_the_adapter_of_who_misses_something():
    def drifts(mu: float):
        """How far each device's adapter went from what it received."""
        setting, method, state = build(**NAME, **{
            "method.fedmllm.mu": mu, "partition.rho": 0.5, "partition.seed": 3})
        np.testing.assert_array_equal(setting.federation.owned_at(0).sum(1), [3, 1, 1])
        received = jax.device_get(state.broadcast)
        own = run(method, state, rounds=1)[0].devices[0]["lora"]
        return np.max([np.abs(x - y).reshape(3, -1).max(1) for x, y in zip(
            jax.tree.leaves(own), jax.tree.leaves(received), strict=True)], axis=0)

    free, held = drifts(0.0), drifts(1e6)
    np.testing.assert_allclose(held[0], free[0], rtol=1e-5)
    assert (held[1:] < free[1:]).all()


def test_fedavg_server_is_the_weighted_mean():
    setting, method, state = build(**NAME, **UNEQUAL, **{"method.fedmllm.server": "fedavg"})
    after, _ = run(method, state, rounds=1)
    weights = setting.federation.train.count / setting.federation.train.count.sum()
    assert len(set(weights)) > 1
    jax.tree.map(lambda got, own: np.testing.assert_allclose(
        got, np.tensordot(weights, own, axes=1), atol=1e-6),
        after.broadcast, after.devices[0]["lora"])
