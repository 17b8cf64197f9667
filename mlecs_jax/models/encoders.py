"""Extractors: one encoder per modality, from standardised readings to a latent vector each."""

from __future__ import annotations

from collections.abc import Mapping

import einops
import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float


class VectorEncoder(nn.Module):
    """Linear → ReLU → LayerNorm → Linear, for feature vectors (ML-ECS release widths: 128, 64)."""

    hidden: int
    latent: int

    @nn.compact
    def __call__(self, x: Float[Array, "B F"]) -> Float[Array, "B d"]:
        x = nn.LayerNorm()(nn.relu(nn.Dense(self.hidden)(x)))
        return nn.Dense(self.latent)(x)


def blocks(x: Float[Array, "B Y X C"], size: int) -> Float[Array, "B y x c"]:
    """Non-overlapping ``size``×``size`` blocks as channels, c = size² C; borders zero-padded."""
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % size), (0, -x.shape[2] % size), (0, 0)))
    return einops.rearrange(x, "b (y i) (x j) c -> b y x (i j c)", i=size, j=size)


def strided_patches(x: Float[Array, "B Y X C"]) -> Float[Array, "B y x c"]:
    """3×3 patches at stride 2, zero-padded, c = 9 C: the receptive fields of a convolution."""
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return jnp.concatenate(
        [padded[:, i:i + height:2, j:j + width:2] for i in range(3) for j in range(3)], axis=-1)


class ImageEncoder(nn.Module):
    """A small CNN: 4×4 patch stem, 3×3 stride-2 convolutions down to 4×4 or less, then a head.

    A convolution is a gather of patches and one matrix product, which stays fast under ``vmap``
    over clients; a native one would become a grouped convolution there.
    """

    hidden: int
    latent: int
    channels: tuple[int, int] = (32, 64)

    @nn.compact
    def __call__(self, x: Float[Array, "B Y X C"]) -> Float[Array, "B d"]:
        x = nn.relu(nn.Dense(self.channels[0])(blocks(x, 4)))
        while max(x.shape[1:3]) > 4:
            x = nn.relu(nn.Dense(self.channels[1])(strided_patches(x)))
        x = x.reshape(x.shape[0], -1)
        return VectorEncoder(self.hidden, self.latent, name="head")(x)


class WindowEncoder(nn.Module):
    """Two strided temporal convolutions over a signal window ``[time, channels]``, then a head."""

    hidden: int
    latent: int
    channels: tuple[int, ...] = (16, 32)

    @nn.compact
    def __call__(self, x: Float[Array, "B W C"]) -> Float[Array, "B d"]:
        for channels in self.channels:
            padded = jnp.pad(x, ((0, 0), (2, 2), (0, 0)))
            taps = [padded[:, i:i + x.shape[1]:2] for i in range(5)]
            x = nn.LayerNorm()(nn.gelu(nn.Dense(channels)(jnp.concatenate(taps, axis=-1))))
        x = x.reshape(x.shape[0], -1)
        return VectorEncoder(self.hidden, self.latent, name="head")(x)


ENCODER_BY_RANK = {1: VectorEncoder, 2: WindowEncoder, 3: ImageEncoder}


class Extractor(nn.Module):
    """E of M = {E, C, B}: every modality through an encoder of its own, chosen by its shape.

    Feature vectors ``[F]``, signal windows ``[time, channels]`` and images ``[Y, X, C]`` are
    known. Parameters lie under the modality's name, so a modality's encoder can be sent alone.
    """

    modalities: tuple[str, ...]
    hidden: int = 128
    latent: int = 64

    @nn.compact
    def __call__(self, inputs: Mapping[str, Array]) -> Float[Array, "B M d"]:
        encoded = [
            ENCODER_BY_RANK[inputs[name].ndim - 1](self.hidden, self.latent, name=name)(
                inputs[name])
            for name in self.modalities
        ]
        return jnp.stack(encoded, axis=1)
