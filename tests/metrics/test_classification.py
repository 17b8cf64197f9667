"""Scores against scikit-learn and against cases small enough to work out by hand."""

import json

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

from mlecs_jax.metrics.classification import scores, spread


def ints(*values: int) -> np.ndarray:
    return np.asarray(values, np.int64)


@pytest.mark.parametrize("seed", range(12))
def test_agrees_with_scikit_learn(seed):
    """Random labels; in scikit-learn -1 is one more label, left out of the averages."""
    rng = np.random.default_rng(seed)
    num_classes = int(rng.integers(2, 7))
    n = int(rng.integers(1, 60))
    true = rng.integers(0, num_classes, n)
    lowest = -1 if seed % 2 else 0
    predicted = np.where(rng.random(n) < 0.6, true, rng.integers(lowest, num_classes, n))

    got = scores(true, predicted, num_classes)

    labels = sorted((set(true.tolist()) | set(predicted.tolist())) - {-1})
    expected = {"labels": labels, "zero_division": 0}
    np.testing.assert_allclose(got.f1, f1_score(true, predicted, average="macro", **expected))
    np.testing.assert_allclose(
        got.weighted_f1, f1_score(true, predicted, average="weighted", **expected)
    )
    np.testing.assert_allclose(got.accuracy, accuracy_score(true, predicted))
    mapped = np.where(predicted == -1, num_classes, predicted)
    full = confusion_matrix(true, mapped, labels=range(num_classes + 1))
    np.testing.assert_array_equal(got.confusion, full[:num_classes])
    assert got.unparsable == (predicted == -1).sum()


def test_without_unparsable_answers_scikit_learn_needs_no_help():
    true, predicted = ints(0, 0, 1, 3, 3), ints(0, 1, 1, 3, 0)
    np.testing.assert_allclose(
        scores(true, predicted, 5).f1, f1_score(true, predicted, average="macro")
    )


def test_unparsable_is_a_miss_for_its_class_and_an_alarm_for_none():
    """Class 0: TP 1, FN 1, FP 0, F1 2/3. Class 1: TP 1, FN 0, FP 0, F1 1. Class 2: absent."""
    got = scores(ints(0, 0, 1), ints(0, -1, 1), 3)
    np.testing.assert_allclose(got.f1, (2 / 3 + 1) / 2)
    np.testing.assert_allclose(got.weighted_f1, (2 * 2 / 3 + 1) / 3)
    np.testing.assert_allclose(got.accuracy, 2 / 3)
    np.testing.assert_array_equal(got.confusion, [[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0]])
    assert got.unparsable == 1


def test_nothing_parsable_scores_zero():
    got = scores(ints(0, 1), ints(-1, -1), 2)
    assert (got.f1, got.weighted_f1, got.accuracy, got.unparsable) == (0.0, 0.0, 0.0, 2)


def test_class_only_predicted_counts_with_zero():
    assert scores(ints(0, 0), ints(0, 1), 3).f1 == pytest.approx((2 / 3 + 0) / 2)


def test_no_samples_have_no_score():
    got = scores(ints(), ints(), 3)
    assert np.isnan([got.f1, got.weighted_f1, got.accuracy]).all()
    assert got.confusion.shape == (3, 4) and got.confusion.sum() == 0 and got.unparsable == 0


def test_plain_values_survive_json():
    got = scores(ints(0, 1), ints(0, -1), 2)
    assert json.loads(json.dumps(got.as_dict())) == {
        "f1": 0.5, "weighted_f1": 0.5, "accuracy": 0.5,
        "confusion": [[1, 0, 0], [0, 0, 1]], "unparsable": 1,
    }


@pytest.mark.parametrize(
    ("true", "predicted", "num_classes", "message"),
    [
        (ints(0, 3), ints(0, 0), 3, "true labels"),
        (ints(0, -1), ints(0, 0), 3, "true labels"),
        (ints(0, 1), ints(0, 3), 3, "predictions must"),
        (ints(0, 1), ints(0, -2), 3, "predictions must"),
        (ints(), ints(), 0, "num_classes"),
    ],
)
def test_labels_out_of_range_are_refused(true, predicted, num_classes, message):
    with pytest.raises(ValueError, match=message):
        scores(true, predicted, num_classes)


def test_spread_over_devices():
    assert spread([0.5, 1.0, 0.0]) == {"avg": 0.5, "best": 1.0, "worst": 0.0}
    assert spread(np.asarray([0.25, np.nan])) == {"avg": 0.25, "best": 0.25, "worst": 0.25}
    assert np.isnan(list(spread([]).values())).all()
    assert np.isnan(list(spread([np.nan]).values())).all()
