"""From class answers to the numbers of a run: per-round records and the final summary."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mlecs_jax import captions, lora, privacy
from mlecs_jax.data.samples import Samples
from mlecs_jax.methods.method import Method, State
from mlecs_jax.metrics import rouge
from mlecs_jax.metrics.classification import scores, spread
from mlecs_jax.setting import Setting

PRIMARY = "after_amt"  # the answers that the headline figures score (as in the release)
CLASS_METRICS = ("f1", "weighted_f1", "accuracy")


@dataclasses.dataclass(frozen=True)
class NodeScores:
    """How well a node answered.

    Attributes:
      metrics: figures by name, in [0, 1], higher is better; the same names for every node.
      details: what else the summary keeps (the confusion matrix of classes).
    """

    metrics: dict[str, float]
    details: dict[str, Any] = dataclasses.field(default_factory=dict)


def primary_metric(samples: Samples) -> str:
    """The figure that leads: macro-F1 of classes, ROUGE-LSum of captions."""
    return "f1" if samples.texts is None else rouge.PRIMARY


def score(setting: Setting, predictions: Mapping[str, Any], part: str) -> dict[str, Any]:
    """Scores of a split: ``{'after_amt': [NodeScores per device], …, 'server': NodeScores}``.

    Empty where no node was asked for the split's answers, see :mod:`mlecs_jax.captions`.
    """
    federation = setting.federation
    result: dict[str, Any] = {}
    for name, answers in predictions.items():
        answers = np.asarray(answers)
        if name == "server":
            found: Any = _score(setting, None, answers, federation.public_num_val, part)
        else:
            found = [_score(setting, j, own, int(federation.num_val[j]), part)
                     for j, own in enumerate(answers)]
            found = None if None in found else found
        if found is not None:
            result[name] = found
    return result


def _score(
    setting: Setting, client: int | None, answers: np.ndarray, num_val: int, part: str
) -> NodeScores | None:
    samples = setting.federation.samples
    if samples.labels is None:
        metrics = captions.score_node(setting, client, answers, num_val, part)
        return None if metrics is None else NodeScores(metrics)
    rows = setting.federation.held_out_rows(client, part)
    start = num_val if part == "test" else 0
    found = scores(samples.labels[rows], answers[start:start + len(rows)],
                   len(samples.class_names)).as_dict()
    return NodeScores({name: found.pop(name) for name in CLASS_METRICS}, found)


def round_record(scored: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a metrics line that one split contributes."""
    record: dict[str, Any] = {}
    for name, value in scored.items():
        if isinstance(value, list):
            record[name] = {"clients": {key: [s.metrics[key] for s in value]
                                        for key in value[0].metrics}}
        else:
            record[name] = dict(value.metrics)
    return record


@dataclasses.dataclass(frozen=True)
class NodeFacts:
    """What a summary says of a device beside its scores: modalities it has, how many training and
    test samples, and how many parameters."""

    modalities: tuple[str, ...]
    train_samples: int
    test_samples: int
    parameters: int


def summary(
    setting: Setting, predictions: Mapping[str, Any], records: Sequence[Mapping[str, Any]],
    communication: Mapping[str, int], parameters: Sequence[int], compile_seconds: float,
    ceilings: Mapping[str, float] | None,
) -> dict[str, Any]:
    """The contents of ``summary.json`` (a stable contract).

    Args:
      predictions: of the last round.
      records: all metrics lines.
      communication: bytes per device and round, ``uplink`` and ``downlink``.
      parameters: on every device, see :func:`parameters_held`.
    """
    federation = setting.federation
    owned = federation.owned_at(setting.config.train.rounds - 1)
    facts = [NodeFacts(
        tuple(m for m, has in zip(federation.modalities, owned[j], strict=True) if has),
        len(share.train), len(share.test), parameters[j])
        for j, share in enumerate(federation.partition.devices)]
    found = summarise(setting, score(setting, predictions, "test"), facts, records, communication,
                      compile_seconds, ceilings)
    options = setting.config.privacy
    if options and options.clip:  # each device has sent once a round
        found["privacy"] = privacy.told(options, setting.config.train.rounds)
    return found


