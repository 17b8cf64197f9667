"""How long a reading takes to its answer: at the edge, and if everything went to the cloud.

Compute is measured here and now, sizes are those of the packets, links are modelled
(:mod:`mlecs_jax.mega.links`). Both accountings of the paper's Table 3 are given, since they say
opposite things: the *first response* leaves inference out, the *full* response has it::

    edge   first = generation + features / B_ee + RTT_ee + reception + score / B_ee
           full  = first + inference
    cloud  full  = raw / B_ec + RTT_ec + generation + reception + inference + score / B_ec

The paper leaves generation out of the cloud's sum. Generation is cleaning and encoding of features;
computing features from pixels and sound is not in it, here or there. Edge and cloud run on the
same machine: their inference is one measurement.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from mlecs_jax.data.sentiment import SentimentBatch
from mlecs_jax.errors import UserError
from mlecs_jax.mega import codecs, export, links, packets, registration
from mlecs_jax.mega.codecs import LADDER, Codec
from mlecs_jax.mega.end_device import EndDevice, clean
from mlecs_jax.mega.links import Links
from mlecs_jax.mega.packets import Header, Receiver
from mlecs_jax.mega.predictor import Predictor
from mlecs_jax.mega.registration import Demand, Profile, Registry
from mlecs_jax.models import crossmodal

RAW_BYTES = 7_500_000
"""A raw reading: the middle of the paper's 5–10 MB."""
Shapes = Mapping[str, tuple[int, int]]
ALIGNED = {"text": (50, 300), "audio": (50, 5), "vision": (50, 20)}
"""MOSI as MulT reads it, aligned to words: 65.0 kB of float32."""
SHAPES: Mapping[str, Shapes] = {
    "mosi aligned": ALIGNED,
    "mosei aligned": {"text": (50, 300), "audio": (50, 74), "vision": (50, 35)},
    "mosi unaligned": {"text": (50, 300), "audio": (375, 5), "vision": (500, 20)},
}


@dataclasses.dataclass(frozen=True)
class LatencyPreset:
    """What is measured.

    Attributes:
      model: preset of :mod:`mlecs_jax.models.crossmodal`.
      readings: how many, of three packets each.
    """

    model: str
    readings: int


PRESETS = {"smoke": LatencyPreset("small", 20), "cpu": LatencyPreset("small", 1000),
           "paper": LatencyPreset("paper", 1000)}


@dataclasses.dataclass(frozen=True)
class Measured:
    """Seconds of every reading, float64 ``[n]``, and bytes.

    Attributes:
      generation: cleaning, encoding and packing at the end device.
      reception: checking, decoding and inflating at the edge.
      inference: of the exported program.
      feature_bytes: of a reading's packets, the largest seen, in the codec that the device chose
        for its link; ``score_bytes`` of the answer.
    """

    generation: Float[np.ndarray, " n"]
    reception: Float[np.ndarray, " n"]
    inference: Float[np.ndarray, " n"]
    feature_bytes: int
    score_bytes: int


def rows(preset: str, *, seed: int = 0) -> list[dict[str, Any]]:
    """The latency artefact as tidy rows: both accountings under every link preset, then the sizes
    and errors of every codec.

    Args:
      preset: ``smoke``, ``cpu`` or ``paper``.
      seed: of the readings, which are standard normal: the least compressible features.

    Raises:
      UserError: an unknown preset.
    """
    if preset not in PRESETS:
        raise UserError(f"latency preset '{preset}'; use {', '.join(PRESETS)}")
    chosen = PRESETS[preset]
    with tempfile.TemporaryDirectory() as folder:
        predictor = random_predictor(Path(folder), chosen.model, seed)
    result = []
    for name, kind in links.PRESETS.items():
        found = measure(predictor, kind, chosen.readings, seed)
        result += [{"artefact": "latency", "preset": preset, "links": name,
                    "readings": chosen.readings} | row for row in account(found, kind)]
    return result + packet_rows(seed)


def random_predictor(folder: Path, model: str, seed: int = 0) -> Predictor:
    """An exported predictor with random weights: time does not depend on their values."""
    shape = crossmodal.preset(model)
    built = crossmodal.model(shape)
    example = SentimentBatch(
        *(np.zeros((1, *ALIGNED[name]), np.float32) for name in ALIGNED), np.zeros(1, np.float32))
    params = built.init(jax.random.key(seed), example)
    export.export(folder, built, params, ALIGNED)
    return Predictor(folder)


