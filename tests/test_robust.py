"""Robust aggregation against NumPy and against liars."""

import jax.numpy as jnp
import numpy as np
import pytest

from mlecs_jax import aggregate, robust
from mlecs_jax.config import AggregationConfig
from mlecs_jax.errors import UserError
from tests.small import config


def trees(count, seed=0):
    rng = np.random.default_rng(seed)
    return {"a": jnp.asarray(rng.standard_normal((count, 3, 2)), jnp.float32),
            "b": {"c": jnp.asarray(rng.standard_normal((count, 4)), jnp.float32)}}


def flat(tree):
    return np.concatenate([np.asarray(tree["a"]).reshape(len(tree["a"]), -1),
                           np.asarray(tree["b"]["c"])], axis=1)


def flat_one(tree):
    return np.concatenate([np.asarray(tree["a"]).ravel(), np.asarray(tree["b"]["c"])])


@pytest.mark.parametrize("count", [1, 2, 5, 6])
def test_median_of_equal_weights_is_numpys(count):
    found = robust.median(trees(count), jnp.full(count, 1 / count))
    np.testing.assert_allclose(flat_one(found), np.median(flat(trees(count)), axis=0), rtol=1e-6)


def test_weighted_median_is_that_of_repeated_values():
    weights = np.array([1, 3, 2, 1])
    repeated = np.repeat(flat(trees(4)), weights, axis=0)
    found = robust.median(trees(4), jnp.asarray(weights))
    np.testing.assert_allclose(flat_one(found), np.median(repeated, axis=0), rtol=1e-6)


@pytest.mark.parametrize(("count", "share"), [(5, 0.2), (10, 0.2), (7, 0.3), (4, 0.2)])
def test_trimmed_mean_is_that_of_the_middle(count, share):
    cut = max(1, int(share * count))
    expected = np.sort(flat(trees(count)), axis=0)[cut:count - cut].mean(axis=0)  # one, not none
    found = robust.trimmed_mean(trees(count), jnp.ones(count), share=share)
    np.testing.assert_allclose(flat_one(found), expected, rtol=1e-5, atol=1e-7)


def test_trimmed_mean_keeps_weights_with_their_values():
    values = {"a": jnp.array([[5.0], [1.0], [3.0], [2.0]])}
    found = robust.trimmed_mean(values, jnp.array([9.0, 9.0, 1.0, 3.0]), share=0.25)
    np.testing.assert_allclose(found["a"], [(3 * 1 + 2 * 3) / 4])


def numpy_krum_scores(x, liars):
    scores = []
    for i in range(len(x)):
        squares = sorted(((x[i] - x[j])**2).sum() for j in range(len(x)) if j != i)
        scores.append(sum(squares[:len(x) - liars - 2]))
    return np.array(scores)


@pytest.mark.parametrize("selected", [1, 3])
def test_krum_is_numpys(selected):
    x, weights = flat(trees(7)), np.arange(1.0, 8.0)
    scores = numpy_krum_scores(x, 2)
    np.testing.assert_allclose(robust.krum_scores(trees(7), 2), scores, rtol=1e-5)
    chosen = np.argsort(scores)[:selected]
    expected = (x[chosen] * weights[chosen, None]).sum(0) / weights[chosen].sum()
    found = robust.krum(trees(7), jnp.asarray(weights), liars=2, selected=selected)
    np.testing.assert_allclose(flat_one(found), expected, rtol=1e-5)


def test_krum_of_few_devices_takes_one_of_them():
    for count in (1, 2, 3):
        found = flat_one(robust.krum(trees(count), jnp.ones(count), liars=1, selected=1))
        assert (flat(trees(count)) == found).all(axis=1).any()


def test_clipping_shortens_what_is_longer_than_the_median():
    centre = {"a": np.full((3, 2), 0.5, np.float32), "b": {"c": np.ones(4, np.float32)}}
    c = flat_one(centre)
    differences = flat(trees(5)) - c
    lengths = np.linalg.norm(differences, axis=1)
    limit = 1.1 * np.median(lengths)
    expected = c + differences * np.minimum(1, limit / lengths)[:, None]
    found = robust.clip_norms(trees(5), centre, multiple=1.1)
    np.testing.assert_allclose(flat(found), expected, rtol=1e-5, atol=1e-6)
    assert (np.linalg.norm(flat(found) - c, axis=1) <= limit * 1.0001).all()


def options(**changed):
    return AggregationConfig(**({"rule": "mean", "clip": 0.0, "trim": 0.2, "liars": 2,
                                 "selected": 3} | changed))


def test_off_is_the_weighted_mean_bit_for_bit():
    weights = jnp.array([1.0, 2.0, 3.0])
    expected = aggregate.weighted_mean(trees(3), weights)
    for chosen in (None, options()):
        found = robust.rule(chosen)(trees(3), weights, None)
        np.testing.assert_array_equal(flat_one(found), flat_one(expected))


