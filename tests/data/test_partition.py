"""Who owns what: shares, leak-free sequence splits, modality draws."""

import dataclasses

import numpy as np
import pytest

from mlecs_jax.data.partition import PartitionConfig, ownership, partition, sample_mask
from mlecs_jax.errors import UserError
from tests.small import samples

PARTS = ("train", "val", "test")


def rows_of(share):
    return np.concatenate([getattr(share, part) for part in PARTS])


def test_frame_split_deals_every_sample_once():
    split = partition(samples(240), PartitionConfig(num_clients=3))
    dealt = np.concatenate([rows_of(s) for s in (split.public, *split.devices)])
    assert sorted(dealt) == list(range(240))
    assert len(rows_of(split.public)) == 60
    assert [len(rows_of(s)) for s in split.devices] == [60, 60, 60]
    assert [len(getattr(split.devices[0], part)) for part in PARTS] == [48, 6, 6]


@pytest.mark.parametrize("num_clients", [1, 3, 40])
def test_sequence_split_holds_out_whole_sequences_for_every_node(num_clients):
    data = samples(480, groups=24)
    data = dataclasses.replace(data, strata=(data.groups % 2).astype(np.int32))
    split = partition(data, PartitionConfig(num_clients=num_clients, split="sequence"))
    shares = (split.public, *split.devices)
    groups = {part: {g for s in shares for g in data.groups[getattr(s, part)]} for part in PARTS}
    assert not groups["train"] & groups["test"] and not groups["train"] & groups["val"]
    assert not groups["val"] & groups["test"]
    assert {data.strata[s] for s in split.public.test} == {0, 1}
    trained = np.concatenate([s.train for s in shares])
    assert len(set(trained)) == len(trained)
    assert abs(len(split.public.train) / len(trained) - 0.25) < 0.1


