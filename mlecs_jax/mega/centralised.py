"""Centralised training of a sentiment model: the upper reference and the baselines of Mega-CE².

An epoch is one compiled scan over shuffled batches; the validation error after each decides the
learning rate, when to stop, and which parameters are kept. Test segments are read once, at the end.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float

from mlecs_jax import train
from mlecs_jax.data.sentiment import SentimentBatch, SentimentData, Split
from mlecs_jax.errors import UserError
from mlecs_jax.metrics import sentiment as metrics
from mlecs_jax.models.sentiment import Params, SentimentModel
from mlecs_jax.models.sentiment_zoo import TrainOptions

CHUNK = 256
"""Segments predicted at once."""


@dataclasses.dataclass(frozen=True)
class Trained:
    """What training gives.

    Attributes:
      params: of the epoch with the smallest validation error, calibrated.
      val, test: scores of :func:`mlecs_jax.metrics.sentiment.scores`.
      history: per epoch ``epoch`` (from 1), ``train_mae`` (dropout on), ``val_mae``,
        ``learning_rate``.
      best_epoch: the epoch of ``params``.
      seconds: of wall-clock time, compilation included.
    """

    params: Params
    val: dict[str, float]
    test: dict[str, float]
    history: list[dict[str, int | float]]
    best_epoch: int
    seconds: float


def train_centralised(
    model: SentimentModel,
    data: SentimentData,
    split: Split,
    options: TrainOptions,
    seed: int,
    *,
    on_epoch: Callable[[dict[str, int | float]], None] = lambda record: None,
) -> Trained:
    """Trains a model on all training segments in one place.

    Args:
      data: standardised (:func:`mlecs_jax.data.sentiment.standardise`).
      split: its rows.
      seed: of initialisation, batches and dropout.
      on_epoch: called with each record of the history.

    Raises:
      UserError: the validation error is not finite in the first epoch: nothing was learnt.
    """
    started = time.perf_counter()
    rows = jax.tree.map(jnp.asarray, data.batch(split.train))
    val_labels = data.labels[split.val]
    key = jax.random.fold_in(jax.random.key(seed), 0)
    params = jax.tree.map(jnp.asarray, model.init(key, data.batch(split.train[:1])))
    batch_size = min(options.batch_size, len(split.train))
    run_epoch, transform = _epoch(model, batch_size, options.clip, options.weight_decay)
    state = transform.init(params)
    rate, best, since_best, since_drop = options.learning_rate, (np.inf, params, 0), 0, 0
    history = []
    for epoch in range(1, options.epochs + 1):
        applied = rate * (1 - (1 - options.final_rate_fraction) * (epoch - 1) / options.epochs)
        params, state, train_mae = run_epoch(params, state, rows, applied,
                                             jax.random.fold_in(key, epoch))
        calibrated = model.calibrate(params, rows)
        val_mae = float(np.abs(predict(model, calibrated, data.batch(split.val))
                               - val_labels).mean())
        history.append({"epoch": epoch, "train_mae": float(train_mae), "val_mae": val_mae,
                        "learning_rate": applied})
        on_epoch(history[-1])
        if val_mae < best[0]:
            best, since_best, since_drop = (val_mae, calibrated, epoch), 0, 0
        else:
            since_best, since_drop = since_best + 1, since_drop + 1
        if since_drop >= options.plateau_patience:
            rate, since_drop = rate / 10, 0
        if since_best >= options.patience:
            break
    if not np.isfinite(best[0]):
        raise UserError(f"{model.name} did not learn: its validation error is not finite; use a "
                        "smaller train.learning_rate")
    params = best[1]
    scores = {part: evaluate(model, params, data, getattr(split, part)) for part in ("val", "test")}
    return Trained(params, scores["val"], scores["test"], history, best[2],
                   time.perf_counter() - started)


def evaluate(
    model: SentimentModel, params: Params, data: SentimentData, rows: np.ndarray, **options: Any
) -> dict[str, float]:
    """Scores of a model on some segments; ``options`` go to ``model.apply`` (adapters)."""
    return metrics.scores(data.labels[rows], predict(model, params, data.batch(rows), **options))


def predict(
    model: SentimentModel, params: Params, batch: SentimentBatch, **options: Any
) -> Float[np.ndarray, " n"]:
    """Predictions for any number of segments, compiled once per shape of a segment."""
    n = len(batch.labels)
    run = _forward(model)
    chunks = []
    for start in range(0, n, CHUNK):
        rows = np.minimum(np.arange(start, start + CHUNK), n - 1)  # the last row fills the chunk
        chunk = run(params, jax.tree.map(lambda x, rows=rows: x[rows], batch), options)
        chunks.append(np.asarray(chunk)[:n - start])
    return np.concatenate(chunks)


@functools.lru_cache(maxsize=16)
def _forward(model: SentimentModel):
    return jax.jit(lambda params, batch, options: model.apply(params, batch, **options))


@functools.lru_cache(maxsize=16)
def _epoch(model: SentimentModel, batch_size: int, clip: float, weight_decay: float):
    """A compiled epoch of a model, and its optimiser (the caller scales the direction)."""
    transform = optax.flatten(optax.chain(
        optax.clip_by_global_norm(clip), optax.add_decayed_weights(weight_decay),
        optax.scale_by_adam()))
    if model.separate_learners:
        transform = train.per_learner(transform)

    def epoch(params, state, data, rate, key):
        n = data.labels.shape[0]
        order = train.shuffle(key, jnp.ones(n, bool))

        def step(carry, i):
            params, state = carry
            rows = train.batch_rows(order, i, batch_size)
            grads, diagnostics = jax.grad(model.loss, has_aux=True)(
                params, jax.tree.map(lambda x: x[rows], data), jax.random.fold_in(key, i))
            direction, state = transform.update(grads, state, params)
            params = jax.tree.map(lambda p, u: p - rate * u, params, direction)
            return (params, state), diagnostics["mae"]

        (params, state), errors = jax.lax.scan(step, (params, state),
                                               jnp.arange(-(-n // batch_size)))
        return params, state, errors.mean()

    return jax.jit(epoch, donate_argnums=1), transform
