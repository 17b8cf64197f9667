"""Beliefs: what nodes think of public samples, as probabilities over few answer tokens.

The message of :mod:`mlecs_jax.methods.ml_ecs_plus`: a node's beliefs on D′ say what it learnt from
its private data without showing any of it, and cost C numbers a sample however large the model.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mlecs_jax.federation import Moments, Rows, gather
from mlecs_jax.lora import Params
from mlecs_jax.models.multimodal import Answer, MultimodalModel
from mlecs_jax.predict import map_rows

Weighting = Literal["uniform", "modality", "confidence"]


def of_rows(
    model: MultimodalModel, backbone: Params, params: Params, rows: Rows,
    owned: Bool[Array, " M"], moments: dict[str, Moments], ids: Int[Array, "n T K"],
) -> tuple[Float[Array, "n T K"], Float[Array, " n"]]:
    """A node's probabilities of the given tokens on all its rows, and what it saw of each.

    Args:
      ids: tokens asked about at each answer position; later positions follow the row's own target.

    Returns:
      Probabilities over the whole vocabulary at ``ids`` (at most 1 in sum), and the number of
      modalities that the node has of each row, 0 where it has none and its word is worth nothing.
    """
    def chunk(index):
        batch = gather(rows, owned, moments, index)
        _, fused = model.represent(params, batch.inputs, batch.mask)
        answer = model.answer(backbone, params, fused, batch.target)
        return at(answer, ids[index]), jnp.sum(batch.mask, axis=1, dtype=jnp.float32)

    return map_rows(chunk, rows.target.shape[0])


def at(answer: Answer, ids: Int[Array, "B T K"]) -> Float[Array, "B T K"]:
    """Probabilities of tokens under a model's answer, at its first T positions."""
    logits = answer.logits()[:, :ids.shape[1]].astype(jnp.float32)
    return jnp.take_along_axis(jax.nn.softmax(logits), ids, axis=-1)


def pool(
    probabilities: Float[Array, "N n T K"], seen: Float[Array, "N n"], weighting: Weighting
) -> Float[Array, "n T K"]:
    """One belief of many: a weighted mean over the nodes that saw a sample at all.

    Args:
      seen: modalities that each node has of each sample.
      weighting: ``uniform``; ``modality``, in proportion to ``seen`` (MMA's rule, Eq. 13, per
        sample); ``confidence``, in proportion to ``seen`` and to how far the node's own answer is
        from ignorance, 1 − H / log K at each position.

    Returns:
      Means, normalised to sum 1 at each position; all 0 where nobody saw the sample or nobody
      gives the tokens any probability.
    """
    own = _normalised(probabilities)
    weight = jnp.minimum(seen, 1.0) if weighting == "uniform" else seen
    weight = weight[..., None, None]
    if weighting == "confidence":
        entropy = -jnp.sum(own * jnp.log(jnp.maximum(own, 1e-9)), axis=-1, keepdims=True)
        weight = weight * (1.0 - entropy / jnp.log(own.shape[-1]) + 1e-3)
    return _normalised(jnp.sum(weight * own, axis=0))


def mix(first: Float[Array, "n T K"], second: Float[Array, "n T K"], share: float
        ) -> Float[Array, "n T K"]:
    """``(1 − share) · first + share · second``; where one is silent, the other alone."""
    both = ((1.0 - share) * _normalised(first) + share * _normalised(second))
    return _normalised(both)


def _normalised(p: Float[Array, "*batch K"]) -> Float[Array, "*batch K"]:
    total = jnp.sum(p, axis=-1, keepdims=True)
    return jnp.where(total > 0, p / jnp.where(total > 0, total, 1.0), 0.0)
