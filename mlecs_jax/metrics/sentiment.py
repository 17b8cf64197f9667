"""Sentiment scores: real labels and predictions in, plain floats out. NumPy only.

Binary scores come in two kinds that are never mixed: ``non0`` leaves segments with label exactly
zero out and takes > 0 as positive (MulT); ``has0`` keeps all and takes ≥ 0 as positive (MMSA).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from mlecs_jax.metrics import classification

SCORES = ("mae", "corr", "acc2_non0", "f1_non0", "macro_f1_non0", "acc2_has0", "f1_has0",
          "macro_f1_has0", "acc5", "acc7", "f1_7", "macro_f1_7")
"""Names of what :func:`scores` returns."""
CLASSES = ("−3", "−2", "−1", "0", "+1", "+2", "+3")
"""Names of the seven classes of ``acc7``."""


def scores(true: Float[np.ndarray, " n"], predicted: Float[np.ndarray, " n"]) -> dict[str, float]:
    """All scores of one model on one set of segments.

    Args:
      true, predicted: sentiment; labels in [-3, 3], predictions unbounded.

    Returns:
      ``mae`` and Pearson's ``corr`` on raw values of all segments; ``acc7``, ``acc5`` after
      clipping to ±3, ±2 and rounding both; ``acc2_*``, ``f1_*`` (weighted by class) and
      ``macro_f1_*`` of the signs, in both kinds; ``f1_7`` and ``macro_f1_7`` over the seven
      rounded classes. ``corr`` is NaN where either side is constant, binary ``non0`` scores are
      NaN where every label is zero.

    Raises:
      ValueError: lengths differ, there is no segment, or a value is not finite.
    """
    if true.shape != predicted.shape or not len(true):
        raise ValueError(f"{len(true)} labels and {len(predicted)} predictions; give equally many")
    if not (np.isfinite(true).all() and np.isfinite(predicted).all()):
        raise ValueError("labels or predictions are not finite")
    true, predicted = true.astype(np.float64), predicted.astype(np.float64)
    varied = true.std() > 0 and predicted.std() > 0
    seven = classification.scores(_rounded(true, 3), _rounded(predicted, 3), 7)
    result = {
        "mae": float(np.abs(true - predicted).mean()),
        "corr": float(np.corrcoef(true, predicted)[0, 1]) if varied else float("nan"),
        "acc5": float((_rounded(true, 2) == _rounded(predicted, 2)).mean()),
        "acc7": seven.accuracy, "f1_7": seven.weighted_f1, "macro_f1_7": seven.f1,
    }
    decided = true != 0
    for kind, binary in (
        ("non0", classification.scores((true[decided] > 0).astype(int),
                                       (predicted[decided] > 0).astype(int), 2)),
        ("has0", classification.scores((true >= 0).astype(int), (predicted >= 0).astype(int), 2)),
    ):
        result |= {f"acc2_{kind}": binary.accuracy, f"f1_{kind}": binary.weighted_f1,
                   f"macro_f1_{kind}": binary.f1}
    return {name: result[name] for name in SCORES}


def confusion(
    true: Float[np.ndarray, " n"], predicted: Float[np.ndarray, " n"]
) -> Int[np.ndarray, "7 7"]:
    """Segments by true class (row) and predicted class (column), the classes of ``acc7``."""
    return classification.scores(_rounded(true, 3), _rounded(predicted, 3), 7).confusion[:, :-1]


def _rounded(values: np.ndarray, limit: int) -> np.ndarray:
    """Class index of values clipped to ±limit; halves go to the even neighbour, as in MulT."""
    return np.rint(np.clip(values, -limit, limit)).astype(int) + limit
