"""What the Pallas kernels of several operations share: padding, and products in steps of width."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

DEPTH = 64  # how much of the width a step of a Triton kernel's product loads


def pad(x: jax.Array, size: int, axis: int, fill: float = 0.0) -> jax.Array:
    """x grown to `size` along `axis`."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, size - x.shape[axis])
    return jnp.pad(x, widths, constant_values=fill)


def round_up(size: int, step: int) -> int:
    """The least multiple of `step` that is at least `size`."""
    return -(-size // step) * step


def product(x: Any, rows: tuple[Any, ...], y: Any, columns: tuple[Any, ...], precision: Any) -> Any:
    """x[*rows, :] y[*columns, :]^T inside a Triton kernel, in float32, DEPTH of the width a step.

    Args:
      x, y: references whose last axis, a multiple of DEPTH, is summed over.
      rows, columns: indices of all axes but the last, of which one is a `pl.ds`.
    """

    def step(n: jax.Array, total: jax.Array) -> jax.Array:
        deep = pl.ds(n * DEPTH, DEPTH)
        return total + jax.lax.dot_general(
            x[(*rows, deep)],
            y[(*columns, deep)],
            (((1,), (1,)), ((), ())),
            precision=precision,
            preferred_element_type=jnp.float32,
        )

    shape = rows[-1].size, columns[-1].size
    return jax.lax.fori_loop(0, x.shape[-1] // DEPTH, step, jnp.zeros(shape, jnp.float32))
