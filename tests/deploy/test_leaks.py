"""What leaves a device: every message of a run is captured and looked through."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

from mlecs_jax.deploy import protocol, share, wire
from tests.deploy import small_deploy as small


@pytest.fixture(scope="module", params=["none", pytest.param("topk", marks=pytest.mark.slow)])
def run(request, tmp_path_factory):
    """A whole run; all bytes that devices send and all that the cloud sends."""
    folder = tmp_path_factory.mktemp("kit")
    session = small.provision(folder, small.options(**{"channel.uplink": request.param,
                                                       "train.rounds": 2}))
    out, into = [], []
    edges = small.edges(folder, session)

    def tamper(name, question, data):
        into.append(question)
        out.append((name, data))
        return data

    transport = small.MemoryTransport(edges, tamper=tamper)
    small.cloud(folder, session, transport).run()
    yield folder, edges, out, into
    small.close(transport)


def messages(run):
    return [(name, wire.decode(data, limit_bytes=1 << 24)) for name, data in run[2]]


def test_devices_send_lora_counts_and_metrics_and_nothing_else(run):
    folder, edges, _, _ = run
    config = edges["d0"]._config
    lora = set(protocol.shapes({"lora": edges["d0"]._nodes.broadcast}))
    allowed = {"begin": set(protocol.FACTS), "finish": set(),
               "evaluate": set(protocol.metrics(config, 3, 3, 0))}
    kinds = set()
    for _, message in messages(run):
        kinds.add(message.header.kind)
        if message.header.kind == "round":
            for path in message.arrays:
                stem = path.removesuffix("/values").removesuffix("/at")
                assert path == "modalities" or stem in lora, path
        else:
            assert set(message.arrays) == allowed[message.header.kind]
    assert kinds == {"begin", "round", "evaluate", "finish"}
    # And no tree that stays here has a name that is sent.
    stays = {group for params in edges["d0"]._nodes.devices for group in params} - {"lora"}
    assert stays == {"extractor", "connector", "generator"}


def test_the_shape_of_what_is_sent_does_not_depend_on_a_devices_rows(run):
    """LoRA has the model's shapes, checked above; all else is single numbers, one count per
    modality and one per pair of classes."""
    for _, message in messages(run):
        if message.header.kind != "round":
            for path, values in message.arrays.items():
                expected = {"readings": (3,), "confusion": (3, 4)}.get(path.split("/")[-1], ())
                assert values.shape == expected, path


def test_no_private_reading_or_private_parameter_is_among_the_bytes(run):
    folder, edges, out, _ = run
    sent = b"".join(data for _, data in out)
    for name, app in edges.items():
        found = share.load(folder / name)
        for part in ("train", "held_out"):
            for values in found.parts[part].inputs.values():
                rows = values.reshape(len(values), -1)
                rows = rows[(rows != 0).any(axis=1)]
                # Twelve bytes of a row are long enough not to occur by chance.
                assert all(row.tobytes()[:12] not in sent for row in rows)
        for params in app._nodes.devices:
            for group in ("extractor", "connector", "generator"):
                for leaf in jax.tree.leaves(params[group]):
                    data = np.asarray(leaf)
                    if data.nbytes >= 12 and np.any(data):
                        assert data.tobytes()[:12] not in sent


def test_the_probe_finds_what_it_looks_for(run):
    """A message that does hold a reading is found by the same search."""
    folder, edges, out, _ = run
    reading = share.load(folder / "d0").parts["train"].inputs
    values = next(iter(reading.values()))
    message = wire.decode(out[0][1], limit_bytes=1 << 24)
    leaked = wire.encode(dataclasses.replace(message, arrays={"x": values}))
    assert values.reshape(len(values), -1)[3].tobytes()[:12] in leaked


def test_headers_hold_names_and_numbers(run):
    for name, message in messages(run):
        header = dataclasses.asdict(message.header)
        assert header["sender"] == name and header["session"].count(".") == 1
        assert {key for key, value in header.items() if isinstance(value, int)} == {
            "round", "modalities", "serial"}


def test_uploads_are_as_long_as_the_run_says(run):
    folder = run[0]
    summary = json.loads((folder / "run" / "summary.json").read_text())
    for _, message in messages(run):
        if message.header.kind == "round":
            assert sum(values.nbytes for values in message.arrays.values()) == summary[
                "communication"]["uplink_bytes_per_round"]
    down = {kind: sum(values.nbytes for path, values in message.arrays.items()
                      if path != protocol.COUNTED)
            for message in run[3] for kind in [message.header.kind]}
    assert down["round"] + down["evaluate"] == summary["communication"]["downlink_bytes_per_round"]


def test_a_device_gets_no_reading_of_a_sensor_it_does_not_have(run):
    folder, edges, _, _ = run
    for name in edges:
        found = share.load(folder / name)
        owned = {m for m, has in zip(found.modalities, found.owned.any(axis=0), strict=True) if has}
        for part in found.parts.values():
            assert set(part.inputs) == owned
        assert math.prod(found.owned.shape) == 3
