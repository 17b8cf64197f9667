"""Multimodal sentiment data: three padded sequences and one real label per segment.

`SentimentData` is what every loader of this kind returns (``mosi``, ``mosei``, simulated ones).
Splits and the division among edges and ends are functions of it, so that one dataset serves the
centralised baselines and the federation alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from flax import struct
from jaxtyping import Float, Int

from mlecs_jax.errors import UserError

MODALITIES = ("text", "audio", "vision")
SPLITS = ("segment", "video", "canonical", "heldout")
HELD_OUT_SHARE = 1 / 3  # of the published test videos, where they give the validation videos
TRAIN, VALID, TEST, UNUSED = 0, 1, 2, 3
NO_VIDEO = -1
"""Number of the video of a segment that no file names."""
BINS = np.arange(-3, 4)
"""Centres of the seven sentiment bins."""

Leaf = Any  # an array, or whatever JAX puts in its place while it maps over a tree


@struct.dataclass
class SentimentBatch:
    """Segments ready for a model.

    Attributes:
      text, audio, vision: float32 ``[B, T_m, d_m]``, zero-padded on the left.
      labels: float32 ``[B]``, sentiment in [-3, 3].
    """

    text: Leaf
    audio: Leaf
    vision: Leaf
    labels: Leaf


@dataclasses.dataclass(frozen=True, eq=False)
class SentimentData:
    """A sentiment dataset in memory; row ``i`` of every array is segment ``i``.

    Attributes:
      name: dataset name, e.g. ``mosi``.
      source: ``real`` or ``simulated``; copied into every output file.
      form: which files the arrays come from, e.g. ``utterance`` or ``mmsa_aligned``.
      text, audio, vision: float32 ``[n, T_m, d_m]``, finite, zero-padded on the left.
      labels: float32 ``[n]``, sentiment in [-3, 3].
      videos: int32 ``[n]``; segments of one video are correlated. :data:`NO_VIDEO` where it is
        not known.
      canonical: int8 ``[n]``, the published split: 0 train, 1 validation, 2 test, 3 in none.
        Without published validation rows, whole videos are taken out of the training part.
      caution: what a reader of scores must know about this data; empty if nothing.
      supervised: features were learnt with the labels of the published training and validation
        rows.
    """

    name: str
    source: Literal["real", "simulated"]
    form: str
    text: np.ndarray
    audio: np.ndarray
    vision: np.ndarray
    labels: np.ndarray
    videos: np.ndarray
    canonical: np.ndarray
    caution: str = ""
    supervised: bool = False

    def __post_init__(self) -> None:
        n = len(self.labels)
        for name in MODALITIES:
            array = getattr(self, name)
            if array.ndim != 3 or len(array) != n or array.dtype != np.float32:
                raise UserError(f"{self.name}: {name} is {array.dtype} {array.shape}; "
                                f"give float32 [{n}, time, features]")
            if not np.isfinite(array).all():
                raise UserError(f"{self.name}: {name} holds values that are not finite")
        for name, dtype in (("labels", np.float32), ("videos", np.int32), ("canonical", np.int8)):
            array = getattr(self, name)
            if array.shape != (n,) or array.dtype != dtype:
                raise UserError(f"{self.name}: {name} is {array.dtype} {array.shape}; "
                                f"give {np.dtype(dtype)} [{n}]")
        if not n:
            raise UserError(f"{self.name} has no segments")
        if not (np.abs(self.labels) <= 3).all():
            raise UserError(f"{self.name}: labels must lie in [-3, 3]")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """``{modality: (T_m, d_m)}``."""
        return {name: getattr(self, name).shape[1:] for name in MODALITIES}

    def batch(self, rows: Int[np.ndarray, " B"] | slice = slice(None)) -> SentimentBatch:
        """The segments ``rows`` (all by default)."""
        return SentimentBatch(*(getattr(self, name)[rows] for name in (*MODALITIES, "labels")))


@dataclasses.dataclass(frozen=True)
class Split:
    """Sorted row numbers of the three parts; disjoint."""

    train: Int[np.ndarray, " a"]
    val: Int[np.ndarray, " b"]
    test: Int[np.ndarray, " c"]


def split(data: SentimentData, kind: str, seed: int = 0) -> Split:
    """Cuts a dataset into training, validation and test rows.

    Args:
      kind: ``segment``, 70/10/20 % of segments at random (Mega-CE² §4; segments of one video fall
        on both sides, a leak); ``video``, the same with whole videos; ``canonical``, the
        published split, without regard to ``seed``; ``heldout``, the published split with
        validation videos that the features have not seen: where these were learnt with the
        labels of its validation rows, all of those train, a third of its test videos validate
        and the others are tested, another third with the next seed; elsewhere ``canonical``.
      seed: of all kinds but ``canonical``.

    Raises:
      UserError: an unknown kind, a part without rows, or ``video`` where videos are not known.
    """
    if kind not in SPLITS:
        raise UserError(f"data.split is '{kind}'; use {' or '.join(SPLITS)}")
    if kind == "video" and (data.videos == NO_VIDEO).any():
        raise UserError(f"{data.name}: the files do not say which video a segment is of, and "
                        "data.split=video could not keep videos together; use canonical")
    if kind == "heldout" and data.supervised:
        parts = _held_out(data, seed)
    elif kind in ("canonical", "heldout"):
        parts = [np.flatnonzero(data.canonical == part) for part in (TRAIN, VALID, TEST)]
    else:
        rng = np.random.default_rng([seed, 3])
        units = np.arange(len(data)) if kind == "segment" else data.videos
        names = rng.permutation(np.unique(units))
        cuts = [round(0.7 * len(names)), round(0.8 * len(names))]
        parts = [np.flatnonzero(np.isin(units, part)) for part in np.split(names, cuts)]
    result = Split(*parts)
    for name in ("train", "val", "test"):
        if not len(getattr(result, name)):
            raise UserError(f"{data.name} has no {name} segments under data.split={kind}; "
                            "use another split or more data")
    return result


def _held_out(data: SentimentData, seed: int) -> list[np.ndarray]:
    """Rows of the parts: published training and validation videos train, a third of the test
    videos, from the seed's place in their order on, validates."""
    videos = np.unique(data.videos[data.canonical == TEST])
    taken = round(HELD_OUT_SHARE * len(videos))
    chosen = np.isin(data.videos, np.roll(videos, -seed * taken)[:taken])
    tested = data.canonical == TEST
    known = (data.canonical == TRAIN) | (data.canonical == VALID)
    return [np.flatnonzero(rows) for rows in (known, tested & chosen, tested & ~chosen)]


