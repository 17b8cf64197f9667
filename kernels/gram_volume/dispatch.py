"""Which implementation runs: asked for by name, or the fastest known to fit.

`tuning.TUNED`, written by `bench/tune.py` on the device it names, says where a Pallas
kernel has been measured faster than XLA, and with which tiles. A device without an entry gets
XLA: a kernel nobody has timed on a device is not its default.
"""

from typing import NamedTuple

import jax

from mlecs_jax.kernels.gram_volume import pairs, pallas_gpu, pallas_tpu, xla, xla_tiled
from mlecs_jax.kernels.gram_volume.tuning import TUNED

IMPLEMENTATIONS: tuple[str, ...] = (
    "reference",
    "xla",
    "xla_dense",
    "xla_tiled",
    "pallas_gpu",
    "pallas_tpu",
)
# The dense version keeps k + 2 arrays of [B, B]; beyond this it gives way to tiles.
DENSE_BYTES = 256 * 2**20


class Problem(NamedTuple):
    """What the choice depends on."""

    u: int
    v: int
    k: int
    d: int
    settings: pairs.Settings
    itemsize: int  # of the accumulation type
    has_negatives: bool


class Unsupported(NotImplementedError):
    """An implementation that cannot take this problem; its message says why."""


def _xla_tile() -> tuple[int, int]:
    """A CPU wants a tile that stays in its caches, an accelerator one that fills it."""
    return (512, 512) if jax.default_backend() == "cpu" else (2048, 2048)


def _pallas(name: str, p: Problem) -> pairs.Solver:
    module, platforms = (
        (pallas_gpu, ("gpu", "cuda")) if name == "pallas_gpu" else (pallas_tpu, ("tpu",))
    )
    reason = module.unsupported(p.k, p.d, p.settings, p.has_negatives, p.itemsize)
    backend = jax.default_backend()
    if reason is None and backend not in platforms:
        reason = f"it runs on {platforms[0]}, and the default device is a {backend}"
    if reason is not None:
        raise Unsupported(reason)
    entry = TUNED.get(jax.devices()[0].device_kind)
    tile = entry["tile"] if entry and entry.get("implementation") == name else None
    assert tile is None or isinstance(tile, list)
    return module.solver(tuple(tile) if tile else module.default_tile(p.k, p.d))


def _one(name: str, p: Problem) -> pairs.Solver:
    if name == "xla_dense":
        return xla.DENSE
    if name == "xla_tiled":
        return xla_tiled.tiled(_xla_tile())
    if name == "xla":
        fits = (p.k + 2) * p.u * p.v * p.itemsize <= DENSE_BYTES
        return _one("xla_dense" if fits else "xla_tiled", p)
    if name in ("pallas_gpu", "pallas_tpu"):
        return _pallas(name, p)
    raise ValueError(f"implementation must be one of {IMPLEMENTATIONS} or None, got {name!r}")


def choose(implementation: str | None, p: Problem) -> pairs.Solver:
    """The solver for one problem.

    Raises:
      ValueError: an unknown name.
      NotImplementedError: nothing that was asked for can run; lists what was tried and why not.
    """
    candidates = [implementation]
    if implementation is None:
        entry = TUNED.get(jax.devices()[0].device_kind)
        candidates = [str(entry["implementation"])] if entry else []
        large = (p.k + 2) * p.u * p.v * p.itemsize > DENSE_BYTES
        candidates = [*candidates, "xla"] if large else ["xla"]
    tried: list[str] = []
    for name in candidates:
        assert name is not None
        try:
            return _one(name, p)
        except Unsupported as error:
            tried.append(f"{name}: {error}")
    raise NotImplementedError("no implementation of the volume loss fits; " + "; ".join(tried))
