"""The simulated UR-Fall has the real one's schema, and needs all three modalities."""

import itertools

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import f1_score

from mlecs_jax.data import simulated
from mlecs_jax.errors import UserError


@pytest.fixture(scope="module")
def samples():
    return simulated.ur_fall(seed=0)


def small(**options):
    return simulated.ur_fall(**{"seed": 0, "num_sequences": 6, "frames_per_sequence": 40,
                                **options})


def test_has_the_schema_of_ur_fall(samples):
    n = 70 * 165
    assert (samples.name, samples.source) == ("ur_fall", "simulated")
    assert samples.modalities == ("acce", "rgb", "depth")
    shapes = {name: (array.shape, array.dtype) for name, array in samples.inputs.items()}
    assert shapes == {"acce": ((n, 3), np.float32), "rgb": ((n, 32, 32, 3), np.uint8),
                      "depth": ((n, 8), np.float32)}
    assert samples.class_names == ("not lying", "temporary pose", "lying")
    assert samples.labels.dtype == samples.groups.dtype == samples.strata.dtype == np.int32
    assert np.array_equal(np.bincount(samples.groups), [165] * 70)
    assert len(np.unique(samples.groups[samples.strata == 1])) == 30


def test_class_shares_are_like_the_real_ones(samples):
    shares = np.bincount(samples.labels) / len(samples)
    np.testing.assert_allclose(shares, [0.65, 0.15, 0.20], atol=0.06)


def test_every_fall_ends_off_its_feet_and_most_activity_upright(samples):
    labels = samples.labels.reshape(70, 165)
    falls = samples.strata.reshape(70, 165)[:, 0] == 1
    assert (labels[falls, 0] == 0).all()
    assert (labels[falls, -1] > 0).all()
    assert (np.diff(labels[falls], axis=1) >= 0).all()
    assert (labels[~falls] == 0).mean() > 0.6


def test_missing_readings_are_marked_and_zero(samples):
    missing = ~samples.present[:, 0]
    assert 0.01 < missing.mean() < 0.03
    assert samples.present[:, 1:].all()
    assert not samples.inputs["acce"][missing].any()
    assert samples.inputs["acce"][~missing].any(axis=1).all()


def test_depth_features_lie_in_the_published_ranges(samples):
    """1st to 99th percentile of the published features over all 11,544 real rows, widened."""
    low = [0.15, 0.9, 0.2, 70, 0.1, 200, 120, 0.0]
    high = [5.0, 9.0, 0.95, 520, 1.3, 2400, 1400, 1.0]
    assert (np.percentile(samples.inputs["depth"], 1, axis=0) > low).all()
    assert (np.percentile(samples.inputs["depth"], 99, axis=0) < high).all()


def test_the_seed_decides_everything():
    first, again, other = small(), small(), small(seed=1)
    for name, array in first.inputs.items():
        assert np.array_equal(array, again.inputs[name])
        assert not np.array_equal(array, other.inputs[name])
    assert np.array_equal(first.labels, again.labels)
    assert np.array_equal(first.present, again.present)
    assert not np.array_equal(first.labels, other.labels)


def test_a_window_ends_at_its_sample_and_changes_nothing_else():
    sample, window = small(), small(acce="window")
    values = window.inputs["acce"]
    assert values.shape == (240, 32, 3) and values.dtype == np.float32
    assert np.array_equal(values[:, -1], sample.inputs["acce"])
    there = window.present[:, 0].reshape(6, 40)
    by_sequence = values.reshape(6, 40, 32, 3)
    both = there[:, 1:] & there[:, :-1]
    assert np.array_equal(by_sequence[:, 1:, -2][both], by_sequence[:, :-1, -1][both])
    assert np.array_equal(by_sequence[:, 0, 0], by_sequence[:, 0, -1])  # repeated at the start
    for name in ("rgb", "depth"):
        assert np.array_equal(sample.inputs[name], window.inputs[name])


def test_frames_have_the_size_asked_for():
    assert small(rgb_size=16).inputs["rgb"].shape == (240, 16, 16, 3)


@pytest.mark.parametrize("options, message", [
    ({"num_sequences": 1}, "num_sequences is 1"),
    ({"frames_per_sequence": 3}, "frames_per_sequence is 3"),
    ({"acce": "windows"}, "'sample' or 'window'"),
    ({"rgb_size": 4}, "rgb_size is 4"),
    ({"depth": "image"}, "only 'features'"),
])
def test_options_out_of_range(options, message):
    with pytest.raises(UserError, match=message):
        small(**options)


def test_classes_are_separable_only_by_combining_modalities(samples):
    """Macro-F1 on recordings not trained on: one modality < .88 < two at most < all three > .95."""
    n = len(samples)
    acce = samples.inputs["acce"]
    grey = samples.inputs["rgb"].mean(axis=-1).reshape(n, 8, 4, 8, 4).mean(axis=(2, 4))
    features = {"acce": np.c_[acce, np.linalg.norm(acce, axis=1)], "rgb": grey.reshape(n, -1),
                "depth": samples.inputs["depth"]}
    test = np.isin(samples.groups, np.random.default_rng(0).permutation(70)[:20])

    def score(names):
        x = np.concatenate([features[name] for name in names], axis=1)
        forest = RandomForestClassifier(20, max_features=0.3, max_samples=0.6, random_state=0)
        predicted = forest.fit(x[~test], samples.labels[~test]).predict(x[test])
        return f1_score(samples.labels[test], predicted, average="macro")

    one = {names: score(names) for names in itertools.combinations(features, 1)}
    two = {names: score(names) for names in itertools.combinations(features, 2)}
    three = score(tuple(features))
    print({**one, **two, "all": three})
    assert max(one.values()) < 0.88
    assert three > 0.95
    assert max(one.values()) < min(two.values()) and max(two.values()) < three - 0.005
