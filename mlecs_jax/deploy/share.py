"""A participant's share of a dataset: what one device, or the cloud, may have of it.

``share.npz`` holds plain arrays (no pickles) and one JSON text, see :class:`Share`;
``moments.npz`` holds the mean and standard deviation of every channel over all training readings,
which everyone needs to standardise alike. Those two numbers a channel are the only thing that a
device learns of the others' readings, and they are handed out at provisioning, never uploaded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mlecs_jax.federation import Federation, Moments

SHARE, MOMENTS = "share.npz", "moments.npz"


@dataclasses.dataclass(frozen=True)
class Share:
    """Rows of one participant.

    Attributes:
      node: the device's number; -1 is the cloud.
      name, source, class_names: of the dataset, see :class:`mlecs_jax.data.samples.Samples`.
      shapes, dtypes: of one reading of every modality, in the order of the masks' columns; also of
        modalities that the participant does not have.
      parts: ``{'train' | 'held_out' | 'public': Part}``. A device's ``public`` rows are D′ (training
        rows); the cloud has them in ``public`` and its own validation and test rows in
        ``held_out``, and no ``train``.
      num_val: how many of the held-out rows are validation rows; the rest is for testing.
      owned: bool ``[R, M]``, the modality sets of the device in each round (R = 1: always the
        same); all true for the cloud.
      moments: of every modality.
    """

    node: int
    name: str
    source: str
    class_names: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    parts: Mapping[str, Part]
    num_val: int
    owned: np.ndarray
    moments: Mapping[str, Moments]


@dataclasses.dataclass(frozen=True)
class Part:
    """Rows: ``inputs`` of the modalities that the participant has, ``available [n, M]``,
    ``labels [n]`` (-1: not told)."""

    inputs: Mapping[str, np.ndarray]
    available: np.ndarray
    labels: np.ndarray


def split(federation: Federation, *, public_labels: bool) -> tuple[Share, ...]:
    """Shares of all participants of a partitioned dataset: the cloud's first, then the devices'.

    A device's share has no reading of a modality that it never owns.

    Args:
      public_labels: devices are told the labels of the public rows (``partition.public_labels``).

    Raises:
      UserError: the dataset has text targets.
    """
    raise NotImplementedError


def save(share: Share, folder: Path) -> None:
    """Writes ``share.npz`` and ``moments.npz`` into a folder."""
    raise NotImplementedError


def load(folder: Path) -> Share:
    """The share in a folder.

    Raises:
      UserError: files are missing, damaged, or do not fit each other.
    """
    raise NotImplementedError
