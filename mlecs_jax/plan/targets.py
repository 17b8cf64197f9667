"""Chips and their published figures; how to compile for one that is not here.

Imports jax only inside functions: :func:`prepare` must come before it.
"""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path
from typing import Any

from mlecs_jax.errors import UserError

GIB = 2.0**30
GOOGLE = "https://docs.cloud.google.com/tpu/docs/{}"


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip, by its maker's figures.

    Attributes:
      memory: bytes on the chip.
      flops: dense bfloat16 operations a second.
      bandwidth: bytes a second from memory.
      link: bytes a second that a chip sends to its neighbours while it receives as many.
      shapes: meshes that its compiler knows, small to large.
      source: where the figures are published.
    """

    name: str
    platform: str
    memory: float
    flops: float
    bandwidth: float
    link: float
    shapes: tuple[str, ...]
    source: str


CHIPS = {chip.name: chip for chip in (
    Chip("h200", "cuda", 141e9, 989.5e12, 4.8e12, 450e9, ("1", "2", "4", "8"),
         "NVIDIA H200 SXM data sheet: 1,979 TFLOP/s with sparsity, half of it dense; NVLink "
         "900 GB/s both ways"),
    Chip("v5e", "tpu", 16 * GIB, 197e12, 819e9, 200e9,
         ("2x2", "2x4", "4x4", "4x8", "8x8", "16x16"), GOOGLE.format("v5e")),
    Chip("v5p", "tpu", 95 * GIB, 459e12, 2765e9, 600e9,
         ("2x2x1", "2x2x2", "2x2x4", "4x4x4", "8x8x8"), GOOGLE.format("v5p")),
    Chip("v6e", "tpu", 32 * GIB, 918e12, 1640e9, 400e9,
         ("2x2", "2x4", "4x4", "8x8", "16x16"), GOOGLE.format("v6e")),
    # This machine's own compiler: no figures to meet, for tests and for a look at collectives.
    Chip("cpu", "cpu", 16 * GIB, 1e11, 2e10, 1e9, ("1", "2", "4", "8"), "made up"),
)}
TPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nothing is opened, only compiled for
}


@dataclasses.dataclass(frozen=True)
class Target:
    """A mesh of equal chips, e.g. ``v5e:4x4``."""

    chip: Chip
    shape: str

    @property
    def size(self) -> int:
        """How many chips."""
        return math.prod(map(int, self.shape.split("x")))

    def __str__(self) -> str:
        return self.chip.name if self.shape == "1" else f"{self.chip.name}:{self.shape}"


class NoCompiler(Exception):
    """The target's compiler is not installed."""


def parse(text: str) -> Target:
    """``CHIP`` or ``CHIP:SHAPE``.

    Raises:
      UserError: an unknown chip or mesh.
    """
    name, _, shape = text.partition(":")
    chip = CHIPS.get(name)
    if chip is None:
        raise UserError(f"--target={text}: unknown chip '{name}'; use {', '.join(CHIPS)}")
    shape = shape or chip.shapes[0]
    if shape not in chip.shapes:
        raise UserError(f"--target={text}: {name} comes as {', '.join(chip.shapes)}")
    return Target(chip, shape)


def larger(target: Target) -> list[Target]:
    """Meshes of the same chip with more chips, small to large."""
    meshes = (Target(target.chip, shape) for shape in target.chip.shapes)
    return [mesh for mesh in meshes if mesh.size > target.size]


def prepare() -> None:
    """The environment in which no device is opened; must stand before jax is imported."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ |= TPU_ENVIRONMENT


def devices(target: Target) -> list[Any]:
    """Devices to compile for.

    Raises:
      NoCompiler: the plugin is not installed.
    """
    import jax
    from jax.experimental import topologies

    if target.chip.platform == "cpu":
        if len(jax.devices()) < target.size:
            raise NoCompiler(f"XLA_FLAGS=--xla_force_host_platform_device_count={target.size}")
        return jax.devices()[:target.size]
    try:
        if target.chip.platform == "tpu":
            return list(topologies.get_topology_desc(
                platform="tpu", topology_name=str(target)).devices)
        import jax_plugins.xla_cuda12  # noqa: F401  (its absence is the error wanted)

        config = (Path(__file__).parent / "h200_gpu_target_config.txt").read_text()
        return list(topologies.get_topology_desc(
            platform="cuda", topology_name=target.chip.name, topology=f"1x1x{target.size}",
            target_config=config).devices)
    except (ImportError, RuntimeError, ValueError) as error:
        raise NoCompiler(str(error)) from None
