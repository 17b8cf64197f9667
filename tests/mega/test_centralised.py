"""Centralised training: it learns, keeps the best epoch, stops early, and repeats exactly."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlecs_jax.data import sentiment
from mlecs_jax.data.sentiment import SentimentData
from mlecs_jax.errors import UserError
from mlecs_jax.mega import centralised
from mlecs_jax.models.sentiment import SentimentModel, absolute_error
from mlecs_jax.models.sentiment_zoo import TrainOptions

OPTIONS = TrainOptions(epochs=30, batch_size=20, learning_rate=0.05, weight_decay=0.0, clip=1.0,
                       patience=4, plateau_patience=2)


def problem(n: int = 400) -> SentimentData:
    """Labels that are linear in the last step of text and audio."""
    rng = np.random.default_rng(0)
    text, audio, vision = (rng.standard_normal((n, 2, d)).astype(np.float32) for d in (4, 3, 2))
    labels = np.clip(text[:, -1, 0] - audio[:, -1, 1] + 0.3, -3, 3).astype(np.float32)
    return SentimentData("mosi", "simulated", "linear", text, audio, vision, labels,
                         np.arange(n, dtype=np.int32), np.zeros(n, np.int8))


def linear(separate: bool = False) -> SentimentModel:
    """A linear model of the last steps: training is tested, not a transformer's compilation."""

    def init(key, example):
        return {m: {"kernel": np.zeros(getattr(example, m).shape[-1], np.float32)}
                for m in sentiment.MODALITIES} | {"bias": {"kernel": np.zeros(1, np.float32)}}

    def apply(params, batch, *, train=False, key=None):
        total = sum(getattr(batch, m)[:, -1] @ params[m]["kernel"] for m in sentiment.MODALITIES)
        return total + params["bias"]["kernel"][0]

    return SentimentModel("linear", init, apply, absolute_error(apply), separate_learners=separate)


@pytest.fixture(scope="module")
def data():
    return problem()


@pytest.fixture(scope="module")
def parts(data):
    return sentiment.split(data, "segment", 0)


@pytest.mark.parametrize("separate", [False, True])
def test_it_learns_and_repeats(data, parts, separate):
    model, seen = linear(separate), []
    first = centralised.train_centralised(model, data, parts, OPTIONS, 0, on_epoch=seen.append)
    assert first.test["mae"] < 0.15 and first.test["corr"] > 0.98
    assert first.history == seen and first.history[0]["val_mae"] > first.val["mae"]
    assert first.val["mae"] == pytest.approx(min(r["val_mae"] for r in seen), abs=1e-6)
    assert seen[first.best_epoch - 1]["val_mae"] == min(r["val_mae"] for r in seen)
    again = centralised.train_centralised(model, data, parts, OPTIONS, 0)
    other = centralised.train_centralised(model, data, parts, OPTIONS, 1)
    assert again.history == first.history and again.test == first.test
    assert other.history != first.history


def test_patience_stops_and_plateaus_lower_the_rate(data, parts):
    stuck = dataclasses.replace(OPTIONS, learning_rate=3.0)
    run = centralised.train_centralised(linear(), data, parts, stuck, 0)
    rates = [record["learning_rate"] for record in run.history]
    assert rates[0] == 3.0 and min(rates) <= 0.3
    assert len(run.history) < OPTIONS.epochs or run.best_epoch > OPTIONS.epochs - OPTIONS.patience


def test_weight_decay_pulls_towards_zero(data, parts):
    free = centralised.train_centralised(linear(), data, parts, OPTIONS, 0)
    held = centralised.train_centralised(
        linear(), data, parts, dataclasses.replace(OPTIONS, weight_decay=3.0), 0)
    assert np.abs(held.params["text"]["kernel"][0]) < 0.7 * np.abs(
        free.params["text"]["kernel"][0])


def test_any_number_of_segments_is_predicted_whole():
    data, model = problem(centralised.CHUNK + 7), linear()
    params = jax.tree.map(lambda x: jnp.ones_like(jnp.asarray(x)),
                          model.init(jax.random.key(0), data.batch(slice(0, 1))))
    expected = sum(getattr(data, m)[:, -1].sum(-1) for m in sentiment.MODALITIES) + 1
    np.testing.assert_allclose(centralised.predict(model, params, data.batch()), expected,
                               rtol=1e-5)


def test_training_that_diverges_says_so(data, parts):
    broken = dataclasses.replace(OPTIONS, learning_rate=float("inf"), epochs=1)
    with pytest.raises(UserError, match="did not learn.*smaller train.learning_rate"):
        centralised.train_centralised(linear(), data, parts, broken, 0)
