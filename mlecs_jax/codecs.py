"""Compressed uploads: what a device sends in place of a tree of floats.

A device and the server both know the tree that was broadcast last, so what travels is the
*difference* to it, in bfloat16, as 8-bit integers with one scale a tensor, or as its largest
entries. What an encoding leaves out stays on the device and is added to its next message (error
feedback; Seide et al. 2014, Karimireddy et al. 2019), so that nothing is lost for good. A deployed
device whose message did not count keeps back again what it held of earlier ones.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from mlecs_jax.config import ChannelConfig

Tree = Any
Message = dict[str, Array]
"""One encoded tensor."""


@dataclasses.dataclass(frozen=True)
class Codec:
    """An encoding of single tensors.

    Attributes:
      encode: ``tensor → message``.
      decode: ``(message, shape) → tensor``, float32.
    """

    encode: Callable[[Array], Message]
    decode: Callable[[Message, tuple[int, ...]], Array]


def codec(options: ChannelConfig) -> Codec | None:
    """The encoding that the configuration names; None for ``none``."""
    if options.uplink == "none":
        return None
    if options.uplink == "topk":
        return Codec(functools.partial(_largest, options.topk_fraction), _scattered)
    return {"bf16": Codec(_bf16, _from_bf16), "int8": Codec(_int8, _from_int8)}[options.uplink]


class Uplink:
    """The way of stacked devices' trees to the server.

    Without a codec trees pass as they are, and nothing is kept back.
    """

    def __init__(self, options: ChannelConfig):
        self._codec = codec(options)
        self._encode = jax.jit(self._encoded)
        self._decode = jax.jit(self._decoded)

    def nothing_kept(self, tree: Tree, num_clients: int) -> Tree:
        """What devices have kept back before the first message: zeros ``[C, …]``, or no leaves."""
        if self._codec is None:
            return {}
        return jax.tree.map(lambda x: jnp.zeros((num_clients, *x.shape), jnp.float32), tree)

    def send(self, trees: Tree, known: Tree, kept: Tree) -> tuple[Tree, Tree]:
        """What the devices send, and what they keep back for the next time.

        Args:
          trees: ``[C, …]``, one per device.
          known: the tree ``[…]`` that both ends have, broadcast last.
          kept: of the round before.
        """
        return (trees, kept) if self._codec is None else self._encode(trees, known, kept)

    def receive(self, messages: Tree, known: Tree) -> Tree:
        """The devices' trees ``[C, …]`` as the server has them."""
        return messages if self._codec is None else self._decode(messages, known)

    def message(self, tree: Tree) -> Tree:
        """The shapes of what one device sends for one tree, to be counted."""
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
        codec = self._codec
        if codec is None:
            return shapes
        return jax.eval_shape(lambda t: jax.tree.map(codec.encode, t), shapes)

    def _encoded(self, trees: Tree, known: Tree, kept: Tree) -> tuple[Tree, Tree]:
        codec = self._codec
        assert codec is not None

        def one(own: Array, known: Array, kept: Array) -> tuple[Message, Array]:
            wanted = own.astype(jnp.float32) - known + kept
            message = codec.encode(wanted)
            return message, wanted - codec.decode(message, wanted.shape)

        pairs = jax.tree.map(jax.vmap(one, (0, None, 0)), trees, known, kept)
        return (jax.tree.map(lambda _, pair: pair[0], known, pairs),
                jax.tree.map(lambda _, pair: pair[1], known, pairs))

    def _decoded(self, messages: Tree, known: Tree) -> Tree:
        codec = self._codec
        assert codec is not None

        def one(known: Array, message: Message) -> Array:
            return jax.vmap(lambda m: known + codec.decode(m, known.shape))(message)

        return jax.tree.map(one, known, messages)


def _bf16(x: Array) -> Message:
    return {"values": x.astype(jnp.bfloat16)}


def _from_bf16(message: Message, shape: tuple[int, ...]) -> Array:
    return message["values"].astype(jnp.float32).reshape(shape)


def _int8(x: Array) -> Message:
    """Round-to-nearest in 255 steps between ± the largest entry; a zero tensor stays zero."""
    scale = jnp.max(jnp.abs(x)) / 127
    steps = jnp.round(x / jnp.where(scale > 0, scale, 1.0))
    return {"values": steps.astype(jnp.int8), "scale": scale.astype(jnp.float32)}


def _from_int8(message: Message, shape: tuple[int, ...]) -> Array:
    return (message["values"].astype(jnp.float32) * message["scale"]).reshape(shape)


def _largest(fraction: float, x: Array) -> Message:
    """The entries of largest size, at least one, and where they stand."""
    flat = x.reshape(-1)
    _, at = jax.lax.top_k(jnp.abs(flat), max(1, math.ceil(fraction * flat.size)))
    place = jnp.uint16 if flat.size <= 2**16 else jnp.uint32
    return {"values": flat[at], "at": at.astype(place)}


def _scattered(message: Message, shape: tuple[int, ...]) -> Array:
    flat = jnp.zeros(math.prod(shape), jnp.float32)
    return flat.at[message["at"].astype(jnp.int32)].set(message["values"]).reshape(shape)
