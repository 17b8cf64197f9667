"""Classification scores: labels in, plain floats and a confusion matrix out. NumPy only."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

UNPARSABLE = -1  # a predicted label that stands for an answer which names no class


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """Scores of one model on one set of ``n`` samples with ``C`` classes.

    Attributes:
      f1: macro-F1, the mean over the classes seen in the truth or among the predictions.
      weighted_f1: mean of the per-class F1 weighted by the classes' number of true samples.
      accuracy: share of samples whose predicted class is the true one.
      confusion: int64 ``[C, C + 1]``; row: true class, column: predicted class, last column:
        unparsable answers.
      unparsable: how many answers named no class (the sum of the last column).

    The three scores lie in [0, 1]; all are NaN where there was no sample.
    """

    f1: float
    weighted_f1: float
    accuracy: float
    confusion: np.ndarray
    unparsable: int

    def as_dict(self) -> dict[str, Any]:
        """The same as plain Python values, ready for JSON (an absent score stays NaN)."""
        return {**dataclasses.asdict(self), "confusion": self.confusion.tolist()}


def scores(
    true: Int[np.ndarray, " n"], predicted: Int[np.ndarray, " n"], num_classes: int
) -> Scores:
    """Scores predicted classes against true ones, as scikit-learn's defaults do.

    An unparsable answer (``predicted == -1``) is a miss for its true class and a false alarm for
    none; it is no class of its own, so it does not enter the macro mean. A class that occurs
    neither in the truth nor among the predictions is left out of the macro mean; one that was only
    predicted counts with F1 = 0.

    Args:
      true: int ``[n]``, classes in ``0 .. num_classes - 1``.
      predicted: int ``[n]``, classes in the same range, or -1.
      num_classes: ``C``, at least 1.

    Returns:
      The scores. With ``n = 0`` they are NaN and the confusion matrix is all zeros: a device
      without test samples has no F1, and giving it 0 or 1 would falsify the mean over devices.

    Raises:
      ValueError: the arrays differ in length or hold a label out of range.
    """
    if true.shape != predicted.shape:
        raise ValueError(f"{len(true)} true labels but {len(predicted)} predictions")
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}; it must be at least 1")
    n = len(true)
    if n and (true.min() < 0 or true.max() >= num_classes):
        raise ValueError(f"true labels must lie in 0..{num_classes - 1}")
    if n and (predicted.min() < UNPARSABLE or predicted.max() >= num_classes):
        raise ValueError(f"predictions must lie in 0..{num_classes - 1}, or be -1")

    confusion = np.zeros((num_classes, num_classes + 1), np.int64)
    np.add.at(confusion, (true, np.where(predicted == UNPARSABLE, num_classes, predicted)), 1)
    return of_confusion(confusion)


def of_confusion(confusion: Int[np.ndarray, "C C+1"]) -> Scores:
    """:func:`scores` of all answers with these counts, however many there are.

    Args:
      confusion: as in :class:`Scores`.
    """
    n, unparsable = int(confusion.sum()), int(confusion[:, -1].sum())
    if n == 0:
        return Scores(np.nan, np.nan, np.nan, confusion, unparsable)

    hits = np.diagonal(confusion)
    support = confusion.sum(axis=1)
    answers = confusion[:, :-1].sum(axis=0)
    occurs = support + answers > 0
    # F1 = 2 TP / (2 TP + FP + FN), and (TP + FN) + (TP + FP) is support + answers.
    f1 = 2 * hits / np.where(occurs, support + answers, 1)
    return Scores(
        f1=float(f1[occurs].mean()),
        weighted_f1=float((f1 * support).sum() / n),
        accuracy=float(hits.sum() / n),
        confusion=confusion,
        unparsable=unparsable,
    )


def spread(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Mean, largest and smallest of a score over devices: ``{'avg', 'best', 'worst'}``.

    Devices without a score (NaN: no test sample) are left out; where none has one, all three are
    NaN. Higher is taken to be better.
    """
    known = np.asarray(values, np.float64)
    known = known[~np.isnan(known)]
    if known.size == 0:
        return {"avg": np.nan, "best": np.nan, "worst": np.nan}
    return {"avg": float(known.mean()), "best": float(known.max()), "worst": float(known.min())}
