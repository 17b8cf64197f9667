"""Scores of a model on segments that nobody may see: each edge's counts and sums, put together.

From a :data:`Tally` of every edge come the scores that
:func:`mlecs_jax.metrics.sentiment.scores` gives of all their segments at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from mlecs_jax.deploy.admission import Template
from mlecs_jax.deploy.wire import Message, WireError
from mlecs_jax.metrics import classification, sentiment
from mlecs_jax.metrics.sentiment import SCORES

Tally = Mapping[str, np.ndarray]
"""What an edge says of its answers to held-out segments:

``sums`` float64 ``[6]``: Σ|y−p|, Σy, Σp, Σy², Σp², Σyp over labels y and answers p;
``seven`` int64 ``[7, 7]``: segments by rounded label and rounded answer;
``non0``, ``has0`` int64 ``[2, 2]``: by their signs, without labels of zero and with them."""

SPLITS = ("val", "test")
SHAPES = {"sums": ((6,), np.float64), "seven": ((7, 7), np.int64),
          "non0": ((2, 2), np.int64), "has0": ((2, 2), np.int64)}
CONSTANT = 1e-12  # of the mean square: variances below come from rounding
MOST = 10**9  # held-out segments of an edge
LARGEST = 1e12  # mean of errors and squares; labels lie in [-3, 3], answers where training leads
ROUNDING = 1e-6  # by which sums may miss what holds of exact ones


def tally(true: Float[np.ndarray, " n"], predicted: Float[np.ndarray, " n"]) -> Tally:
    """Counts and sums of one edge's segments; the answers must be finite."""
    true, predicted = true.astype(np.float64), predicted.astype(np.float64)
    decided = true != 0
    return {
        "sums": np.array([np.abs(true - predicted).sum(), true.sum(), predicted.sum(),
                          true @ true, predicted @ predicted, true @ predicted]),
        "seven": sentiment.confusion(true, predicted),
        "non0": _signs((true > 0)[decided], (predicted > 0)[decided]),
        "has0": _signs(true >= 0, predicted >= 0)}


def pooled(tallies: Iterable[Tally]) -> Tally:
    """The tally of all segments together."""
    found = list(tallies)
    return {name: np.sum([own[name] for own in found], axis=0) for name in SHAPES}


def mean_error(found: Tally) -> float:
    """Mean absolute error."""
    return float(found["sums"][0] / found["seven"].sum())


def scores(found: Tally) -> dict[str, float | None]:
    """All scores by the names of :data:`~mlecs_jax.metrics.sentiment.SCORES`; None where one is
    not defined."""
    total = int(found["seven"].sum())
    seven = _scored(found["seven"])
    five = _merged(found["seven"])
    result = {"mae": mean_error(found), "corr": _correlation(found["sums"] / total),
              "acc5": float(np.trace(five) / total), "acc7": seven.accuracy,
              "f1_7": seven.weighted_f1, "macro_f1_7": seven.f1}
    for kind in ("non0", "has0"):
        binary = _scored(found[kind])
        result |= {f"acc2_{kind}": binary.accuracy, f"f1_{kind}": binary.weighted_f1,
                   f"macro_f1_{kind}": binary.f1}
    return {name: result[name] if math.isfinite(result[name]) else None for name in SCORES}


def template(*places: str) -> Template:
    """The arrays of messages that hold a tally at each of some places, ``PLACE/sums`` …"""
    return {f"{place}/{name}": jax.ShapeDtypeStruct(shape, dtype)
            for place in places for name, (shape, dtype) in SHAPES.items()}


def check(message: Message, place: str) -> None:
    """Raises WireError for a tally that no answers can have."""
    found = at(message.arrays, place)
    for name in ("seven", "non0", "has0"):
        if (found[name] < 0).any() or (found[name] > MOST).any():
            raise WireError("range", f"'{place}/{name}' has counts below 0 or above {MOST}")
    total = int(found["seven"].sum())
    if not 1 <= total == int(found["has0"].sum()) >= int(found["non0"].sum()):
        raise WireError("range", f"the counts in '{place}' do not fit each other")
    error, y, p, yy, pp, yp = found["sums"]
    if not all(0 <= x <= LARGEST * total for x in (error, yy, pp)):
        raise WireError("range", f"'{place}/sums' has sums of squares or errors that cannot be")
    # Cauchy and Schwarz, of the labels, the answers, both, and their differences.
    if (y * y > total * yy * (1 + ROUNDING) or p * p > total * pp * (1 + ROUNDING)
            or yp * yp > yy * pp * (1 + ROUNDING)
            or error * error > total * (yy - 2 * yp + pp + ROUNDING * (yy + pp))):
        raise WireError("range", f"the sums in '{place}' do not fit each other")


def at(arrays: Mapping[str, np.ndarray], place: str) -> Tally:
    """The tally at a place of a message."""
    return {name: arrays[f"{place}/{name}"] for name in SHAPES}


def placed(found: Tally, place: str) -> dict[str, np.ndarray]:
    """The inverse of :func:`at`."""
    return {f"{place}/{name}": np.asarray(found[name], dtype)
            for name, (_, dtype) in SHAPES.items()}


def plain(found: Tally) -> dict[str, Any]:
    """A tally as JSON has it."""
    return {name: values.tolist() for name, values in found.items()}


def from_plain(values: Mapping[str, Any]) -> Tally:
    """The inverse of :func:`plain`."""
    return {name: np.asarray(values[name], dtype) for name, (_, dtype) in SHAPES.items()}


def _signs(true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    return classification.scores(true.astype(int), predicted.astype(int), 2).confusion[:, :2]


def _scored(table: np.ndarray) -> classification.Scores:
    """Of a table without unparsable answers; nothing is as long as its counts say."""
    return classification.of_confusion(np.pad(table, ((0, 0), (0, 1))))


def _merged(seven: np.ndarray) -> np.ndarray:
    """Counts by five classes: clipping to ±2 puts the outer two on either side together."""
    place = np.clip(np.arange(7), 1, 5) - 1
    five = np.zeros((5, 5), np.int64)
    np.add.at(five, (place[:, None], place[None, :]), seven)
    return five


def _correlation(means: np.ndarray) -> float:
    """Pearson's, of means in the order of ``sums``; NaN where either side is constant."""
    _, y, p, yy, pp, yp = means
    spread = np.array([yy - y * y, pp - p * p])
    if (spread <= CONSTANT * np.array([yy, pp])).any():
        return math.nan
    return float((yp - y * p) / np.sqrt(spread.prod()))
