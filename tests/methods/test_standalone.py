"""Nodes apart: what moves, what never does, and ML-ECS without everything."""

import dataclasses

import jax
import numpy as np
import pytest

from mlecs_jax import methods
from tests.methods.rounds import KEY, assert_close, assert_equal, build, moved, run


@pytest.fixture(scope="module")
def reference():
    return run(*build(**{"method.name": "standalone"})[1:])


def test_ml_ecs_without_everything_is_standalone_step_for_step(reference):
    """No public data on devices, nothing broadcast, the LLM alone: only L_lb is left. AMT is then
    all of local training, so it must train the connector too."""
    without = {f"method.{part}": False
               for part in ("ccl", "mma", "se_ccl", "kt", "public", "broadcast")}
    _, method, state = build(**without, **{"amt.train_connector": True})
    assert method.communication(state)["downlink"] == 0
    after, diagnostics = run(method, state)
    standalone, losses = reference
    assert_close(standalone.devices, after.devices, atol=1e-6)
    assert_close(standalone.server, after.server["llm"], atol=1e-5)
    assert_close(losses["devices"]["private"]["lm"], diagnostics["devices"]["amt"]["lm"], 1e-6)
    assert_close(losses["server"]["alone"]["lm"], diagnostics["server"]["se_ccl"]["llm_lm"], 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("labelled", [1.0, 0.3])
def test_localpub_is_ml_ecs_without_communication(labelled):
    """The same two stages and rates; the volume loss off, LoRA never sent back, the LLM alone.
    Where few public samples have a label, both draw their batches from these."""
    known = {"partition.server_labelled": labelled}
    off = {f"method.{part}": False for part in ("ccl", "mma", "se_ccl", "kt", "broadcast")}
    ml_ecs, _ = run(*build(**off, **known)[1:])
    control, _ = run(*build(**{"method.name": "localpub"}, **known)[1:])
    assert_close(ml_ecs.devices, control.devices, atol=1e-5)
    assert_close(ml_ecs.server["llm"], control.server, atol=1e-5)


def test_every_node_trains_all_its_groups_and_sends_nothing():
    _, method, state = build(**{"method.name": "standalone", "partition.rho": 1.0})
    before = jax.device_get(state)
    after, _ = run(method, state, rounds=1)
    for group in ("extractor", "connector", "generator", "lora"):
        assert moved(before.devices[0][group], after.devices[0][group])
        assert moved(before.server[group], after.server[group])
    assert method.communication(state) == {"uplink": 0, "downlink": 0}


def test_private_only_has_the_same_devices_and_no_server(reference):
    _, method, state = build(**{"method.name": "private_only"})
    after, diagnostics = run(method, state)
    assert after.server is None and diagnostics["server"] == {}
    assert_equal(reference[0].devices, after.devices)
    assert set(method.evaluate(jax.device_put(after), 1)) == {"after_amt"}


@pytest.mark.slow
def test_localpub_keeps_its_labels_where_others_lose_them():
    with_labels, _ = run(*build(**{"method.name": "localpub"})[1:], rounds=1)
    without, losses = run(
        *build(**{"method.name": "localpub", "partition.public_labels": False})[1:], rounds=1)
    assert np.all(losses["devices"]["public"]["lm"] > 0)
    assert_equal(with_labels.devices, without.devices)


@pytest.mark.slow
def test_localpub_mixed_is_ml_ecs_plus_without_communication():
    """Teacher and LoRA averaging off, all public rows labelled: the same batches in the same order,
    every group at the same rate, the LLM by itself."""
    off = {"method.name": "ml_ecs_plus", "plus.distil": 0.0, "plus.lora": False}
    plus, losses = run(*build(**off)[1:])
    control, own = run(*build(**{"method.name": "localpub_mixed"})[1:])
    assert_close(plus.devices, control.devices, atol=1e-5)
    assert_close(plus.llm, control.server, atol=1e-5)
    assert_close(losses["devices"]["both"]["lm"], own["devices"]["both"]["lm"], 1e-6)
    apart, _ = run(*build(**{"method.name": "localpub"})[1:])
    assert moved(apart.devices[0]["connector"], control.devices[0]["connector"])


def test_the_server_of_localpub_mixed_is_ml_ecs_plus_hearing_nobody():
    """Of few labelled public rows: the same batches of all rows, so that what a server of ML-ECS+
    gains over it is what devices say and not how rows are drawn; localpub's goes through the
    labelled ones alone."""
    few = {"partition.server_labelled": 0.2}
    plus, _ = run(*build(**few | {"method.name": "ml_ecs_plus", "plus.server_distil": 0.0})[1:])
    mixed, _ = run(*build(**few | {"method.name": "localpub_mixed"})[1:])
    apart, _ = run(*build(**few | {"method.name": "localpub"})[1:])
    assert_close(plus.llm, mixed.server, atol=1e-5)
    assert moved(mixed.server, apart.server)


def test_localpub_mixed_learns_from_labelled_public_rows_alone():
    """With every batch public, what unlabelled rows show moves nothing, and nothing is sent."""
    mixed = {"method.name": "localpub_mixed", "plus.public_share": 1.0,
             "partition.server_labelled": 0.2}
    setting, method, state = build(**mixed)
    unlabelled = ~(np.asarray(setting.federation.public.target) >= 0).any(-1)
    assert unlabelled.mean() > 0.7
    expected, losses = run(method, state, rounds=1)
    assert np.all(losses["devices"]["both"]["lm"] > 0)
    public = setting.cloud["public"]
    blank = {name: jax.numpy.where(unlabelled.reshape(-1, *(1,) * (x.ndim - 1)), 0, x)
             for name, x in public.inputs.items()}
    blind = dataclasses.replace(
        setting, cloud=setting.cloud | {"public": public.replace(inputs=blank)})
    method = methods.build(blind)
    found, _ = run(method, method.init(KEY), rounds=1)
    assert_equal(expected.devices, found.devices)
    assert method.communication(state) == {"uplink": 0, "downlink": 0}
