"""Private uploads: the length of what leaves is bounded, the noise is there, the price is right."""

import math

import jax
import numpy as np
import pytest
from scipy import optimize, stats

from mlecs_jax import experiment, privacy
from mlecs_jax.config import PrivacyConfig
from mlecs_jax.errors import UserError
from tests.small import config, samples


def test_off_is_nothing_at_all():
    assert privacy.mechanism(None) is None
    assert privacy.mechanism(PrivacyConfig(0.0, 1.0, 1e-5)) is None


def test_differences_are_clipped_to_one_length_over_all_leaves():
    known = {"a": np.ones((2, 3), np.float32), "b": np.zeros(4, np.float32)}
    own = {"a": known["a"] + 3.0, "b": known["b"] - 4.0}
    found = privacy.privatised(own, known, jax.random.key(0), clip=0.5, noise=0.0)
    difference = np.concatenate([np.ravel(found[k] - known[k]) for k in known])
    np.testing.assert_allclose(np.linalg.norm(difference), 0.5, rtol=1e-5)
    np.testing.assert_allclose(difference[0] / difference[-1], 3.0 / -4.0, rtol=1e-5)
    near = {"a": known["a"] + 0.01, "b": known["b"]}
    same = privacy.privatised(near, known, jax.random.key(0), clip=0.5, noise=0.0)
    np.testing.assert_allclose(same["a"], near["a"], rtol=1e-6)


def test_noise_has_the_deviation_that_is_accounted_for():
    known = {"a": np.zeros((200, 300), np.float32), "b": np.zeros(5000, np.float32)}
    mechanism = privacy.mechanism(PrivacyConfig(0.5, 2.0, 1e-5))
    stacked = jax.tree.map(lambda x: np.stack([x, x]), known)
    found = mechanism(stacked, known, jax.random.split(jax.random.key(1), 2))
    for leaf in jax.tree.leaves(found):
        assert abs(np.std(leaf) - 1.0) < 0.02 and abs(np.mean(leaf)) < 0.02
    assert np.any(found["a"][0] != found["a"][1])  # a device's noise is its own


def exact_epsilon(multiplier: float, delta: float) -> float:
    """Of one Gaussian mechanism, by its closed form (Balle & Wang 2018, Theorem 8)."""
    def excess(epsilon):
        a, b = 1 / (2 * multiplier), epsilon * multiplier
        return stats.norm.cdf(a - b) - math.exp(epsilon + stats.norm.logcdf(-a - b)) - delta

    return float(optimize.brentq(excess, 1e-6, 1e6))


def test_epsilon_is_that_of_the_closed_form():
    pytest.importorskip("dp_accounting", reason="the extra 'privacy' is not installed")
    options = PrivacyConfig(1.0, 5.0, 1e-5)
    found = privacy.epsilon(options, 10)
    assert found["left_out"] == pytest.approx(exact_epsilon(5 / math.sqrt(10), 1e-5), rel=0.01)
    assert found["replaced"] == pytest.approx(exact_epsilon(2.5 / math.sqrt(10), 1e-5), rel=0.01)
    assert privacy.epsilon(options, 20)["left_out"] > found["left_out"]
    little = privacy.epsilon(PrivacyConfig(1.0, 0.1, 1e-5), 1000)  # at once, too
    assert little["left_out"] == pytest.approx(exact_epsilon(0.1 / math.sqrt(1000), 1e-5), rel=0.01)
    assert "1e-05)-differentially private" in privacy.statement(options, 10)


def test_without_an_accountant_it_is_said_how_to_get_one(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "dp_accounting", None)
    with pytest.raises(UserError, match="pip install"):
        privacy.epsilon(PrivacyConfig(1.0, 5.0, 1e-5), 1)
    privacy.check(None)
    privacy.check(PrivacyConfig(0.0, 5.0, 1e-5))
    with pytest.raises(UserError, match="pip install"):
        privacy.check(PrivacyConfig(1.0, 5.0, 1e-5))


@pytest.mark.slow
def test_a_simulation_tells_what_its_uploads_cost(tmp_path):
    pytest.importorskip("dp_accounting", reason="the extra 'privacy' is not installed")
    options = config(**{"train.rounds": 2, "privacy.clip": 1.0, "privacy.noise": 5.0})
    summary = experiment.run(options, tmp_path, samples=samples())
    assert summary["privacy"] == privacy.told(options.privacy, 2)
    assert "after 2 uploads" in summary["privacy"]["statement"]


@pytest.mark.parametrize(("changed", "message"), [
    ({"privacy.clip": -1.0}, "privacy.clip is -1.0"),
    ({"privacy.clip": 1.0, "privacy.noise": 0.0}, "clipping alone is no privacy"),
    ({"privacy.delta": 0.0}, "privacy.delta is 0.0")])
def test_options_that_cannot_be(changed, message):
    with pytest.raises(UserError, match=message):
        config(**changed)
