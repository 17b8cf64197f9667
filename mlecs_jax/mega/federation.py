"""Who has which segments: training rows of every end, held-out rows of every edge."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Int

from mlecs_jax.data import sentiment
from mlecs_jax.data.sentiment import SentimentData, Split
from mlecs_jax.errors import UserError
from mlecs_jax.mega.config import MegaConfig


@dataclasses.dataclass(frozen=True)
class Padded:
    """Row numbers of several nodes as one array.

    Attributes:
      rows: int32 ``[C, n]``; padding repeats a node's first row.
      real: bool ``[C, n]``, False where it is padding.
    """

    rows: Int[np.ndarray, "C n"]
    real: Bool[np.ndarray, "C n"]

    @property
    def counts(self) -> Int[np.ndarray, " C"]:
        return self.real.sum(axis=1).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class MegaFederation:
    """A sentiment dataset dealt to a cloud's edges and their ends.

    Attributes:
      data: standardised by the training rows; its caution is that of the split.
      split: of the whole.
      public: those of the training rows that the cloud has and no end; none unless it trains.
      ends: training rows of every end, edge by edge.
      edges: training rows of every edge, those of its ends together.
      val, test: held-out rows of every edge. Sentiments are as unequal between edges here as in
        training: an edge is to be good at what it sees. Together they are the whole split, so that
        scores over all edges compare with those of a centralised model.
    """

    data: SentimentData
    split: Split
    public: Int[np.ndarray, " p"]
    ends: Padded
    edges: Padded
    val: Padded
    test: Padded

    @property
    def private(self) -> Int[np.ndarray, " q"]:
        """Training rows of all ends together."""
        return self.split.train[~np.isin(self.split.train, self.public)]


def build(data: SentimentData, config: MegaConfig) -> MegaFederation:
    """Splits, standardises and deals a dataset.

    Raises:
      UserError: see :func:`sentiment.split` and :func:`sentiment.deal`.
    """
    options = config.partition
    split = sentiment.split(data, config.data.split, options.seed)
    public, private = _apart(split.train, config)
    dealt = sentiment.deal(data, private, edges=options.edges, ends=options.ends,
                           alpha=options.alpha, minimum=options.minimum, seed=options.seed)
    edges = [np.sort(np.concatenate(ends)) for ends in dealt]
    return MegaFederation(
        data=dataclasses.replace(sentiment.standardise(data, split.train),
                                 caution=sentiment.caution(data, config.data.split)), split=split,
        public=public,
        ends=pad([rows for ends in dealt for rows in ends]), edges=pad(edges),
        val=pad(deal_like(data, split.val, edges, options.seed)),
        test=pad(deal_like(data, split.test, edges, options.seed)))


def _apart(
    rows: Int[np.ndarray, " a"], config: MegaConfig
) -> tuple[Int[np.ndarray, " p"], Int[np.ndarray, " q"]]:
    """Training rows of the cloud, and those that are dealt to ends.

    Raises:
      UserError: the cloud's share is less than a row.
    """
    if not config.cloud or not config.cloud.steps:
        return rows[:0], rows
    count = int(config.cloud.share * len(rows))
    if not count:
        raise UserError(f"cloud.share is {config.cloud.share} of {len(rows)} training segments, "
                        "which is none; give more, or cloud.steps=0")
    chosen = np.zeros(len(rows), bool)
    chosen[np.random.default_rng([config.partition.seed, 6]).permutation(len(rows))[:count]] = True
    return rows[chosen], rows[~chosen]


def deal_like(
    data: SentimentData, rows: Int[np.ndarray, " a"], edges: list[np.ndarray], seed: int
) -> list[np.ndarray]:
    """Deals held-out rows so that each edge meets the sentiments it was trained on.

    A row goes to an edge with the edge's share of the training rows in the row's sentiment bin;
    bins without training rows are dealt evenly. Every edge gets at least one row.
    """
    rng = np.random.default_rng([seed, 5])
    trained = np.stack([np.bincount(sentiment.bins(data.labels[own]), minlength=7)
                        for own in edges]).astype(np.float64)
    which = sentiment.bins(data.labels[rows])
    owner = np.empty(len(rows), np.int64)
    for label_bin in range(len(sentiment.BINS)):
        shares = trained[:, label_bin]
        shares = shares / shares.sum() if shares.sum() else np.full(len(edges), 1 / len(edges))
        place = rng.permutation(np.flatnonzero(which == label_bin))
        cuts = np.rint(np.cumsum(shares)[:-1] * len(place)).astype(int)
        for edge, piece in enumerate(np.split(place, cuts)):
            owner[piece] = edge
    for edge in range(len(edges)):
        if not (owner == edge).any():
            largest = np.bincount(owner, minlength=len(edges)).argmax()
            owner[np.flatnonzero(owner == largest)[0]] = edge
    return [rows[owner == edge] for edge in range(len(edges))]


def pad(parts: list[np.ndarray]) -> Padded:
    """Row numbers of several nodes, none of them empty, as one array."""
    longest = max(len(part) for part in parts)
    return Padded(
        rows=np.stack([np.concatenate([part, np.full(longest - len(part), part[0])])
                       for part in parts]).astype(np.int32),
        real=np.stack([np.arange(longest) < len(part) for part in parts]))
