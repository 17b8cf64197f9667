"""Trees between meshes as bits: values, dtypes and places are what they were."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mlecs_jax import transfers

VALUES = [np.array([[0.0, -0.0, np.inf, np.nan], [1e-40, 3, -2, 1]], np.float32),
          np.arange(8).astype(ml_dtypes.bfloat16), np.array([True, False, True, True]),
          np.array([-128, 127, 0, 5], np.int8), np.int32(-7), np.arange(4, dtype=np.uint32),
          np.zeros((0, 4), np.float32)]
SPLIT = [PartitionSpec(None, "x"), PartitionSpec("x"), PartitionSpec("x"), PartitionSpec(),
         PartitionSpec(), PartitionSpec("x"), PartitionSpec()]


def mesh(devices):
    return Mesh(np.array(devices), ("x",), axis_types=(AxisType.Auto,))


@pytest.fixture(scope="module")
def placed():
    source = mesh(jax.devices()[:4])
    return source, transfers.place(VALUES, [NamedSharding(source, spec) for spec in SPLIT])


def assert_same_bits(found, expected):
    found = np.asarray(found)
    assert found.dtype == expected.dtype and found.shape == expected.shape
    assert found.tobytes() == expected.tobytes()


def test_host_values_are_placed_without_talk(placed):
    source, leaves = placed
    for leaf, value, spec in zip(leaves, VALUES, SPLIT, strict=True):
        assert leaf.sharding.is_equivalent_to(NamedSharding(source, spec), leaf.ndim)
        assert_same_bits(leaf, value)
    assert transfers.is_placed(leaves[0])
    assert not transfers.is_placed(jnp.ones(3)) and not transfers.is_placed(np.ones(3))


def test_wide_host_numbers_become_what_jax_computes_with():
    where = NamedSharding(mesh(jax.devices()[:2]), PartitionSpec())
    found = transfers.place({"float": np.float64(0.5), "int": 3}, {"float": where, "int": where})
    assert found["float"].dtype == jnp.float32 and found["int"].dtype == jnp.int32


def test_random_keys_are_placed():
    keys = jax.random.split(jax.random.key(3), 4)
    where = NamedSharding(mesh(jax.devices()[:4]), PartitionSpec("x"))
    found = transfers.place(keys, where)
    assert found.dtype == keys.dtype and len(found.sharding.device_set) == 4
    np.testing.assert_array_equal(jax.random.key_data(found), jax.random.key_data(keys))


def test_arrays_move_to_another_mesh_bit_by_bit(placed):
    source, leaves = placed
    target = mesh(jax.devices()[5:7])
    wanted = [NamedSharding(target, spec) for spec in SPLIT]
    for leaf, value, where in zip(transfers.move(leaves, source, wanted), VALUES, wanted,
                                  strict=True):
        assert leaf.sharding.is_equivalent_to(where, leaf.ndim) and leaf.committed
        assert_same_bits(leaf, value)


def test_arrays_change_their_split_within_a_mesh(placed):
    source, leaves = placed
    wanted = [NamedSharding(source, PartitionSpec())] * len(leaves)
    for leaf, value in zip(transfers.move(leaves, source, wanted), VALUES, strict=True):
        assert leaf.sharding.is_fully_replicated
        assert_same_bits(leaf, value)


def test_arrays_come_to_the_host(placed):
    source, leaves = placed
    for found, value in zip(transfers.fetch(leaves, source), VALUES, strict=True):
        assert_same_bits(found, value)
    assert transfers.fetch([], source) == [] and transfers.move([], source, []) == []
