"""`for_each_client`: one meaning, three back ends that agree.

``loop`` is the obvious one: a compiled client, called in turn, for debugging. ``scan`` carries
the stacked state through a scan over chunks of clients, each chunk under ``vmap``, and writes
results in place, so that memory in flight grows with the chunk and not with the clients.
``shard_map`` gives every device of the edge mesh its share of the clients and scans there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from mlecs_jax.errors import UserError

Tree = Any
ClientFn = Callable[[Tree, Tree, Tree], tuple[Tree, Tree]]
Backend = Literal["loop", "scan", "shard_map"]
CLIENT_AXIS = "client"


def for_each_client(
    fn: ClientFn, *, backend: Backend = "scan", chunk: int = 1, mesh: Mesh | None = None
) -> Callable[[Tree, Tree, Tree], tuple[Tree, Tree]]:
    """A compiled map of ``fn`` over stacked clients.

    Args:
      fn: ``(shared, state, data) → (state, output)`` for one client; pure. Its randomness must
        come from ``data`` (a key folded with the client's number), never from its position, so
        that results do not depend on back end, chunk or placement.
      backend: ``loop``, ``scan`` or ``shard_map``.
      chunk: clients under one ``vmap``; 1–2 is best on CPU, more on an accelerator.
      mesh: for ``shard_map``, a mesh with the axis ``client``; the number of clients must be a
        multiple of its size.

    Returns:
      ``(shared, states, data) → (states, outputs)``, stacked on a leading client axis. The
      buffers of ``states`` are donated.

    Raises:
      UserError: an unknown back end, a chunk below 1, or ``shard_map`` without a mesh.
    """
    if chunk < 1:
        raise UserError(f"clients.chunk is {chunk}; give 1 or more clients per chunk")
    if backend == "loop":
        return _loop(fn)
    if backend == "scan":
        return jax.jit(lambda shared, states, data: _scan(fn, chunk, shared, states, data),
                       donate_argnums=1)
    if backend == "shard_map":
        if mesh is None:
            raise UserError("clients.backend=shard_map needs an edge mesh; use scan on one device")
        return _sharded(fn, chunk, mesh)
    raise UserError(f"clients.backend is '{backend}'; use loop, scan or shard_map")


def num_clients(tree: Tree) -> int:
    """Length of the leading client axis."""
    return jax.tree.leaves(tree)[0].shape[0]


def _loop(fn: ClientFn):
    compiled = jax.jit(fn)

    def run(shared, states, data):
        results = []
        for i in range(num_clients(data)):
            state, own = jax.tree.map(lambda x, i=i: x[i], (states, data))
            try:
                results.append(compiled(shared, state, own))
            except Exception as error:
                error.add_note(f"in client {i} with state {jax.tree.map(jnp.shape, state)} and "
                               f"data {jax.tree.map(jnp.shape, own)}")
                raise
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)

    return run


def _scan(fn: ClientFn, chunk: int, shared: Tree, states: Tree, data: Tree):
    total = num_clients(data)
    chunk = min(chunk, total)

    def run_chunk(states, start, size):
        def part(x):
            return jax.lax.dynamic_slice_in_dim(x, start, size)

        new, outputs = _vmapped(fn, size)(shared, *jax.tree.map(part, (states, data)))
        states = jax.tree.map(
            lambda whole, new: jax.lax.dynamic_update_slice_in_dim(whole, new, start, 0),
            states, new)
        return states, outputs

    whole = total // chunk
    states, outputs = jax.lax.scan(
        lambda states, i: run_chunk(states, i * chunk, chunk), states, jnp.arange(whole))
    outputs = jax.tree.map(lambda x: x.reshape(whole * chunk, *x.shape[2:]), outputs)
    if total % chunk:
        states, rest = run_chunk(states, whole * chunk, total % chunk)
        outputs = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), outputs, rest)
    return states, outputs


def _vmapped(fn: ClientFn, size: int):
    """vmap over a chunk; a chunk of one skips the batching, whose rules cost time on CPU."""
    if size > 1:
        return jax.vmap(fn, in_axes=(None, 0, 0))

    def one(shared, states, data):
        out = fn(shared, *jax.tree.map(lambda x: x[0], (states, data)))
        return jax.tree.map(lambda x: x[None], out)

    return one


def _sharded(fn: ClientFn, chunk: int, mesh: Mesh):
    split, whole = PartitionSpec(CLIENT_AXIS), PartitionSpec()
    return jax.jit(
        jax.shard_map(
            lambda shared, states, data: _scan(fn, chunk, shared, states, data),
            mesh=mesh, in_specs=(whole, split, split), out_specs=split,
            check_vma=False),  # outputs are per client: nothing is claimed to be replicated
        donate_argnums=1)
