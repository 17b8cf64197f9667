"""Messages between tiers: what a round sends, counted in bytes from the arrays themselves.

In a simulation trees move between meshes (:mod:`mlecs_jax.topology`); the flat form of
:func:`pack` is what would travel, :func:`serialise` what does travel in a deployment
(:mod:`mlecs_jax.deploy.wire`), and :func:`num_bytes` counts it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

Tree = Any

DTYPES = {np.dtype(kind).name: np.dtype(kind) for kind in (
    np.float64, np.float32, np.float16, jnp.bfloat16, np.int64, np.int32, np.int16, np.int8,
    np.uint32, np.uint16, np.uint8, np.bool_)}
"""What a message may hold, by name; numbers are little-endian, as on every machine JAX runs on."""


class Entry(NamedTuple):
    """One array of a serialised message: its path, the name of its type, its shape."""

    path: str
    dtype: str
    shape: tuple[int, ...]


def pack(tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """A tree of arrays as a flat message ``{'path/to/leaf': array}``."""
    flat = traverse_util.flatten_dict(tree, sep="/")
    return {path: np.asarray(leaf) for path, leaf in flat.items()}


def unpack(message: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The tree of a flat message; the inverse of :func:`pack`."""
    return traverse_util.unflatten_dict(dict(message), sep="/")


def num_bytes(tree: Tree) -> int:
    """Payload of a message in bytes: the leaves' own dtypes, no framing, no compression.

    Accepts arrays, their shapes (``jax.eval_shape``) or a packed message. It is the length of what
    :func:`serialise` makes of the same arrays.
    """
    return sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
               for leaf in jax.tree.leaves(tree))


def serialise(message: Mapping[str, np.ndarray]) -> tuple[list[Entry], bytes]:
    """A packed message as a table of its arrays, by path, and their bytes in that order.

    Raises:
      ValueError: an array of a type that :data:`DTYPES` does not have.
    """
    table, pieces = [], []
    for path in sorted(message):
        values = np.asarray(message[path])
        name = values.dtype.name
        if name not in DTYPES:
            raise ValueError(f"'{path}' is {name}, which no message holds")
        table.append(Entry(path, name, values.shape))
        pieces.append(values.astype(DTYPES[name], copy=False).tobytes())
    return table, b"".join(pieces)


def deserialise(table: Sequence[Entry], payload: bytes | memoryview) -> dict[str, np.ndarray]:
    """The packed message of what :func:`serialise` made; arrays are copies, writable.

    Raises:
      ValueError: an unknown type, a negative size, or a payload of another length than the table's.
    """
    message, at = {}, 0
    for path, name, shape in table:
        if name not in DTYPES or any(size < 0 for size in shape):
            raise ValueError(f"'{path}' is {name} {tuple(shape)}, which no message holds")
        count = math.prod(shape)
        end = at + count * DTYPES[name].itemsize
        if end > len(payload):
            raise ValueError(f"the payload ends within '{path}'")
        message[path] = np.frombuffer(payload, DTYPES[name], count, at).reshape(shape).copy()
        at = end
    if at != len(payload):
        raise ValueError(f"the payload has {len(payload)} bytes, its table {at}")
    return message