def summarise(
    setting: Setting, test: Mapping[str, Any], facts: Sequence[NodeFacts],
    records: Sequence[Mapping[str, Any]], communication: Mapping[str, int],
    compile_seconds: float, ceilings: Mapping[str, float] | None,
) -> dict[str, Any]:
    """:func:`summary` of scores that are there already, wherever they were made.

    Args:
      test: test scores after the last round, as :func:`score` has them.
      facts: of every device.
    """
    config, samples = setting.config, setting.federation.samples
    primary = primary_metric(samples)
    result: dict[str, Any] = {
        "method": config.method.name,
        "dataset": samples.name,
        "data_source": samples.source,
        "split": config.data.split,
        "seed": config.seed,
        "partition_seed": config.partition.seed,
        "rho": config.partition.rho,
        "num_clients": len(facts),
        "rounds": config.train.rounds,
        "modalities": list(samples.modalities),
        "class_names": list(samples.class_names),
        "primary_metric": primary,
        "client": _client_summary(primary, facts, test),
    }
    if "server" in test:
        result["server"] = dict(test["server"].metrics)
        if "confusion" in test["server"].details:
            result["server"]["confusion"] = test["server"].details["confusion"]
    result["best_val"] = best_by_validation(records, primary)
    if ceilings:
        result["ceilings"] = dict(ceilings)
    owned_parameters = sum(fact.parameters for fact in facts) / len(facts)
    result["communication"] = {
        "uplink_bytes_per_round": communication["uplink"],
        "downlink_bytes_per_round": communication["downlink"],
        # As the paper's Fig. 3 counts ML-ECS: the representations and the LoRA once, in parameters.
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
    primary: str, facts: Sequence[NodeFacts], test: Mapping[str, Any]
) -> dict[str, Any]:
    own = test[PRIMARY]
    figures = {name: spread([s.metrics[name] for s in own]) for name in own[0].metrics}
    result: dict[str, Any] = {f"{key}_{primary}": value for key, value in figures[primary].items()}
    kept = ("avg", "best", "worst") if primary == rouge.PRIMARY else ("avg",)
    for name in figures:
        if name != primary:
            result |= {f"{key}_{name}": figures[name][key] for key in kept}
    result["per_client"] = [
        {"client": j, "modalities": list(fact.modalities), "train_samples": fact.train_samples,
         "test_samples": fact.test_samples, **s.metrics, **s.details}
        for j, (s, fact) in enumerate(zip(own, facts, strict=True))]
    if "after_broadcast" in test:
        after = spread([s.metrics[primary] for s in test["after_broadcast"]])
        result["after_broadcast"] = {f"{key}_{primary}": value for key, value in after.items()}
    return result


def best_by_validation(records: Sequence[Mapping[str, Any]], metric: str) -> dict[str, Any]:
    """Test scores of the round whose mean validation score over devices is highest, among the
    rounds whose test answers are there."""
    def validation(record: Mapping[str, Any]) -> float:
        found = spread(record["eval"]["val"][PRIMARY]["clients"][metric])["avg"]
        return -math.inf if math.isnan(found) else found  # nobody could say

    tested = (record for record in records if PRIMARY in record["eval"].get("test", {}))
    best = max(tested, key=validation)
    test = best["eval"]["test"]
    found = spread(test[PRIMARY]["clients"][metric])
    result: dict[str, Any] = {"round": best["round"],
                              "client": {f"{key}_{metric}": value for key, value in found.items()}}
    if "server" in test:
        result["server"] = {metric: test["server"][metric]}
    return result


def parameters_of_devices(setting: Setting, devices: Sequence[Any]) -> list[int]:
    """Parameters on every device of a setting: frozen SLM, LoRA, generator, connector, and the
    encoders and projectors of the modalities it owns, of those that come and go by the rounds."""
    owned = setting.federation.owned.mean(axis=0)  # share of the rounds
    backbone = lora.count(setting.edge["slm"])
    found = {}
    for cohort, params in zip(setting.cohorts, devices, strict=True):
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), params)
        for client in cohort.clients:
            unused = sum(
                (1 - has) * (lora.count(shapes["extractor"][name])
                             + lora.count(shapes["connector"][f"projector_{name}"]))
                for name, has in zip(setting.federation.modalities, owned[client], strict=True))
            found[int(client)] = round(backbone + lora.count(shapes) - unused)
    return [found[client] for client in sorted(found)]


def parameters_held(setting: Setting, method: Method, state: State) -> list[int]:
    """:func:`parameters_of_devices` and what the method puts there beyond it."""
    found = parameters_of_devices(setting, state.devices)
    beyond = method.beyond(state) if method.beyond else [0] * len(found)
    return [own + more for own, more in zip(found, beyond, strict=True)]


def versions() -> dict[str, str]:
    """Versions of what computed the run, and the kind of device."""
    names = ("mlecs-jax", "jax", "flax", "optax", "orbax-checkpoint", "numpy")
    return {**{name: importlib.metadata.version(name) for name in names},
            "device": jax.devices()[0].device_kind}
