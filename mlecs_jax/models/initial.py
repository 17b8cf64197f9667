"""Seeded initial parameters, drawn on the host.

Only the shapes of a model are traced; values come from NumPy's counter-based generator. Compiling
JAX's samplers for every leaf shape would cost more than a short training run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import jax
import numpy as np
from flax import traverse_util
from jaxtyping import PRNGKeyArray

Params = dict[str, Any]
TOKEN, TOKEN_STD = "token", 0.02  # a learnt step of a sequence; zero would be padding
TABLES = ("wte", "wpe", "lm_head")  # embeddings and heads, [rows, d]


def draw(
    init: Callable[[PRNGKeyArray], Any], key: PRNGKeyArray, *, embedding_std: float = 0.02
) -> Params:
    """Parameters with the shapes of ``init(key)['params']``.

    Kernels ``[d_in, *d_out]`` are normal with standard deviation 1/√d_in (a leading layer axis
    under ``blocks`` is not counted), embedding tables normal with ``embedding_std``, scales one,
    biases zero.
    """
    # flax's type also allows for inner nodes, which only an option keeps.
    shapes = cast(dict[tuple[str, ...], jax.ShapeDtypeStruct],
                  traverse_util.flatten_dict(jax.eval_shape(init, key)["params"]))
    generator = rng(key)
    params = {}
    for path in sorted(shapes):
        shape, name = shapes[path].shape, path[-1]
        if name == "kernel":
            d_in = shape[1 if path[0] == "blocks" else 0]
            value = generator.standard_normal(shape, np.float32) / math.sqrt(d_in)
        elif name in TABLES:
            value = generator.standard_normal(shape, np.float32) * embedding_std
        elif name == "scale":
            value = np.ones(shape, np.float32)
        else:
            value = np.zeros(shape, np.float32)
        params[path] = value.astype(np.float32)
    return traverse_util.unflatten_dict(params)


def rng(key: PRNGKeyArray) -> np.random.Generator:
    """A NumPy generator seeded by a JAX key."""
    return np.random.Generator(np.random.Philox(np.asarray(jax.random.key_data(key)).tolist()))


def draw_uniform(
    init: Callable[[PRNGKeyArray], Any], key: PRNGKeyArray, *, xavier: str = ""
) -> Params:
    """Parameters with the shapes of ``init(key)['params']``, drawn as PyTorch's layers draw them.

    Kernels ``[…, fan_in, fan_out]`` and their biases are uniform within ±1/√fan_in. Under a path
    that contains ``xavier`` leaves have a leading layer axis, kernels are Xavier uniform
    (±√(6/(fan_in + fan_out))) and biases zero. Scales are one, class tokens N(0, 0.02²), other
    leaves zero. Kernels of convolutions are ``[size, fan_in, fan_out]``; a leaf is a kernel or
    bias by the end of its name.
    """
    shapes = cast(dict[tuple[str, ...], jax.ShapeDtypeStruct],
                  traverse_util.flatten_dict(jax.eval_shape(init, key)["params"]))
    generator = rng(key)
    params = {}
    for path in sorted(shapes):
        shape, name = shapes[path].shape, path[-1]
        stacked = bool(xavier) and xavier in path
        kernel = shapes.get((*path[:-1], name.replace("bias", "kernel")))
        fan_in = math.prod(kernel.shape[stacked:-1]) if kernel is not None else 0
        if name.endswith("kernel"):
            bound = math.sqrt(6 / (fan_in + shape[-1])) if stacked else 1 / math.sqrt(fan_in)
            value = generator.uniform(-bound, bound, shape)
        elif name.endswith("bias") and kernel is not None and not stacked:
            value = generator.uniform(-1, 1, shape) / math.sqrt(fan_in)
        elif name == TOKEN:
            value = TOKEN_STD * generator.standard_normal(shape)
        else:
            value = np.ones(shape) if name == "scale" else np.zeros(shape)
        params[path] = value.astype(np.float32)
    return traverse_util.unflatten_dict(params)
