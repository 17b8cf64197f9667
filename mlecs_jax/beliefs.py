"""Beliefs: what nodes think of public samples, as probabilities over few answer tokens.

The message of :mod:`mlecs_jax.methods.ml_ecs_plus`: a node's beliefs on D′ say what it learnt from
its private data without showing any of it, and cost C numbers a sample however large the model.
For captions they are given along the public caption, over the server's likeliest tokens.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mlecs_jax.answers import CHUNK, map_rows
from mlecs_jax.federation import Moments, Rows, gather
from mlecs_jax.lora import Params
from mlecs_jax.losses import SoftTargets
from mlecs_jax.models.multimodal import MultimodalModel

Weighting = Literal["uniform", "modality", "confidence"]


def of_rows(
    model: MultimodalModel, backbone: Params, params: Params, rows: Rows,
    owned: Bool[Array, " M"], moments: dict[str, Moments], asked: Int[Array, "n T K"] | int,
) -> tuple[SoftTargets, Float[Array, " n"]]:
    """A node's probabilities of few tokens at each answer position of all its rows.

    The first position follows the prompt; later ones follow the row's own target, and the node is
    silent (all 0) at those whose target it does not know.

    Args:
      asked: the tokens, or how many of its likeliest ones the node may choose at every position.

    Returns:
      Tokens and their probabilities over the whole vocabulary (at most 1 in sum), ``[n, T, K]``;
      and the number of modalities the node has of each row, 0 where its word is worth nothing.
    """
    positions = rows.target.shape[1] if isinstance(asked, int) else asked.shape[1]

    def chunk(index):
        batch = gather(rows, owned, moments, index)
        _, fused = model.represent(params, batch.inputs, batch.mask)
        answer = model.answer(backbone, params, fused, batch.target[:, :positions])
        p = jax.nn.softmax(answer.logits().astype(jnp.float32))
        ids = jax.lax.top_k(p, asked)[1] if isinstance(asked, int) else asked[index]
        p = jnp.take_along_axis(p, ids, axis=-1)
        first = jnp.arange(positions) == 0
        p = jnp.where((first | (batch.target[:, :positions] >= 0))[..., None], p, 0.0)
        return SoftTargets(ids, p), jnp.sum(batch.mask, axis=1, dtype=jnp.float32)

    return map_rows(chunk, rows.target.shape[0], max(1, CHUNK // positions))


def about(ids: Int[Array, "n T K"], said: SoftTargets) -> Float[Array, "n T K"]:
    """What was said of the given tokens: probabilities ``[n, T, K]``, 0 of those not spoken of."""
    same = ids[..., :, None] == said.ids[..., None, :]
    return jnp.sum(jnp.where(same, said.probabilities[..., None, :], 0.0), axis=-1)


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


def mix(
    first: Float[Array, "n T K"], second: Float[Array, "n T K"], share: float | Float[Array, ""]
) -> Float[Array, "n T K"]:
    """``(1 − share) · first + share · second`` of normalised beliefs: where one of them is silent
    the other speaks with its own share only, and a student follows it that much less."""
    return (1.0 - share) * _normalised(first) + share * _normalised(second)


def align(p: Float[Array, "n T K"], prior: Float[Array, " K"], steps: int = 20
          ) -> Float[Array, "n T K"]:
    """Beliefs whose mean over the samples is ``prior``, changed as little as possible.

    Classes are reweighted by one factor each (iterative proportional fitting; one step of it is
    the distribution alignment of ReMixMatch, Berthelot et al., 2020). A teacher that has seen few
    examples of a class underrates it everywhere, and students taught by it would underrate it
    more: without this, rare classes die out over the rounds.

    Args:
      p: normalised or silent beliefs.
      prior: positive frequencies, sum 1.
    """
    speaks = p.sum(-1, keepdims=True) > 0

    def step(_, p):
        mean = jnp.sum(p, axis=(0, 1)) / jnp.maximum(jnp.sum(speaks), 1)
        return _normalised(p * (prior / jnp.maximum(mean, 1e-6)))

    return jax.lax.fori_loop(0, steps, step, _normalised(jnp.where(speaks, p + 1e-6, 0.0)))


def _normalised(p: Float[Array, "*batch K"]) -> Float[Array, "*batch K"]:
    total = jnp.sum(p, axis=-1, keepdims=True)
    return jnp.where(total > 0, p / jnp.where(total > 0, total, 1.0), 0.0)
