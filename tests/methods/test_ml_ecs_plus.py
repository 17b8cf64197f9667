"""ML-ECS+: what travels, what it teaches, and that nobody needs the labels it does without."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlecs_jax import assemble, channel, methods, rounds, stages
from mlecs_jax import config as configs
from mlecs_jax.configs import ur_fall
from mlecs_jax.losses import SoftTargets
from mlecs_jax.methods import ml_ecs_plus
from mlecs_jax.models.multimodal import Batch
from tests.methods.rounds import UNEQUAL, assert_close, begun, build, moved, run
from tests.small import config, samples

PLUS = {"method.name": "ml_ecs_plus"}


def test_first_upload_teaches_in_the_next_round():
    setting, method, state = build(**PLUS | {"partition.server_labelled": 0.2})
    assert not np.any(state.pooled.probabilities)
    first, _ = method.round(state, 0, jax.random.key(0))
    np.testing.assert_allclose(first.pooled.probabilities.sum(-1), 1, rtol=1e-5)
    unlabelled = ~rounds.has_public_label(setting)
    assert unlabelled.mean() > 0.7
    silent = first.replace(pooled=first.pooled.replace(
        probabilities=np.zeros_like(first.pooled.probabilities)))
    (taught, heard), (alone, unheard) = (
        method.round(jax.tree.map(np.array, s), 1, jax.random.key(0)) for s in (first, silent))
    assert heard["server"]["llm"]["distil"] > 0 and unheard["server"]["llm"]["distil"] == 0
    assert moved(jax.device_get(taught.llm), jax.device_get(alone.llm))


def test_public_labels_on_devices_are_not_read():
    """With public_labels=False the devices' L_lb is that of private samples alone, and training
    does not depend on what the public labels of the devices would have been."""
    _, method, state = build(**PLUS | {"partition.public_labels": False, "plus.public_share": 1.0,
                                       "plus.distil": 0.0})
    before = jax.device_get(state.devices)
    after, diagnostics = run(method, state, rounds=1)
    assert not np.any(diagnostics["devices"]["both"]["lm"])
    assert not moved(before[0]["extractor"], after.devices[0]["extractor"])


def test_uplink_and_downlink_are_beliefs_and_lora():
    setting, method, state = build(**PLUS)
    lora = channel.num_bytes(state.broadcast)
    samples = setting.federation.public.target.shape[0]
    # Beliefs of 3 classes in 2 bytes, a byte for the modalities seen of each sample.
    assert method.communication(state) == {"uplink": lora + samples * (3 * 2 + 1) + 4 * (1 + 3),
                                           "downlink": lora + samples * 3 * 2}
    _, method, state = build(**PLUS | {"plus.lora": False})
    assert method.communication(state)["downlink"] == samples * 3 * 2


def test_what_is_counted_is_what_is_sent(monkeypatch):
    """Every array of the upload, by its own size and type."""
    setting, method, state = build(**PLUS)
    uploads = []
    monkeypatch.setattr(type(setting.topology), "to_cloud", _spy(
        type(setting.topology).to_cloud, lambda tree: uploads.append(tree)
        if isinstance(tree, dict) and "beliefs" in tree else None))
    method.round(state, 0, jax.random.key(0))
    (sent,) = uploads
    clients = setting.federation.num_clients
    sizes = {name: sum(x.size * (4 if name == "modalities" else x.dtype.itemsize) for x in
                       jax.tree.leaves(part)) / clients for name, part in sent.items()}
    assert method.communication(state)["uplink"] == sum(sizes.values())
    assert sent["seen"].dtype == np.uint8


def _spy(function, note):
    def noted(self, tree, **options):
        note(tree)
        return function(self, tree, **options)

    return noted


def test_communication_is_within_three_times_that_of_ml_ecs():
    """At the size of UR-Fall: its samples, the cpu preset's models."""
    values = ur_fall.get_config("cpu").to_dict()
    values["data"]["source"] = "simulated"
    sent = {}
    for name in ("ml_ecs", "ml_ecs_plus"):
        values["method"]["name"] = name
        config = configs.parse(values)
        big = samples(2995)
        setting = assemble.from_samples(config, dataclasses.replace(big, name="ur_fall"))
        method = methods.build(setting)
        sent[name] = method.communication(method.init(jax.random.key(0)))
    assert sum(sent["ml_ecs_plus"].values()) < sum(sent["ml_ecs"].values())
    assert sent["ml_ecs_plus"]["uplink"] <= 3 * sent["ml_ecs"]["uplink"]


