"""Algorithm 1: what a round moves, what it leaves alone, and that placement changes nothing."""

import jax
import numpy as np
import pytest

from mlecs_jax import lora
from mlecs_jax.errors import UserError
from mlecs_jax.methods import ml_ecs
from tests.methods.rounds import KEY, assert_close, assert_equal, begun, build, moved, run


@pytest.fixture(scope="module")
def reference():
    """Two rounds on one device."""
    return run(*build()[1:])


def test_first_round_moves_what_the_paper_trains_and_nothing_else():
    setting, method, state = build()
    before = jax.device_get(state)
    after, _ = run(method, state, rounds=1)
    for group in ("extractor", "connector", "generator", "lora"):
        assert moved(before.devices[0][group], after.devices[0][group])
        assert moved(before.server["llm"][group], after.server["llm"][group])
    assert moved(before.server["slm"]["generator"], after.server["slm"]["generator"])
    assert_close(after.broadcast, after.server["slm"]["lora"])
    assert jax.tree.leaves(setting.edge["slm"])[0].shape  # the backbone is still there, unstacked
    assert lora.count(setting.edge["slm"]) == lora.count(
        setting.slm.init_backbone(jax.random.key(1)))


@pytest.mark.parametrize("train_connector", [False, True])
def test_amt_leaves_the_connector_alone(train_connector):
    """AMT alone, and nobody who would broadcast: what moves on the devices moved in it."""
    _, method, state = build(**{"method.public": False, "method.broadcast": False,
                                "amt.train_connector": train_connector})
    before = jax.device_get(state).devices[0]
    after = run(method, state, rounds=1)[0].devices[0]
    assert moved(before["extractor"], after["extractor"]) and moved(before["lora"], after["lora"])
    for group in ("connector", "generator"):
        assert moved(before[group], after[group]) == train_connector, group


@pytest.mark.parametrize("train_extractor", [False, True])
def test_ccl_leaves_the_extractor_alone_where_it_is_frozen(train_extractor, monkeypatch):
    """What AMT begins with is what CCL left."""
    noted = begun(monkeypatch)
    _, method, state = build(**{"ccl.train_extractor": train_extractor})
    method.round(state, 0, KEY)
    (before,), (after,) = noted
    assert moved(before["extractor"], after["extractor"]) == train_extractor
    for group in ("connector", "generator", "lora"):
        assert moved(before[group], after[group]), group


@pytest.mark.parametrize("schedule", ["static", "per_round"])
def test_absent_encoders_do_not_move(schedule):
    """In any round those move whose modality the device has in that round."""
    setting, method, state = build(**{"train.ccl_steps": 1, "partition.rho": 0.4,
                                      "partition.seed": 3, "partition.mask_schedule": schedule})
    owned = [setting.federation.owned_at(r) for r in range(2)]
    assert not owned[0].all() and (owned[0] != owned[1]).any() == (schedule == "per_round")
    for r, now in enumerate(owned):
        before = jax.device_get(state).devices[0]
        state, _ = method.round(state, r, KEY)
        after = jax.device_get(state).devices[0]
        for (j, m), has in np.ndenumerate(now):
            name = setting.federation.modalities[m]
            own = [jax.tree.map(lambda x, j=j: x[j], params["extractor"][name])
                   for params in (before, after)]
            assert moved(*own) == has, (r, j, name)


def test_devices_tell_how_many_modalities_they_have_in_that_round():
    setting, _, state = build(**{"partition.rho": 0.5, "partition.mask_schedule": "per_round",
                                 "train.rounds": 4})
    part, cloud = ml_ecs.device_part(setting), ml_ecs.cloud_part(setting)
    message, told = cloud.speak(state.server), []
    for r in range(4):
        told.append(part.train(part.init(KEY), message, r, KEY)[1]["modalities"])
    np.testing.assert_array_equal(told, setting.federation.owned.sum(axis=2))
    assert len(np.unique(told, axis=0)) > 1


def test_uplink_is_lora_and_one_count(reference):
    setting, method, state = build()
    sent = method.communication(state)
    assert sent["uplink"] == 4 * lora.count(state.broadcast) + 4
    public = len(setting.federation.partition.public.train)
    assert sent["downlink"] == 4 * lora.count(state.broadcast) + 4 * 8 * public
    assert set(reference[0].server["slm"]) == {"generator", "lora"}