LIES = (1e4, 1e20, -1e20, 3e38, -3e38, np.inf, np.nan)  # squares of the later ones overflow


@pytest.mark.parametrize("chosen", [
    options(rule="median"), options(rule="trimmed_mean"), options(rule="krum"),
    options(rule="krum", selected=1), options(clip=1.0, rule="median"),
    options(clip=1.0, rule="krum"), options(clip=1.0)])
def test_two_liars_of_ten_move_the_mean_far_and_the_rule_little(chosen):
    """Alone, alike and opposed, however long the lie."""
    honest = flat(trees(10, seed=1))
    centre = {"a": np.zeros((3, 2), np.float32), "b": {"c": np.zeros(4, np.float32)}}
    truth = honest[[0, 1, 3, 4, 5, 6, 8, 9]].mean(axis=0)
    rule = robust.rule(chosen)
    for first in LIES:
        for second in (first, -first, 0.0):
            values = honest.copy()
            values[2], values[7] = first, second
            lying = {"a": jnp.asarray(values[:, :6].reshape(10, 3, 2)),
                     "b": {"c": jnp.asarray(values[:, 6:])}}
            found = flat_one(rule(lying, jnp.ones(10), centre)).astype(np.float64)
            assert np.linalg.norm(found - truth) < 3.0, (first, second)
            plain = flat_one(aggregate.weighted_mean(lying, jnp.ones(10))).astype(np.float64)
            assert second == -first or not np.linalg.norm(plain - truth) < 1e3


def test_krum_never_trusts_who_is_far_from_all():
    values = flat(trees(10, seed=1))
    values[4] = 1e20
    scores = np.asarray(robust.krum_scores({"a": jnp.asarray(values)}, 2))
    assert np.isinf(scores[4]) and np.isfinite(np.delete(scores, 4)).all()


def test_a_lie_that_has_no_square_is_clipped_as_any_other():
    centre = np.full(4, 0.5, np.float32)
    values = np.stack([centre + 1, centre + 2, np.array([3e38, -1e38, 0, np.nan], np.float32)])
    found = np.asarray(robust.clip_norms({"a": jnp.asarray(values)}, {"a": centre},
                                         multiple=0.5)["a"])
    direction = np.array([1, -1, 0, 0]) / np.sqrt(2)
    np.testing.assert_allclose(found[2] - centre, 0.5 * 4.0 * direction, atol=1e-5)
    np.testing.assert_allclose(found[:2] - centre, np.ones((2, 4)), atol=1e-6)


def test_options_that_cannot_be():
    for changed, message in (({"clip": -1.0}, "aggregation.clip is -1.0"),
                             ({"trim": 0.5}, "aggregation.trim is 0.5"),
                             ({"selected": 0}, "selected 0")):
        with pytest.raises(UserError, match=message):
            config(**{f"aggregation.{name}": value for name, value in changed.items()})


@pytest.mark.parametrize(("chosen", "devices", "message"), [
    (options(rule="krum"), 6, "2 liars among 7 devices or more .* there are 6"),
    (options(rule="krum", liars=1, selected=4), 6, "averages 4, which 7 devices allow"),
    (options(rule="trimmed_mean"), 4, "trim 0.2 cuts none of 4 devices: raise .* to 1/4"),
    (options(rule="median"), 2, "rule=median with clip 0 needs 3 devices .* there are 2"),
    (options(clip=1.0), 2, "rule=mean with clip 1 needs 3 devices")])
def test_rules_that_would_do_nothing_with_so_few_are_refused(chosen, devices, message):
    with pytest.raises(UserError, match=message):
        robust.rule(chosen, devices)


@pytest.mark.parametrize(("chosen", "devices", "needed"), [
    (None, 5, 1), (options(), 5, 1), (options(clip=1.0), 5, 3), (options(rule="median"), 5, 3),
    (options(rule="krum"), 9, 5), (options(rule="trimmed_mean"), 10, 5),
    (options(rule="trimmed_mean", trim=0.34), 3, 3)])
def test_answers_without_which_no_round_is_made(chosen, devices, needed):
    robust.rule(chosen, devices)
    assert robust.fewest(chosen, devices) == needed


@pytest.mark.parametrize("rule", ["trimmed_mean", "krum"])
def test_devices_that_are_away_leave_no_more_room_for_liars(rule):
    """Five of ten answer, two of them lie: of five alone, trim .2 would cut one and Krum's scores
    would be of one neighbour, where two alike liars win."""
    values = flat(trees(10, seed=1))[:5]
    values[3:] = 1e4
    centre = {"a": np.zeros(10, np.float32)}
    combine = robust.rule(options(rule=rule), 10)
    found = np.asarray(combine({"a": jnp.asarray(values)}, jnp.ones(5), centre)["a"])
    np.testing.assert_allclose(found, np.median(values, axis=0), rtol=1e-5)
    with pytest.raises(UserError, match="needs 5 devices, 4 are there"):
        combine({"a": jnp.asarray(values[1:])}, jnp.ones(4), centre)
