"""The losses of ML-ECS, named as in the paper. Means over a batch; all differentiable."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from mlecs_jax.kernels import gram_volume


def language_modelling(
    logits: Float[Array, "B T V"], target: Int[Array, "B T"]
) -> Float[Array, ""]:
    """L_lb: mean negative log-likelihood of the answer tokens (target -1 is padding)."""
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(target, 0))
    return _mean_over_tokens(nll, target)


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
    teacher: Float[Array, "B T V"],
    student: Float[Array, "B T W"],
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
    shared = min(teacher.shape[-1], student.shape[-1])
    teacher = jax.lax.stop_gradient(teacher[..., :shared]) / temperature
    student = student[..., :shared] / temperature
    k = min(k, shared - 1)
    if pooling == "topk_rest":
        log_p, log_q = jax.nn.log_softmax(teacher), jax.nn.log_softmax(student)
        top, ids = jax.lax.top_k(log_p, k)
        log_p = _with_rest(top)
        log_q = _with_rest(jnp.take_along_axis(log_q, ids, axis=-1))
    elif pooling == "adaptive_avg":
        log_p = jax.nn.log_softmax(_bin_means(teacher, k))
        log_q = jax.nn.log_softmax(_bin_means(student, k))
    else:
        log_p = jax.nn.log_softmax(jax.lax.top_k(teacher, k)[0])
        log_q = jax.nn.log_softmax(jax.lax.top_k(student, k)[0])
    return _mean_over_tokens(jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1), target)


def unit(x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
    """x / |x|, and 0 (with zero gradient) for a zero vector."""
    squared = jnp.sum(x * x, axis=-1, keepdims=True)
    safe = squared > 1e-12
    return jnp.where(safe, x * jax.lax.rsqrt(jnp.where(safe, squared, 1.0)), 0.0)


def _mean_over_tokens(values: Float[Array, "B T"], target: Int[Array, "B T"]) -> Float[Array, ""]:
    weights = (target >= 0).astype(values.dtype)
    return jnp.sum(values * weights) / jnp.maximum(jnp.sum(weights), 1.0)


def _with_rest(top: Float[Array, "*batch k"]) -> Float[Array, "*batch k+1"]:
    """Log-probabilities of chosen outcomes with the log of the remaining mass appended."""
    rest = jnp.log(jnp.maximum(1.0 - jnp.sum(jnp.exp(top), axis=-1, keepdims=True), 1e-6))
    return jnp.concatenate([top, rest], axis=-1)


def _bin_means(x: Float[Array, "*batch V"], bins: int) -> Float[Array, "*batch bins"]:
    """Averages over ``bins`` nearly equal runs of the last axis (adaptive average pooling)."""
    edges = [round(i * x.shape[-1] / bins) for i in range(bins + 1)]
    return jnp.stack([x[..., a:b].mean(-1) for a, b in zip(edges, edges[1:], strict=False)], -1)
