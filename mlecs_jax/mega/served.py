"""An edge of a Mega-CE² run, or its global model, as something that answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mlecs_jax import restore
from mlecs_jax.data import sentiment
from mlecs_jax.data.sentiment import MODALITIES, SentimentData
from mlecs_jax.errors import UserError
from mlecs_jax.mega import config as configs
from mlecs_jax.mega import experiment
from mlecs_jax.mega import setting as settings
from mlecs_jax.mega.export import Moments, answers, standardised
from mlecs_jax.mega.setting import MegaSetting
from mlecs_jax.methods import mega_ce2
from mlecs_jax.models.adapters import Adapters
from mlecs_jax.models.crossmodal import CrossModalConfig
from mlecs_jax.models.sentiment import Params, SentimentModel
from mlecs_jax.served import SERVER, Served
from mlecs_jax.serving.description import SENTIMENT, SEQUENCE, Description, Modality
from mlecs_jax.serving.readings import Row

Tree = Any


@dataclasses.dataclass(frozen=True)
class RestoredMega:
    """A finished run of Mega-CE².

    Attributes:
      data: as measured, before standardisation.
      versions: complete ones.
      model: the version with the lowest validation error.
      adapters: of all edges, stacked; None if they were not asked for.
    """

    setting: MegaSetting
    data: SentimentData
    versions: int
    model: Params
    adapters: Adapters | None


def restored(folder: Path, *, personal: bool) -> RestoredMega:
    """The run of a folder, with the data it was trained on.

    Args:
      personal: tune the edges' adapters as the end of the run did. They are no part of its
        checkpoints, and come out the same since all randomness follows from the seed.

    Raises:
      UserError: no run, one in progress or not at its end, or data that are gone.
    """
    values, identity = restore.configuration(folder)
    config = configs.parse(restore.pinned(values, identity))
    data = settings.load(config.data)
    restore.check_data(folder, experiment.data_identity(data), identity)
    setting = settings.build(config, data, jax.devices()[:1])
    method = mega_ce2.build(setting)
    versions, state = restore.load(folder, method.init(
        jax.random.fold_in(jax.random.key(config.seed), 0)))
    if versions != len(method.arrivals):
        raise UserError(f"{folder} has {versions} of {len(method.arrivals)} versions; its adapters "
                        "are tuned at the end, let it run to there")
    model = state.best["model"]
    adapters = method.personalise(model, experiment.personal_key(config))[0] if personal else None
    return RestoredMega(setting, data, versions, model, adapters)


def node(folder: Path, edge: int | None) -> Served:
    """An edge with its adapter (None: the global model).

    Raises:
      UserError: see :func:`restored`; there is no such edge.
    """
    values, _ = restore.configuration(folder)
    edges = values["partition"]["edges"]
    if edge is not None and not 0 <= edge < edges:
        raise UserError(f"there is no edge {edge}; the run has --device=0 to {edges - 1} (edges), "
                        "and --device=server")
    run = restored(folder, personal=edge is not None)
    federation = run.setting.federation
    adapters = None if edge is None else jax.tree.map(lambda x: x[edge], run.adapters)
    rows = (federation.split.test if edge is None
            else federation.test.rows[edge][federation.test.real[edge]])
    shape = run.setting.shape
    return answering(
        described(run.data.name, run.data.source, run.data.shapes, shape, edge, run.versions),
        run.setting.model, run.model, adapters, sentiment.moments(run.data, federation.split.train),
        rows=[{name: getattr(run.data, name)[row] for name in shape.modalities} for row in rows],
        truth=[f"{run.data.labels[row]:+.3f}" for row in rows])


def described(
    dataset: str, source: str, shapes: Mapping[str, tuple[int, ...]], shape: CrossModalConfig,
    edge: int | None, versions: int,
) -> Description:
    """An edge (None: the global model) in words.

    Args:
      shapes: of a segment's modalities.
      shape: of the model.
      versions: how many the model is made of.
    """
    return Description(
        node=SERVER if edge is None else f"edge {edge}", method="mega_ce2", dataset=dataset,
        data_source=source, rounds=versions, task=SENTIMENT, modalities={
            name: Modality(size, SEQUENCE, name in shape.modalities)
            for name, size in shapes.items()})


def answering(
    description: Description, model: SentimentModel, params: Params, adapters: Adapters | None,
    moments: Moments, *, rows: Sequence[Row], truth: Sequence[str],
) -> Served:
    """An edge or the global model, of its parts.

    Args:
      adapters: None: without.
      moments: what measured features are standardised by; empty: readings are z-scores.
      rows, truth: see :class:`~mlecs_jax.served.Served`.
    """
    known = {name: tuple(np.asarray(x, np.float32) for x in pair)
             for name, pair in moments.items()}

    def respond(weights: Tree, inputs: list[Array], mask: Array) -> Array:
        read = [jnp.where(mask[:, i, None, None],
                          standardised(x, weights["moments"].get(name)), 0.0)
                for i, (name, x) in enumerate(zip(MODALITIES, inputs, strict=True))]
        return answers(model, weights, read)

    return Served(
        description=description,
        weights={"model": params, "adapters": adapters, "moments": known},
        respond=respond, tokenizer=None, rows=rows, truth=truth)
