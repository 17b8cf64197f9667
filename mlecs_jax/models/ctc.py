"""Pseudo-alignment by connectionist temporal classification, for models that need equal lengths.

As in MulT's published code: an LSTM says for every step of a stream to which of L word positions
(or to none) it belongs, and the stream is summed under those probabilities.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from mlecs_jax.data.sentiment import SentimentBatch
from mlecs_jax.errors import UserError
from mlecs_jax.models.recurrent import StackedLSTM


class CTCAlign(nn.Module):
    """A stream of T steps as L pseudo-aligned ones.

    A two-layer LSTM of width L + 1 gives class scores per step; class 0 is blank, class l the
    l-th word position.
    """

    length: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T d"]
    ) -> tuple[Float[Array, "B L d"], Float[Array, "B T classes"]]:
        scores = StackedLSTM(self.length + 1, 2, 0.0, True, name="lstm")(x)
        shares = jax.nn.softmax(scores, axis=-1)[..., 1:]
        return jnp.einsum("btl,btd->bld", shares, x), scores


def alignment_loss(scores: Float[Array, "B T classes"]) -> Float[Array, ""]:
    """CTC loss of the word positions 1…L in order, mean over the batch, per position.

    Raises:
      UserError: fewer steps than word positions, which no alignment can have.
    """
    batch, steps, length = scores.shape[0], scores.shape[1], scores.shape[2] - 1
    if steps < length:
        raise UserError(f"a stream of {steps} steps cannot be aligned to {length} words; use "
                        "a model that needs no alignment (mult, lf_lstm, v2em_lite)")
    targets = jnp.broadcast_to(jnp.arange(1, length + 1), (batch, length))
    losses = optax.ctc_loss(scores, jnp.zeros((batch, steps)), targets, jnp.zeros((batch, length)))
    return jnp.mean(losses) / length


class AlignedStreams(nn.Module):
    """Text as it is, audio and vision aligned to its length; and the loss of the alignment."""

    @nn.compact
    def __call__(self, batch: SentimentBatch) -> tuple[tuple[Array, Array, Array], Array]:
        steps = batch.text.shape[1]
        audio, audio_scores = CTCAlign(steps, name="audio")(batch.audio)
        vision, vision_scores = CTCAlign(steps, name="vision")(batch.vision)
        loss = alignment_loss(audio_scores) + alignment_loss(vision_scores)
        return (batch.text, audio, vision), loss


def same_length(*streams: Float[Array, "B _ _"]) -> tuple[Float[Array, "B _ _"], ...]:
    """The streams, for models that read them step by step together.

    Raises:
      UserError: they differ in length.
    """
    if len({stream.shape[1] for stream in streams}) > 1:
        lengths = ", ".join(str(stream.shape[1]) for stream in streams)
        raise UserError(f"text, audio and vision have {lengths} steps; build the "
                        "model with align=True")
    return streams
