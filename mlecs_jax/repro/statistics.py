"""Means over seeds and paired differences with their confidence intervals."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

from scipy import special

CONFIDENCE = 0.95
Side = TypeVar("Side", bound=Hashable)  # what sets the sides of a comparison apart


@dataclasses.dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation of n values; ``sd`` is None for a single one."""

    mean: float
    sd: float | None
    n: int


@dataclasses.dataclass(frozen=True)
class Difference:
    """Mean of n paired differences and its 95 % interval; None ends where n is 1."""

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def above(self) -> bool:
        """The interval lies above 0."""
        return self.low is not None and self.low > 0

    @property
    def below(self) -> bool:
        return self.high is not None and self.high < 0


def spread(values: Mapping[int, float]) -> Spread | None:
    """Over seeds; None where there is none."""
    known = [v for v in values.values() if math.isfinite(v)]
    if not known:
        return None
    return Spread(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None,
                  len(known))


def paired(a: Mapping[int, float], b: Mapping[int, float]) -> Difference | None:
    """``a − b`` over the seeds that both have; Student's t with n − 1 degrees of freedom.

    Pairs share partition, modality sets, initialisation and batches, so that what a seed happens
    to draw cancels. None where no seed is common.
    """
    differences = [a[s] - b[s] for s in sorted(set(a) & set(b))
                   if math.isfinite(a[s]) and math.isfinite(b[s])]
    n = len(differences)
    if not n:
        return None
    mean = statistics.fmean(differences)
    if n == 1:
        return Difference(mean, None, None, 1)
    quantile = float(special.stdtrit(n - 1, 0.5 + CONFIDENCE / 2))
    half = quantile * statistics.stdev(differences) / math.sqrt(n)
    return Difference(mean, mean - half, mean + half, n)


def paired_over(
    cells: Sequence[tuple[Mapping[int, float], Mapping[int, float]]]
) -> Difference | None:
    """``a − b`` over several cells ``(a, b)``: per seed the mean over cells first. Cells that
    either side lacks are left out of both."""
    both = [(a, b) for a, b in cells if a and b]
    return paired(mean_by_seed([a for a, _ in both]), mean_by_seed([b for _, b in both]))


def common_means(sides: Mapping[Side, Mapping[int, float]]) -> dict[Side, float]:
    """Every side's mean over the seeds that all sides with any have: what may be ranked, since a
    seed draws who has what. Sides without values are left out, and all where no seed is common."""
    common = common_seeds(sides)
    return {name: statistics.fmean(side[seed] for seed in common)
            for name, side in sides.items() if common and common <= _finite(side)}


def common_seeds(sides: Mapping[Side, Mapping[int, float]]) -> set[int]:
    """The seeds that all sides with any value have."""
    known = [found for side in sides.values() if (found := _finite(side))]
    return set.intersection(*known) if known else set()


def _finite(side: Mapping[int, float]) -> set[int]:
    return {seed for seed, value in side.items() if math.isfinite(value)}


def mean_by_seed(cells: list[Mapping[int, float]]) -> dict[int, float]:
    """Each seed's mean over cells, of the seeds that all cells have: what may be pooled, since
    cells of one seed share its partition and are no independent samples."""
    common = set.intersection(*(set(cell) for cell in cells)) if cells else set()
    return {s: statistics.fmean(cell[s] for cell in cells) for s in sorted(common)}
