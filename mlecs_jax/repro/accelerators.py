"""Which accelerators there are, and which of them a worker takes.

Asked without JAX: a process that has looked at an accelerator with it holds its memory.
"""

from __future__ import annotations

import importlib.metadata
import math
import os
import shutil
import subprocess

VISIBLE = "CUDA_VISIBLE_DEVICES"
MEMORY = 0.9  # share of an accelerator's memory that its workers have together


def visible() -> tuple[str, ...]:
    """What :data:`VISIBLE` may name: what it names already, or all NVIDIA accelerators of the
    machine; none where this JAX cannot use them or ``JAX_PLATFORMS`` does not ask for them."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms and not {"cuda", "gpu"} & set(platforms.split(",")):
        return ()
    if not any("cuda" in entry.name
               for entry in importlib.metadata.entry_points(group="jax_plugins")):
        return ()
    named = os.environ.get(VISIBLE)
    return _names(named) if named is not None else _installed()


def environment(slot: int, processes: int, devices: tuple[str, ...]) -> dict[str, str]:
    """The variables of a worker: accelerators go round, and workers of one share its memory.

    Args:
      slot: number of the worker, of ``processes``.
      devices: as :func:`visible` has them.
    """
    if not devices:
        return {}
    found = {VISIBLE: devices[slot % len(devices)]}
    sharing = math.ceil(processes / len(devices))
    if sharing > 1:
        found |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false",
                  "XLA_PYTHON_CLIENT_MEM_FRACTION": f"{MEMORY / sharing:.3f}"}
    return found


def default_processes() -> int:
    """Workers where nobody says how many: one an accelerator, or one a core."""
    return len(visible()) or os.cpu_count() or 1


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip() not in ("", "-1"))


def _installed() -> tuple[str, ...]:
    command = shutil.which("nvidia-smi")
    if command is None:
        return ()
    asked = subprocess.run([command, "--query-gpu=index", "--format=csv,noheader"],
                           capture_output=True, text=True, check=False)
    return _names(asked.stdout.replace("\n", ",")) if asked.returncode == 0 else ()
