"""LoRA as a pure pytree beside the frozen parameters (Hu et al., 2021, eq. 3).

A LoRA tree has the path of each target layer and two leaves there::

    params:  {'block_0': {'attention': {'c_attn': {'kernel': [d, 3, d], 'bias': [3, d]}}}, …}
    lora:    {'block_0': {'attention': {'c_attn': {'a': [d, r], 'b': [r, 3, d]}}}}

A layer that finds leaves of its own path adds ``(alpha / r) · (x a) b`` to its output: the frozen
kernel is never copied nor merged, so any number of clients can share one backbone.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Float, PRNGKeyArray

from mlecs_jax.errors import UserError
from mlecs_jax.models import initial

Params = dict[str, Any]
Lora = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Adapter settings that a layer needs when it is applied.

    Attributes:
      alpha: numerator of the scale ``alpha / rank``; the rank is read from the leaves, so trees
        of different ranks pass through one model.
      dropout: rate on the adapter's input, training only.
    """

    alpha: float = 16.0
    dropout: float = 0.05


def init(key: PRNGKeyArray, params: Params, targets: tuple[str, ...], rank: int) -> Lora:
    """A LoRA tree for every kernel of ``params`` whose layer path matches one of ``targets``.

    Args:
      key: PRNG key.
      params: frozen parameters, or their shapes, with ``kernel`` leaves ``[…stack, d_in, *d_out]``
        (a leading ``stack`` axis exists for layers under ``blocks``, which are scanned over).
      targets: regular expressions searched in the '/'-joined layer path, e.g. ``('c_attn$',)``.
      rank: r ≥ 1.

    Returns:
      ``a`` drawn from N(0, 1/d_in) and ``b`` zero, so the adapted model starts as the frozen one.

    Raises:
      UserError: the rank is not positive, or a target matches no layer.
    """
    generator = initial.rng(key)
    lora: dict[tuple[str, ...], np.ndarray] = {}
    for path, shape in _shapes(params, targets, rank).items():
        if path[-1] == "a":
            a = generator.standard_normal(shape, np.float32) / math.sqrt(shape[-2])
            lora[path] = a.astype(np.float32)
        else:
            lora[path] = np.zeros(shape, np.float32)
    return traverse_util.unflatten_dict(lora)


def shapes(params: Params, targets: tuple[str, ...], rank: int) -> Lora:
    """Shapes of :func:`init`'s tree, float32, without making it; raises as it does."""
    return traverse_util.unflatten_dict({
        path: jax.ShapeDtypeStruct(shape, np.float32)
        for path, shape in _shapes(params, targets, rank).items()})


def _shapes(
    params: Params, targets: tuple[str, ...], rank: int
) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Paths and shapes of the leaves, in the order in which they are drawn."""
    if rank < 1:
        raise UserError(f"lora.rank is {rank}; give a rank of 1 or more")
    kernels = {path[:-1]: leaf for path, leaf in _flatten(params).items() if path[-1] == "kernel"}
    found: dict[tuple[str, ...], tuple[int, ...]] = {}
    for target in targets:
        try:
            matches = [path for path in kernels if re.search(target, "/".join(path))]
        except re.error as error:
            raise UserError(f"lora.targets: '{target}' is no pattern ({error})") from None
        if not matches:
            raise UserError(f"lora.targets: '{target}' matches no layer; layers are e.g. "
                            + ", ".join(sorted({path[-1] for path in kernels})))
        for path in matches:
            stack = kernels[path].shape[:1] if path[0] == "blocks" else ()
            d_in, *d_out = kernels[path].shape[len(stack):]
            found[(*path, "a")] = (*stack, d_in, rank)
            found[(*path, "b")] = (*stack, rank, *d_out)
    return found


def side_path(
    x: Float[Array, "*batch d_in"],
    a: Float[Array, "d_in r"],
    b: Float[Array, " r *d_out"],  # without the space it reads as a product
    alpha: float,
) -> Array:
    """The adapter's contribution ``(alpha / r) · (x a) b``, ``[*batch, *d_out]``."""
    return jnp.tensordot(x @ a, b, axes=1) * (alpha / a.shape[-1])


def merge(params: Params, lora: Lora, alpha: float) -> Params:
    """Parameters with the adapters folded in, ``W + (alpha / r) · a b``; for export and serving.

    Training never merges: a merged weight is a copy of the backbone per client.
    """
    flat = dict(_flatten(params))
    adapters = _flatten(lora)
    for path, a in adapters.items():
        if path[-1] == "a":
            b = adapters[(*path[:-1], "b")]
            product = functools.partial(jnp.tensordot, axes=1)
            delta = product(a, b) if a.ndim == 2 else jax.vmap(product)(a, b)
            kernel = (*path[:-1], "kernel")
            flat[kernel] = flat[kernel] + (alpha / a.shape[-1]) * delta.astype(flat[kernel].dtype)
    return traverse_util.unflatten_dict(flat)


def _flatten(tree: Params) -> dict[tuple[str, ...], Any]:
    """Leaves by path; flax's own type also allows for inner nodes, which only an option keeps."""
    return cast(dict[tuple[str, ...], Any], traverse_util.flatten_dict(tree))


def count(tree: Any) -> int:
    """Number of scalars in a tree of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))