_SEEN = {
    "canonical": "validation videos are among them, so that validation errors are far too small, "
                 "and versions and epochs are chosen by them",
    "heldout": "validation and test videos are not among them",
    "segment": "test segments are of them too, and scores are far too good",
    "video": "test videos are among them, and scores are far too good"}


def caution(data: SentimentData, kind: str) -> str:
    """What a reader of scores under a split must know; empty if nothing."""
    return f"{data.caution}; {_SEEN[kind]}" if data.supervised else data.caution


def moments(
    data: SentimentData, rows: Int[np.ndarray, " a"]
) -> dict[str, tuple[Float[np.ndarray, " d"], Float[np.ndarray, " d"]]]:
    """Mean and standard deviation of every feature over the real steps of some rows, float64.

    A step whose features are all zero is padding. The deviation of a constant feature is infinite,
    so that the feature becomes zero when divided by it.
    """
    result = {}
    for name in MODALITIES:
        own = getattr(data, name)[rows]
        seen = own[own.any(axis=-1)].astype(np.float64)
        std = seen.std(axis=0)
        result[name] = seen.mean(axis=0), np.where(std < 1e-6, np.inf, std)
    return result


def standardise(data: SentimentData, rows: Int[np.ndarray, " a"]) -> SentimentData:
    """Features as z-scores of training rows, clipped to ±5; padding steps stay zero.

    Args:
      rows: the training rows, which alone give the :func:`moments`.
    """
    scaled = {}
    for name, (mean, std) in moments(data, rows).items():
        array = getattr(data, name)
        z = np.clip((array - mean) / std, -5, 5) * array.any(axis=-1, keepdims=True)
        scaled[name] = z.astype(np.float32)
    return dataclasses.replace(data, **scaled)


