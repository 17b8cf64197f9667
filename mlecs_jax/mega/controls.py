"""References of Tables 1 and 2 that are neither Mega-CE² nor a published centralised model.

``edges_alone`` has everything of the three-tier run but the cloud; ``fedavg_lf_lstm`` everything
of its synchronous form but the model; ``constant`` and ``majority`` read nothing. Without them a
gain could be due to training on all data, to the model, or to nothing at all.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mlecs_jax.clients import for_each_client
from mlecs_jax.data import sentiment
from mlecs_jax.data.sentiment import SentimentData
from mlecs_jax.errors import UserError
from mlecs_jax.mega import experiment
from mlecs_jax.mega import setting as settings
from mlecs_jax.mega.config import MegaConfig
from mlecs_jax.mega.personal import Predictor, end_keys, rows_of
from mlecs_jax.mega.setting import MegaSetting
from mlecs_jax.methods import mega_ce2
from mlecs_jax.metrics import sentiment as metrics
from mlecs_jax.models import sentiment_zoo
from mlecs_jax.models.sentiment import SentimentModel
from mlecs_jax.models.sentiment_zoo import TrainOptions

ALONE, FEDAVG, CONSTANT, MAJORITY = "edges_alone", "fedavg_lf_lstm", "constant", "majority"
NAMES = (ALONE, FEDAVG, CONSTANT, MAJORITY)
OnRecord = Callable[[dict[str, Any]], None]


def run(config: MegaConfig, data: SentimentData, on_record: OnRecord) -> dict[str, Any]:
    """Runs the control that ``method.name`` names.

    Args:
      on_record: called with a record of every round.

    Returns:
      Its part of ``summary.json``: ``rounds``, scores under ``server`` (one model) or ``client``
      (each segment by its own edge's), ``validation`` and ``timing``.

    Raises:
      UserError: bad options for this data.
    """
    begun = time.perf_counter()
    found = {ALONE: _alone, FEDAVG: _fedavg, CONSTANT: _constant, MAJORITY: _constant}[
        config.method.name](config, data, on_record)
    return found | {"timing": {"train_seconds": round(time.perf_counter() - begun, 2)}}


def tiers_recipe(config: MegaConfig, data: SentimentData) -> TrainOptions:
    """Settings of one machine like those of the three-tier run of this configuration: as many
    passes over the data, of the same batches and rates, none of them ended early."""
    setting = settings.build(config, data)
    counts = setting.federation.edges.counts
    passes = math.ceil((_passes(setting) * counts).sum() / counts.sum())
    options = config.train
    return TrainOptions(
        epochs=passes, batch_size=options.batch_size, learning_rate=options.learning_rate,
        weight_decay=0.0, clip=options.clip, patience=passes, plateau_patience=passes,
        final_rate_fraction=options.final_rate_fraction)


def _passes(setting: MegaSetting) -> np.ndarray:
    """How often the ends of each edge go through their segments in the whole run, ``[E]``."""
    arrivals = mega_ce2.build(setting).arrivals
    reports = np.bincount([edge for arrival in arrivals for edge in arrival.edges],
                          minlength=setting.config.partition.edges)
    return reports * setting.config.train.local_epochs


def _alone(config: MegaConfig, data: SentimentData, on_record: OnRecord) -> dict[str, Any]:
    """Every edge trains one model on all segments of its ends, as often as it does with a cloud,
    by the ends' own recipe, and keeps the pass with its lowest validation error."""
    setting = settings.build(config, data)
    federation, topology = setting.federation, setting.topology
    predict, key = Predictor(setting), jax.random.key(config.seed)
    passes, labels = _passes(setting), federation.data.labels
    steps = -(-federation.edges.counts // config.train.batch_size)
    train = for_each_client(functools.partial(mega_ce2.train_end, setting))  # one at a time
    rows = {part: [held.rows[edge][held.real[edge]] for edge in range(len(passes))]
            for part, held in (("val", federation.val), ("test", federation.test))}
    first = setting.model.init(jax.random.fold_in(key, 0), setting.example())
    models = [topology.to_edge(jax.tree.map(lambda x: x[None], first)) for _ in passes]
    errors = np.full(len(passes), np.inf)
    best, now = list(models), errors.copy()
    for number in range(passes.max()):
        seen = []
        for edge in np.flatnonzero(number < passes):
            own = rows_of(federation.edges, np.array([edge])) | {
                "steps": steps[[edge]].astype(np.int32),
                "rate": np.float32([mega_ce2.learning_rate(config, number / passes[edge])]),
                "key": end_keys(jax.random.fold_in(key, 1), np.array([number]),
                                np.array([edge]))}
            models[edge], diagnostics = train(
                setting.segments, jax.tree.map(jnp.copy, models[edge]),
                topology.to_edge(own))
            seen.append(float(diagnostics["mae"][0]))
            answers = predict.on(_one(models[edge]), None, rows["val"][edge])
            now[edge] = np.abs(answers - labels[rows["val"][edge]]).mean()
            if now[edge] < errors[edge]:
                errors[edge], best[edge] = now[edge], models[edge]
        on_record({"round": number, "rounds": int(passes.max()),
                   "train": {"mae": float(np.mean(seen))},
                   "eval": {"val": {"mae": float(now.mean())}}})
    scored = {}
    for part, own in rows.items():
        answers = [predict.on(_one(model), None, of) for model, of in zip(best, own, strict=True)]
        scored[part] = _scores(labels[np.concatenate(own)], np.concatenate(answers))
    return {"rounds": int(passes.max()), "client": scored["test"],
            "validation": {"client": scored["val"]}}


def _fedavg(config: MegaConfig, data: SentimentData, on_record: OnRecord) -> dict[str, Any]:
    """Rounds of FedAvg over the ends of the strongest baseline; the round with the lowest
    validation error is scored."""
    config = dataclasses.replace(config, method=dataclasses.replace(
        config.method, name="mega_ce2", mode="sync"))
    setting = dataclasses.replace(settings.build(config, data), model=_bare("lf_lstm", config))
    method, key = mega_ce2.build(setting), jax.random.key(config.seed)
    state = method.init(jax.random.fold_in(key, 0))
    rounds, best = len(method.arrivals), {"val": {"mae": np.inf}}
    for r, arrival in enumerate(method.arrivals):
        state, diagnostics = method.round(state, r, jax.random.fold_in(key, 1))
        found = experiment.score(setting, method.evaluate(state, r))
        if found["val"]["mae"] < best["val"]["mae"]:
            best = found | {"round": r + 1}
        on_record({"round": r, "rounds": rounds, "time": round(arrival.time, 4),
                   "train": {"mae": float(np.mean(diagnostics["ends"]["mae"]))}, "eval": found})
    return {"rounds": rounds, "server": best["test"], "validation": {"server": best["val"]},
            "extra": {"best_round": best["round"]}}


def _bare(name: str, config: MegaConfig) -> SentimentModel:
    """A baseline where the three-tier method expects a model that may have adapters."""
    model = sentiment_zoo.build(name, config.data.name)

    def apply(params, batch, *, train=False, key=None, adapters=None):
        if adapters is not None:
            raise ValueError(f"{model.name} has no adapters")
        return model.apply(params, batch, train=train, key=key)

    return dataclasses.replace(model, apply=apply)


def _constant(config: MegaConfig, data: SentimentData, on_record: OnRecord) -> dict[str, Any]:
    """One number for every segment: the median of the training labels, which has the smallest
    mean absolute error, or of those of the more frequent sign, which has the highest Acc2."""
    split = sentiment.split(data, config.data.split, config.partition.seed)
    labels = data.labels[split.train]
    if config.method.name == MAJORITY:
        positive = (labels > 0).sum() >= (labels < 0).sum()
        labels = labels[labels > 0 if positive else labels < 0]
        if not len(labels):
            raise UserError(f"{data.name} has no label but 0 among its training segments; give "
                            "labels of either sign")
    answer = np.median(labels)
    val, test = (_scores(data.labels[rows], np.full(len(rows), answer, np.float32))
                 for rows in (split.val, split.test))
    on_record({"round": 0, "rounds": 1, "eval": {"val": val, "test": test}})
    return {"rounds": 1, "server": test, "validation": {"server": val},
            "extra": {"answer": float(answer)}}


def _scores(true: np.ndarray, predicted: np.ndarray) -> dict[str, Any]:
    return experiment.without_nan(metrics.scores(true, predicted))


def _one(stacked: Any) -> Any:
    return jax.tree.map(lambda x: x[0], stacked)
