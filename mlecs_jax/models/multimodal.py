"""The unified multimodal model M = {E, C, B} of ML-ECS, as pure functions of parameter trees.

Trainable parameters of one node are a dict of groups::

    {'extractor': E, 'connector': projectors and fusion, 'generator': soft prompts, 'lora': B's}

The paper's connector C is ``connector`` and ``generator`` together; they are two groups because
the server's SLM has a generator of its own on the LLM's fused representation. The backbone B is
frozen and passed beside them, so that any number of nodes share it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from mlecs_jax import lora, sharding
from mlecs_jax.lora import Params
from mlecs_jax.models import initial
from mlecs_jax.models.connector import Connector, PromptGenerator
from mlecs_jax.models.decoder import Decoder
from mlecs_jax.models.encoders import Extractor

Leaf = Any  # an array, or whatever JAX puts in its place while it maps over a tree


@struct.dataclass
class Batch:
    """Samples ready for a model.

    Attributes:
      inputs: ``{modality: float32 [B, …]}``, standardised.
      mask: bool ``[B, M]``, True where the node has the modality for the sample.
      target: int32 ``[B, T]``, answer tokens, -1 at padding.
    """

    inputs: Mapping[str, Leaf]
    mask: Leaf
    target: Leaf


@struct.dataclass
class Answer:
    """What a model says at every answer position, before its vocabulary head is applied.

    Losses take it whole, so that none has to write logits ``[B, T, V]``
    (:mod:`mlecs_jax.kernels.lm_head`).

    Attributes:
      hidden: ``[B, T, D]`` final hidden states.
      head: ``[V, D]``, a row per token.
      bias: ``[V]`` or None.
    """

    hidden: Leaf
    head: Leaf
    bias: Leaf = None

    def logits(self) -> Float[Array, "B T V"]:
        """Scores over the vocabulary, written out."""
        logits = self.hidden @ self.head.astype(self.hidden.dtype).T
        return logits if self.bias is None else logits + self.bias.astype(logits.dtype)


@dataclasses.dataclass(frozen=True)
class MultimodalModel:
    """E, C and B with the instruction prompt they share.

    Attributes:
      prompt: instruction token ids placed between soft prompt and answer.
      lora_targets, lora_rank: which backbone layers are adapted, and how.
    """

    extractor: Extractor
    connector: Connector
    generator: PromptGenerator
    decoder: Decoder
    prompt: tuple[int, ...]
    lora_targets: tuple[str, ...]
    lora_rank: int

    def init_backbone(self, key: PRNGKeyArray) -> Params:
        """Seeded frozen backbone parameters, on the host."""
        config = self.decoder.config
        params = initial.draw(self._init_decoder, key, embedding_std=config.embedding_std)
        return params if config.dtype == "float32" else jax.tree.map(
            lambda x: x.astype(config.dtype), params)

    def backbone_shapes(self) -> Params:
        """Shapes and types of :meth:`init_backbone`, without making it."""
        params = jax.eval_shape(self._init_decoder, jax.random.key(0))["params"]
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, self.decoder.config.dtype), params)

    def _init_decoder(self, key: PRNGKeyArray) -> Params:
        # Without the mesh: one token cannot be split over it.
        return cast(Params, self.decoder.clone(mesh=None).init(key, jnp.zeros((1, 1), jnp.int32)))

    def init(self, key: PRNGKeyArray, backbone: Params, inputs: Mapping[str, Array]) -> Params:
        """Trainable groups, on the host.

        Args:
          backbone: frozen parameters, or their shapes.
          inputs: one batch of any size, which fixes the input shapes.
        """
        keys = jax.random.split(key, 4)
        batch = len(next(iter(inputs.values())))
        encoded = jnp.zeros((batch, len(inputs), self.extractor.latent))
        mask = jnp.ones((batch, len(inputs)), bool)
        return {
            "extractor": initial.draw(lambda k: self.extractor.init(k, inputs), keys[0]),
            "connector": initial.draw(lambda k: self.connector.init(k, encoded, mask), keys[1]),
            "generator": initial.draw(
                lambda k: self.generator.init(k, encoded[:, 0], deterministic=True), keys[2]),
            "lora": lora.init(keys[3], backbone, self.lora_targets, self.lora_rank),
        }

    def represent(
        self, params: Params, inputs: Mapping[str, Array], mask: Bool[Array, "B M"]
    ) -> tuple[Float[Array, "B M d"], Float[Array, "B d"]]:
        """Projected modality vectors (zero where absent) and the fused representation."""
        encoded = self.extractor.apply({"params": params["extractor"]}, inputs)
        # Casts here and below: flax's type of `apply` also allows for mutated variables.
        return cast(tuple[Array, Array], self.connector.apply(
            {"params": params["connector"]}, encoded, mask))

    def answer(
        self,
        backbone: Params,
        params: Params,
        fused: Float[Array, "B d"],
        target: Int[Array, "B T"],
        key: PRNGKeyArray | None = None,
    ) -> Answer:
        """What it says of each answer token given those before it (teacher forcing).

        Args:
          params: needs groups ``generator`` and ``lora`` only.
          key: dropout key; None evaluates without dropout.
        """
        deterministic = key is None
        keys = None if key is None else jax.random.split(key)
        prefix = cast(Array, self.generator.apply(
            {"params": params["generator"]}, fused, deterministic=deterministic,
            rngs=None if keys is None else {"dropout": keys[0]}))
        prompt = jnp.asarray(self.prompt, jnp.int32)
        prompt = jnp.broadcast_to(prompt, (target.shape[0], len(self.prompt)))
        tokens = jnp.concatenate([prompt, jnp.maximum(target[:, :-1], 0)], axis=1)
        variables = {"params": backbone, "lora": params["lora"]}
        hidden = cast(Array, self.decoder.apply(
            variables, tokens, prefix=prefix, deterministic=deterministic,
            last=target.shape[1],  # from the state that predicts the first token on
            rngs=None if keys is None else {"dropout": keys[1]}, method="hidden"))
        head, bias = cast(tuple[Array, Array | None],
                          self.decoder.apply({"params": backbone}, method="head"))
        # A head split over a mesh stays where it is: the few answer positions are sent to all.
        said = sharding.constrain(hidden, self.decoder.mesh)
        return Answer(said, head, bias)
