"""An edge's share of a sentiment dataset, and what it computes with.

``share.npz`` holds plain arrays (no pickles) and one JSON text, see :class:`MegaShare`.
``moments.npz`` beside it has what the features were standardised by, so that a trained edge reads
new ones as they are measured; an edge that brings its own data may leave it out.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

from mlecs_jax.data.sentiment import (
    MODALITIES,
    TEST,
    TRAIN,
    VALID,
    SentimentBatch,
    SentimentData,
    Split,
)
from mlecs_jax.deploy.share import CLOUD, MOMENTS, SHARE, read_arrays
from mlecs_jax.errors import UserError
from mlecs_jax.mega.config import MegaConfig
from mlecs_jax.mega.federation import MegaFederation, Padded
from mlecs_jax.mega.setting import MegaSetting
from mlecs_jax.models import crossmodal
from mlecs_jax.topology import Device, Topology

Moments = Mapping[str, tuple[np.ndarray, np.ndarray]]
NO_MOMENTS: Moments = {}
FORMAT = 1
HELD_OUT = -1  # as an end's number
ROWS = (*MODALITIES, "labels", "part", "end")


@dataclasses.dataclass(frozen=True)
class MegaShare:
    """Segments of one edge and its ends.

    Attributes:
      edge: its number; -1 is the cloud, which has no segments.
      name, source, form, caution: of the dataset (:class:`SentimentData`).
      text, audio, vision: float32 ``[n, T_m, d_m]``, as z-scores of moments that all share;
        padding steps are zero, on the left.
      labels: float32 ``[n]``, sentiment in [-3, 3].
      part: int8 ``[n]``: 0 training, 1 validation, 2 test.
      end: int32 ``[n]``, which of the edge's ends has the segment; -1 where it is held out.
      edge_rows: the edges' training rows are padded to this many, so that batches are the
        simulation's; an edge of its own gives how many it has.
      moments: mean and deviation of every feature, ``{modality: ([d], [d])}``; empty: not told.
    """

    edge: int
    name: str
    source: str
    form: str
    caution: str
    text: np.ndarray
    audio: np.ndarray
    vision: np.ndarray
    labels: np.ndarray
    part: np.ndarray
    end: np.ndarray
    edge_rows: int
    moments: Moments = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.labels)
        wrong = [name for name in ROWS if len(getattr(self, name)) != n]
        wrong += [name for name in MODALITIES if getattr(self, name).ndim != 3]
        wrong += [f"moments of {name}" for name, pair in self.moments.items()
                  if any(x.shape != getattr(self, name).shape[2:] for x in pair)]
        if wrong:
            raise UserError(f"the share's arrays do not fit each other ({', '.join(wrong)}); "
                            "provision it again")
        if self.edge == CLOUD:
            return
        training = self.part == TRAIN
        if not all((self.part == part).any() for part in (TRAIN, VALID, TEST)):
            raise UserError("the share needs training, validation and test segments; give the "
                            "edge some of each")
        if not np.isin(self.part, (TRAIN, VALID, TEST)).all() or (
                training != (self.end >= 0)).any():
            raise UserError("the share's parts must be 0, 1 or 2, and training segments alone "
                            "have an end; provision it again")
        if self.edge_rows < training.sum():
            raise UserError(f"the share has {training.sum()} training segments and edge_rows is "
                            f"{self.edge_rows}; give at least as many")

    def example(self) -> SentimentBatch:
        """One segment of nothing, to fix shapes at initialisation."""
        return SentimentBatch(*(np.zeros((1, *self.shapes[name]), np.float32)
                                for name in MODALITIES), labels=np.zeros(1, np.float32))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """``{modality: (T_m, d_m)}``."""
        return {name: getattr(self, name).shape[1:] for name in MODALITIES}


def split(federation: MegaFederation, moments: Moments = NO_MOMENTS) -> tuple[MegaShare, ...]:
    """Shares of all participants: the cloud's, which has nothing but shapes, then the edges'.

    Args:
      moments: what the federation's data were standardised by.
    """
    data, edges = federation.data, len(federation.edges.rows)
    ends = len(federation.ends.rows) // edges
    part = np.full(len(data), -1, np.int8)
    end = np.full(len(data), HELD_OUT, np.int32)
    for rows, number in ((federation.split.train, TRAIN), (federation.split.val, VALID),
                         (federation.split.test, TEST)):
        part[rows] = number
    for node, (rows, real) in enumerate(zip(federation.ends.rows, federation.ends.real,
                                            strict=True)):
        end[rows[real]] = node % ends

    def share(edge: int, rows: np.ndarray) -> MegaShare:
        return MegaShare(
            edge, data.name, data.source, data.form, data.caution, data.text[rows],
            data.audio[rows], data.vision[rows], data.labels[rows], part[rows], end[rows],
            edge_rows=federation.edges.rows.shape[1], moments=moments)

    parts = (federation.edges, federation.val, federation.test)
    return share(CLOUD, np.empty(0, int)), *(
        share(edge, np.sort(np.concatenate([p.rows[edge][p.real[edge]] for p in parts])))
        for edge in range(edges))


def save(share: MegaShare, folder: Path) -> None:
    """Writes ``share.npz`` into a folder, and ``moments.npz``."""
    facts = {"format": FORMAT, "system": "mega_ce2"} | {
        name: getattr(share, name)
        for name in ("edge", "name", "source", "form", "caution", "edge_rows")}
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {name: getattr(share, name) for name in ROWS}
    np.savez_compressed(folder / SHARE, facts=np.array(json.dumps(facts)), **arrays)
    if share.moments:
        np.savez(folder / MOMENTS, **cast(Any, {
            f"{name}/{key}": x for name, pair in share.moments.items()
            for key, x in zip(("mean", "std"), pair, strict=True)}))


def load(folder: Path) -> MegaShare:
    """The share in a folder.

    Raises:
      UserError: the file is missing, damaged, or its arrays do not fit each other.
    """
    arrays = read_arrays(folder / SHARE)
    known = read_arrays(folder / MOMENTS) if (folder / MOMENTS).exists() else {}
    try:
        facts = json.loads(str(arrays["facts"]))
        if facts.pop("format") != FORMAT or facts.pop("system", "") != "mega_ce2":
            raise UserError(f"{folder / SHARE} is of another format or system; provision it again")
        moments = {name: (known[f"{name}/mean"], known[f"{name}/std"]) for name in MODALITIES
                   } if known else {}
        found: dict[str, Any] = facts | {name: arrays[name] for name in ROWS} | {
            "moments": moments}
        return MegaShare(**found)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / SHARE} is damaged ({error}); provision it again") from None


def edge_setting(
    config: MegaConfig, share: MegaShare, number: int, end_rows: int,
    devices: Sequence[Device] | None = None,
) -> MegaSetting:
    """The setting of one edge; other nodes of the tree have no segments.

    Numbers of nodes and lengths of their rows are the simulation's, since randomness is a function
    of both.

    Args:
      end_rows: training segments of the end that has most, of all edges.
      devices: accelerators; the first is used. None takes JAX's first.

    Raises:
      UserError: the share is another's, an end has no segments or more than ``end_rows``.
    """
    if share.edge != number:
        who = "the cloud" if share.edge == CLOUD else f"edge {share.edge}"
        raise UserError(f"the share is of {who}, not of edge {number}; give this device its own "
                        "folder")
    options = config.partition
    counts = np.bincount(share.end[share.end >= 0], minlength=options.ends)
    if len(counts) > options.ends or not counts.all() or counts.max() > end_rows:
        raise UserError(f"the share's ends have {', '.join(map(str, counts))} training segments; "
                        f"give each of {options.ends} between 1 and {end_rows}")
    edges = max(options.edges, number + 1)  # one that was added has a number beyond them
    nodes = {"ends": (edges * options.ends, end_rows), "edges": (edges, share.edge_rows),
             "val": (edges, int((share.part == VALID).sum())),
             "test": (edges, int((share.part == TEST).sum()))}
    own = {"ends": {number * options.ends + end: np.flatnonzero(share.end == end)
                    for end in range(options.ends)},
           **{part: {number: np.flatnonzero(share.part == which)} for part, which in
              (("edges", TRAIN), ("val", VALID), ("test", TEST))}}
    data = SentimentData(
        share.name, cast(Any, share.source), share.form, share.text, share.audio, share.vision,
        share.labels, np.zeros(len(share.labels), np.int32), share.part, share.caution)
    topology = Topology.create((edges, options.ends), list(devices or jax.devices())[:1],
                               config.topology.cloud_devices)
    shape = config.model_config()
    return MegaSetting(
        config=config, topology=topology, shape=shape, model=crossmodal.model(shape, "Mega-CE²"),
        segments=topology.to_edge(data.batch()),
        federation=MegaFederation(
            data=data, split=Split(*(np.flatnonzero(share.part == which)
                                     for which in (TRAIN, VALID, TEST))),
            public=np.empty(0, int),
            **{part: _padded(own[part], *size) for part, size in nodes.items()}))


def _padded(own: dict[int, np.ndarray], nodes: int, length: int) -> Padded:
    rows, real = np.zeros((nodes, length), np.int32), np.zeros((nodes, length), bool)
    for node, found in own.items():
        rows[node] = np.resize(found[:1], length)
        rows[node, :len(found)], real[node, :len(found)] = found, True
    return Padded(rows=rows, real=real)
