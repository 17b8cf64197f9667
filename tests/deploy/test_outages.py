"""Processes that die or hang: who is started again, who finds whom, and what it costs."""

import json
import os
import signal
import subprocess

import pytest

pytest.importorskip("nvflare", reason="a deployment needs NVFlare: pip install -e '.[deploy]'")

from mlecs_jax import cli, experiment
from mlecs_jax.deploy import kit as kits
from mlecs_jax.deploy import local, outages, systems
from mlecs_jax.errors import UserError
from tests import small
from tests.deploy.test_local import close, lines

NAMES = ("edge-0", "edge-1", "edge-2")
ROUNDS = 9


class Enough(Exception):
    """What the test waited for has happened."""


def values(rounds):
    found, _ = cli.parse(["", "--config=ur_fall:smoke", f"--config.train.rounds={rounds}", *(
        f"--config.{name}={value}" for name, value in small.SHRUNK.items())], "", {})
    return systems.with_devices(found, len(NAMES))


@pytest.mark.slow
def test_devices_find_a_cloud_that_was_killed_and_started_again(tmp_path):
    """The cloud alone, at the same address: nobody else is restarted, nothing is lost, and the run
    ends with the simulation's numbers."""
    workdir = tmp_path / "run"
    folders = local.prepare(workdir, values(ROUNDS), NAMES, {})
    with local.Deployment(folders, workdir) as deployment:
        def strike(kind, event):
            if kind == "round" and event["round"] == 3:
                os.kill(deployment.processes["cloud"].pid, signal.SIGKILL)

        with pytest.raises(UserError, match="the cloud ended early"):
            deployment.run(strike)
        before = {name: deployment.processes[name].pid for name in NAMES}
        deployment.start_cloud()
        summary = deployment.run(lambda kind, event: None)
        assert before == {name: deployment.processes[name].pid for name in NAMES}
    for name in NAMES:
        log = (workdir / "logs" / f"{name}.log").read_text()
        assert log.count("connected to") == 2 and "connection lost; trying again" in log
    simulated = experiment.run(small.config(**{"train.rounds": ROUNDS}), tmp_path / "simulated")
    for own, other in zip(lines(workdir), lines(tmp_path / "simulated"), strict=True):
        assert close(own["train"], other["train"]) and close(own["eval"], other["eval"])
        assert own["deployment"]["answered"] == list(NAMES)
    assert close(summary["client"], simulated["client"])
    assert summary["deployment"]["sessions"] == 2


@pytest.mark.slow
def test_a_device_that_was_killed_is_started_again_and_answers_again(tmp_path):
    workdir = tmp_path / "run"
    folders = local.prepare(workdir, values(20_000), NAMES, {"misses": 2})
    said = []
    with local.Deployment(folders, workdir) as deployment:
        def watch(kind, event):
            if kind == "device" and event["what"] != "connected":
                said.append(event["what"])
            if kind != "round":
                return
            if event["round"] == 3:
                os.kill(deployment.processes["edge-1"].pid, signal.SIGKILL)
            elif said and "edge-1" in event["deployment"]["answered"]:
                raise Enough

        with pytest.raises(Enough):
            deployment.run(watch)
    assert any("its process died (code -9); started again" in line for line in said), said
    found = [record["deployment"] for record in lines(workdir)]
    assert "edge-1" in found[3]["answered"] and "edge-1" in found[-1]["answered"]
    assert [roll["dropped"] for roll in found if roll["dropped"]] == [["edge-1"]]
    assert found[-1]["session"] == 2
    trained = [line for line in said if line.startswith("last trained in round 4 of ")]
    assert len(trained) == 1  # with what it had learnt, and not from the beginning


class Process(subprocess.Popen):
    """A process that was never started, and has ended or not."""

    def __init__(self, pid=0, code=None):
        self._child_created = False
        self.pid, self.returncode, self.stdin, self.stdout = pid, code, None, None

    def poll(self):
        return self.returncode

    def wait(self, timeout=None):
        if self.returncode is None:
            raise subprocess.TimeoutExpired("", timeout or 0)
        return self.returncode


@pytest.fixture
def supervised(tmp_path, monkeypatch):
    """A deployment of processes that are none, whose cloud says what a test puts in."""
    folders = [kits.Kit(tmp_path / name, name, "127.0.0.1", 1) for name in ("cloud", *NAMES)]
    deployment = local.Deployment(folders, tmp_path)
    deployment.processes = {name: Process(code=0) for name in ("cloud", *NAMES)}
    started = []

    def start(name, *words, stdout=None):
        started.append((name, words))
        deployment.processes[name] = Process(code=0)
        return deployment.processes[name]

    monkeypatch.setattr(deployment, "_start", start)
    (tmp_path / "logs").mkdir()
    return deployment, started


