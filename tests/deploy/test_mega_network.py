"""Mega-CE² over mutual TLS: one edge is the simulation; several end with every version made."""

import contextlib
import json
import subprocess
import sys

import pytest

pytest.importorskip("nvflare", reason="a deployment needs NVFlare: pip install -e '.[deploy]'")

from mlecs_jax.deploy import nvflare_needed, provision
from mlecs_jax.deploy.local import free_port
from mlecs_jax.mega import config, experiment
from tests.deploy.network import ROOT, environment
from tests.deploy.test_local import close, lines
from tests.mega import small_mega

SIMULATED = {"data__simulated_seed": 3, "data__simulated_segments": 120, "clock__jitter": 0.0}


@contextlib.contextmanager
def toy_edge(kit, log):
    """A process that is an edge of a deployment, and ends by itself."""
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.deploy.toy_edge", f"--kit={kit.folder}"], cwd=ROOT,
            stdout=file, stderr=file, stdin=subprocess.DEVNULL, env=environment())
    try:
        yield process
        assert process.wait(300) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


def test_one_edge_is_the_simulation(tmp_path):
    values = small_mega.values(partition__edges=1, train__rounds=3, adapter__epochs=0, **SIMULATED)
    cloud, edge = provision.write(tmp_path / "kits", values, ("edge-0",), "127.0.0.1", free_port())
    session, said = cloud.session(), []
    nvflare_needed.prepare(limit_bytes=session.limits.limit_bytes, loopback=True)
    from mlecs_jax.deploy.mega_app import MegaCloudApp
    from mlecs_jax.deploy.nvflare_cloud import NVFlareTransport

    with small_mega.toys():
        expected = json.loads(json.dumps(experiment.run(config.parse(values), tmp_path / "sim")))
        transport = NVFlareTransport(cloud, session)
        try:
            app = MegaCloudApp(session, transport, tmp_path / "run", cloud.data)
            answer = app._handle
            app._handle = lambda name, message: said.append(message) or answer(name, message)
            with toy_edge(edge, tmp_path / "edge.log"):
                summary = app.run()
        finally:
            transport.close()
    for own, other in zip(lines(tmp_path / "run"), lines(tmp_path / "sim"), strict=True):
        for key in ("round", "rounds", "data_source", "edges", "staleness", "eval"):
            assert close(own[key], other[key]), key
    for found in (summary, expected):
        for described in found["edges"]:
            del described["speed"], described["links"]  # of the simulation's clock
    assert expected["communication"].pop("downloads") == 1 + 3
    assert summary["communication"].pop("downloads") in (1 + 3, 1 + 3 + 1)  # the best, if earlier
    for key in set(expected) - {"timing"}:
        assert close(json.loads(json.dumps(summary[key])), expected[key]), key
    assert summary["deployment"]["uploads"] == {"edge-0": 3}
    assert [message.header.kind for message in said] == [
        "begin", *["push", "evaluate"] * 3, "finish"]
    assert (edge.state / "personal.safetensors").exists()
    text = (tmp_path / "edge.log").read_text()
    assert "connected to 127.0.0.1" in text and "the run is over" in text


@pytest.mark.slow
def test_one_command_runs_a_cloud_and_three_edges(tmp_path):
    """In the network's order: all versions are made, everyone took part, scores are sane."""
    workdir = tmp_path / "run"
    overrides = {"data.source": "simulated", "model.modalities": "text,vision",
                 "model.targets": "text", "train.rounds": 3}
    command = [sys.executable, "-m", "mlecs_jax.deploy", "local", "--devices=3",
               "--config=mosi:smoke", *(f"--config.{k}={v}" for k, v in overrides.items()),
               f"--workdir={workdir}"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True,
                          stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "version 9/9" in done.stdout and "mutual TLS" in done.stdout
    found, summary = lines(workdir), json.loads((workdir / "summary.json").read_text())
    assert [line["round"] for line in found] == list(range(9))
    assert all(0 < line["eval"]["val"]["mae"] < 3 for line in found)
    uploads = summary["deployment"]["uploads"]
    assert sum(uploads.values()) == 9 and min(uploads.values()) >= 1
    assert summary["deployment"]["refused"] == {}
    assert len(summary["deployment"]["finished"]) == 3
    for part in ("server", "client"):
        assert 0 < summary[part]["mae"] < 3 and 0 <= summary[part]["acc2_has0"] <= 1
    assert summary["communication"]["adapter_bytes_sent"] == 0
    again = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True,
                           stdin=subprocess.DEVNULL)
    assert again.returncode == 0 and json.loads(
        (workdir / "summary.json").read_text()) == summary
