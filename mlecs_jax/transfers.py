"""Trees of global arrays: placed, moved between meshes and read, with any number of processes.

JAX moves arrays between meshes by itself where one process owns both. Where processes own parts,
three things are done here instead, none of which needs a transfer engine:

- :func:`place`: each process puts its own part of a value that all of them hold, and says nothing;
- :func:`move`: the tree becomes one vector of bits, whole on its mesh; processes without a device
  there receive it by one collective over one device per process; then it is cut up again on the
  other mesh;
- :func:`fetch`: the same, to the host of every process.

All processes call these with the same trees, also those that own no device of a mesh: their arrays
have a shape and no data. Bits travel as they are, so values are equal to the last one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Num

from mlecs_jax.watch import STEPS

Tree = Any
Outline = tuple[tuple[tuple[int, ...], np.dtype], ...]
"""Shapes and dtypes of the leaves of a tree."""
WHOLE = PartitionSpec()


def is_placed(leaf: Any) -> bool:
    """Whether a leaf is a global array on some mesh, and not a value that every process holds.

    What a process computes from host values alone lies on its default device, uncommitted.
    """
    return isinstance(leaf, jax.Array) and leaf.committed


def place(tree: Tree, shardings: Tree) -> Tree:
    """Host values, the same in every process, as global arrays; nothing is communicated.

    Args:
      tree: NumPy arrays, numbers, or arrays that are not placed.
      shardings: of every leaf.
    """
    return jax.tree.map(_placed, tree, shardings)


def _placed(value: Any, sharding: NamedSharding) -> Array:
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        data = jax.random.key_data(value)
        return jax.random.wrap_key_data(
            _placed(data, sharding), impl=jax.random.key_impl(value))
    host = np.asarray(value)
    host = host.astype(jax.dtypes.canonicalize_dtype(host.dtype), copy=False)
    return jax.make_array_from_callback(
        host.shape, sharding, lambda index: host[index], dtype=host.dtype)


def move(leaves: Sequence[Array], source: Mesh, shardings: Sequence[NamedSharding]) -> list[Array]:
    """Arrays of one mesh on another, or on the same with other shardings.

    Args:
      leaves: placed on ``source``; no random keys.
      shardings: where each is to be, all on one mesh.
    """
    if not leaves:
        return []
    STEPS.take("a transfer")
    target = cast(Mesh, shardings[0].mesh)
    if set(target.devices.flat) == set(source.devices.flat):
        return list(_resharded(tuple(shardings))(tuple(leaves)))
    bits = _packer(NamedSharding(source, WHOLE))(tuple(leaves))
    local = _carried(bits, source, _processes(target))
    parts = [jax.device_put(local, device) for device in _own(target)]
    whole = jax.make_array_from_single_device_arrays(
        bits.shape, NamedSharding(target, WHOLE), parts, dtype=bits.dtype)
    return list(_unpacker(_outline(leaves), tuple(shardings))(whole))


def fetch(leaves: Sequence[Array], source: Mesh) -> list[np.ndarray]:
    """Arrays of a mesh on the host of every process."""
    if not leaves:
        return []
    STEPS.take("a transfer to the host")
    bits = _packer(NamedSharding(source, WHOLE))(tuple(leaves))
    flat = np.asarray(_carried(bits, source, tuple(range(jax.process_count()))))
    return _cut_on_host(flat, _outline(leaves))


def spare_absent_programs() -> None:
    """Makes it safe to call a program of one device that another process owns, again and again.

    JAX's fast dispatch (0.10) puts an argument that is not placed on the program's first device of
    this process, and crashes where there is none. Such programs keep to the slow dispatch.
    """
    from jax._src import pjit

    fast = pjit._get_fastpath_data

    @functools.wraps(fast)
    def data(executable, *rest):
        program = getattr(executable, "xla_executable", None)
        present = program is None or program.local_devices()
        return fast(executable, *rest) if present else None

    pjit._get_fastpath_data = data


@functools.cache
def everyone() -> Mesh:
    """One device of every process, on the axis ``process``."""
    return _one_device_each({d.process_index: d for d in reversed(jax.devices())})


def _carried(
    bits: Array, source: Mesh, wanted: tuple[int, ...]
) -> Array | None:
    """The whole vector on a device of this process; None where the process is not ``wanted``.

    Args:
      bits: whole on ``source``.
      wanted: numbers of the processes that are to have it.
    """
    me, holders = jax.process_index(), _processes(source)
    local = bits.addressable_shards[0].data if me in holders else None
    if set(wanted) <= set(holders):
        return local
    members = tuple(sorted({holders[0], *wanted}))
    relay = _one_device_each({process: _relay_device(source, process, holders[0])
                              for process in members})
    if me not in members:
        return None
    device = relay.devices[members.index(me)]
    part = (jax.device_put(local, device) if me == holders[0]
            else jax.device_put(np.zeros(bits.shape, np.uint32), device))
    stacked = jax.make_array_from_single_device_arrays(
        (len(members), *bits.shape), NamedSharding(relay, PartitionSpec("process")),
        [part[None]], dtype=bits.dtype)
    total = _summer(NamedSharding(relay, WHOLE))(stacked)
    return total.addressable_shards[0].data


def _relay_device(source: Mesh, process: int, sender: int) -> jax.Device:
    """One device of a process: of the sender one that has the data, of others their first."""
    if process == sender:
        return next(d for d in source.devices.flat if d.process_index == process)
    return everyone().devices[process]


def _one_device_each(devices: Mapping[int, jax.Device]) -> Mesh:
    return Mesh(np.array([devices[i] for i in sorted(devices)]), ("process",),
                axis_types=(AxisType.Auto,))


def _processes(mesh: Mesh) -> tuple[int, ...]:
    return tuple(sorted({device.process_index for device in mesh.devices.flat}))


def _own(mesh: Mesh) -> list[jax.Device]:
    return [d for d in mesh.devices.flat if d.process_index == jax.process_index()]


def _outline(leaves: Sequence[Array]) -> Outline:
    return tuple((leaf.shape, np.dtype(leaf.dtype)) for leaf in leaves)


@functools.lru_cache(256)
def _resharded(shardings: tuple[NamedSharding, ...]):
    return jax.jit(lambda leaves: leaves, out_shardings=shardings)


@functools.lru_cache(256)
def _packer(sharding: NamedSharding):
    return jax.jit(lambda leaves: jnp.concatenate([_bits(x) for x in leaves]),
                   out_shardings=sharding)


@functools.lru_cache(256)
def _unpacker(outline: Outline, shardings: tuple[NamedSharding, ...]):
    def cut(bits: Num[Array, " n"]):
        ends = np.cumsum([0, *(_words(*each) for each in outline)])
        return tuple(_value(bits[start:end], shape, dtype) for start, end, (shape, dtype)
                     in zip(ends[:-1], ends[1:], outline, strict=True))

    return jax.jit(cut, out_shardings=shardings)


@functools.lru_cache(256)
def _summer(sharding: NamedSharding):
    return jax.jit(lambda x: jnp.sum(x, axis=0, dtype=jnp.uint32), out_shardings=sharding)


def _words(shape: tuple[int, ...], dtype: np.dtype) -> int:
    """Words of 32 bits that an array takes: one per entry, two where it has 64 bits."""
    return math.prod(shape) * max(dtype.itemsize // 4, 1)


def _word(dtype: np.dtype) -> np.dtype:
    """The unsigned integers that an entry of the dtype is seen as."""
    return np.dtype(f"uint{8 * min(dtype.itemsize, 4)}")


def _bits(x: Array) -> Num[Array, " n"]:
    if x.dtype.kind == "b":
        return x.reshape(-1).astype(jnp.uint32)
    seen = jax.lax.bitcast_convert_type(x, _word(np.dtype(x.dtype)))
    return seen.reshape(-1).astype(jnp.uint32)


def _value(bits: Num[Array, " n"], shape: tuple[int, ...], dtype: np.dtype) -> Array:
    if dtype.kind == "b":
        return bits.reshape(shape).astype(bool)
    seen = bits.astype(_word(dtype))
    seen = seen.reshape((*shape, 2) if dtype.itemsize == 8 else shape)
    return jax.lax.bitcast_convert_type(seen, dtype)


def _cut_on_host(bits: np.ndarray, outline: Outline) -> list[np.ndarray]:
    values, start = [], 0
    for shape, dtype in outline:
        end = start + _words(shape, dtype)
        seen = bits[start:end]
        seen = seen.astype(bool) if dtype.kind == "b" else seen.astype(_word(dtype)).view(dtype)
        values.append(seen.reshape(shape))
        start = end
    return values