@pytest.mark.parametrize(("rho", "weights"), [(0.8, [1 / 6, 2 / 6, 3 / 6]), (1.0, [1 / 3] * 3)])
def test_without_se_ccl_the_aggregate_goes_back_unchanged(rho, weights):
    """MMA by hand, of devices with 1, 2 and 3 modalities; of equal counts it is the uniform
    mean."""
    _, method, state = build(**{"method.se_ccl": False, "partition.rho": rho})
    after, _ = run(method, state, rounds=1)
    assert_close(after.broadcast, jax.tree.map(
        lambda x: np.tensordot(weights, x, axes=1), after.devices[0]["lora"]), atol=1e-7)


def test_without_mma_devices_weigh_the_same():
    _, method, state = build(**{"method.se_ccl": False, "method.mma": False,
                                "partition.rho": 0.5})
    after, _ = run(method, state, rounds=1)
    expected = jax.tree.map(lambda x: x.mean(0), after.devices[0]["lora"])
    assert_close(after.broadcast, expected, atol=1e-7)


@pytest.mark.parametrize("ablation", ["ccl", "kt"])
def test_other_ablations_change_the_result(ablation, reference):
    after, _ = run(*build(**{f"method.{ablation}": False})[1:])
    part = "devices" if ablation == "ccl" else "server"
    assert moved(getattr(reference[0], part), getattr(after, part))


@pytest.mark.parametrize("options,devices", [
    ({"clients.backend": "loop"}, 1), ({"clients.chunk": 2}, 1),
    pytest.param({"clients.chunk": 3}, 1, marks=pytest.mark.slow),
    ({}, 3), ({"clients.backend": "shard_map"}, 8)])
def test_back_ends_and_meshes_agree(options, devices, reference):
    """Losses to 1e-5; parameters only loosely, since Adam amplifies rounding of tiny gradients."""
    setting, method, state = build(devices, **options)
    assert setting.topology.disjoint == (devices > 1)
    after, diagnostics = run(method, state)
    assert_close(reference[1], diagnostics)
    assert_close(reference[0].broadcast, after.broadcast, atol=1e-3)


def test_cohorts_of_other_widths_train_together_and_only_lora_meets():
    setting, method, state = build(**{
        "model.cohorts": "1=encoder_hidden:20,connector_hidden:10"})
    assert [list(c.clients) for c in setting.cohorts] == [[0, 2], [1]]
    after, diagnostics = run(method, state)
    wide, narrow = after.devices
    assert wide["connector"]["fusion_in"]["kernel"].shape[-1] == 16
    assert narrow["connector"]["fusion_in"]["kernel"].shape[-1] == 10
    assert diagnostics["devices"]["ccl"]["lm"].shape == (3,)
    predictions = method.evaluate(jax.device_put(after), 1)
    assert predictions["after_amt"].shape[0] == 3


def test_devices_stand_in_their_order_however_a_cohort_names_them():
    """Stacks of one cohort that holds all are in device order, as all that is told of them is."""
    setting, _, _ = build(**{"model.cohorts": "2,0,1=encoder_hidden:12"})
    np.testing.assert_array_equal(setting.join([cohort.clients for cohort in setting.cohorts]),
                                  setting.numbers)


@pytest.mark.parametrize("cohorts,message", [
    ("0", "cannot read '0'"), ("0=width:3", "cannot read"), ("7=encoder_hidden:3", "device 7"),
    ("0,0=encoder_hidden:3", "device 0 is named twice")])
def test_bad_cohorts_are_named(cohorts, message):
    with pytest.raises(UserError, match=message):
        build(**{"model.cohorts": cohorts})


def test_every_schedule_of_absence_runs():
    for schedule in ("per_round", "per_sample"):
        _, method, state = build(**{"partition.mask_schedule": schedule, "partition.rho": 0.5})
        _, diagnostics = run(method, state)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(diagnostics))


def test_rounds_are_functions_of_their_number(reference):
    """Round 1 computed again from the state before it is the same, bit for bit."""
    _, method, state = build()
    state, _ = method.round(state, 0, KEY)
    again, _ = method.round(state, 1, KEY)
    assert_equal(reference[0], jax.device_get(again))


def test_sequence_split_scores_every_device_on_the_common_recordings():
    setting, method, state = build(**{"data.split": "sequence", "partition.rho": 0.5,
                                      "partition.mask_schedule": "per_sample"})
    assert setting.federation.held_out_is_common
    answers = method.evaluate(state, 0)["after_amt"]
    assert answers.shape == (3, len(setting.federation.held_out.target))


def test_unknown_method_is_named():
    with pytest.raises(UserError, match="method.name is 'fedx'; use ml_ecs"):
        build(**{"method.name": "fedx"})
