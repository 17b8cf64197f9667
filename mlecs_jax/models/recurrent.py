"""LSTMs of the sentiment baselines: one scan, input projections outside it."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class LSTM(nn.Module):
    """One LSTM layer from zero state; all hidden states, in the order of the input.

    Attributes:
      hidden: width h.
      reverse: reads from the last step to the first.
    """

    hidden: int
    reverse: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B T d"]) -> Float[Array, "B T h"]:
        inputs = nn.Dense(4 * self.hidden, name="input")(x)
        kernel = self.param("recurrent_kernel", nn.initializers.orthogonal(),
                            (self.hidden, 4 * self.hidden))

        def step(carry, projected):
            h, c = lstm_step(carry[1], projected + carry[0] @ kernel)
            return (h, c), h

        zeros = jnp.zeros((x.shape[0], self.hidden), x.dtype)
        _, states = jax.lax.scan(step, (zeros, zeros), inputs.swapaxes(0, 1),
                                 reverse=self.reverse)
        return states.swapaxes(0, 1)


def lstm_step(
    c: Float[Array, "B h"], gates: Float[Array, "B h4"]
) -> tuple[Float[Array, "B h"], Float[Array, "B h"]]:
    """One LSTM cell update; ``gates`` are input, forget, cell and output before activation.

    Returns:
      The new hidden state and cell.
    """
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


class StackedLSTM(nn.Module):
    """LSTM layers on top of each other, dropout between them; the last layer's states."""

    hidden: int
    layers: int
    dropout: float
    deterministic: bool

    @nn.compact
    def __call__(self, x: Float[Array, "B T d"]) -> Float[Array, "B T h"]:
        for i in range(self.layers):
            if i:
                x = nn.Dropout(self.dropout, deterministic=self.deterministic)(x)
            x = LSTM(self.hidden, name=f"layer_{i}")(x)
        return x


class BiLSTM(nn.Module):
    """Both directions, their states summed."""

    hidden: int

    @nn.compact
    def __call__(self, x: Float[Array, "B T d"]) -> Float[Array, "B T h"]:
        return (LSTM(self.hidden, name="forward")(x)
                + LSTM(self.hidden, reverse=True, name="backward")(x))
