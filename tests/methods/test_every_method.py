"""What holds for every method: rounds are functions of their number, placement changes nothing,
absence and cohorts are handled or refused. Slow: each method compiles programs of its own."""

import dataclasses

import jax
import numpy as np
import pytest

from mlecs_jax import assemble, methods
from mlecs_jax.errors import UserError
from mlecs_jax.repro.methods import UNREAD
from tests.methods.rounds import KEY, assert_close, assert_equal, build, run
from tests.small import config, samples

# ml_ecs has a suite of its own; mega_ce2 needs another kind of data.
NAMES = sorted(set(methods.METHODS) - {"ml_ecs", "mega_ce2"})


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_rounds_are_functions_of_their_number_and_methods_answer(name):
    """Round 1 computed again from a saved state before it is the same, bit for bit."""
    setting, method, state = build(**{
        "method.name": name, "partition.rho": 0.5, "partition.mask_schedule": "per_round",
        "method.fedilora.ranks": "4,1"})
    state, _ = method.round(state, 0, KEY)
    saved = jax.device_get(state)
    after, diagnostics = method.round(state, 1, KEY)
    after = jax.device_get(after)
    again, _ = method.round(jax.device_put(saved), 1, KEY)
    assert_equal(after, jax.device_get(again))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(diagnostics))
    answers = method.evaluate(jax.device_put(saved), 0)
    assert answers["after_amt"].shape[0] == setting.federation.num_clients
    sent = method.communication(again)
    assert set(sent) == {"uplink", "downlink"} and all(isinstance(n, int) for n in sent.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_back_ends_and_meshes_agree(name):
    """Losses to 1e-5; parameters are compared through the next round's losses."""
    _, method, state = build(**{"method.name": name})
    _, expected = run(method, state)
    for options, devices in (({"clients.backend": "loop"}, 1), ({"clients.chunk": 2}, 1),
                             ({}, 3), ({"clients.backend": "shard_map"}, 8)):
        _, method, state = build(devices, **options, **{"method.name": name})
        assert_close(expected, run(method, state)[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_cohorts_train_or_are_refused_in_one_line(name):
    overrides = {"method.name": name, "model.cohorts": "1=encoder_hidden:20,connector_hidden:10"}
    if name == "centralized":
        with pytest.raises(UserError, match="leave model.cohorts empty"):
            build(**overrides)
        return
    _, method, state = build(**overrides)
    after, diagnostics = run(method, state)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(diagnostics))
    assert method.evaluate(jax.device_put(after), 1)["after_amt"].shape[0] == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_unlabelled_public_data_and_per_sample_absence(name):
    _, method, state = build(**{
        "method.name": name, "partition.public_labels": False, "partition.server_labelled": 0.3,
        "partition.labelled": 20, "partition.mask_schedule": "per_sample", "partition.rho": 0.6})
    _, diagnostics = run(method, state)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(diagnostics))


@pytest.mark.slow
@pytest.mark.parametrize("name", UNREAD["partition.public_labels"])
def test_sweeps_may_share_runs_of_what_a_method_does_not_read(name):
    """Bit for bit: nodes, answers and bytes, whatever labels the public data have."""
    def ended(**labels):
        _, method, state = build(**{"method.name": name, "method.fedilora.ranks": "4,1",
                                    "partition.labelled": 20} | labels)
        sent = method.communication(state)
        after, _ = run(method, state, rounds=1)
        return after, jax.device_get(method.evaluate(jax.device_put(after), 0)), sent

    usual = ended()
    assert_equal(usual, ended(**{"partition.public_labels": False}))
    if name in UNREAD["partition.server_labelled"]:
        assert_equal(usual, ended(**{"partition.server_labelled": 0.3}))


@pytest.mark.parametrize("name", sorted(set(methods.METHODS) - {"mega_ce2"}))
def test_brief_runs_ask_after_the_broadcast_in_the_last_round_alone(name):
    """And there, and of all else in every round, they ask what other runs ask."""
    setting = dataclasses.replace(
        assemble.from_samples(config(**{"method.name": name, "train.rounds": 3,
                                        "method.fedilora.ranks": "4,1"}), samples()),
        unanswered=True)
    whole, brief = (methods.build(dataclasses.replace(setting, briefly=value))
                    for value in (False, True))
    state = whole.init(KEY)
    for r in range(3):
        expected, found = whole.evaluate(state, r), brief.evaluate(state, r)
        left_out = {"after_broadcast"} if r < 2 else set()
        assert set(found) == set(expected) - left_out
        assert_equal({part: expected[part].params for part in found},
                     {part: found[part].params for part in found})
