"""What a target's compiler says of a stage; kept on disk, since a compile takes minutes."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
import time
from collections.abc import Iterator
from typing import Any

import jax

from mlecs_jax.data.paths import cache_dir
from mlecs_jax.errors import UserError
from mlecs_jax.kernels.lm_head import vocabulary
from mlecs_jax.plan import hlo, targets
from mlecs_jax.plan.shapes import Plan
from mlecs_jax.plan.stages import Builder, Round, Stage, chip_bytes
from mlecs_jax.plan.targets import GIB, Target

# XLA's tiling of Triton products needs a device to try tiles on, and fails without one.
OPTIONS: dict[str, dict[str, Any]] = {"cuda": {"xla_gpu_enable_triton_gemm": False}}


@dataclasses.dataclass(frozen=True)
class Figures:
    """A compiled stage, bytes per chip.

    Attributes:
      peak: of memory in use while the program runs, arguments included.
      sent: in one step, the innermost counted loop taken once.
      gather: result of the largest all-gather; ``gathered`` is what it is.
      refused: the compiler's words where the program does not fit; the figures are then 0 but
        ``peak``, if it says what it would take.
    """

    arguments: float = 0.0
    temp: float = 0.0
    peak: float = 0.0
    sent: float = 0.0
    gather: float = 0.0
    gathered: str = ""
    seconds: float = 0.0
    refused: str = ""


@dataclasses.dataclass(frozen=True)
class Row:
    """A stage with its figures on a target, and what it costs at least.

    Attributes:
      needed: bytes of a chip: the program's peak, and what the other tier keeps there.
      floors: seconds of a round by ``compute``, ``memory`` and ``links`` at published peaks.
    """

    stage: Stage
    figures: Figures
    needed: float
    floors: dict[str, float]

    @property
    def floor(self) -> float:
        """Seconds below which the stage cannot be: its worst resource, all overlapped."""
        return max(self.floors.values())


class DoesNotFit(UserError):
    """The first stage that is too large for a chip, and where it would fit."""

    def __init__(self, row: Row, target: Target, memory: float, smallest: Target | None):
        needed = f"{row.needed / GIB:.1f} GiB a chip" if row.needed else row.figures.refused
        where = (f"the smallest mesh that would hold it is {smallest}" if smallest
                 else f"no mesh of {target.chip.name} known here would hold it")
        super().__init__(f"{row.stage.name} does not fit {target}: it needs {needed} of "
                         f"{memory / GIB:.1f}; {where}")


def rows(plan: Plan, target: Target, memory: float | None = None) -> Iterator[Row]:
    """Every stage of a round on a target, as they are compiled.

    Args:
      memory: bytes of a chip; None: as published.

    Raises:
      DoesNotFit: at the first stage that is too large, after the rows before it.
      NoCompiler: the target's compiler is not installed.
    """
    memory = memory or target.chip.memory
    planned = builder(plan, target).round()
    for stage in planned.stages:
        found = row(stage, planned, target)
        if not _fits(found, memory):
            raise DoesNotFit(found, target, memory, _smallest(plan, stage.name, target, memory))
        yield found


def builder(plan: Plan, target: Target) -> Builder:
    """The stages of a plan on a target."""
    return Builder(plan, targets.devices(target))


def row(stage: Stage, planned: Round, target: Target) -> Row:
    """A stage measured."""
    figures, chip = measure(stage, target), target.chip
    return Row(stage, figures, figures.peak and figures.peak + planned.beside(stage), {
        "compute": stage.flops / (stage.chips * chip.flops),
        "memory": max(stage.read, figures.arguments) / chip.bandwidth,
        "links": figures.sent * stage.runs / chip.link})


def measure(stage: Stage, target: Target) -> Figures:
    """Lowers, compiles and reads a stage, unless the same program was compiled before."""
    function = stage.function
    if not hasattr(function, "lower"):
        function = jax.jit(function, donate_argnums=stage.donate)
    with _sized_for_an_accelerator():
        lowered = function.lower(*stage.arguments)
    options = OPTIONS.get(target.chip.platform, {})
    text = json.dumps([str(target), jax.__version__, options]) + lowered.as_text()
    path = cache_dir() / "plan" / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"
    if path.exists():
        return Figures(**json.loads(path.read_text()))
    figures = _compile(lowered, options)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dataclasses.asdict(figures)))
    return figures


@contextlib.contextmanager
def _sized_for_an_accelerator() -> Iterator[None]:
    """Logits in flight as a target has them: the host is a CPU, the target is not."""
    own = vocabulary.CHUNK_BYTES, vocabulary.BLOCK_BYTES
    vocabulary.CHUNK_BYTES = vocabulary.BLOCK_BYTES = vocabulary.BYTES_ELSEWHERE
    try:
        yield
    finally:
        vocabulary.CHUNK_BYTES, vocabulary.BLOCK_BYTES = own


def _compile(lowered: Any, options: dict[str, Any]) -> Figures:
    begun = time.perf_counter()
    try:
        compiled = lowered.compile(compiler_options=options or None)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Figures(refused=_line(str(error)), peak=_asked(str(error)))
    memory = compiled.memory_analysis()
    found = hlo.collectives(compiled.as_text())
    gather = hlo.largest_gather(found)
    return Figures(
        arguments=float(memory.argument_size_in_bytes), temp=float(memory.temp_size_in_bytes),
        peak=float(memory.peak_memory_in_bytes), sent=hlo.sent_bytes(found),
        gather=float(gather.bytes) if gather else 0.0, gathered=gather.what if gather else "",
        seconds=round(time.perf_counter() - begun, 1))


def _line(text: str) -> str:
    return " ".join(text.split())[:200]


def _asked(text: str) -> float:
    """Bytes that a compiler's refusal speaks of, e.g. ``Used 17.20G of 15.75G hbm``; else 0."""
    match = re.search(r"[Uu]sed ([\d.]+)([MG]) of [\d.]+[MG] hbm", text)
    return float(match[1]) * {"M": 2**20, "G": GIB}[match[2]] if match else 0.0


def _fits(found: Row, memory: float) -> bool:
    return not found.figures.refused and found.needed <= memory


def _smallest(plan: Plan, name: str, target: Target, memory: float) -> Target | None:
    """The first larger mesh on which the stage of this name fits."""
    for mesh in targets.larger(target):
        planned = builder(plan, mesh).round()
        stage = next(stage for stage in planned.stages if stage.name == name)
        # What the arguments alone take needs no compiler.
        if chip_bytes(stage.arguments) + planned.beside(stage) > memory:
            continue
        if _fits(row(stage, planned, mesh), memory):
            return mesh
    return None
