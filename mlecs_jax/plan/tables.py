"""Rows as text and Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mlecs_jax.plan.measured import Row
from mlecs_jax.plan.targets import CHIPS, GIB, Target

HEADINGS = ("stage", "arguments GiB", "temp GiB", "peak GiB", "held beside GiB", "TFLOP a round",
            "sent MiB a step", "largest gather MiB", "floor s", "by")


def cells(row: Row) -> tuple[str, ...]:
    """A row under :data:`HEADINGS`; memory and traffic per chip, operations of all chips."""
    f = row.figures
    bound = max(row.floors, key=lambda name: row.floors[name])
    return (row.stage.name, f"{f.arguments / GIB:.3f}", f"{f.temp / GIB:.3f}",
            f"{f.peak / GIB:.3f}", f"{(row.needed - f.peak) / GIB:.3f}",
            f"{row.stage.flops / 1e12:.3g}", f"{f.sent / 2**20:.1f}", f"{f.gather / 2**20:.1f}",
            f"{row.floor:.2g}", bound)


def plain(rows: Iterable[Sequence[str]]) -> list[str]:
    """Columns aligned."""
    table = [HEADINGS, *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(HEADINGS))]
    return ["  ".join(cell.ljust(width) if i == 0 else cell.rjust(width)
                      for i, (cell, width) in enumerate(zip(row, widths, strict=True)))
            for row in table]


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    return [f"| {' | '.join(line)} |" for line in (headings, ["---"] * len(headings), *rows)]


def round_floor(rows: Iterable[Row]) -> str:
    """What a round of training takes at least; evaluation apart."""
    training = sum(row.floor for row in rows if "evaluation" not in row.stage.name)
    return f"{training:.2g} s"


def chips() -> list[str]:
    """Published figures as Markdown."""
    return markdown(
        ("chip", "memory GiB", "bf16 TFLOP/s", "memory GB/s", "link GB/s one way", "source"),
        [(chip.name, f"{chip.memory / GIB:.1f}", f"{chip.flops / 1e12:g}",
          f"{chip.bandwidth / 1e9:g}", f"{chip.link / 1e9:g}", chip.source)
         for chip in CHIPS.values() if chip.platform != "cpu"])


def title(target: Target, devices: int) -> str:
    """Of a target's table."""
    return f"{target} ({target.size} chip{'s' * (target.size > 1)}), {devices} devices"
