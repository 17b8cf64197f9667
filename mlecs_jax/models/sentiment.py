"""`SentimentModel`: the one interface of the cross-modal transformer and its baselines."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from mlecs_jax.data.sentiment import SentimentBatch

Params = Any

Apply = Callable[..., Float[Array, " B"]]
"""``(params, batch, *, train=False, key=None)``; ``key`` is for dropout, with ``train``."""

LossFn = Callable[[Params, SentimentBatch, PRNGKeyArray],
                  tuple[Float[Array, ""], dict[str, Array]]]


@dataclasses.dataclass(frozen=True)
class SentimentModel:
    """A model as pure functions of its parameter tree.

    Attributes:
      name: as in tables.
      init: ``(key, example) → params``, NumPy leaves drawn on the host; of ``example`` only
        shapes count.
      apply: the prediction.
      loss: ``(params, batch, key) → (loss, diagnostics)`` with dropout on: what training
        minimises, the model's own extra terms included. ``diagnostics['mae']`` is the mean
        absolute error of the batch.
      calibrate: ``(params, train) → params``, called on the training segments before
        evaluation; sets the population statistics of batch normalisation where there are any.
      separate_learners: each top-level group of ``params`` is clipped and adapted on its own.
    """

    name: str
    init: Callable[[PRNGKeyArray, SentimentBatch], Params]
    apply: Apply
    loss: LossFn
    calibrate: Callable[[Params, SentimentBatch], Params] = lambda params, train: params
    separate_learners: bool = False


def absolute_error(apply: Apply) -> LossFn:
    """L1, the loss of MulT, Mega-CE² and every baseline without terms of its own."""

    def loss(params, batch, key):
        error = jnp.mean(jnp.abs(apply(params, batch, train=True, key=key) - batch.labels))
        return error, {"mae": error}

    return loss
