"""Baselines of Mega-CE²'s Tables 1 and 2 with recurrent cores: EF-LSTM, LF-LSTM, RAVEN.

Parameters are ``{'align': CTC alignment, 'model': the core}``, without ``align`` where streams are
taken as they are. Cores take the three streams and return the prediction and extra loss terms.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mlecs_jax.data.sentiment import SentimentBatch
from mlecs_jax.models import initial
from mlecs_jax.models.ctc import AlignedStreams, same_length
from mlecs_jax.models.recurrent import LSTM, StackedLSTM
from mlecs_jax.models.sentiment import SentimentModel

Extra = dict[str, Array]
"""Named, weighted terms that are added to a model's own task loss."""


class Baseline(nn.Module):
    """Alignment where asked for, then a core."""

    model: nn.Module
    align: bool

    @nn.compact
    def __call__(
        self, batch: SentimentBatch, deterministic: bool
    ) -> tuple[Float[Array, " B"], Extra]:
        if not self.align:
            return self.model(batch.text, batch.audio, batch.vision, deterministic)
        streams, alignment = AlignedStreams(name="align")(batch)
        prediction, extra = self.model(*streams, deterministic)
        return prediction, extra | {"ctc": alignment}


def baseline(
    name: str, core: nn.Module, *, align: bool, squared: bool = False,
    calibrate: Callable | None = None,
) -> SentimentModel:
    """A core behind the common interface.

    Args:
      align: learn a CTC alignment of audio and vision to the text's length.
      squared: the task loss is the mean squared error (RAVEN) and not the absolute one.
    """
    module = Baseline(core, align)

    def run(params, batch, train, key):
        return module.apply({"params": params}, batch, not train,
                            rngs={"dropout": key} if train else None)

    def init(key, example):
        example = jax.tree.map(jnp.asarray, example)
        return initial.draw_uniform(lambda key: module.init(key, example, True), key,
                                    xavier="layers")

    def apply(params, batch, *, train=False, key=None):
        return run(params, batch, train, key)[0]

    def loss(params, batch, key):
        prediction, extra = run(params, batch, True, key)
        error = prediction - batch.labels
        mae = jnp.mean(jnp.abs(error))
        task = jnp.mean(error ** 2) if squared else mae
        return sum(extra.values(), task), {"mae": mae, **extra}

    return SentimentModel(name, init, apply, loss, calibrate or (lambda params, train: params),
                          separate_learners=align)


class TimeBatchNorm(nn.Module):
    """Batch normalisation with one mean and variance per time position (over batch and features).

    In training those of the batch; in evaluation the stored ones, which :func:`ef_lstm`'s
    ``calibrate`` measures on the training segments, where others keep a running average.
    """

    @nn.compact
    def __call__(self, x: Float[Array, "B T d"], deterministic: bool) -> Float[Array, "B T d"]:
        steps = x.shape[1]
        mean = self.param("mean", nn.initializers.zeros, (steps,))
        variance = self.param("variance", nn.initializers.zeros, (steps,))
        scale = self.param("scale", nn.initializers.ones, (steps,))
        shift = self.param("shift", nn.initializers.zeros, (steps,))
        if not deterministic:
            mean, variance = x.mean(axis=(0, 2)), x.var(axis=(0, 2))
        normed = (x - mean[:, None]) * jax.lax.rsqrt(variance[:, None] + 1e-5)
        return normed * scale[:, None] + shift[:, None]


class EFCore(nn.Module):
    """Early fusion: features side by side → batch norm → LSTM → last state → two-layer head."""

    hidden: int
    layers: int
    dropout: float

    @nn.compact
    def __call__(self, text, audio, vision, deterministic):
        drop = nn.Dropout(self.dropout, deterministic=deterministic)
        x = jnp.concatenate(same_length(text, audio, vision), axis=-1)
        x = TimeBatchNorm(name="norm")(x, deterministic)
        h = StackedLSTM(self.hidden, self.layers, self.dropout, deterministic, name="lstm")(x)
        h = drop(nn.relu(nn.Dense(self.hidden, name="head_in")(drop(h[:, -1]))))
        return nn.Dense(1, name="head")(h)[:, 0], {}


