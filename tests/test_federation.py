"""Stacked arrays, masks and standardisation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from mlecs_jax import federation
from mlecs_jax.data import text
from mlecs_jax.data.partition import PartitionConfig
from tests.small import samples


def build(data=None, rounds=4, **options):
    data = samples() if data is None else data
    return federation.build(data, text.targets(data, text.ByteTokenizer()),
                            PartitionConfig(**options), rounds)


def test_rows_are_the_partitions_and_padding_is_never_counted():
    devices = np.repeat([-1, 0, 1], [80, 100, 60]).astype(np.int32)
    data = dataclasses.replace(samples(240), devices=devices)
    built = build(data, num_clients=-1)
    assert built.train.inputs["rgb"].shape == (2, 80, 8, 8, 3)
    assert built.train.inputs["rgb"].dtype == np.uint8
    np.testing.assert_array_equal(built.train.count, [80, 48])
    np.testing.assert_array_equal(built.train.inputs["acce"][1, :48],
                                  data.inputs["acce"][built.partition.devices[1].train])
    np.testing.assert_array_equal(
        built.held_out.inputs["depth"][0, :int(built.num_val[0])],
        data.inputs["depth"][built.partition.devices[0].val])


def test_common_recordings_are_stored_once():
    """Devices add their masks to the held-out recordings, not copies of them."""
    built = build(samples(480, groups=24), split="sequence", num_clients=5)
    assert built.held_out_is_common
    rows = np.concatenate([built.partition.public.val, built.partition.public.test])
    np.testing.assert_array_equal(built.held_out.inputs["rgb"], built.samples.inputs["rgb"][rows])
    assert built.held_out.available.shape == (5, len(rows), 3)


def test_moments_come_from_present_training_readings():
    data = samples()
    built = build(data)
    rows = np.concatenate([built.partition.public.train,
                           *(s.train for s in built.partition.devices)])
    rows = rows[data.present[rows, 0]]
    np.testing.assert_allclose(built.moments["acce"].mean, data.inputs["acce"][rows].mean(0),
                               rtol=1e-4, atol=1e-6)


def test_gather_standardises_and_zeroes_what_is_absent():
    data = samples()
    built = build(data, rho=1.0)
    rows, index = built.public, jnp.arange(20)
    batch = federation.gather(jax.device_put(rows), jnp.array([True, False, True]),
                              built.moments, index)
    np.testing.assert_array_equal(batch.mask[:, 1], False)
    np.testing.assert_array_equal(batch.mask[:, 0], rows.available[:20, 0])
    assert not np.any(batch.inputs["rgb"])
    expected = (rows.inputs["depth"][:20] - built.moments["depth"].mean) / built.moments[
        "depth"].std
    np.testing.assert_allclose(batch.inputs["depth"], expected, rtol=1e-5, atol=1e-6)
    assert not np.any(np.asarray(batch.inputs["acce"])[~rows.available[:20, 0]])


def test_schedules_of_absence():
    assert build().owned.shape == (1, 3, 3)
    moving = build(mask_schedule="per_round", rho=0.5)
    assert moving.owned.shape == (4, 3, 3)
    np.testing.assert_array_equal(moving.owned_at(5), moving.owned[1])
    sampled = build(mask_schedule="per_sample", rho=0.5)
    assert sampled.owned.all()
    assert sampled.train.available.mean() < 0.8
    assert sampled.public_available.shape == (3, len(sampled.partition.public.train), 3)
    assert not np.array_equal(sampled.public_available[0], sampled.public_available[1])
    assert sampled.public.available[:, 1:].all()  # the server has every modality


def test_masks_follow_their_modality_through_jit():
    """JAX sorts dict keys; a mask column must still belong to its own modality."""
    data = samples()
    built = build(data, rho=1.0)
    rows, moments = jax.device_put((built.public, built.moments))
    gather = jax.jit(federation.gather)
    for i, name in enumerate(("acce", "rgb", "depth")):
        owned = jnp.arange(3) == i
        batch = gather(rows, owned, moments, jnp.arange(60) % len(rows.target))
        assert {m for m, x in batch.inputs.items() if np.any(x)} == {name}