def test_devices_are_looked_after_while_rounds_go_by(supervised, monkeypatch):
    """However short the rounds are."""
    monkeypatch.setattr(local, "LOOK_S", 0.0)
    deployment, started = supervised
    deployment.processes["edge-1"] = Process(code=-9)
    said = []
    for event in [*(("round", {"round": r}) for r in range(3)), ("finished", {"f1": 1.0}), None]:
        deployment._events.put(event)
    assert deployment.run(lambda kind, event: said.append((kind, event))) == {"f1": 1.0}
    assert [name for name, _ in started] == ["edge-1"]
    assert ("device", {"device": "edge-1",
                       "what": "its process died (code -9); started again"}) in said


@pytest.mark.parametrize("code,message", [(2, "edge-0 ended: no such kit"), (1, "edge-0 ended")])
def test_a_device_that_cannot_take_part_ends_the_run(supervised, monkeypatch, code, message):
    monkeypatch.setattr(local, "LOOK_S", 0.0)
    deployment, started = supervised
    deployment.processes["edge-0"] = Process(code=code)
    deployment._restarts["edge-0"] = 0 if code == 2 else local.RESTARTS
    (deployment._logs / "edge-0.log").write_text("so far\nerror: no such kit\n")
    with pytest.raises(UserError, match=message):
        deployment.run(lambda kind, event: None)
    assert not started


class Replayed:
    """In place of a deployment: says the same events each time, and ends where it is struck."""

    made: list["Replayed"] = []

    def __init__(self, folders, workdir):
        self.processes = {name: Process(pid) for pid, name in enumerate(("cloud", *NAMES))}
        self.clouds, self.runs = 0, 0
        self.struck = []
        Replayed.made.append(self)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def start_cloud(self):
        self.clouds += 1

    def run(self, on_event):
        self.runs += 1
        for r in range(9):
            on_event("round", {"round": r})
            if ("cloud", signal.SIGKILL) in self.struck and self.runs == 1:
                raise UserError("the cloud ended early")


@pytest.mark.parametrize("outage,struck,clouds,made", [
    ("clean", [], 0, 1), ("device", [("edge-1", signal.SIGKILL)], 0, 1),
    ("cloud", [("cloud", signal.SIGKILL)], 1, 1), ("all", [("cloud", signal.SIGKILL)], 0, 2),
    ("hung", [("edge-1", signal.SIGSTOP), ("edge-1", signal.SIGCONT)], 0, 1)])
def test_each_outage_strikes_once_and_is_survived(
        tmp_path, monkeypatch, outage, struck, clouds, made):
    def kill(pid, signum):
        Replayed.made[-1].struck.append((("cloud", *NAMES)[pid], signum))

    Replayed.made = []
    monkeypatch.setattr(outages, "Deployment", Replayed)
    monkeypatch.setattr(outages, "prepare", lambda *_: [])
    monkeypatch.setattr(outages.os, "kill", kill)
    outages.suffer(outage, tmp_path, values(9), NAMES, 8.0)
    first = Replayed.made[0]
    assert first.struck == struck and first.clouds == clouds and len(Replayed.made) == made


def test_an_end_that_was_not_the_outage_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(outages, "Deployment", Replayed)
    monkeypatch.setattr(outages, "prepare", lambda *_: [])
    monkeypatch.setattr(Replayed, "run", lambda self, on_event: (_ for _ in ()).throw(
        UserError("the cloud ended early")))
    with pytest.raises(UserError, match="the cloud ended early"):
        outages.suffer("cloud", tmp_path, values(9), NAMES, 8.0)


def test_the_table_of_outages(tmp_path, monkeypatch, capsys):
    """The command around them; a run that is done is not done again."""
    suffered = []

    def suffer(name, folder, *_):
        suffered.append(name)
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text(json.dumps({
            "primary_metric": "f1", "client": {"avg_f1": 0.5}, "server": {"f1": 0.25},
            "deployment": {"sessions": 2, "uploads": {"edge-0": 3, "edge-1": 2},
                           "missed": {"gone": 1}, "refused": {}}}))
        (folder / "metrics.jsonl").write_text("".join(
            json.dumps({"seconds": s}) + "\n" for s in (9.0, 1.0, 2.0)))

    monkeypatch.setattr(outages, "suffer", suffer)
    words = ["outages", "--config=ur_fall:smoke", f"--workdir={tmp_path}"]
    for _ in range(2):
        assert outages.main([*words, "--only=clean,cloud"]) == 0
    assert suffered == ["clean", "cloud"]
    assert "gone 1" in capsys.readouterr().out
    (row, _) = json.loads((tmp_path / "outages.json").read_text())
    assert (row["outage"], row["rounds"], row["uploads"], row["slowest_round_s"]) == (
        "clean", 3, 5, 2.0)
    for wrong, message in (("--only=flood", "unknown outage 'flood'"),
                           ("--devices=1", "at least two devices")):
        with pytest.raises(UserError, match=message):
            outages.main([*words, wrong])