def test_partition_depends_on_its_own_seed_alone():
    a, b, c = (partition(samples(), PartitionConfig(seed=seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a.public.train, b.public.train)
    assert not np.array_equal(a.public.train, c.public.train)


def test_device_column_rules():
    data = samples(240)
    devices = np.arange(240, dtype=np.int32) % 4 - 1
    split = partition(dataclasses.replace(data, devices=devices), PartitionConfig(num_clients=-1))
    assert len(split.devices) == 3
    assert set(devices[rows_of(split.devices[2])]) == {2} and set(devices[split.public.val]) == {-1}
    with pytest.raises(UserError, match="names 3 devices, partition.num_clients is 5"):
        partition(dataclasses.replace(data, devices=devices), PartitionConfig(num_clients=5))
    with pytest.raises(UserError, match="no sample is public"):
        partition(dataclasses.replace(data, devices=np.abs(devices)),
                  PartitionConfig(num_clients=-1))
    with pytest.raises(UserError, match="no device column"):
        partition(data, PartitionConfig(num_clients=-1))


@pytest.mark.parametrize("seed", range(4))
def test_groups_that_nodes_share_are_on_one_side_for_all(seed):
    """Twenty shifts in each of three halls and the public pool, five of a rare kind: what a device
    is tested on nobody trains on, and both kinds are held out."""
    data = samples(480, groups=20)
    devices = np.random.default_rng(seed).integers(-1, 3, 480).astype(np.int32)
    data = dataclasses.replace(
        data, devices=devices, strata=(data.groups % 4 == 0).astype(np.int32))
    options = PartitionConfig(num_clients=-1, split="sequence", seed=seed, test_fraction=0.2)
    split = partition(data, options)
    shares = (split.public, *split.devices)
    assert sorted(np.concatenate([rows_of(s) for s in shares])) == list(range(480))
    for node, share in enumerate(shares):
        assert set(devices[rows_of(share)]) == {node - 1}
    groups = {part: {g for s in shares for g in data.groups[getattr(s, part)]} for part in PARTS}
    assert not groups["train"] & (groups["val"] | groups["test"])
    assert not groups["val"] & groups["test"] and len(groups["test"]) == 4
    assert {data.strata[i] for i in split.public.test} == {0, 1}


def test_groups_of_one_device_are_cut_by_itself():
    data = samples(240, groups=24)
    data = dataclasses.replace(data, devices=(data.groups % 3 - 1).astype(np.int32))
    split = partition(data, PartitionConfig(num_clients=-1, split="sequence"))
    for share in (split.public, *split.devices):
        assert [len(set(data.groups[getattr(share, part)])) for part in PARTS] == [6, 1, 1]


def test_a_rare_stratum_is_held_out_by_chance_and_not_by_rule():
    """Ten groups a node, four of a rare kind, one of them for validation and one for the test: over
    seeds, as often as they are many."""
    data = samples(600, groups=30)
    data = dataclasses.replace(data, devices=(data.groups % 3 - 1).astype(np.int32),
                               strata=(data.groups // 3 % 5 < 2).astype(np.int32))
    rare = {part: [] for part in PARTS}
    for seed in range(60):
        split = partition(data, PartitionConfig(num_clients=-1, split="sequence", seed=seed))
        for share in (split.public, *split.devices):
            for part in PARTS:
                rare[part].append(data.strata[getattr(share, part)].mean())
    for part in PARTS:
        np.testing.assert_allclose(np.mean(rare[part]), 0.4, atol=0.11)


@pytest.mark.parametrize("seed", range(20))
def test_nodes_that_overlap_leave_each_other_what_they_need(seed):
    """A chain of nodes with three or four groups, each of which shares one or two with the next."""
    data = samples(480, groups=12)
    has = [{0, 1, 2}, {2, 3, 4}, {4, 5, 6, 7}, {6, 7, 8, 9}, {9, 10, 11}]
    devices = np.array([rng.choice([node - 1 for node, own in enumerate(has) if group in own])
                        for rng in [np.random.default_rng(seed)] for group in data.groups])
    split = partition(dataclasses.replace(data, devices=devices.astype(np.int32)), PartitionConfig(
        num_clients=-1, split="sequence", seed=seed))
    groups = {part: {g for s in (split.public, *split.devices)
                     for g in data.groups[getattr(s, part)]} for part in PARTS}
    assert sum(map(len, groups.values())) == 12


def test_groups_that_cannot_be_cut_are_named():
    """Four devices with two each of three groups in common with the pool, and one of their own."""
    data = samples(240, groups=3)
    devices = np.where(np.arange(240) % 2, -1, 0).astype(np.int32)
    options = PartitionConfig(num_clients=-1, split="sequence")
    partition(dataclasses.replace(data, devices=devices), options)
    few = np.where(devices < 0, data.groups, data.groups % 2).astype(np.int32)
    with pytest.raises(UserError, match="device 0 has 2 groups; split=sequence needs at least 3"):
        partition(dataclasses.replace(data, devices=devices, groups=few), options)
    # Any two of the pool's five groups are with a third that is shared by a device.
    sets = [(0, 1, 2), (0, 1, 3), (0, 2, 3), (1, 2, 3)]
    rows = [(node, group) for node, own in enumerate(sets) for group in own]
    many = samples(len(rows) * 10, groups=len(rows))
    data = dataclasses.replace(
        many, devices=np.array([rows[g][0] - 1 for g in many.groups], np.int32),
        groups=np.array([rows[g][1] for g in many.groups], np.int32))
    with pytest.raises(UserError, match="cannot be given whole groups for training, validation"):
        partition(data, options)


def test_too_many_devices_are_named():
    with pytest.raises(UserError, match="too few for 100 devices"):
        partition(samples(120), PartitionConfig(num_clients=100))


def test_ownership_axes_and_at_least_one_modality():
    every = np.ones((2000, 3), bool)
    static = ownership(PartitionConfig(num_clients=2000, rho=0.5), every, rounds=7)
    assert static.shape == (1, 2000, 3) and static.any(-1).all()
    # P(owned | at least one) = .5 / (1 − .5³)
    np.testing.assert_allclose(static.mean(), 0.5 / 0.875, atol=0.02)
    moving = ownership(PartitionConfig(rho=0.5, mask_schedule="per_round"), every[:3], rounds=50)
    assert moving.shape == (50, 3, 3) and moving.any(-1).all()
    assert len(np.unique(moving.reshape(50, -1), axis=0)) > 10


def test_stratified_draw_gives_each_modality_its_owners():
    config = PartitionConfig(num_clients=10, rho=0.5, mask_draw="stratified")
    owned = ownership(config, np.ones((10, 3), bool), 1)
    counts = owned[0].sum(0)
    assert owned.any(-1).all() and (counts >= 5).all() and counts.sum() <= 15 + 3


@pytest.mark.parametrize(("schedule", "draw"), [
    ("static", "bernoulli"), ("static", "stratified"), ("per_round", "bernoulli"),
    ("per_round", "stratified"), ("per_sample", "bernoulli")])
def test_a_device_owns_only_what_it_has_readings_of(schedule, draw):
    """Four devices: one sensor, another, two, all three; at ρ = 1 they own just these."""
    readings = np.array([[1, 0, 0], [0, 0, 1], [1, 1, 0], [1, 1, 1]], bool)
    for seed, rho in ((0, 0.2), (1, 0.5), (2, 0.8)):
        config = PartitionConfig(num_clients=4, rho=rho, seed=seed, mask_schedule=schedule,
                                 mask_draw=draw)
        owned = ownership(config, readings, rounds=20)
        assert owned.any(-1).all() and not (owned & ~readings).any()
    every = ownership(PartitionConfig(rho=1.0, mask_schedule=schedule, mask_draw=draw), readings, 2)
    assert (every == readings).all()


def test_a_device_without_a_reading_is_named():
    with pytest.raises(UserError, match="device 1 has no reading of any modality to train on"):
        ownership(PartitionConfig(), np.array([[True, False], [False, False]]), 1)


def test_sample_masks_vary_by_sample_only_where_asked():
    assert sample_mask(PartitionConfig(), 0, 0, 10, 3) is None
    mask = sample_mask(PartitionConfig(rho=0.5, mask_schedule="per_sample"), 0, 0, 100, 3)
    assert mask.shape == (100, 3) and mask.any(-1).all() and 0.4 < mask.mean() < 0.75


@pytest.mark.parametrize("option,value,message", [
    ("num_clients", 0, "partition.num_clients is 0"), ("rho", 0.0, r"in \(0, 1\]"),
    ("rho", 1.5, r"in \(0, 1\]"), ("split", "video", "use frame or sequence"),
    ("mask_schedule", "daily", "static or per_round"), ("val_fraction", 0.7, "share in")])
def test_bad_options_are_named(option, value, message):
    with pytest.raises(UserError, match=message):
        PartitionConfig(**{option: value})


def test_label_budget_keeps_a_seeded_part_of_each_device_and_nothing_else_changes():
    whole, few = (partition(samples(240), PartitionConfig(labelled=n)) for n in (0, 10))
    again = partition(samples(240), PartitionConfig(labelled=10))
    for a, b, c in zip(whole.devices, few.devices, again.devices, strict=True):
        assert len(b.train) == 10 and set(b.train) <= set(a.train)
        np.testing.assert_array_equal(b.train, c.train)
        np.testing.assert_array_equal(a.test, b.test)
    np.testing.assert_array_equal(whole.public.train, few.public.train)
    more = partition(samples(240), PartitionConfig(labelled=10_000))
    np.testing.assert_array_equal(more.devices[0].train, whole.devices[0].train)


def test_server_labels_are_a_share_of_rows_or_of_whole_recordings():
    assert partition(samples(240), PartitionConfig()).public_labelled.all()
    frame = partition(samples(240), PartitionConfig(server_labelled=0.25))
    assert frame.public_labelled.sum() == round(0.25 * len(frame.public.train))
    data = samples(480, groups=48)
    split = partition(data, PartitionConfig(split="sequence", server_labelled=0.5))
    groups = data.groups[split.public.train]
    labelled, unlabelled = (set(groups[split.public_labelled == x]) for x in (True, False))
    assert not labelled & unlabelled and abs(len(labelled) - len(unlabelled)) <= 1
    least = partition(data, PartitionConfig(split="sequence", server_labelled=1e-6))
    assert len(set(data.groups[least.public.train[least.public_labelled]])) == 1


@pytest.mark.parametrize(("options", "message"), [
    ({"labelled": -1}, "partition.labelled is -1"),
    ({"server_labelled": 0.0}, "partition.server_labelled is 0.0"),
    ({"server_labelled": 1.5}, "partition.server_labelled is 1.5")])
def test_impossible_label_budgets_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        PartitionConfig(**options)
