"""Which implementation runs: asked for by name, or the fastest known to fit.

`tuning.TUNED`, written by `bench/tune.py` on the device it names, says where a Pallas
kernel has been measured faster than XLA, and with which tiles. A device without an entry gets
XLA: a kernel nobody has timed on a device is not its default.
"""

import logging
from typing import Any, NamedTuple

import jax

from mlecs_jax.kernels.gram_volume import pairs, pallas_gpu, pallas_tpu, xla, xla_tiled
from mlecs_jax.kernels.gram_volume.tuning import TUNED

LOG = logging.getLogger(__name__)
IMPLEMENTATIONS: tuple[str, ...] = (
    "reference",
    "xla",
    "xla_dense",
    "xla_tiled",
    "pallas_gpu",
    "pallas_tpu",
)
PALLAS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "pallas_gpu": (pallas_gpu, ("gpu", "cuda")),
    "pallas_tpu": (pallas_tpu, ("tpu",)),
}
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
    """A CPU wants long strips that stay in its caches, an accelerator a tile that fills it."""
    return (1024, 256) if jax.default_backend() == "cpu" else (2048, 2048)


def _unsupported(name: str, p: Problem) -> str | None:
    """Why a Pallas kernel cannot take a problem, or None."""
    module, platforms = PALLAS[name]
    if p.has_negatives:
        return "negatives_mask is not supported"
    if p.itemsize != 4:
        return "it sums in float32, and an input is wider"
    if p.settings.axis_name is not None:
        return "it has not been made to run inside shard_map"
    if module.default_tile(p.k, p.d) is None:
        return f"k = {p.k} vectors of width {p.d} do not fit in on-chip memory"
    backend = jax.default_backend()
    if backend not in platforms:
        return f"it runs on {platforms[0]}, and the default device is a {backend}"
    return None


def _pallas(name: str, p: Problem) -> pairs.Solver:
    reason = _unsupported(name, p)
    if reason is not None:
        raise Unsupported(reason)
    module, _ = PALLAS[name]
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
    if name in PALLAS:
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
            solver = _one(name, p)
            if tried:
                LOG.info("volume loss by %s, not by %s", solver.name, "; ".join(tried))
            return solver
        except Unsupported as error:
            tried.append(f"{name}: {error}")
    raise NotImplementedError("no implementation of the volume loss fits; " + "; ".join(tried))
