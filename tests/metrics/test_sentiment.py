"""Sentiment scores against counts made by hand and against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from mlecs_jax.metrics import sentiment


def test_by_hand():
    true = np.array([0.0, 1.0, -1.0, 2.4, -2.6, 0.2])
    predicted = np.array([-0.1, 0.4, 0.3, 3.9, -2.4, -0.2])
    scores = sentiment.scores(true, predicted)
    assert set(scores) == set(sentiment.SCORES)
    assert scores["mae"] == pytest.approx((0.1 + 0.6 + 1.3 + 1.5 + 0.2 + 0.4) / 6)
    assert scores["corr"] == pytest.approx(np.corrcoef(true, predicted)[0, 1])
    assert scores["acc2_non0"] == pytest.approx(3 / 5)  # zero left out; 0.3 and -0.2 are wrong
    assert scores["acc2_has0"] == pytest.approx(3 / 6)  # zero counts as positive
    # Classes: true 0 1 -1 2 -3 0, predicted 0 0 0 3 -2 0.
    assert scores["acc7"] == pytest.approx(2 / 6)
    # Clipped at two: true 0 1 -1 2 -2 0, predicted 0 0 0 2 -2 0.
    assert scores["acc5"] == pytest.approx(4 / 6)


@pytest.mark.parametrize("seed", range(4))
def test_as_scikit_learn_does(seed):
    rng = np.random.default_rng(seed)
    true = np.round(rng.uniform(-3, 3, 200) * 5) / 5 * (rng.random(200) > 0.1)
    predicted = true + rng.normal(0, 1.2, 200)
    scores = sentiment.scores(true.astype(np.float32), predicted.astype(np.float32))
    kept = true != 0
    for kind, a, b in (("non0", true[kept] > 0, predicted[kept] > 0),
                       ("has0", true >= 0, predicted >= 0)):
        assert scores[f"acc2_{kind}"] == pytest.approx(accuracy_score(a, b))
        assert scores[f"f1_{kind}"] == pytest.approx(f1_score(a, b, average="weighted"))
        assert scores[f"macro_f1_{kind}"] == pytest.approx(f1_score(a, b, average="macro"))
    a, b = (np.rint(np.clip(x.astype(np.float32), -3, 3)) for x in (true, predicted))
    assert scores["f1_7"] == pytest.approx(f1_score(a, b, average="weighted"))
    assert scores["macro_f1_7"] == pytest.approx(f1_score(a, b, average="macro"))


def test_undefined_scores_are_nan_and_bad_input_an_error():
    flat = sentiment.scores(np.zeros(3), np.array([0.1, 0.2, 0.3]))
    assert np.isnan(flat["corr"]) and np.isnan(flat["acc2_non0"]) and flat["acc2_has0"] == 1
    for true, predicted in ((np.zeros(0), np.zeros(0)), (np.zeros(2), np.array([0.0, np.nan]))):
        with pytest.raises(ValueError, match="give equally many|not finite"):
            sentiment.scores(true, predicted)
