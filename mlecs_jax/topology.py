"""Where state lives: an edge mesh for devices and a cloud mesh for the server.

With one accelerator the two coincide; with more they are disjoint, and a tree crosses from one
to the other only through :class:`Topology`, as it would cross a network.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mlecs_jax.clients import CLIENT_AXIS
from mlecs_jax.errors import UserError

Tree = Any
# jax exports the class as a variable, which a type checker does not take for a type.
Device: TypeAlias = jax.Device  # pyright: ignore[reportInvalidTypeForm]


@dataclasses.dataclass(frozen=True)
class Topology:
    """Two meshes: ``edge`` (axis ``client``) and ``cloud`` (axis ``data``)."""

    edge: Mesh
    cloud: Mesh

    @classmethod
    def create(
        cls,
        num_clients: int,
        devices: Sequence[Device] | None = None,
        cloud_devices: int = 1,
    ) -> Topology:
        """Splits the machine's devices into the two tiers.

        The last ``cloud_devices`` go to the cloud; of the others the edge takes the largest number
        that divides ``num_clients``, so that every edge device holds equally many clients. A
        single device serves both tiers.

        Raises:
          UserError: the cloud is asked to take every device, or none.
        """
        devices = list(jax.devices() if devices is None else devices)
        if len(devices) == 1:
            return cls(_mesh(devices, CLIENT_AXIS), _mesh(devices, "data"))
        if not 0 < cloud_devices < len(devices):
            raise UserError(f"topology.cloud_devices is {cloud_devices} of {len(devices)} devices; "
                            f"give 1 to {len(devices) - 1}, so that both tiers have one")
        edge = devices[:len(devices) - cloud_devices]
        size = max(n for n in range(1, len(edge) + 1) if num_clients % n == 0)
        return cls(_mesh(edge[:size], CLIENT_AXIS),
                   _mesh(devices[len(devices) - cloud_devices:], "data"))

    @property
    def disjoint(self) -> bool:
        """Whether the tiers share no device."""
        return not set(self.edge.devices.flat) & set(self.cloud.devices.flat)

    def to_edge(self, tree: Tree, *, per_client: bool = False) -> Tree:
        """Places a tree on the edge: replicated, or its leading axis split over clients."""
        spec = PartitionSpec(CLIENT_AXIS) if per_client else PartitionSpec()
        return jax.device_put(tree, NamedSharding(self.edge, spec))

    def to_cloud(self, tree: Tree) -> Tree:
        """Places a tree on the cloud, replicated."""
        return jax.device_put(tree, NamedSharding(self.cloud, PartitionSpec()))


def _mesh(devices: Sequence[Device], axis: str) -> Mesh:
    return Mesh(np.array(devices), (axis,), axis_types=(AxisType.Auto,))
