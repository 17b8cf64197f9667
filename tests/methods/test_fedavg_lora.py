"""FedAvg of LoRA, and of every method that averages it so: rounds begin at the weighted mean."""

import jax
import numpy as np
import pytest

from tests.methods.rounds import UNEQUAL, add_number, assert_close, begun, build, run


@pytest.mark.parametrize("name", ["fedavg_lora", "fedmllm", "multi_fedavg"])
def test_the_second_round_begins_at_the_mean_of_the_first(name, monkeypatch):
    """By hand: devices of 60, 40 and 40 samples add 1, 2 and 3 to the LoRA θ that they received::

        θ ← θ + (60·1 + 40·2 + 40·3) / 140 = θ + 13/7

    The prompt generator is never sent: a device begins its second round with its own + 1, 2, 3.
    """
    noted = begun(monkeypatch, add_number)
    _, method, state = build(**UNEQUAL, **{"method.name": name, "method.fedmllm.server": "fedavg"})
    first = jax.device_get(state.devices[0])
    run(method, state)
    (begin,), (again,) = noted
    assert_close(begin, first | {group: begin[group] for group in ("extractor", "connector")})
    assert_close(again["lora"], jax.tree.map(lambda x: x + 13 / 7, first["lora"]), 1e-6)
    assert_close(again["generator"], add_number(first, np.arange(3))["generator"], 1e-6)
