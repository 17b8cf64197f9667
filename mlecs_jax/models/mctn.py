"""MCTN: multimodal cyclic translation (Pham et al., "Found in Translation", AAAI 2019).

Text is translated into vision and back by one sequence-to-sequence network; its code is
translated into audio by a second, whose code gives the sentiment. Only text is read at test time.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mlecs_jax.models.ctc import same_length
from mlecs_jax.models.recurrent import LSTM, BiLSTM, lstm_step
from mlecs_jax.models.sentiment import SentimentModel
from mlecs_jax.models.sentiment_baselines import baseline


class AttentionDecoder(nn.Module):
    """An LSTM that reads, at each step, an additive-attention mean of a code; then a linear map."""

    hidden: int
    width: int

    @nn.compact
    def __call__(self, code: Float[Array, "B T h"]) -> Float[Array, "B T w"]:
        keys = nn.Dense(self.hidden, name="keys")(code)
        query = self.param("query_kernel", nn.initializers.lecun_normal(),
                           (self.hidden, self.hidden))
        score = self.param("score_kernel", nn.initializers.lecun_normal(), (self.hidden, 1))
        kernel = self.param("cell_kernel", nn.initializers.lecun_normal(),
                            (2 * self.hidden, 4 * self.hidden))
        bias = self.param("cell_bias", nn.initializers.zeros, (4 * self.hidden,))

        def step(carry, _):
            h, c = carry
            scores = jnp.tanh(keys + (h @ query)[:, None]) @ score
            read = jnp.sum(jax.nn.softmax(scores, axis=1) * code, axis=1)
            h, c = lstm_step(c, jnp.concatenate([read, h], axis=-1) @ kernel + bias)
            return (h, c), h

        zeros = jnp.zeros((code.shape[0], self.hidden), code.dtype)
        _, states = jax.lax.scan(step, (zeros, zeros), None, length=code.shape[1])
        return nn.Dense(self.width, name="out")(states.swapaxes(0, 1))


class Translator(nn.Module):
    """Bidirectional encoder (directions summed) and attention decoder."""

    hidden: int
    width: int

    def setup(self) -> None:
        self.encoder = BiLSTM(self.hidden)
        self.decoder = AttentionDecoder(self.hidden, self.width)

    def encode(self, x: Float[Array, "B T d"]) -> Float[Array, "B T h"]:
        return self.encoder(x)

    def decode(self, code: Float[Array, "B T h"]) -> Float[Array, "B T w"]:
        return self.decoder(code)


class MctnCore(nn.Module):
    """Text → vision → text, code → audio, code → sentiment."""

    hidden: int
    translation_weight: float
    l2: float

    @nn.compact
    def __call__(self, text, audio, vision, deterministic):
        same_length(text, audio, vision)
        width = max(x.shape[-1] for x in (text, audio, vision))
        source, second, third = (_widened(x, width) for x in (text, vision, audio))
        cycle = Translator(self.hidden, width, name="cycle")
        onward = Translator(self.hidden, width, name="onward")
        code = cycle.encode(source)
        joint = onward.encode(code)
        h = LSTM(self.hidden, name="regressor")(joint)
        shares = jax.nn.softmax(nn.Dense(1, name="attention_score")(
            jnp.tanh(nn.Dense(self.hidden, name="attention_in")(h))), axis=1)
        head = nn.Dense(1, name="head")
        prediction = head(jnp.sum(shares * h, axis=1))[:, 0]
        if deterministic and not self.is_initializing():
            return prediction, {}
        forward = cycle.decode(code)
        back = cycle.decode(cycle.encode(forward))
        errors = {"forward": forward - second, "cycle": back - source,
                  "onward": onward.decode(joint) - third}
        extra = {name: self.translation_weight * jnp.mean(error ** 2)
                 for name, error in errors.items()}
        kernel = head.variables["params"]["kernel"]
        return prediction, extra | {"l2": self.l2 * jnp.sum(kernel ** 2)}


def _widened(x: Float[Array, "B T d"], width: int) -> Float[Array, "B T w"]:
    return jnp.pad(x, ((0, 0), (0, 0), (0, width - x.shape[-1])))


def mctn(*, align: bool, hidden: int = 32, translation_weight: float = 0.1,
         l2: float = 0.01) -> SentimentModel:
    """MCTN with the published widths and weights: .1 for each translation, 1 for the task.

    Features are zero-padded to a common width.
    """
    return baseline("MCTN", MctnCore(hidden, translation_weight, l2), align=align)
