"""What the tests of all methods do: build one over the small problem, run it, compare."""

from __future__ import annotations

import jax
import numpy as np

from mlecs_jax import assemble, methods
from tests.small import config, samples

KEY = jax.random.key(0)


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
