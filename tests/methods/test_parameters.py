"""What a device holds, beside what it sends."""

import numpy as np
import pytest

from mlecs_jax import lora, scoring
from tests.methods.rounds import build


def held(**options):
    setting, method, state = build(**options)
    return np.array(scoring.parameters_held(setting, method, state)), state, setting


@pytest.fixture(scope="module")
def plain():
    return held(**{"method.name": "private_only"})[0]


def test_a_device_of_co_plms_holds_two_models(plain):
    """The DPM beside its own: backbone, generator and LoRA."""
    found, state, setting = held(
        **{"method.name": "co_plms", "method.co_plms.proxy": "gpt2-1x16x2"})
    backbone = lora.count(setting.edge["slm"])  # the same shape as this test's proxy
    assert (found - plain == backbone + lora.count(state.server["dpm"])).all()


def test_a_device_of_fedilora_holds_its_own_rank(plain):
    """Ranks 6, 4, 2 in the place of 2: three times, twice and once the adapter of the others."""
    found, state, _ = held(**{"method.name": "fedilora", "method.fedilora.ranks": "6,4,2"})
    adapter = lora.count(state.broadcast) // 3
    np.testing.assert_array_equal(found - plain, [2 * adapter, adapter, 0])
