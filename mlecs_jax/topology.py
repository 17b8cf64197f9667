"""Where state lives: nodes in a tree, and the meshes that hold them.

The cloud is the root. Leaves hold data and train; every other node aggregates its children. With
two tiers the leaves are devices (ML-ECS), with three there are edges between cloud and end devices
(Mega-CE²); nothing here knows which. All tiers below the root live on the edge mesh, the root on
the cloud mesh. With one accelerator the two coincide; with more they are disjoint, and a tree of
arrays crosses from one to the other only through :class:`Topology`, as it would cross a network.
Meshes may span processes, and a process may have no device of one (:mod:`mlecs_jax.transfers`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mlecs_jax import sharding, transfers
from mlecs_jax.clients import CLIENT_AXIS
from mlecs_jax.errors import UserError

Tree = Any
# jax exports the class as a variable, which a type checker does not take for a type.
Device: TypeAlias = jax.Device  # pyright: ignore[reportInvalidTypeForm]


@dataclasses.dataclass(frozen=True)
class Node:
    """A place where state lives: a leaf trains, any other node aggregates its children."""

    name: str
    children: tuple[Node, ...] = ()

    def tier(self, depth: int) -> tuple[Node, ...]:
        """The nodes ``depth`` steps below this one, left to right."""
        nodes: tuple[Node, ...] = (self,)
        for _ in range(depth):
            nodes = tuple(child for node in nodes for child in node.children)
        return nodes

    def parents(self, depth: int) -> np.ndarray:
        """The parent of each node of a tier, by its number in the tier above, int32."""
        widths = [len(node.children) for node in self.tier(depth - 1)]
        return np.repeat(np.arange(len(widths), dtype=np.int32), widths)


TIERS = ("cloud", "edge", "end")


def grow(fan_out: Sequence[int]) -> Node:
    """A regular tree: ``(3,)`` is a cloud of three devices, ``(3, 2)`` has edges of two ends each.

    Raises:
      UserError: a node without children, or more tiers than cloud, edge and end.
    """
    if not 0 < len(fan_out) < len(TIERS) or min(fan_out) < 1:
        raise UserError(f"a topology of {tuple(fan_out)} children per tier; give one or two counts "
                        "of 1 or more")

    def node(depth: int, path: str) -> Node:
        width = fan_out[depth] if depth < len(fan_out) else 0
        return Node(TIERS[depth] + path, tuple(
            node(depth + 1, f"{path}.{i}" if path else f"-{i}") for i in range(width)))

    return node(0, "")


@dataclasses.dataclass(frozen=True)
class Topology:
    """The tree of nodes from its ``root``, and two meshes: ``edge`` (axis ``client``) and
    ``cloud`` (axes ``fsdp`` and ``tensor``, :mod:`mlecs_jax.sharding`)."""

    edge: Mesh
    cloud: Mesh
    root: Node

    @classmethod
    def create(
        cls,
        fan_out: int | Sequence[int],
        devices: Sequence[Device] | None = None,
        cloud_devices: int = 1,
    ) -> Topology:
        """Grows the tree and splits the machine's devices between its root and the rest.

        The last ``cloud_devices`` go to the cloud (0: both tiers use all, in turn); of the others
        the edge takes the largest number that divides the leaves of one parent, so that every
        edge device holds equally many of them. A single device serves all tiers.

        Args:
          fan_out: children per node of each tier, see :func:`grow`; a number is one tier.

        Raises:
          UserError: the cloud is asked to take every device, or none; see also :func:`grow`.
        """
        fan_out = (fan_out,) if isinstance(fan_out, int) else tuple(fan_out)
        root = grow(fan_out)
        devices = list(jax.devices() if devices is None else devices)
        if len(devices) == 1:
            return cls(_edge_mesh(devices), sharding.make_mesh(devices), root)
        if not 0 <= cloud_devices < len(devices):
            raise UserError(f"topology.cloud_devices is {cloud_devices} of {len(devices)} devices; "
                            f"give 1 to {len(devices) - 1}, so that both tiers have one, or 0: "
                            "both on all, in turn")
        edge = devices[:len(devices) - cloud_devices]
        cloud = devices[-cloud_devices:] if cloud_devices else devices
        size = max(n for n in range(1, len(edge) + 1) if fan_out[-1] % n == 0)
        return cls(_edge_mesh(edge[:size]), sharding.make_mesh(cloud), root)

    @property
    def disjoint(self) -> bool:
        """Whether the tiers share no device."""
        return not set(self.edge.devices.flat) & set(self.cloud.devices.flat)

    def to_edge(self, tree: Tree, *, per_client: bool = False) -> Tree:
        """Places a tree on the edge: replicated, or its leading axis split over clients."""
        spec = PartitionSpec(CLIENT_AXIS) if per_client else PartitionSpec()
        return self._put(tree, NamedSharding(self.edge, spec))

    def to_cloud(self, tree: Tree, *, split: bool = False) -> Tree:
        """Places a tree on the cloud: replicated, or its weights split by
        :data:`mlecs_jax.sharding.RULES`."""
        return self._put(tree, sharding.tree_shardings(tree, self.cloud) if split
                         else NamedSharding(self.cloud, PartitionSpec()))

    def placing(
        self, *, split: bool
    ) -> Callable[[str, tuple[int, ...]], NamedSharding] | None:
        """Where a leaf (by its '/'-joined path and shape) goes that is read from a file: as
        :meth:`to_edge` puts it, or with ``split`` as :meth:`to_cloud` does.

        None where several processes share the meshes: each reads the whole for itself first.
        """
        if jax.process_count() > 1:
            return None
        if split:
            return functools.partial(sharding.leaf_sharding, mesh=self.cloud)
        return lambda path, shape: NamedSharding(self.edge, PartitionSpec())

    def host(self, tree: Tree) -> Tree:
        """The tree as NumPy arrays, in every process; returns when they are computed."""
        if jax.process_count() == 1:
            return jax.device_get(tree)
        leaves, structure = jax.tree.flatten(tree)
        found = {}
        for mesh, mine in self._by_mesh(leaves).items():
            values = transfers.fetch([leaves[i] for i in mine], mesh)
            found |= dict(zip(mine, values, strict=True))
        return jax.tree.unflatten(structure, [
            found[i] if i in found else jax.device_get(leaf) for i, leaf in enumerate(leaves)])

    def everywhere(self, tree: Tree) -> Tree:
        """A placed tree whole in every process, as checkpoints take it; of one process, itself."""
        if jax.process_count() == 1:
            return tree
        return self._put(tree, NamedSharding(transfers.everyone(), PartitionSpec()))

    def placed_as(self, tree: Tree, like: Tree) -> Tree:
        """A tree of :meth:`everywhere` back where the leaves of ``like`` are."""
        if jax.process_count() == 1:
            return tree
        return jax.tree.map(lambda x, old: transfers.place(
            x.addressable_data(0), old.sharding), tree, like)

    def _put(self, tree: Tree, shardings: Tree) -> Tree:
        """Leaves with these shardings (a prefix of the tree), wherever they are now."""
        if jax.process_count() == 1:
            return jax.device_put(tree, shardings)
        leaves, structure = jax.tree.flatten(tree)
        wanted = jax.tree.leaves(jax.tree.broadcast(shardings, tree))
        result: list[Any] = [None] * len(leaves)
        on_mesh = self._by_mesh(leaves)
        for mesh, mine in on_mesh.items():
            moved = transfers.move([leaves[i] for i in mine], mesh, [wanted[i] for i in mine])
            for i, leaf in zip(mine, moved, strict=True):
                result[i] = leaf
        for i in {*range(len(leaves))} - {i for mine in on_mesh.values() for i in mine}:
            result[i] = transfers.place(leaves[i], wanted[i])
        return jax.tree.unflatten(structure, result)

    def _by_mesh(self, leaves: Sequence[Any]) -> dict[Mesh, list[int]]:
        """Numbers of the leaves that are placed, by the mesh they are on."""
        found: dict[Mesh, list[int]] = {}
        for i, leaf in enumerate(leaves):
            if transfers.is_placed(leaf):
                on = [mesh for mesh in (self.edge, self.cloud)
                      if leaf.sharding.device_set == set(mesh.devices.flat)]
                if not on:
                    raise ValueError(f"an array on {leaf.sharding} is neither on the edge "
                                     f"{self.edge} nor on the cloud {self.cloud}")
                found.setdefault(on[0], []).append(i)
        return found


def _edge_mesh(devices: Sequence[Device]) -> Mesh:
    return Mesh(np.array(devices), (CLIENT_AXIS,), axis_types=(AxisType.Auto,))
