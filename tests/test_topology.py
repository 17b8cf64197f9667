"""Edge and cloud meshes."""

import jax
import jax.numpy as jnp
import pytest

from mlecs_jax.errors import UserError
from mlecs_jax.topology import Topology


def test_one_device_serves_both_tiers():
    topology = Topology.create(3, jax.devices()[:1])
    assert not topology.disjoint and topology.edge.size == topology.cloud.size == 1


def test_several_devices_are_split_and_trees_move_between():
    topology = Topology.create(6, jax.devices(), cloud_devices=2)
    assert topology.disjoint and topology.edge.size == 6 and topology.cloud.size == 2
    stacked = topology.to_edge(jnp.zeros((6, 4)), per_client=True)
    assert len(stacked.sharding.device_set) == 6
    assert topology.to_cloud(stacked).sharding.device_set == set(topology.cloud.devices.flat)


def test_edge_holds_equally_many_clients_everywhere():
    assert Topology.create(10, jax.devices()).edge.size == 5
    assert Topology.create(7, jax.devices()).edge.size == 7


def test_cloud_may_not_take_everything():
    with pytest.raises(UserError, match="topology.cloud_devices is 8 of 8"):
        Topology.create(3, jax.devices(), cloud_devices=8)
