"""Clients a few at a time: what a training step holds grows with these, not with all clients."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax

State = TypeVar("State")


def in_chunks(
    step: Callable[[State, Any], State], state: State, data: Any, *, size: int
) -> State:
    """`step` over stacked clients, `size` of them in flight, results written in place.

    A `fori_loop` slices a chunk out of the carried state, steps it and writes it back: with the
    state donated (`jax.jit(..., donate_argnums=...)`) it exists once. `lax.map` and `lax.scan`
    would hold a second copy, their outputs being apart from their inputs.

    Args:
      step: (state [c, ...], data [c, ...]) -> new state [c, ...] for c clients at once, c = size
        or the remainder; a function of `linear` with batched adapters, or a `jax.vmap` of one
        client's step. It must keep the state's shapes and types.
      state: pytree whose leaves are [C, ...]: adapters, optimiser states, results to fill in.
      data: pytree whose leaves are [C, ...], read only.
      size: clients in flight, at least 1. More than C is C.

    Returns:
      The new state, [C, ...].

    Raises:
      ValueError: size below 1, or leaves whose numbers of clients differ.
    """
    counts = {x.shape[0] for x in jax.tree.leaves((state, data))}
    if size < 1 or len(counts) != 1:
        raise ValueError(f"in_chunks: size {size} of clients {sorted(counts)}; expected one number")
    (total,) = counts
    size = min(size, total)

    def chunk(start: Any, length: int, state: State) -> State:
        own, given = jax.tree.map(
            lambda x: jax.lax.dynamic_slice_in_dim(x, start, length), (state, data)
        )
        return jax.tree.map(
            lambda x, new: jax.lax.dynamic_update_slice_in_dim(x, new, start, 0),
            state,
            step(own, given),
        )

    whole = total // size
    state = jax.lax.fori_loop(0, whole, lambda i, s: chunk(i * size, size, s), state)
    return chunk(whole * size, total % size, state) if total % size else state
