"""How a model lies on a mesh: rules on tree paths, and constraints on activations.

Mesh axes: ``fsdp`` splits the batch, and weights too, which are gathered layer by layer as they are
used; ``tensor`` splits heads, hidden units of the MLP and the vocabulary, and its chips work on one
batch together (Shoeybi et al., 2019). A rule names the axes of a leaf's *last* dimensions, so that
the same rule fits a layer and a stack of layers::

    tree:   {'blocks': {'attention': {'c_attn': {'kernel': [L, d, 3, d], 'bias': [L, 3, d]}}}}
    specs:  {'blocks': {'attention': {'c_attn': {'kernel': P(None, 'fsdp', None, 'tensor'),
                                                 'bias': P(None, None, 'tensor')}}}}
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from mlecs_jax.errors import UserError

Tree = Any
Axes: TypeAlias = str | tuple[str, ...] | None
Placement: TypeAlias = Sharding | Callable[[str, tuple[int, ...]], Sharding] | None
"""Where leaves go that are read from a file: all alike, by '/'-joined path and shape, or as JAX
puts them."""
Rules: TypeAlias = Sequence[tuple[str, tuple[Axes, ...]]]
# jax exports the class as a variable, which a type checker does not take for a type.
Device: TypeAlias = jax.Device  # pyright: ignore[reportInvalidTypeForm]

FSDP, TENSOR = "fsdp", "tensor"
AXES = (FSDP, TENSOR)

_COLUMN = r"(?:c_attn|[qkv]_proj|mlp_(?:c_fc|fc_in|gate_proj|up_proj))"
_ROW = r"(?:attention/(?:c_proj|out_proj|o_proj)|mlp_(?:c_proj|fc_out|down_proj))"
RULES: Rules = (
    # Frozen decoders (models/decoder.py) and the adapters beside them. The fused projection comes
    # first: its outputs are [3, d], and the axis of query, key and value stays whole.
    (r"c_attn/kernel$", (FSDP, None, TENSOR)),
    (rf"{_COLUMN}/kernel$", (FSDP, TENSOR)),
    (rf"{_COLUMN}/bias$", (TENSOR,)),
    (rf"{_COLUMN}/a$", (FSDP, None)),
    (rf"{_COLUMN}/b$", (TENSOR,)),
    (rf"{_ROW}/kernel$", (TENSOR, FSDP)),
    (rf"{_ROW}/a$", (TENSOR, None)),
    (rf"{_ROW}/b$", (FSDP,)),
    # Rows of a vocabulary over the whole mesh: hidden states are few beside them, and come to them.
    (r"(?:wte|lm_head)$", ((TENSOR, FSDP), None)),
    (r"lm_head_bias$", ((TENSOR, FSDP),)),
    (r"wpe$", (None, FSDP)),
    # The last layer of a prompt generator is P · D wide: the largest matrix that is trained.
    (r"generator/Dense_1/kernel$", (FSDP, TENSOR)),
    (r"generator/Dense_1/bias$", (TENSOR,)),
)
"""(pattern searched in the '/'-joined path, axes of the last dimensions); the first match holds,
and a leaf without one is replicated."""


def make_mesh(devices: Sequence[Device], shape: tuple[int, int] | None = None) -> Mesh:
    """A mesh with the axes ``fsdp`` × ``tensor``.

    Args:
      shape: its sizes; None: :func:`default_shape`.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    shape = default_shape(len(devices)) if shape is None else shape
    if min(shape) < 1 or math.prod(shape) != len(devices):
        raise UserError(f"a mesh of {shape[0]}x{shape[1]} (fsdp x tensor) needs "
                        f"{math.prod(shape)} devices, there are {len(devices)}")
    return Mesh(np.array(devices).reshape(shape), AXES, axis_types=(AxisType.Auto,) * 2)


