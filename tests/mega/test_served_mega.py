"""Edges of a finished Mega-CE² run answer segments as the run did, here and from one file."""

import contextlib
import dataclasses
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from small_mega import values

from mlecs_jax import export, predict
from mlecs_jax.checkpoint import Checkpoints
from mlecs_jax.errors import UserError
from mlecs_jax.mega import config, experiment, registration, served, setting
from mlecs_jax.mega import export as packet_export
from mlecs_jax.mega import predictor as packet_predictor
from mlecs_jax.mega.end_device import EndDevice
from mlecs_jax.mega.registration import Demand, Profile, Registry
from mlecs_jax.methods import mega_ce2
from mlecs_jax.serving import predictor


@pytest.mark.slow
def test_edges_and_the_global_model_answer_as_the_run_did(tmp_path, capsys):
    options = config.parse(values(train__rounds=1, adapter__epochs=1,
                                  data__simulated_segments=120))
    run = tmp_path / "run"
    experiment.run(options, run)
    made = setting.build(options, setting.load(options.data), jax.devices()[:1])
    method, key = mega_ce2.build(made), jax.random.key(0)
    with contextlib.closing(Checkpoints(run / "checkpoints")) as checkpoints:
        versions, state = checkpoints.restore(method.init(jax.random.fold_in(key, 0)))
    model = state.best["model"]
    _, own = method.personalise(model, jax.random.fold_in(key, 2))
    everyone = method.evaluate(state.replace(cloud=model), versions - 1)
    place = {int(row): i for i, row in enumerate(made.federation.split.test)}
    for edge, said in ((1, own), (None, everyone)):
        node = served.node(run, edge)
        rows = (made.federation.split.test if edge is None
                else made.federation.test.rows[edge][made.federation.test.real[edge]])
        wanted = np.clip([said["test"][place[int(row)]] for row in rows], -3, 3)
        got = [a["sentiment"] for a in node.predictor().predict(node.rows)]
        np.testing.assert_allclose(got, wanted, atol=1e-5)
    packets_are_answered(run, served.node(run, 1), tmp_path / "edge", capsys)
    export.write(node, tmp_path / "server")
    loaded = predictor.load(tmp_path / "server")
    got = [a["sentiment"] for a in loaded.predict(node.rows[:3])]
    np.testing.assert_allclose(got, wanted[:3], atol=1e-5)
    silent = loaded.predict([{"text": node.rows[0]["text"]}])[0]["sentiment"]
    assert abs(silent - got[0]) > 1e-6
    assert predict.main(["rows", f"--run={run}", "--device=server", "--count=2",
                         f"--out={tmp_path / 'rows.npz'}"]) == 0
    capsys.readouterr()
    assert predict.main([f"--run={run}", "--device=server", "--json",
                         f"--input={tmp_path / 'rows.npz'}"]) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[0])
    assert first["sentiment"] == pytest.approx(got[0], abs=1e-5) and first["node"] == "server"
    assert predict.main(["score", f"--run={run}"]) == 2
    assert "is a run of Mega-CE²" in capsys.readouterr().err


def packets_are_answered(run, node, folder, capsys):
    """The whole way: the command line, a device that registers, its packets, the edge's answer."""
    assert predict.main(["export", "--packets", f"--run={run}", "--device=1",
                         f"--out={folder}"]) == 0
    assert "edge 1 answers packets of text" in capsys.readouterr().out
    shapes = {name: modality.shape for name, modality in node.description.modalities.items()}
    registry = Registry(Demand({name: shape[0] for name, shape in shapes.items()},
                               {name: shape[1] for name, shape in shapes.items()}))
    edge = packet_predictor.Predictor(folder, registry.senders)
    reading = node.rows[0] | {name: np.zeros(shape, np.float32)
                              for name, shape in shapes.items() if name not in node.rows[0]}
    profile = Profile("camera-1", "test", dict.fromkeys(shapes, 50.0), 1e9, 2**30, 1e8, 1e8, 0.0)
    answer = registry.register(registration.pack(profile))
    assert answer is not None
    device = EndDevice(profile.id, registration.unpack_reply(answer), profile.link)
    said = edge.answer(device.serialise(reading))
    assert said is not None and not said.missing and said.device == "camera-1"
    wanted = node.predictor().predict(node.rows[:1])[0]["sentiment"]
    assert said.sentiment == pytest.approx(wanted, abs=2e-5)
    # A slow link: int8, near the same answer.
    slow = dataclasses.replace(profile, id="camera-2", link_up=4e4)
    answer = registry.register(registration.pack(slow))
    assert answer is not None
    device = EndDevice(slow.id, registration.unpack_reply(answer), slow.link)
    sent = device.serialise(reading)
    assert all(b"int8" in data[:150] for data in sent)
    said = edge.answer(sent)
    assert said is not None and said.sentiment == pytest.approx(wanted, abs=0.1)


def test_packets_are_of_sentiment_alone(tmp_path):
    class OfTheOther:
        description = SimpleNamespace(task="class", method="ml_ecs")

    with pytest.raises(UserError, match="a node of ml_ecs; leave --packets out"):
        packet_export.export_node(tmp_path, OfTheOther())


def test_an_edge_that_is_not_there_is_named(tmp_path):
    options = config.parse(values())
    (tmp_path / "config.json").write_text(json.dumps(
        dataclasses.asdict(options) | {"samples": {"source": "simulated"}}))
    with pytest.raises(UserError, match="there is no edge 9; the run has --device=0 to"):
        served.node(tmp_path, 9)
