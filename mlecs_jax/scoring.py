"""From class answers to the numbers of a run: per-round records and the final summary."""

from __future__ import annotations

import importlib.metadata
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mlecs_jax import lora
from mlecs_jax.config import Config
from mlecs_jax.federation import Federation
from mlecs_jax.metrics.classification import Scores, scores, spread
from mlecs_jax.setting import Setting

PRIMARY = "after_amt"  # the answers that the headline figures score (as in the release)


def score(federation: Federation, predictions: Mapping[str, Any], part: str) -> dict[str, Any]:
    """Scores of a split: ``{'after_amt': [Scores per device], …, 'server': Scores}``."""
    result: dict[str, Any] = {}
    for name, answers in predictions.items():
        answers = np.asarray(answers)
        if name == "server":
            result[name] = _score(federation, None, answers, federation.public_num_val, part)
        else:
            result[name] = [
                _score(federation, j, own, int(federation.num_val[j]), part)
                for j, own in enumerate(answers)]
    return result


def _score(
    federation: Federation, client: int | None, answers: np.ndarray, num_val: int, part: str
) -> Scores:
    rows = federation.held_out_rows(client, part)
    start = num_val if part == "test" else 0
    samples = federation.samples
    assert samples.labels is not None
    return scores(samples.labels[rows], answers[start:start + len(rows)], len(samples.class_names))


def round_record(scored: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a metrics line that one split contributes."""
    record: dict[str, Any] = {}
    for name, value in scored.items():
        if isinstance(value, list):
            record[name] = {"clients": {key: [getattr(s, key) for s in value]
                                        for key in ("f1", "weighted_f1", "accuracy")}}
        else:
            record[name] = {key: getattr(value, key) for key in ("f1", "weighted_f1", "accuracy")}
    return record


def summary(
    setting: Setting, predictions: Mapping[str, Any], records: Sequence[Mapping[str, Any]],
    communication: Mapping[str, int], devices: Sequence[Any], compile_seconds: float,
    ceilings: Mapping[str, float] | None,
) -> dict[str, Any]:
    """The contents of ``summary.json`` (a stable contract).

    Args:
      predictions: of the last round.
      records: all metrics lines.
      communication: bytes per device and round, ``uplink`` and ``downlink``.
      devices: stacked trainable groups per cohort.
    """
    config, federation = setting.config, setting.federation
    test = score(federation, predictions, "test")
    result: dict[str, Any] = {
        "method": config.method.name,
        "dataset": federation.samples.name,
        "data_source": federation.samples.source,
        "split": config.data.split,
        "seed": config.seed,
        "partition_seed": config.partition.seed,
        "rho": config.partition.rho,
        "num_clients": federation.num_clients,
        "rounds": config.train.rounds,
        "modalities": list(federation.modalities),
        "class_names": list(federation.samples.class_names),
        "client": _client_summary(config, federation, test),
    }
    if "server" in test:
        result["server"] = {key: getattr(test["server"], key)
                            for key in ("f1", "weighted_f1", "accuracy")}
        result["server"]["confusion"] = test["server"].confusion.tolist()
    result["best_val"] = best_by_validation(records)
    if ceilings:
        result["ceilings"] = dict(ceilings)
    owned_parameters = device_parameters(setting, devices)
    result["communication"] = {
        "uplink_bytes_per_round": communication["uplink"],
        "downlink_bytes_per_round": communication["downlink"],
        # As in the paper's Fig. 3: what a round exchanges, the LoRA counted once, in parameters.
        "share_of_parameters": communication["downlink"] / 4 / owned_parameters,
        "uplink_share_of_parameters": communication["uplink"] / 4 / owned_parameters,
        "device_parameters": owned_parameters,
    }
    seconds = [record["seconds"] for record in records]
    result["timing"] = {"compile_s": round(compile_seconds, 2),
                        "seconds_per_round": round(statistics.median(seconds[1:] or seconds), 3)}
    result["versions"] = versions()
    return result


def _client_summary(
    config: Config, federation: Federation, test: Mapping[str, Any]
) -> dict[str, Any]:
    owned = federation.owned_at(config.train.rounds - 1)
    own = test[PRIMARY]
    f1, weighted = spread([s.f1 for s in own]), spread([s.weighted_f1 for s in own])
    result: dict[str, Any] = {f"{key}_f1": value for key, value in f1.items()}
    result["avg_weighted_f1"] = weighted["avg"]
    result["per_client"] = [
        {"client": j,
         "modalities": [m for m, has in zip(federation.modalities, owned[j], strict=True) if has],
         "train_samples": len(federation.partition.devices[j].train),
         "test_samples": len(federation.partition.devices[j].test),
         **s.as_dict()}
        for j, s in enumerate(own)]
    if "after_broadcast" in test:
        after = spread([s.f1 for s in test["after_broadcast"]])
        result["after_broadcast"] = {f"{key}_f1": value for key, value in after.items()}
    return result


def best_by_validation(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Test scores of the round whose mean validation F1 over devices is highest."""
    def validation(record: Mapping[str, Any]) -> float:
        return float(np.nanmean(record["eval"]["val"][PRIMARY]["clients"]["f1"]))

    best = max(records, key=validation)
    test = best["eval"]["test"]
    f1 = spread(test[PRIMARY]["clients"]["f1"])
    result: dict[str, Any] = {"round": best["round"],
                              "client": {f"{key}_f1": value for key, value in f1.items()}}
    if "server" in test:
        result["server"] = {"f1": test["server"]["f1"]}
    return result


def device_parameters(setting: Setting, devices: Sequence[Any]) -> float:
    """Mean number of parameters on a device: frozen SLM, LoRA, generator, connector, and the
    encoders and projectors of the modalities it owns."""
    owned = setting.federation.owned_at(0)
    backbone = lora.count(setting.edge["slm"])
    total = 0
    for cohort, params in zip(setting.cohorts, devices, strict=True):
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), params)
        for client in cohort.clients:
            absent = [name for name, has in
                      zip(setting.federation.modalities, owned[client], strict=True) if not has]
            unused = sum(lora.count(shapes["extractor"][name])
                         + lora.count(shapes["connector"][f"projector_{name}"])
                         for name in absent)
            total += backbone + lora.count(shapes) - unused
    return total / setting.federation.num_clients


def versions() -> dict[str, str]:
    """Versions of what computed the run, and the kind of device."""
    names = ("mlecs-jax", "jax", "flax", "optax", "orbax-checkpoint", "numpy")
    return {**{name: importlib.metadata.version(name) for name in names},
            "device": jax.devices()[0].device_kind}
