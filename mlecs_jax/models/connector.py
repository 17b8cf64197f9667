"""Connector C of M = {E, C, B}: projectors, fusion and the soft-prompt generator."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


class Connector(nn.Module):
    """From modality latents to one fused representation (absent modalities contribute zeros).

    Projectors ``h_m → s_m`` (Linear d→d each) and fusion ``concat → LayerNorm → Linear → GELU →
    Linear`` to the fused representation ``s`` in the same space, so that s can be the anchor of
    the volume loss.
    """

    modalities: tuple[str, ...]
    latent: int = 64
    hidden: int = 256

    @nn.compact
    def __call__(
        self, encoded: Float[Array, "B M d"], mask: Bool[Array, "B M"]
    ) -> tuple[Float[Array, "B M d"], Float[Array, "B d"]]:
        projected = jnp.stack(
            [nn.Dense(self.latent, name=f"projector_{name}")(encoded[:, i])
             for i, name in enumerate(self.modalities)], axis=1)
        projected = jnp.where(mask[..., None], projected, 0.0)
        x = nn.LayerNorm(name="fusion_norm")(projected.reshape(projected.shape[0], -1))
        x = nn.gelu(nn.Dense(self.hidden, name="fusion_in")(x))
        return projected, nn.Dense(self.latent, name="fusion_out")(x)


class PromptGenerator(nn.Module):
    """Linear → GELU → Dropout → Linear: the fused representation as P soft-prompt vectors."""

    num_tokens: int
    width: int
    hidden: int = 256
    dropout: float = 0.1

    @nn.compact
    def __call__(self, fused: Float[Array, "B d"], *, deterministic: bool) -> Float[Array, "B P D"]:
        x = nn.gelu(nn.Dense(self.hidden)(fused))
        x = nn.Dropout(self.dropout)(x, deterministic=deterministic)
        x = nn.Dense(self.num_tokens * self.width)(x)
        return x.reshape(x.shape[0], self.num_tokens, self.width)