def ef_lstm(*, align: bool, hidden: int = 128, layers: int = 4,
            dropout: float = 0.5) -> SentimentModel:
    """EF-LSTM as in MMSA; defaults are its MOSI values (MOSEI: 256, 2, .4)."""
    def calibrate(params, train):
        streams = (train.text, train.audio, train.vision)
        if align:
            streams, _ = jax.jit(AlignedStreams().apply)({"params": params["align"]}, train)
        x = jnp.concatenate(streams, axis=-1)
        norm = params["model"]["norm"] | {"mean": x.mean(axis=(0, 2)),
                                          "variance": x.var(axis=(0, 2))}
        return params | {"model": params["model"] | {"norm": norm}}

    return baseline("EF-LSTM", EFCore(hidden, layers, dropout), align=align, calibrate=calibrate)


class LFCore(nn.Module):
    """Late fusion: an LSTM per modality, last states side by side, a two-layer head."""

    hidden: int
    dropout: float

    @nn.compact
    def __call__(self, text, audio, vision, deterministic):
        states = [LSTM(self.hidden, name=name)(x)[:, -1]
                  for name, x in (("text", text), ("audio", audio), ("vision", vision))]
        h = nn.relu(nn.Dense(self.hidden, name="head_in")(jnp.concatenate(states, axis=-1)))
        h = nn.Dropout(self.dropout, deterministic=deterministic)(h)
        return nn.Dense(1, name="head")(h)[:, 0], {}


def lf_lstm(*, hidden: int = 128, dropout: float = 0.3) -> SentimentModel:
    """LF-LSTM; there is no canonical code, widths are ours. Streams may differ in length."""
    return baseline("LF-LSTM", LFCore(hidden, dropout), align=False)


class RavenCore(nn.Module):
    """RAVEN: words moved in their space by what is heard and seen meanwhile (Wang et al., 2019).

    A word's audio and vision are one step each here, their sub-sequence after alignment.
    """

    nonverbal: int
    hidden: int
    limit: float
    gate_sigmoid: bool
    dropout: float

    @nn.compact
    def __call__(self, text, audio, vision, deterministic):
        drop = nn.Dropout(self.dropout, deterministic=deterministic)
        same_length(text, audio, vision)
        gated = []
        for name, x in (("audio", audio), ("vision", vision)):
            steps = nn.Dense(self.nonverbal, name=f"{name}_in")(drop(x))
            # One step per word: an LSTM from zero state over a sub-sequence of length one.
            state = LSTM(self.nonverbal, name=name)(steps.reshape(-1, 1, self.nonverbal))
            state = state.reshape(steps.shape)
            gate = nn.Dense(1, name=f"{name}_gate")(jnp.concatenate([state, text], axis=-1))
            gated.append((nn.sigmoid(gate) if self.gate_sigmoid else gate) * state)
        shift = nn.Dense(text.shape[-1], name="shift")(jnp.concatenate(gated, axis=-1))
        word, moved = (jnp.sqrt(jnp.sum(v ** 2, axis=-1, keepdims=True) + 1e-12)
                       for v in (text, shift))
        shift = shift * jnp.minimum(self.limit * word / moved, 1.0)
        h = LSTM(self.hidden, name="words")(drop(text + shift))[:, -1]
        return nn.Dense(1, name="head")(h)[:, 0], {}


def raven(*, align: bool, nonverbal: int = 150, hidden: int = 300, limit: float = 0.2,
          gate_sigmoid: bool = False, dropout: float = 0.2) -> SentimentModel:
    """RAVEN with the published widths and squared error.

    Args:
      limit: β, the largest shift as a share of the word's norm.
      gate_sigmoid: the paper's gates; the published code has none. That code also keeps gradients
        from the non-verbal branch; not so here.
    """
    return baseline("RAVEN", RavenCore(nonverbal, hidden, limit, gate_sigmoid, dropout),
                    align=align, squared=True)
