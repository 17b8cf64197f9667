"""What a sweep's worker does with a job of Mega-CE² (see :mod:`mlecs_jax.repro.worker`).

``method.name`` says what is run: ``mega_ce2`` in three tiers, a model of
:mod:`mlecs_jax.models.sentiment_zoo` on one machine with all data, one of
:mod:`mlecs_jax.mega.controls`, ``latency`` or ``params``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mlecs_jax import durable, runlog
from mlecs_jax import experiment as experiments
from mlecs_jax.data import sentiment
from mlecs_jax.data.sentiment import SentimentData
from mlecs_jax.mega import (
    adapter_kinds,
    centralised,
    config,
    controls,
    counts,
    experiment,
    latency,
    setting,
)
from mlecs_jax.mega.config import DataConfig, MegaConfig
from mlecs_jax.models import sentiment_zoo
from mlecs_jax.report.run_report import write_report
from mlecs_jax.repro.code_version import code_version
from mlecs_jax.repro.job import Provenance, Values, measure

LATENCY, PARAMS = "latency", "params"
EXTRAS = {"personal": adapter_kinds.scores}
"""Further measurements on a finished run of Mega-CE²."""


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
    entries = ((name, "mlecs_jax.mega.experiment") if name == "mega_ce2" else
               ("mlecs_jax.mega.centralised", "mlecs_jax.mega.controls"))
    return Provenance(experiment.data_identity(_data(options.data)), code_version(*entries))


def run(
    values: Values, folder: Path, extras: Sequence[str], on_round: Callable[[int, int], None]
) -> None:
    """Runs or resumes one job in ``folder``, then measures the extras that are not there.

    Raises:
      UserError: bad options, or a folder that holds another run.
    """
    options = config.parse(values)
    name = options.method.name
    if unknown := set(extras) - set(EXTRAS if name == "mega_ce2" else ()):
        raise ValueError(f"there is no {', '.join(sorted(unknown))} to measure on {name}")
    experiments.use_compilation_cache()
    if name == "mega_ce2":
        experiment.run(
            options, folder, data=_data(options.data),
            on_start=lambda method, complete: on_round(complete, len(method.arrivals)),
            on_version=lambda record: on_round(record["round"] + 1, record["rounds"]))
        measure(folder, extras, lambda extra: EXTRAS[extra](folder))
        return
    if name not in (LATENCY, PARAMS):
        _logged(options, folder, on_round)
        return
    found = _by_name(latency.rows(options.eval.latency)) if name == LATENCY else (
        counts.paper_counts())
    folder.mkdir(parents=True, exist_ok=True)
    durable.write(folder / "summary.json",
                  json.dumps({"data_source": "none", "extra": found}, indent=2) + "\n")


def _logged(
    options: MegaConfig, folder: Path, on_round: Callable[[int, int], None]
) -> None:
    """A model on one machine, or a control: its records, its summary and its page.

    A run that was cut short begins again: its rounds have no checkpoints.
    """
    data, name = _data(options.data), options.method.name
    (folder / runlog.METRICS).unlink(missing_ok=True)
    on_round(0, 1)
    identity = dataclasses.asdict(options) | {"samples": experiment.data_identity(data)}
    with contextlib.closing(runlog.RunLog(folder, identity)) as log:

        def on_record(record: dict[str, Any]) -> None:
            log.append(record | {"data_source": data.source})
            on_round(record["round"] + 1, record["rounds"])

        found = (controls.run if name in controls.NAMES else _centralised)(
            options, data, on_record)
        log.write_summary({
            "method": name, "data_source": data.source,
            "caution": sentiment.caution(data, options.data.split), "split": options.data.split,
            **found})
        write_report(folder)


def _centralised(
    options: MegaConfig, data: SentimentData, on_record: controls.OnRecord
) -> dict[str, Any]:
    """One model on all training segments; ``mult`` has the shape of the three-tier run."""
    name, limit = options.method.name, options.train.centralised_epochs
    settings = (controls.tiers_recipe(options, data) if options.train.recipe == "tiers" else
                sentiment_zoo.published_options(name, options.data.name))
    settings = dataclasses.replace(settings, epochs=min(settings.epochs, limit or settings.epochs))
    split = sentiment.split(data, options.data.split, options.partition.seed)
    model = sentiment_zoo.build(
        name, options.data.name, crossmodal_config=options.model_config(),
        align=len({steps for steps, _ in data.shapes.values()}) > 1)

    def on_epoch(record: dict[str, int | float]) -> None:
        epoch = int(record["epoch"])
        on_record({"round": epoch - 1, "rounds": settings.epochs, "epoch": epoch,
                   "learning_rate": record["learning_rate"],
                   "train": {"mae": record["train_mae"]},
                   "eval": {"val": {"mae": record["val_mae"]}}})

    trained = centralised.train_centralised(
        model, sentiment.standardise(data, split.train), split, settings, options.seed,
        on_epoch=on_epoch)
    return {"rounds": len(trained.history), "server": experiment.without_nan(trained.test),
            "validation": {"server": experiment.without_nan(trained.val)},
            "extra": {"best_epoch": trained.best_epoch},
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
