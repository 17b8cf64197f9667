"""The loop of a Mega-CE² run: restore, version, evaluate, log, save; then personalise, sum up."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mlecs_jax import lora, runlog
from mlecs_jax.checkpoint import Checkpoints
from mlecs_jax.data.sentiment import MODALITIES, SentimentData
from mlecs_jax.distributed import ALONE, Group, Stopped
from mlecs_jax.experiment import COMPILE_CLOCK
from mlecs_jax.mega import setting as settings
from mlecs_jax.mega.config import MegaConfig
from mlecs_jax.mega.setting import MegaSetting
from mlecs_jax.methods import mega_ce2
from mlecs_jax.methods.mega_ce2 import MegaMethod, State
from mlecs_jax.methods.method import Predictions
from mlecs_jax.metrics import sentiment as metrics
from mlecs_jax.models import adapters as adapter_blocks
from mlecs_jax.models.adapters import Adapters
from mlecs_jax.report.run_report import write_report

OnVersion = Callable[[dict[str, Any]], None]
Scores = dict[str, Any]


def run(
    config: MegaConfig, workdir: Path, *, data: SentimentData | None = None,
    on_start: Callable[[MegaMethod, int], None] = lambda method, complete: None,
    on_version: OnVersion = lambda record: None, group: Group = ALONE,
) -> dict[str, Any]:
    """Trains to the end, beginning where the folder's last complete version left off.

    Args:
      workdir: the run's folder; created if absent.
      data: the dataset, if it is already loaded.
      on_start: called once with the method and the number of versions already complete.
      on_version: called with every new metrics record; in the first process alone, as
        ``on_start``.
      group: the processes that take part.

    Returns:
      The contents of ``summary.json``: under ``server`` the scores of the global model, under
      ``client`` those of the personalised ones, both of the version with the lowest validation
      error and on test segments; ``edges``, ``confusion``, ``communication``, ``timing`` and
      ``extra``. The folder's ``report.html`` shows them.

    Raises:
      UserError: bad data or options, a folder that holds another run, or processes that do not run
        the same.
      Stopped: the run was asked to end after a version.
    """
    compiled_before = COMPILE_CLOCK.seconds
    data = settings.load(config.data) if data is None else data
    setting = settings.build(config, data)
    method = mega_ce2.build(setting)
    identity = dataclasses.asdict(config) | {"samples": data_identity(data)}
    group.agree("configuration or dataset", lambda: json.dumps(identity, sort_keys=True))
    with contextlib.ExitStack() as stack:
        log = group.led("workdir", lambda: stack.enter_context(
            contextlib.closing(runlog.RunLog(workdir, identity))))
        group.agree("workdir", lambda: runlog.stamp(workdir), runlog.SEEN_WITHIN)
        checkpoints = stack.enter_context(
            contextlib.closing(Checkpoints(workdir / "checkpoints", group)))
        everywhere, key = setting.topology.everywhere, jax.random.key(config.seed)
        state = method.init(jax.random.fold_in(key, 0))
        complete, found = checkpoints.restore(everywhere(state))
        state = setting.topology.placed_as(found, state)
        group.saved, versions = complete, len(method.arrivals)

        def begin() -> dict[str, Any] | None:
            assert log is not None
            log.resume(complete)
            on_start(method, complete)
            return log.finished_summary(complete) if complete == versions else None

        if (done := group.shared("records", begin)):
            group.led("report", lambda: write_report(workdir))  # may be all that a kill prevented
            return done
        communication = method.communication(state)
        for r in range(complete, versions):
            if r > complete and group.stops():
                raise Stopped(r)
            state, record = _version(setting, method, state, r, jax.random.fold_in(key, 1))
            if log is not None:
                log.append(record)
            checkpoints.save(r + 1, everywhere(state))
            group.saved = r + 1
            if log is not None:
                on_version(record)
        summary = _summary(setting, method, state, personal_key(config),
                           log.records if log is not None else [], communication)
        summary["timing"]["compile_seconds"] = round(COMPILE_CLOCK.seconds - compiled_before, 2)

        def conclude() -> dict[str, Any]:
            assert log is not None
            log.write_summary(summary)
            write_report(workdir)
            return summary

        return group.shared("summary", conclude)


def data_identity(data: SentimentData) -> dict[str, Any]:
    """What a run was trained on: its source, size and a hash of every array."""
    digest = hashlib.sha256()
    for name in (*MODALITIES, "labels", "videos", "canonical"):
        digest.update(getattr(data, name).tobytes())
    return {"source": data.source, "form": data.form, "samples": len(data),
            "sha256": digest.hexdigest()}


def _version(
    setting: MegaSetting, method: MegaMethod, state: State, r: int, key: jax.Array
) -> tuple[State, dict[str, Any]]:
    """One version and its metrics record."""
    begun = time.perf_counter()
    state, diagnostics = method.round(state, r, key)
    diagnostics = setting.topology.host(diagnostics)
    trained = time.perf_counter()
    arrival, versions = method.arrivals[r], len(method.arrivals)
    record: dict[str, Any] = {
        "round": r, "rounds": versions, "data_source": setting.federation.data.source,
        "time": round(arrival.time, 4), "edges": list(arrival.edges),
        "staleness": [arrival.version - 1 - report.read for report in arrival.reports],
        "train": jax.tree.map(lambda x: np.asarray(x).tolist(), diagnostics)}
    if (r + 1) % setting.config.eval.every == 0 or r + 1 == versions:
        found = score(setting, method.evaluate(state, r))
        state = method.keep_best(state, r, found["val"]["mae"])
        record["eval"] = found
    record["seconds"] = round(trained - begun, 4)
    record["evaluation_seconds"] = round(time.perf_counter() - trained, 4)
    return state, record


def personal_key(config: MegaConfig) -> jax.Array:
    """What adapters are drawn and tuned by after the last version: the same whenever it is done."""
    return jax.random.fold_in(jax.random.key(config.seed), 2)


def score(setting: MegaSetting, predictions: Predictions) -> dict[str, Scores]:
    """Scores on all validation and on all test segments."""
    split, labels = setting.federation.split, setting.federation.data.labels
    return {part: _scores(labels[getattr(split, part)], predictions[part])
            for part in ("val", "test")}


def by_edge(
    setting: MegaSetting, predictions: Predictions
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Labels and predictions of every edge's own test segments."""
    federation = setting.federation
    place = {int(row): i for i, row in enumerate(federation.split.test)}
    result = []
    for rows, real in zip(federation.test.rows, federation.test.real, strict=True):
        own = rows[real]
        result.append((federation.data.labels[own],
                       predictions["test"][[place[int(row)] for row in own]]))
    return result


