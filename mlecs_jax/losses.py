"""The losses of ML-ECS, named as in the paper. Means over a batch; all differentiable."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from mlecs_jax.kernels import gram_volume, lm_head
from mlecs_jax.models.multimodal import Answer

Tree = Any


@struct.dataclass
class SoftTargets:
    """A teacher's answers as probabilities over few tokens at each position.

    Attributes:
      ids: int32 ``[B, T, K]`` token ids, distinct at each position.
      probabilities: float32 ``[B, T, K]``, at most 1 in sum; all 0 where the teacher is silent.
    """

    ids: Any
    probabilities: Any


def language_modelling(answer: Answer, target: Int[Array, "B T"]) -> Float[Array, ""]:
    """L_lb: mean negative log-likelihood of the answer tokens (target -1 is padding)."""
    nll = lm_head.linear_cross_entropy(
        _tokens(answer.hidden), answer.head, target.reshape(-1), bias=answer.bias)
    return _mean_over_tokens(nll.reshape(target.shape), target)


def distillation(answer: Answer, teacher: SoftTargets) -> Float[Array, ""]:
    """Mean cross-entropy −Σ_k p_k log q_k of a teacher's soft answers, over positions it speaks of.

    The student's probability of a token is over its whole vocabulary, so that it also learns to
    answer with those tokens and no others.
    """
    hidden = answer.hidden[:, :teacher.ids.shape[1]]
    # Any label's cross-entropy is log-sum-exp minus that label's score: the first gives the former.
    scores = jnp.einsum("btd,btkd->btk", hidden, answer.head[teacher.ids].astype(hidden.dtype))
    if answer.bias is not None:
        scores = scores + answer.bias[teacher.ids]
    first = lm_head.linear_cross_entropy(
        _tokens(hidden), answer.head, teacher.ids[..., 0].reshape(-1), bias=answer.bias)
    normaliser = first.reshape(scores.shape[:2]) + scores[..., 0]
    mass = teacher.probabilities.sum(-1)
    values = mass * normaliser - jnp.sum(teacher.probabilities * scores, axis=-1)
    return jnp.sum(values) / jnp.maximum(jnp.sum(mass > 0), 1)


def proximal(params: Tree, centre: Tree, weight: Tree) -> Float[Array, ""]:
    """½ Σ w ‖θ − θ_centre‖² (FedProx; FedMLLM with a weight per layer).

    Args:
      centre: a tree of the shape of ``params``.
      weight: a prefix of that tree, of scalars or of arrays that broadcast against their leaf
        (``[L, 1, …]`` for a leaf stacked over layers).
    """
    weight = jax.tree.broadcast(weight, params)
    squares = jax.tree.map(lambda w, x, c: jnp.sum(w * (x - c) ** 2), weight, params, centre)
    return 0.5 * jax.tree.reduce(jnp.add, squares)


def volume_contrast(
    anchors: Float[Array, "B d"],
    others: Float[Array, "B k d"],
    mask: Bool[Array, "B k"],
    *,
    temperature: float | Float[Array, ""] = 0.07,
    label_smoothing: float = 0.0,
    negatives_mask: Bool[Array, "B B"] | None = None,
) -> Float[Array, ""]:
    """½ (L_A2O + L_O2A), ML-ECS Eqs. 7–8, on L2-normalised vectors.

    The volume V(a, b) = sqrt(det Gram(anchor_a, others_b)) is small where vectors agree; rows and
    columns of softmax(−V/τ) are pulled towards the diagonal. (The printed equations lack the
    minus sign of a cross-entropy and move both arguments in Eq. 7; see docs/algorithm.md.)
    """
    return gram_volume.volume_contrastive_loss(
        unit(anchors), unit(others), mask, temperature=temperature,
        label_smoothing=label_smoothing, negatives_mask=negatives_mask)


def knowledge_transfer(
    teacher: Answer,
    student: Answer,
    target: Int[Array, "B T"],
    *,
    pooling: Literal["topk_rest", "adaptive_avg", "sorted_topk"] = "topk_rest",
    k: int = 32,
    temperature: float = 1.0,
) -> Float[Array, ""]:
    """KL(teacher ‖ student) of pooled logits at answer positions, the KT term of Eqs. 15–16.

    "Pooled" is not defined in the paper. ``topk_rest``: the teacher's k likeliest tokens and one
    bucket for all the rest, k + 1 outcomes with token identity kept. ``adaptive_avg``: logits
    averaged over k bins of the vocabulary. ``sorted_topk``: the k largest logits of each model in
    order, for unequal tokenizers. Vocabularies are cut to the shared prefix first (padding rows
    differ). No gradient reaches the teacher.
    """
    shared = min(len(teacher.head), len(student.head))
    teacher, student = _first_tokens(teacher, shared), _first_tokens(student, shared)
    kl = lm_head.linear_kl(
        _tokens(teacher.hidden), teacher.head, _tokens(student.hidden), student.head,
        teacher_bias=teacher.bias, student_bias=student.bias, temperature=temperature,
        pooling=pooling, k=min(k, shared - 1))
    return _mean_over_tokens(kl.reshape(target.shape), target)


def unit(x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
    """x / |x|, and 0 (with zero gradient) for a zero vector."""
    squared = jnp.sum(x * x, axis=-1, keepdims=True)
    safe = squared > 1e-12
    return jnp.where(safe, x * jax.lax.rsqrt(jnp.where(safe, squared, 1.0)), 0.0)


def _mean_over_tokens(values: Float[Array, "B T"], target: Int[Array, "B T"]) -> Float[Array, ""]:
    weights = (target >= 0).astype(values.dtype)
    return jnp.sum(values * weights) / jnp.maximum(jnp.sum(weights), 1.0)


def _tokens(hidden: Float[Array, "B T D"]) -> Float[Array, "N D"]:
    return hidden.reshape(-1, hidden.shape[-1])


def _first_tokens(answer: Answer, size: int) -> Answer:
    """The answer over token ids below ``size`` alone."""
    bias = None if answer.bias is None else answer.bias[:size]
    return Answer(answer.hidden, answer.head[:size], bias)
