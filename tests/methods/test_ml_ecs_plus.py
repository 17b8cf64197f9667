"""ML-ECS+: what travels, what it teaches, and that nobody needs the labels it does without."""

import jax
import numpy as np
import pytest

from mlecs_jax import channel
from mlecs_jax.methods import ml_ecs_plus
from tests.methods.rounds import assert_close, build, moved, run

PLUS = {"method.name": "ml_ecs_plus"}


def test_first_upload_teaches_in_the_next_round():
    setting, method, state = build(**PLUS | {"partition.server_labelled": 0.2})
    assert not np.any(state.pooled.probabilities)
    first, _ = method.round(state, 0, jax.random.key(0))
    np.testing.assert_allclose(first.pooled.probabilities.sum(-1), 1, rtol=1e-5)
    unlabelled = ml_ecs_plus.unlabelled(setting)
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
    assert method.communication(state) == {"uplink": lora + samples * 3 * 2 + 4 * (1 + 3),
                                           "downlink": lora + samples * 3 * 2}
    _, method, state = build(**PLUS | {"plus.lora": False})
    assert method.communication(state)["downlink"] == samples * 3 * 2


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
