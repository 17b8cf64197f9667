"""What a predictor reads and says, as plain values that travel with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from mlecs_jax.errors import UserError

CLASSES, CAPTIONS, SENTIMENT = "classes", "captions", "sentiment"
NUMBERS, IMAGE, TEXT, SEQUENCE = "numbers", "image", "text", "sequence"


@dataclasses.dataclass(frozen=True)
class Modality:
    """One kind of reading.

    Attributes:
      shape: of a sample, in the dataset's own units: standardisation is the program's.
      kind: ``numbers``; ``image``, values 0–255, also read from image files; ``text``, a feature
        vector, also made from words by ``hashed-ngrams-v1``; ``sequence`` ``[T, d]``, whose
        shorter samples are padded on the left.
      owned: the node was trained with it.
      columns: names of a table's columns, where the dataset gave them any.
      shrink: how a larger picture is shrunk, ``box`` or ``bilinear``, as the dataset's reader does.
    """

    shape: tuple[int, ...]
    kind: str = NUMBERS
    owned: bool = True
    columns: tuple[str, ...] = ()
    shrink: str = "bilinear"


@dataclasses.dataclass(frozen=True)
class Description:
    """A predictor in words and numbers.

    Attributes:
      node: e.g. ``device 1``, ``server``.
      method, dataset: of the run.
      data_source: ``real`` or ``simulated``: what it was trained on.
      rounds: complete rounds it was trained for.
      task: ``classes``, ``captions`` or ``sentiment``.
      modalities: by name, in the program's order.
      class_names: of a classifier.
    """

    node: str
    method: str
    dataset: str
    data_source: str
    rounds: int
    task: str
    modalities: Mapping[str, Modality]
    class_names: tuple[str, ...] = ()

    @property
    def owned(self) -> tuple[str, ...]:
        """Modalities that it can be given."""
        return tuple(name for name, modality in self.modalities.items() if modality.owned)

    def without(self, names: Iterable[str]) -> Description:
        """The description of a node that lacks some modalities.

        Raises:
          UserError: an unknown name, or nothing is left.
        """
        names = set(names)
        for name in sorted(names - set(self.modalities)):
            raise UserError(f"--without: '{name}' is no modality of this run; it has "
                            f"{', '.join(self.modalities)}")
        left = {name: dataclasses.replace(modality, owned=modality.owned and name not in names)
                for name, modality in self.modalities.items()}
        if not any(modality.owned for modality in left.values()):
            raise UserError(f"{self.node} has {', '.join(self.owned)}: without "
                            f"{', '.join(sorted(names))} nothing is left to answer from")
        return dataclasses.replace(self, modalities=left)

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Description:
        """The inverse of :meth:`as_json`, through JSON."""
        modalities = {
            name: Modality(tuple(m["shape"]), m["kind"], m["owned"], tuple(m["columns"]),
                           m["shrink"]) for name, m in values["modalities"].items()}
        return cls(**{**values, "modalities": modalities,
                      "class_names": tuple(values["class_names"])})