def describe_edges(
    setting: MegaSetting, method: MegaMethod, overall: Predictions, personal: Predictions
) -> list[dict[str, Any]]:
    """Every edge: what it has, how often it reported, and its test scores by both models."""
    federation, clock = setting.federation, setting.config.clock
    ends = federation.ends.counts.reshape(setting.config.partition.edges, -1)
    reports = np.bincount([edge for arrival in method.arrivals for edge in arrival.edges],
                          minlength=len(ends))
    found = []
    for edge, answers in enumerate(zip(by_edge(setting, overall), by_edge(setting, personal),
                                       strict=True)):
        scored = {kind: _scores(*pair) | {"confusion": metrics.confusion(*pair).tolist()}
                  for kind, pair in zip(("global", "personal"), answers, strict=True)}
        found.append({
            "edge": edge, "train_segments": int(federation.edges.counts[edge]),
            "end_segments": ends[edge].tolist(),
            "val_segments": int(federation.val.counts[edge]),
            "test_segments": int(federation.test.counts[edge]), "speed": clock.speed(edge),
            "links": clock.link(edge), "reports": int(reports[edge])} | scored)
    return found


def _scores(true: np.ndarray, predicted: np.ndarray) -> Scores:
    return without_nan(metrics.scores(true, predicted))


def without_nan(scores: Mapping[str, float]) -> Scores:
    """Scores, None where one is not defined (a correlation of equal labels): JSON has no NaN."""
    return {name: value if math.isfinite(value) else None for name, value in scores.items()}


def _summary(
    setting: MegaSetting, method: MegaMethod, state: State, key: jax.Array,
    records: list[dict[str, Any]], communication: dict[str, int],
) -> dict[str, Any]:
    """Personalises the best version and puts the run's results together.

    Args:
      records: all metrics lines; what is read off them is said by the process that has them.
    """
    begun, versions = time.perf_counter(), len(method.arrivals)
    model = state.best["model"]
    adapters, personal = method.personalise(model, key)
    overall = method.evaluate(state.replace(cloud=model), versions - 1)
    federation = setting.federation
    edges = describe_edges(setting, method, overall, personal)
    reports = sum(edge["reports"] for edge in edges)
    one = jax.tree.map(lambda x: x[0], adapters)
    test = federation.data.labels[federation.split.test]
    message = mega_ce2.upload(model, federation.edges.counts[0], model)
    return {
        "method": setting.config.method.name, "mode": setting.config.method.mode,
        "data_source": federation.data.source, "caution": federation.data.caution,
        "split": setting.config.data.split, "rounds": versions,
        "best_version": int(setting.topology.host(state.best["version"])),
        "server": score(setting, overall)["test"], "client": score(setting, personal)["test"],
        "validation": {"server": score(setting, overall)["val"],
                       "client": score(setting, personal)["val"]},
        "edges": edges, "class_names": list(metrics.CLASSES),
        "confusion": {"global": metrics.confusion(test, overall["test"]).tolist(),
                      "personal": metrics.confusion(test, personal["test"]).tolist()},
        "communication": {  # between an edge and the cloud; the first download is the initial model
            "uplink_bytes": communication["uplink"], "downlink_bytes": communication["downlink"],
            "uploads": reports, "downloads": reports + len(edges),
            "adapter_bytes_sent": reports * mega_ce2.adapter_bytes(message, one)},
        "timing": {
            "train_seconds": round(sum(record["seconds"] for record in records), 2),
            "personalise_seconds": round(time.perf_counter() - begun, 2),
            "simulated_seconds": round(method.arrivals[-1].time, 4)},
        "extra": sizes(model, one) | {
            "worst_edge_mae": {kind: max(edge[kind]["mae"] for edge in edges)
                               for kind in ("global", "personal")}},
        "personalisation_history": personal["history"],
    }


def sizes(model: Any, adapter: Adapters) -> dict[str, int]:
    """Parameters of the model and of one edge's adapter, and how many blocks the latter has."""
    return {"parameters": lora.count(model), "adapter_parameters": lora.count(adapter),
            "adapter_blocks": sum(name != adapter_blocks.OUTPUT for name in adapter)}
