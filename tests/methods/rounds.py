"""What the tests of all methods do: build one over the small problem, run it, compare."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np

from mlecs_jax import assemble, methods
from mlecs_jax.setting import Setting
from tests.small import config, samples

KEY = jax.random.key(0)
UNEQUAL = {"data.split": "sequence"}  # devices of 60, 40 and 40 samples


def build(devices: int = 1, **overrides):
    """Setting, method and first state; overrides by dotted name."""
    setting = assemble.from_samples(config(**overrides), samples(), jax.devices()[:devices])
    method = methods.build(setting)
    return setting, method, method.init(KEY)


def run(method, state, rounds: int = 2):
    """State and last diagnostics after some rounds, on the host."""
    diagnostics = None
    for r in range(rounds):
        state, diagnostics = method.round(state, r, KEY)
    return jax.device_get(state), jax.device_get(diagnostics)


def moved(before, after) -> bool:
    return any(np.any(a != b) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after),
                                              strict=True))


def assert_close(a, b, atol: float = 1e-5) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=atol), a, b)


def assert_equal(a, b) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


def begun(monkeypatch, trained: Callable | None = None) -> list:
    """What devices begin each of their stages with, noted from here on.

    Args:
      trained: ``(params, clients) → params`` of a cohort in place of its training, so that what a
        round makes of it is known by hand and nothing is compiled.
    """
    noted, on_devices = [], Setting.on_devices

    def noting(self, stage):
        train = on_devices(self, stage)

        def run(devices, r, key, **shared):
            noted.append(jax.device_get(devices))
            if trained is None:
                return train(devices, r, key, **shared)
            return tuple(trained(params, cohort.clients) for params, cohort in
                         zip(devices, self.cohorts, strict=True)), {}

        return run

    monkeypatch.setattr(Setting, "on_devices", noting)
    return noted


def add_number(params, clients: np.ndarray):
    """Device j adds j + 1 to all it has; the mean by samples of :data:`UNEQUAL` devices adds
    (60·1 + 40·2 + 40·3) / 140 = 13/7."""
    return jax.tree.map(
        lambda x: x + (clients + 1.0).reshape(-1, *(1,) * (x.ndim - 1)).astype(x.dtype), params)
