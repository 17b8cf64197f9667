"""Modalities taken away at inference, against counts by hand."""

import numpy as np

from mlecs_jax.assemble import from_samples
from mlecs_jax.repro.absence import without, without_named
from tests.small import config, samples


def test_each_sample_loses_as_many_as_it_can_spare():
    setting = from_samples(config(**{"partition.rho": 0.5}), samples())
    owned = setting.federation.owned_at(0)
    for count in (1, 2):
        poorer = without(setting, count)
        for before, after in zip(setting.cohorts, poorer.cohorts, strict=True):
            has = np.asarray(before.held_out_available) & owned[before.clients][:, None]
            left = np.asarray(after.held_out_available)
            assert not np.any(left & ~has)
            np.testing.assert_array_equal(
                left.sum(-1), np.maximum(has.sum(-1) - count, np.minimum(has.sum(-1), 1)))
        rows = poorer.cloud["public_held_out"]
        whole = np.asarray(setting.cloud["public_held_out"].available).sum(-1)
        np.testing.assert_array_equal(np.asarray(rows.available).sum(-1),
                                      np.maximum(whole - count, 1))
    # What is taken is drawn: over the samples, every modality is lost somewhere.
    assert np.all(np.asarray(without(setting, 1).cloud["public_held_out"].available).mean(0) < 1)


def test_named_modalities_go_and_nothing_else():
    setting = from_samples(config(), samples())
    poorer = without_named(setting, ["rgb"])
    owned = setting.federation.owned_at(setting.config.train.rounds - 1)
    kept = np.array([name != "rgb" for name in setting.federation.modalities])
    for before, after in zip(setting.cohorts, poorer.cohorts, strict=True):
        has = np.asarray(before.held_out_available) & owned[before.clients][:, None]
        np.testing.assert_array_equal(np.asarray(after.held_out_available), has & kept)
    np.testing.assert_array_equal(
        np.asarray(poorer.cloud["public_held_out"].available),
        np.asarray(setting.cloud["public_held_out"].available) & kept)