def default_shape(size: int) -> tuple[int, int]:
    """(fsdp, tensor) of a number of chips: as square as it gets, the longer side ``fsdp``."""
    tensor = max(n for n in range(1, math.isqrt(size) + 1) if size % n == 0)
    return size // tensor, tensor


def tree_specs(tree: Tree, mesh: Mesh, rules: Rules = RULES) -> Tree:
    """A ``PartitionSpec`` for every leaf of a tree.

    An axis that the mesh lacks, or that does not divide its dimension, is left out (the last of
    several first): that dimension is then whole on every chip, or in fewer parts.

    Args:
      tree: of arrays or shapes.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: _spec(path_name(path), leaf.shape, mesh, rules), tree)


def tree_shardings(tree: Tree, mesh: Mesh, rules: Rules = RULES) -> Tree:
    """:func:`tree_specs` as ``NamedSharding`` of the mesh."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), tree_specs(tree, mesh, rules),
                        is_leaf=lambda x: isinstance(x, PartitionSpec))


def leaf_sharding(
    path: str, shape: tuple[int, ...], mesh: Mesh, rules: Rules = RULES
) -> NamedSharding:
    """:func:`tree_shardings` of one leaf, by its '/'-joined path and shape."""
    return NamedSharding(mesh, _spec(path, shape, mesh, rules))


def path_name(path: Sequence[Any]) -> str:
    """'/'-joined keys of a path, as rules see it."""
    return "/".join(str(getattr(entry, "key", getattr(entry, "name", getattr(entry, "idx", entry))))
                    for entry in path)


def constrain(x: jax.Array, mesh: Mesh | None, *axes: Axes) -> jax.Array:
    """``x`` with its first dimensions split as named, the others whole; for activations.

    Without such constraints XLA may gather the batch instead of the weights. ``mesh`` None, or a
    mesh of one chip, leaves ``x`` untouched.
    """
    if mesh is None or mesh.size == 1:
        return x
    spec = _fitted(axes, x.shape[:len(axes)], mesh)
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*spec)))


def gathered(x: jax.Array, path: str, mesh: Mesh | None, rules: Rules = RULES) -> jax.Array:
    """A frozen weight as a layer uses it: whole over ``fsdp`` where that splits an axis by itself,
    still split otherwise.

    Said outright, since XLA would otherwise weigh gathering a layer's weight against gathering the
    batch, and small batches would lose.
    """
    if mesh is None or mesh.size == 1:
        return x
    spec = [None if axes == FSDP else axes for axes in _spec(path, x.shape, mesh, rules)]
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*spec)))


def constrain_tree(tree: Tree, mesh: Mesh | None, rules: Rules = RULES) -> Tree:
    """Leaves split by the rules, as :func:`tree_shardings` places them; for what a program returns,
    so that its next call finds them where this one did."""
    if mesh is None or mesh.size == 1:
        return tree
    return jax.tree.map(jax.lax.with_sharding_constraint, tree, tree_shardings(tree, mesh, rules))


def _spec(path: str, shape: tuple[int, ...], mesh: Mesh, rules: Rules) -> PartitionSpec:
    for pattern, axes in rules:
        if re.search(pattern, path):
            own = axes[-len(shape):] if shape else ()
            stack = (None,) * (len(shape) - len(own))
            return PartitionSpec(*stack, *_fitted(own, shape[len(stack):], mesh))
    return PartitionSpec()


def _fitted(axes: Sequence[Axes], shape: Sequence[int], mesh: Mesh) -> list[Axes]:
    """The axes that the mesh has and that divide their dimensions."""
    fitted: list[Axes] = []
    for names, size in zip(axes, shape, strict=True):
        names = (names,) if isinstance(names, str) else names or ()
        names = tuple(name for name in names if mesh.shape.get(name, 1) > 1)
        while names and size % math.prod(mesh.shape[name] for name in names):
            names = names[:-1]
        fitted.append(names[0] if len(names) == 1 else names or None)
    return fitted
