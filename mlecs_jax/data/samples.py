"""`Samples`: what every dataset loader returns and all the rest of the program starts from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

import numpy as np

from mlecs_jax.errors import UserError

BUILT_HERE = ("ur_fall", "vast")
"""Names of data sets whose classes, strata and layout this program decides, for all alike."""


@dataclasses.dataclass(frozen=True)
class Samples:
    """A dataset in memory; row ``i`` of every array is sample ``i``.

    Attributes:
      name: dataset name, e.g. ``ur_fall``.
      source: ``real`` or ``simulated``; copied into every output file.
      inputs: ``{modality: array [n, *shape]}`` in the order that fixes modality indices
        everywhere; float32 features or signals, uint8 images ``[n, H, W, C]``. Not normalised.
        Rows whose reading is missing hold zeros.
      present: bool ``[n, M]``; False where a sample has no reading of that modality.
      labels: int32 ``[n]``, class indices; None for text targets.
      class_names: one name per class; empty for text targets.
      texts: ``n`` target texts; None for class targets.
      groups: int32 ``[n]``; samples of one group (a recording, a video) are correlated and stay
        together under ``split=sequence``.
      strata: int32 ``[n]``, constant within a group; sequence splits balance it (fall / daily
        activity). Zeros where there is nothing to balance.
      devices: int32 ``[n]``, the device that owns each sample (-1: unassigned, public); None where
        the partition is free to choose.
      context: ``n`` texts, the words behind a sample's inputs; None where inputs are no text. A
        backbone may be pretrained on those of public training rows; readers see them beside
        generated captions.
    """

    name: str
    source: Literal["real", "simulated"]
    inputs: Mapping[str, np.ndarray]
    present: np.ndarray
    labels: np.ndarray | None
    class_names: tuple[str, ...]
    groups: np.ndarray
    strata: np.ndarray
    texts: tuple[str, ...] | None = None
    devices: np.ndarray | None = None
    context: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        n = len(self)
        columns = {**self.inputs, "present": self.present, "groups": self.groups,
                   "strata": self.strata, "labels": self.labels, "texts": self.texts,
                   "devices": self.devices, "context": self.context}
        for name, column in columns.items():
            if column is not None and len(column) != n:
                raise UserError(f"{self.name}: column '{name}' has {len(column)} rows, not {n}; "
                                "give every column one row per sample")
        if (self.labels is None) == (self.texts is None):
            raise UserError(f"{self.name}: give either class labels or target texts, not both")
        for modality, values in self.inputs.items():
            if values.dtype.kind == "f":
                bad = ~np.isfinite(values).reshape(n, -1).all(axis=1)
                if bad.any():
                    raise UserError(
                        f"{self.name}: modality '{modality}' has NaN or infinity in {bad.sum()} "
                        f"rows (first: row {int(bad.argmax())}); mark such readings as missing or "
                        "mend the file")

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modality names in index order."""
        return tuple(self.inputs)
