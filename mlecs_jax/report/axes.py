"""Axes and the wording of numbers: where ticks stand and how figures are written."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

Number = float | int  # type checks at run time do not take an int for a float


@dataclasses.dataclass(frozen=True)
class Axis:
    """A scale from ``low`` to ``high``; ``at(value)`` lies in [0, 1] between them."""

    low: Number
    high: Number
    ticks: tuple[Number, ...]
    log: bool = False

    def at(self, value: Number) -> float:
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return min(max(share, 0.0), 1.0)


def linear_axis(
    values: Iterable[float | None],
    *,
    limits: tuple[float, float] | None = None,
    from_zero: bool = False,
    count: int = 5,
) -> Axis:
    """A linear axis with round ticks that covers the values.

    Args:
      values: what the axis is to cover; None is skipped.
      limits: the axis stays inside these where all values do (a score lives in [0, 1]).
      from_zero: whether the axis starts at 0, as a bar's must.
      count: about how many ticks.
    """
    known = [v for v in values if v is not None] or [0.0, 1.0]
    low, high = min(known), max(known)
    low = min(0.0, low) if from_zero else low
    inside = limits is not None and limits[0] <= low and high <= limits[1]
    if high - low < 1e-9 * max(1.0, abs(high)):
        room = (0.1 if inside else 0.5 * abs(high)) or 1.0
        low, high = (low, high + room) if from_zero else (low - room, high + room)
    step = _round_step((high - low) / count)
    low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    if inside and limits is not None:
        low, high = max(low, limits[0]), min(high, limits[1])
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return Axis(low, high, tuple(round(i * step, 12) for i in range(first, last + 1)))


def log_axis(values: Iterable[float | None]) -> Axis:
    """A logarithmic axis over whole decades; all values must be above 0."""
    known = [v for v in values if v is not None]
    low, high = math.floor(math.log10(min(known))), math.ceil(math.log10(max(known)))
    high = max(high, low + 1)
    stride = math.ceil((high - low) / 5)
    ticks = tuple(10.0**i for i in range(low, high + 1, stride))
    return Axis(10.0**low, 10.0**high, ticks, log=True)


def loss_axis(values: Iterable[float | None]) -> Axis:
    """Logarithmic where the values are positive and span two decades or more, else linear."""
    known = [v for v in values if v is not None]
    if known and min(known) > 0 and max(known) / min(known) >= 100:
        return log_axis(known)
    return linear_axis(known)


def round_axis(rounds: list[int]) -> Axis:
    """An axis of whole rounds with the first and about five more marked."""
    low, high = min(rounds), max(rounds)
    if low == high:
        return Axis(low - 1, high + 1, (low,))
    step = max(1, int(_round_step((high - low) / 5)))
    ticks = [t for t in range(0, high + 1, step) if t > low + 0.4 * step]
    return Axis(low, high, (low, *ticks))


def _round_step(width: float) -> float:
    """The next of 1, 2, 5 × 10^k at or above the width."""
    power = 10.0 ** math.floor(math.log10(width))
    for factor in (1, 2, 5):
        if width <= factor * power * (1 + 1e-9):
            return factor * power
    return 10 * power


def score(value: Number | None) -> str:
    """A score in [0, 1] with three decimals; a dash where there is none."""
    return "–" if value is None else f"{value:.3f}"


def figure(value: Number | None) -> str:
    """Any number with three significant digits or, from 1000 up, all before the point."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def byte_unit(values: Iterable[Number | None]) -> tuple[float, str]:
    """Divisor and name of the unit that suits the largest value: B, kB, MB, GB or TB."""
    largest = max((abs(v) for v in values if v is not None), default=0.0)
    for power, name in ((4, "TB"), (3, "GB"), (2, "MB"), (1, "kB")):
        if largest >= 1000.0**power:
            return 1000.0**power, name
    return 1.0, "B"


def byte_text(value: Number | None) -> str:
    """Bytes in the unit that suits them, e.g. ``1.24 MB`` (1 MB = 1,000,000 B)."""
    if value is None:
        return "–"
    divisor, unit = byte_unit([value])
    return f"{value / divisor:.3g} {unit}" if divisor > 1 else f"{value:.0f} B"


def counted(count: int, noun: str) -> str:
    """``1 run``, ``5 runs``: of nouns whose plural ends in s."""
    return f"{count} {noun}" + ("s" if count != 1 else "")


def duration(seconds: Number | None) -> str:
    """Seconds as a reader would say them: ``0.42 s``, ``4 min 05 s``, ``2 h 10 min``."""
    if seconds is None:
        return "–"
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"
