"""Messages between tiers: what a round sends, counted in bytes from the arrays themselves.

In a simulation trees move between meshes (:mod:`mlecs_jax.topology`); the flat form of
:func:`pack` is what would travel, and :func:`num_bytes` counts it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

Tree = Any


def pack(tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """A tree of arrays as a flat message ``{'path/to/leaf': array}``."""
    flat = traverse_util.flatten_dict(tree, sep="/")
    return {path: np.asarray(leaf) for path, leaf in flat.items()}


def unpack(message: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The tree of a flat message; the inverse of :func:`pack`."""
    return traverse_util.unflatten_dict(dict(message), sep="/")


def num_bytes(tree: Tree) -> int:
    """Payload of a message in bytes: the leaves' own dtypes, no framing, no compression.

    Accepts arrays, their shapes (``jax.eval_shape``) or a packed message.
    """
    return sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
               for leaf in jax.tree.leaves(tree))
