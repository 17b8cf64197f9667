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


def test_cloud_edges_and_ends_are_one_tree():
    root = Topology.create((3, 2), jax.devices()[:1]).root
    assert [node.name for node in root.tier(1)] == ["edge-0", "edge-1", "edge-2"]
    assert [node.name for node in root.tier(2)] == [
        "end-0.0", "end-0.1", "end-1.0", "end-1.1", "end-2.0", "end-2.1"]
    assert root.parents(2).tolist() == [0, 0, 1, 1, 2, 2] and root.parents(1).tolist() == [0, 0, 0]
    assert not any(end.children for end in root.tier(2)) and root.tier(3) == ()


def test_two_tiers_are_the_same_tree_with_one_less():
    root = Topology.create(3, jax.devices()[:1]).root
    assert root == Topology.create((3,), jax.devices()[:1]).root
    assert len(root.tier(1)) == 3 and root.tier(2) == ()


def test_ends_of_an_edge_share_the_edge_mesh_evenly():
    assert Topology.create((3, 4), jax.devices()).edge.size == 4


def test_a_tree_has_children_and_at_most_three_tiers():
    for wrong in ((), (0,), (3, 0), (2, 2, 2)):
        with pytest.raises(UserError, match="children per tier"):
            Topology.create(wrong, jax.devices()[:1])
