"""V2EM-lite: FV2ES's fully end-to-end emotion model, re-targeted to feature files and sentiment.

The original reads raw video, sound and words and predicts six emotions. What is kept: a
re-parameterisable multi-branch convolution over vision, hierarchical block attention over audio, a
transformer with a class token per modality, and a weighted sum of one score per modality. What
differs: inputs are feature sequences, convolutions run over time, there is one output and L1.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mlecs_jax.models import initial
from mlecs_jax.models.crossmodal import CrossModalConfig, Transformer
from mlecs_jax.models.sentiment import SentimentModel
from mlecs_jax.models.sentiment_baselines import baseline


class BranchedConv(nn.Module):
    """ReLU of a kernel of 3, a kernel of 1 and the identity, summed (RepVGG over time)."""

    @nn.compact
    def __call__(self, x: Float[Array, "B T d"]) -> Float[Array, "B T d"]:
        d = x.shape[-1]
        return nn.relu(nn.Conv(d, (3,), name="wide")(x) + nn.Conv(d, (1,), name="point")(x) + x)


def fuse_branches(branches: dict) -> dict:
    """Parameters of the one convolution, kernel ``[3, d, d]``, that equals three branches."""
    wide, point = branches["wide"], branches["point"]
    d = wide["kernel"].shape[-1]
    centre = point["kernel"][0] + jnp.eye(d)
    return {"kernel": wide["kernel"].at[1].add(centre), "bias": wide["bias"] + point["bias"]}


class ClassToken(nn.Module):
    """A learnt token before the sequence, a transformer, the token's output as one score."""

    layers: int
    config: CrossModalConfig
    deterministic: bool

    @nn.compact
    def __call__(self, x: Float[Array, "B T d"]) -> Float[Array, " B"]:
        token = self.param(initial.TOKEN, nn.initializers.normal(initial.TOKEN_STD),
                           (x.shape[-1],))
        x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, x.shape[-1])), x], axis=1)
        x = Transformer(self.layers, self.config, self.config.attention_dropout[0], False,
                        self.deterministic, name="transformer")(x)
        return nn.Dense(1, name="score")(x[:, 0])[:, 0]


class BlockAttention(nn.Module):
    """A transformer layer within blocks of ``block`` steps (NesT over time)."""

    block: int
    config: CrossModalConfig
    deterministic: bool

    @nn.compact
    def __call__(self, x: Float[Array, "B T d"]) -> Float[Array, "B t d"]:
        batch, steps, d = x.shape
        block = min(self.block, steps)
        x = jnp.pad(x, ((0, 0), (-steps % block, 0), (0, 0)))
        blocks = x.reshape(-1, block, d)
        blocks = Transformer(1, self.config, self.config.attention_dropout[0], False,
                             self.deterministic, name="transformer")(blocks)
        return blocks.reshape(batch, -1, d)


class V2emCore(nn.Module):
    """The three branches and their weighted sum."""

    width: int
    layers: int
    heads: int
    block: int
    dropout: float

    @nn.compact
    def __call__(self, text, audio, vision, deterministic):
        rate = self.dropout
        config = CrossModalConfig(
            width=self.width, layers=self.layers, heads=self.heads, embed_dropout=rate,
            attention_dropout=(rate, rate, rate), relu_dropout=rate, residual_dropout=rate)
        streams = {"text": nn.Dense(self.width, name="text_in")(text)}
        x = nn.Dense(self.width, name="vision_in")(vision)
        for i in range(2):
            x = BranchedConv(name=f"vision_block_{i}")(x)
        streams["vision"] = x
        x = nn.Dense(self.width, name="audio_in")(audio)
        x = BlockAttention(self.block, config, deterministic, name="audio_fine")(x)
        x = jnp.pad(x, ((0, 0), (x.shape[1] % 2, 0), (0, 0)))
        x = jnp.max(x.reshape(x.shape[0], -1, 2, self.width), axis=2)  # merge neighbours
        streams["audio"] = BlockAttention(self.block, config, deterministic,
                                          name="audio_coarse")(x)
        scores = [ClassToken(self.layers, config, deterministic, name=name)(stream)
                  for name, stream in streams.items()]
        fused = nn.Dense(1, use_bias=False, name="fusion")(jnp.stack(scores, axis=-1))
        return fused[:, 0], {}


def v2em_lite(*, width: int = 64, layers: int = 4, heads: int = 4, block: int = 8,
              dropout: float = 0.1) -> SentimentModel:
    """V2EM-lite with FV2ES's transformer size (64 wide, 4 layers, 4 heads)."""
    return baseline("V2EM-lite", V2emCore(width, layers, heads, block, dropout), align=False)