def test_levers_that_are_off_leave_everything_as_it_was():
    _, _, state = build(**PLUS | {"plus.encoders": False, "plus.volume": 0.0})
    assert type(state) is ml_ecs_plus.State  # the checkpoints of before are of this
    assert config(**PLUS).plus.encoders is None and config(**PLUS).plus.volume is None


@pytest.mark.slow
def test_shared_encoders_are_those_of_the_owners(monkeypatch):
    """Their mean by numbers of samples, with which the next round begins."""
    on = PLUS | UNEQUAL | {"plus.encoders": True, "partition.rho": 1.0}
    noted = begun(monkeypatch)
    setting, method, state = build(**on)
    alone = build(**on | {"plus.encoders": False})[1:]
    sent, other = method.communication(state), alone[0].communication(alone[1])
    encoders = sum(channel.num_bytes(tree) for tree in state.encoders[0].values())
    assert {way: sent[way] - other[way] for way in sent} == {"uplink": encoders,
                                                             "downlink": encoders}
    after, _ = run(method, state, rounds=1)
    weights = setting.federation.train.count / setting.federation.train.count.sum()
    assert len(set(weights)) > 1
    name = setting.federation.modalities[0]
    by_hand = jax.tree.map(lambda x: np.tensordot(weights, x, axes=1),
                           after.devices[0]["extractor"][name])
    assert_close(after.encoders[0][name]["encoder"], by_hand, 1e-6)
    noted.clear()
    again, _ = method.round(jax.device_put(after), 1, jax.random.key(0))
    (begin,) = noted[0]
    for received, mean in ((begin["extractor"][name], by_hand), (begin["lora"], after.broadcast)):
        assert_close(received, jax.tree.map(
            lambda x: np.broadcast_to(x, (3, *x.shape)), mean), 1e-6)
    assert moved(after.encoders, jax.device_get(again.encoders))


@pytest.mark.slow
def test_volume_loss_speaks_of_public_batches_between_unlike_classes():
    """Where every batch is private it moves nothing; on public ones its rule matters."""
    def devices(**overrides):
        return run(*build(**PLUS | overrides)[1:], rounds=1)

    private, _ = devices(**{"plus.public_share": 0.0})
    same, losses = devices(**{"plus.public_share": 0.0, "plus.volume": 1.0})
    assert not np.any(losses["devices"]["both"]["volume"])
    assert_close(private.devices, same.devices, 1e-6)
    every, losses = devices(**{"plus.volume": 1.0})
    assert np.all(losses["devices"]["both"]["volume"] > 0)
    unlike, _ = devices(**{"plus.volume": 1.0, "ccl.negatives": "other_class",
                           "partition.public_labels": False})
    assert moved(every.devices, unlike.devices)


def test_negatives_of_rows_without_a_label_are_by_the_teacher():
    """Rows: label 5, no label and taught 5, no label and taught 7, no label and silence."""
    target = jnp.array([[5, 1], [-1, -1], [-1, -1], [-1, -1]])
    teacher = SoftTargets(jnp.full((4, 1, 2), jnp.array([5, 7])),
                          jnp.array([[0.4, 0.5], [0.9, 0.1], [0.2, 0.8], [0.0, 0.0]])[:, None])
    batch = Batch(inputs={}, mask=jnp.ones((4, 3), bool), target=target)
    everyone = jnp.ones(4, bool)
    np.testing.assert_array_equal(
        stages.negatives(batch, everyone, "other_class", teacher),
        [[False, False, True, True], [False, False, True, True], [True, True, False, True],
         [True, True, True, True]])
    assert stages.negatives(batch, everyone, "other_class")[1:, 1:].all()
    assert stages.negatives(batch, everyone, "all", teacher).all()


@pytest.mark.parametrize(("devices", "overrides"), [
    (1, {"clients.backend": "loop"}), (4, {"clients.backend": "shard_map"}),
    (1, {"partition.mask_schedule": "per_sample"}),
    (1, {"model.cohorts": "1=encoder_hidden:16"})])
def test_placements_and_schedules(devices, overrides):
    """Back ends agree; per-sample absence and mixed structures run."""
    state, _ = run(*build(devices, **PLUS | overrides)[1:])
    assert np.isfinite(state.pooled.probabilities).all()
    if "clients.backend" in overrides:
        expected = run(*build(**PLUS)[1:])[0].pooled
        assert_close(state.pooled.probabilities, expected.probabilities, atol=1e-4)