def measure(predictor: Predictor, kind: Links, readings: int, seed: int = 0) -> Measured:
    """Registers a device, sends readings through packets and answers each; the first ten, in which
    programs and caches warm up, are not counted."""
    warm_up = 10
    device, registry = registered_device(kind)
    predictor.receiver = Receiver(registry.senders)
    rng = np.random.default_rng(seed)
    seconds = np.zeros((3, readings + warm_up))
    feature_bytes = score_bytes = 0
    for i in range(readings + warm_up):
        reading = {name: rng.standard_normal(shape) for name, shape in ALIGNED.items()}
        begun = time.perf_counter()
        sent = device.serialise(reading)
        generated = time.perf_counter()
        received = [predictor.receiver.receive(data) for data in sent]
        features = {p.header.modality: p.values for p in received if p is not None}
        taken = time.perf_counter()
        predictor.predict(features)
        done = time.perf_counter()
        seconds[:, i] = generated - begun, taken - generated, done - taken
        if len(features) != len(ALIGNED):
            raise RuntimeError(f"packets were refused: {dict(predictor.receiver.refused)}")
        feature_bytes = max(feature_bytes, sum(map(len, sent)))
    answer = predictor.answer(device.serialise(
        {name: rng.standard_normal(shape) for name, shape in ALIGNED.items()}))
    assert answer is not None
    score_bytes = len(answer.pack())
    return Measured(*seconds[:, warm_up:], feature_bytes=feature_bytes, score_bytes=score_bytes)


def registered_device(kind: Links) -> tuple[EndDevice, Registry]:
    """An end device as able as this machine, registered over the link."""
    link = kind.end_edge
    registry = Registry(Demand(lengths={name: steps for name, (steps, _) in ALIGNED.items()},
                               widths={name: width for name, (_, width) in ALIGNED.items()}))
    profile = Profile(id="end-0.0", hardware="this machine",
                      sensors={"text": 5.0, "audio": 100.0, "vision": 30.0}, compute=1e8,
                      memory=2**30, link_up=link.up, link_down=link.down, link_rtt=link.rtt)
    reply = registry.register(registration.pack(profile))
    assert reply is not None
    return EndDevice(profile.id, registration.unpack_reply(reply), link), registry


def account(found: Measured, kind: Links) -> list[dict[str, Any]]:
    """Rows of both accountings at the edge and in the cloud: ``metric`` and ``value``, milliseconds
    unless the name says otherwise."""
    near, far = kind.end_edge, kind.edge_cloud
    compute = found.generation + found.reception
    first = (compute + near.upload(found.feature_bytes) + found.score_bytes / near.down)
    full = first + found.inference
    transfer = far.upload(RAW_BYTES) + found.score_bytes / far.down
    cloud_paper = transfer + found.reception + found.inference
    cloud = cloud_paper + found.generation
    series = {
        "edge generation": found.generation, "edge reception": found.reception,
        "edge inference": found.inference, "edge first response, compute": compute,
        "edge full response, compute": compute + found.inference,
        "edge first response": first, "edge full response": full,
        "cloud only, full": cloud, "cloud only, paper accounting": cloud_paper,
    }
    table = [{"metric": f"{name} {label}", "value": 1e3 * float(np.percentile(values, q)),
              "unit": "ms"}
             for name, values in series.items() for label, q in (("p50", 50), ("p95", 95))]
    for name, edge, base in (("first", first, cloud_paper), ("full", full, cloud)):
        table.append({"metric": f"edge {name} response below cloud only",
                      "value": 100 * (1 - float(np.median(edge) / np.median(base))), "unit": "%"})
    return table + [
        {"metric": "feature packets", "value": float(found.feature_bytes), "unit": "bytes"},
        {"metric": "answer", "value": float(found.score_bytes), "unit": "bytes"},
        {"metric": "raw reading", "value": float(RAW_BYTES), "unit": "bytes"}]


def packet_rows(seed: int = 0) -> list[dict[str, Any]]:
    """Bytes of a reading's packets and the largest error, for every codec and shape."""
    rng = np.random.default_rng(seed)
    table = []
    for name, shapes in SHAPES.items():
        reading = {m: rng.standard_normal(shape) for m, shape in shapes.items()}
        for codec in LADDER:
            size, error, bound = packet_size(reading, codec)
            table.append({"artefact": "packets", "shapes": name, "codec": codec.name,
                          "bytes": size, "largest_error": error, "error_bound": bound})
    return table


def packet_size(
    reading: Mapping[str, Float[np.ndarray, "t d"]], codec: Codec
) -> tuple[int, float, float]:
    """Bytes of a reading's packets, and largest error and bound over its values."""
    size, error, bound = 0, 0.0, 0.0
    for i, (name, values) in enumerate(reading.items()):
        cleaned, quality = clean(name, values, len(values))
        header = Header(0, "end-0.0", 0, i, name, cleaned.shape, quality, codec.name)
        data = packets.encode(header, codecs.encode(cleaned, codec, level=9))
        decoded = packets.decode(data).values
        size += len(data)
        error = max(error, float(np.abs(decoded - cleaned).max()))
        bound = max(bound, float(codecs.error_bound(cleaned, codec).max()))
    return size, error, bound