def bins(labels: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Index 0…6 of the sentiment bin nearest to each label."""
    return np.clip(np.rint(labels), -3, 3).astype(np.int64) + 3


def deal(
    data: SentimentData,
    rows: Int[np.ndarray, " a"],
    *,
    edges: int = 3,
    ends: int = 2,
    alpha: float = 0.5,
    minimum: int = 16,
    seed: int = 0,
) -> list[list[Int[np.ndarray, " n"]]]:
    """Deals training rows to ends under edges, with label skew between edges.

    For each of the seven sentiment bins, shares of the edges are drawn from Dirichlet(α); an
    edge's rows are dealt evenly to its ends. Draws that leave an end below ``minimum`` rows are
    repeated. The papers give no recipe (Mega-CE² says non-IID only).

    Args:
      rows: the rows to deal; each goes to exactly one end.
      alpha: concentration; small is skewed, ``inf`` deals every bin evenly.
      minimum: rows every end gets at least (a batch).

    Returns:
      ``dealt[edge][end]``, sorted row numbers.

    Raises:
      UserError: counts below one, or no draw of 1,000 gives every end its minimum.
    """
    if edges < 1 or ends < 1:
        raise UserError(f"{edges} edges with {ends} ends each; give 1 or more of both")
    if not alpha > 0:
        raise UserError(f"the Dirichlet concentration is {alpha}; give a positive number")
    rng = np.random.default_rng([seed, 4])
    which = bins(data.labels[rows])
    for _ in range(1000 if len(rows) >= edges * ends * minimum else 0):
        owned: list[list[np.ndarray]] = [[] for _ in range(edges)]
        for label_bin in range(len(BINS)):
            own = rng.permutation(rows[which == label_bin])
            shares = (np.full(edges, 1 / edges) if np.isinf(alpha)
                      else rng.dirichlet(np.full(edges, alpha)))
            cuts = np.rint(np.cumsum(shares)[:-1] * len(own)).astype(int)
            for edge, piece in enumerate(np.split(own, cuts)):
                owned[edge].append(piece)
        dealt = [[np.sort(part) for part in np.array_split(rng.permutation(np.concatenate(o)),
                                                           ends)] for o in owned]
        if min(len(part) for edge in dealt for part in edge) >= minimum:
            return dealt
    raise UserError(f"{len(rows)} segments cannot give each of {edges * ends} ends {minimum} under "
                    f"Dirichlet({alpha}); use fewer ends, a larger alpha or a smaller batch")


def context_windows(
    features: Float[np.ndarray, "n d"],
    videos: Int[np.ndarray, " n"],
    window: int,
) -> Float[np.ndarray, "n w d"]:
    """Each utterance's own vector, last, after those of the utterances before it in its video.

    Rows of one video must be consecutive and in time order. Zero-padded on the left where a
    video has just begun; nothing of the future is seen.

    Raises:
      UserError: a window below 1.
    """
    if window < 1:
        raise UserError(f"data.window is {window}; give 1 or more utterances")
    n = len(features)
    back = np.arange(n)[:, None] - np.arange(window - 1, -1, -1)[None, :]
    inside = (back >= 0) & (videos[np.maximum(back, 0)] == videos[:, None])
    gathered = features[np.maximum(back, 0)] * inside[..., None]
    return gathered.astype(np.float32)


def number_videos(names: Sequence[str] | np.ndarray) -> Int[np.ndarray, " n"]:
    """Video names as int32 numbers, in the order of the sorted names."""
    return np.unique(np.asarray(names), return_inverse=True)[1].astype(np.int32)


def hold_out_videos(
    canonical: Int[np.ndarray, " n"], videos: Int[np.ndarray, " n"], share: float
) -> Int[np.ndarray, " n"]:
    """Marks whole training videos as validation, for published splits without one.

    Every k-th training video in order of its number, k = round(1/share): a fixed rule, so that
    the split is the same for everyone.
    """
    train_videos = np.unique(videos[canonical == TRAIN])
    chosen = train_videos[::max(2, round(1 / share))]
    result = canonical.copy()
    result[(canonical == TRAIN) & np.isin(videos, chosen)] = VALID
    return result
