"""Co-PLMs as approximated: who learns from whom, what travels, what needs no label."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlecs_jax import assemble, backbones, channel
from mlecs_jax.configs import vast
from mlecs_jax.errors import UserError
from mlecs_jax.methods import co_plms
from tests.methods.rounds import (
    KEY,
    UNEQUAL,
    add_number,
    assert_close,
    begun,
    build,
    moved,
    run,
)
from tests.small import config, samples

NAME = {"method.name": "co_plms", "method.co_plms.proxy": "gpt2-1x8x2"}


@pytest.fixture(scope="module")
def trained():
    setting, method, state = build(**NAME, **UNEQUAL, **{"partition.rho": 1.0})
    before = jax.device_get(state)
    return setting, method, before, *run(method, state, rounds=1)


@pytest.mark.slow
def test_only_proxy_adapters_and_encoders_travel(trained):
    setting, method, _, after, _ = trained
    encoders = sum(channel.num_bytes(tree) for tree in after.encoders[0].values())
    lora = channel.num_bytes(after.server["dpm"]["lora"])
    assert method.communication(after) == {"uplink": encoders + lora + 4,
                                           "downlink": encoders + lora}
    assert "approximation" in method.note
    del setting


@pytest.mark.slow
def test_every_learner_learns_and_encoders_are_fedavg_of_the_devices(trained):
    setting, _, before, after, diagnostics = trained
    for group in ("extractor", "connector", "generator", "lora"):
        assert moved(before.devices[0][group], after.devices[0][group])
        assert moved(before.server["own"][group], after.server["own"][group])
    for group in ("generator", "lora"):
        assert moved(before.proxies[0][group], after.proxies[0][group])
        assert moved(before.server["dpm"][group], after.server["dpm"][group])
    assert set(diagnostics["server"]) == {"distilling", "saml"}
    weights = setting.federation.train.count / setting.federation.train.count.sum()
    name = setting.federation.modalities[0]
    assert_close(after.encoders[0][name]["encoder"], jax.tree.map(
        lambda x: np.tensordot(weights, x, axes=1), after.devices[0]["extractor"][name]), 1e-7)


@pytest.mark.parametrize(("steps", "expected"), [(5, [2, 3, 5]), (1, [1, 1])])
def test_the_server_has_its_steps_and_no_more(monkeypatch, steps, expected):
    """The first distillation is within the first round's budget; one step cannot be shared."""
    taken = []

    def compiled(stage, *static, **options):
        def count(shared, server, node):
            taken.append(shared["steps"])
            return server, {}

        return count

    setting = assemble.from_samples(config(**NAME, **{"train.server_steps": steps}), samples())
    monkeypatch.setattr(co_plms.programs, "compiled", compiled)
    monkeypatch.setattr(type(setting), "on_devices", lambda self, stage: (
        lambda devices, *args, **options: (devices, {})))
    method = co_plms.build(setting)
    run(method, method.init(KEY), rounds=2)
    assert taken == expected


def test_server_weighs_by_numbers_of_samples(monkeypatch):
    """By hand: devices of 60, 40 and 40 samples add 1, 2 and 3 to their own model in each of two
    stages, to the proxy in the first; the server's training adds nothing. A round moves the
    encoders by 2 · 13/7, the proxy's LoRA by 13/7, and the next begins there."""
    noted = begun(monkeypatch, add_number)
    monkeypatch.setattr(co_plms.programs, "compiled", lambda *args, **options: (
        lambda shared, server, node: (server, {})))
    _, method, state = build(**NAME, **UNEQUAL, **{"partition.rho": 1.0})
    first = jax.device_get(state)
    run(method, state)
    (pair,) = noted[2]  # as the first stage of the second round begins
    assert_close(pair["dpm"]["lora"], jax.tree.map(
        lambda x: np.broadcast_to(x + 13 / 7, (3, *x.shape)), first.server["dpm"]["lora"]), 1e-6)
    for name, sent in first.encoders[0].items():
        assert_close(pair["own"]["extractor"][name], jax.tree.map(
            lambda x: np.broadcast_to(x + 26 / 7, (3, *x.shape)), sent["encoder"]), 1e-6)


def test_transfer_of_unknown_answers_reads_the_first_position_alone():
    target = jnp.array([[5, 7, -1], [-1, -1, -1]])
    np.testing.assert_array_equal(co_plms.spoken_of(target) >= 0,
                                  [[True, True, False], [True, False, False]])


def test_unknown_proxy_is_named():
    with pytest.raises(UserError, match="unknown backbone 'gpt9'"):
        build(**NAME | {"method.co_plms.proxy": "gpt9"})


def test_the_proxy_is_pretrained_where_its_tutors_are(monkeypatch):
    """By the same name and recipe, with a number and so a seed of its own."""
    shipped = vast.get_config("cpu")
    named = (shipped.model.slm, shipped.model.llm, shipped.method.co_plms.proxy)
    assert all(name.startswith(backbones.PRETRAINED) for name in named)
    with pytest.raises(UserError, match="a pretrained: backbone learns from captions"):
        build(**NAME | {"method.co_plms.proxy": "pretrained:gpt2-1x8x2"})
    setting = assemble.from_samples(config(**NAME), samples())
    asked = []

    def made(options, data, name, number):
        asked.append((name, number))
        return "gpt2-2x8x2"

    monkeypatch.setattr(backbones, "pretrained", made)
    dpm, backbone = co_plms.proxy(setting)
    assert asked == [("gpt2-1x8x2", co_plms.PROXY)]
    assert dpm.decoder.config.num_layers == 2 and jax.tree.leaves(backbone)
