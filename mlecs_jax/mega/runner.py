"""What a sweep's worker does with a job of Mega-CE² (see :mod:`mlecs_jax.repro.worker`).

``method.name`` says what is run: ``mega_ce2`` in three tiers, a model of
:mod:`mlecs_jax.models.sentiment_zoo` on one machine with all data, ``latency`` or ``params``.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mlecs_jax import experiment as experiments
from mlecs_jax.data import sentiment
from mlecs_jax.data.sentiment import SentimentData
from mlecs_jax.mega import centralised, config, counts, experiment, latency, setting
from mlecs_jax.mega.config import DataConfig, MegaConfig
from mlecs_jax.models import sentiment_zoo
from mlecs_jax.repro.code_version import code_version
from mlecs_jax.repro.job import Provenance, Values

LATENCY, PARAMS = "latency", "params"


@functools.lru_cache(2)
def _data(options: DataConfig) -> SentimentData:
    return setting.load(options)


def provenance(values: Values) -> Provenance:
    """See :class:`Provenance`; loads the dataset where one is used.

    Raises:
      UserError: bad options, or no such data.
    """
    options = config.parse(values)
    name = options.method.name
    if name in (LATENCY, PARAMS):
        entry = {LATENCY: "mlecs_jax.mega.latency", PARAMS: "mlecs_jax.mega.counts"}[name]
        return Provenance({"source": "none", "samples": 0, "sha256": ""}, code_version(entry))
    entry = "mega_ce2" if name == "mega_ce2" else "mlecs_jax.mega.centralised"
    return Provenance(experiment.data_identity(_data(options.data)), code_version(entry))


def run(
    values: Values, folder: Path, extras: Sequence[str], on_round: Callable[[int, int], None]
) -> None:
    """Runs or resumes one job in ``folder``; there are no ``extras`` to measure afterwards.

    Raises:
      UserError: bad options, or a folder that holds another run.
    """
    options = config.parse(values)
    name = options.method.name
    if extras:
        raise ValueError(f"Mega-CE² has no further measurements; asked for {', '.join(extras)}")
    experiments.use_compilation_cache()
    if name == "mega_ce2":
        experiment.run(
            options, folder, data=_data(options.data),
            on_start=lambda method, complete: on_round(complete, len(method.arrivals)),
            on_version=lambda record: on_round(record["round"] + 1, record["rounds"]))
        return
    if name == LATENCY:
        summary = {"data_source": "none", "extra": _by_name(latency.rows(options.eval.latency))}
    elif name == PARAMS:
        summary = {"data_source": "none", "extra": counts.paper_counts()}
    else:
        summary = _centralised(options, on_round)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / ".summary.json.new"
    temporary.write_text(json.dumps(summary, indent=2) + "\n")
    os.replace(temporary, folder / "summary.json")


def _centralised(options: MegaConfig, on_round: Callable[[int, int], None]) -> dict[str, Any]:
    """One model on all training segments; ``mult`` has the shape of the three-tier run."""
    data, name = _data(options.data), options.method.name
    split = sentiment.split(data, options.data.split, options.partition.seed)
    settings = sentiment_zoo.published_options(name, options.data.name)
    epochs = min(settings.epochs, options.train.centralised_epochs)
    model = sentiment_zoo.build(
        name, options.data.name, crossmodal_config=options.model_config(),
        align=len({steps for steps, _ in data.shapes.values()}) > 1)
    trained = centralised.train_centralised(
        model, sentiment.standardise(data, split.train), split,
        dataclasses.replace(settings, epochs=epochs), options.seed,
        on_epoch=lambda record: on_round(int(record["epoch"]), epochs))
    return {"method": name, "data_source": data.source, "caution": data.caution,
            "server": trained.test, "validation": {"server": trained.val},
            "history": trained.history, "extra": {"best_epoch": trained.best_epoch},
            "timing": {"train_seconds": round(trained.seconds, 2)}}


def _by_name(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Tidy rows of the latency artefact as one number each, ``realistic: edge … p50``."""
    named: dict[str, float] = {}
    for row in rows:
        if row["artefact"] == "latency":
            named[f"{row['links']}: {row['metric']}"] = row["value"]
        else:
            for column in ("bytes", "largest_error", "error_bound"):
                named[f"{row['shapes']}: {row['codec']}: {column}"] = row[column]
    return named
