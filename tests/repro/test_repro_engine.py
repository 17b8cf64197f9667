"""The engine: cached, resumable, and nothing that one run does stops the others."""

import dataclasses
import importlib.metadata
import json
import os
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from mlecs_jax.errors import UserError
from mlecs_jax.repro import accelerators, engine, results
from mlecs_jax.repro.job import RECORD, Job


class Recorder:
    """Keeps what a display would show."""

    def __init__(self):
        self.planned, self.ended = None, []

    def plan(self, total, cached):
        self.planned = (total, cached)

    def begin(self, slot, job):
        pass

    def round(self, slot, complete, total):
        pass

    def end(self, slot, outcome):
        self.ended.append(outcome.job.labels["method"])


def job(method="m", seed=0, ends="well", score=0.5, **more):
    return Job({"method": method, "seed": seed},
               {"method": {"name": method}, "seed": seed, "ends": ends, "score": score, **more},
               runner="tests.repro.fake_runner")


def execute(jobs, workdir, **options):
    display = Recorder()
    outcomes = engine.execute(jobs, workdir, processes=2, display=display, **options)
    return outcomes, display


def begun(outcome):
    path = outcome.folder / "begun"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_a_run_serves_every_artefact_whatever_it_calls_it(tmp_path):
    plain = job("m")
    (first,), _ = execute([plain], tmp_path)
    named = dataclasses.replace(plain, labels={**plain.labels, "variant": "full"})
    (again,), display = execute([named], tmp_path)
    assert again.cached and again.folder == first.folder and display.planned == (1, 1)
    (other,), _ = execute([dataclasses.replace(job("m", score=0.6), labels=named.labels)], tmp_path)
    assert not other.cached and "full" in other.folder.name


def test_failures_are_recorded_and_the_rest_goes_on(tmp_path):
    jobs = [job("ok"), job("bad", ends="user error"), job("bug", ends="bug"),
            job("dead", ends="dies"), job("last", score=0.75)]
    outcomes, display = execute(jobs, tmp_path)
    assert [bool(o.failure) for o in outcomes] == [False, True, True, True, False]
    assert outcomes[1].failure == "a value is bad"
    assert "ZeroDivisionError: a bug" in outcomes[2].failure
    assert "ZeroDivisionError" in (outcomes[2].folder / "failure.txt").read_text()
    assert "the worker died (exit 9)" in outcomes[3].failure
    assert display.planned == (5, 0) and sorted(display.ended) == [
        "bad", "bug", "dead", "last", "ok"]
    # The same again: what is whole is not touched, what failed is tried once more.
    again, display = execute(jobs, tmp_path)
    assert display.planned == (5, 2)
    assert [o.cached for o in again] == [True, False, False, False, True]
    assert [begun(o) for o in again] == [1, 2, 2, 2, 1]
    found = results.read(again)
    assert found.at("client.avg_f1", {"method": "last"}) == {0: 0.75}
    assert found.at("client.avg_f1", {"method": "last"}, results.BEST_VAL) == {0: 0.625}
    assert found.at("client.avg_f1", {"method": "bug"}) == {}


def test_runs_of_other_sources_or_configurations_are_not_taken(tmp_path, monkeypatch):
    (first,), _ = execute([job()], tmp_path)
    (other,), _ = execute([job(score=0.25)], tmp_path)
    assert not other.cached and other.folder != first.folder
    # Options of another method, and what changes speed alone, do not matter.
    same = job(clients={"chunk": 4})
    same.values["method"]["another"] = {"rate": 1.0}
    assert execute([same], tmp_path)[0][0].cached
    monkeypatch.setenv("FAKE_CODE", "c0de0001")
    (accepted,), _ = execute([job()], tmp_path, any_code=True)
    assert accepted.cached and accepted.folder == first.folder
    assert accepted.provenance.code == "c0de0000"
    (fresh,), _ = execute([job()], tmp_path)
    assert not fresh.cached and fresh.folder != first.folder


def test_an_extra_is_measured_on_a_run_that_is_there(tmp_path):
    (first,), _ = execute([job()], tmp_path)
    record = (first.folder / RECORD).read_text()
    (outcome,), display = execute([dataclasses.replace(job(), extras=("absence",))], tmp_path)
    assert not outcome.cached and begun(outcome) == 2
    assert (first.folder / RECORD).read_text() == record and outcome.cost == first.cost
    assert results.read([outcome]).at("extra.absence.client.avg_f1", {}) == {0: 0.25}
    assert execute([dataclasses.replace(job(), extras=("absence",))], tmp_path)[0][0].cached


def test_an_extra_leaves_the_record_of_a_run_of_other_sources(tmp_path, monkeypatch):
    execute([job()], tmp_path)
    monkeypatch.setenv("FAKE_CODE", "c0de0001")
    asked = dataclasses.replace(job(), extras=("absence",))
    (outcome,), _ = execute([asked], tmp_path, any_code=True)
    assert begun(outcome) == 2 and outcome.provenance.code == "c0de0000"
    assert results.read([outcome]).runs[0].code == "c0de0000"


def test_jobs_of_one_configuration_are_one_run(tmp_path):
    """However they are labelled, and with the measurements that any of them asks for."""
    other = dataclasses.replace(job(), labels={"method": "m", "seed": 0, "public": "labelled"},
                                extras=("absence",))
    outcomes, display = execute([job(), other, job("n")], tmp_path)
    assert display.planned == (2, 0) and [begun(o) for o in outcomes] == [1, 1, 1]
    assert outcomes[0].folder == outcomes[1].folder != outcomes[2].folder
    assert [o.job.labels.get("public") for o in outcomes] == [None, "labelled", None]
    found = results.read(outcomes)
    assert found.at("extra.absence.client.avg_f1", {"public": "labelled"}) == {0: 0.25}
    with pytest.raises(ValueError, match="several runs of seed 0"):
        found.at("client.avg_f1", {"method": "m"})


def test_a_twins_run_serves_but_only_whole(tmp_path):
    (first,), _ = execute([job(score=0.5)], tmp_path)
    twin = dataclasses.replace(job(score=0.25), twins=(job(score=0.5).values,))
    (found,), _ = execute([twin], tmp_path)
    assert found.cached and found.folder == first.folder
    (own,), _ = execute([dataclasses.replace(twin, extras=("absence",))], tmp_path)
    assert not own.cached and own.folder != first.folder


def test_what_is_there_without_running(tmp_path):
    jobs = [job("there"), job("not there")]
    execute(jobs[:1], tmp_path)
    outcomes, display = execute(jobs, tmp_path, train=False)
    assert [o.job.labels["method"] for o in outcomes] == ["there"] and outcomes[0].cached
    assert display.planned == (2, 1) and not display.ended


def test_ctrl_c_keeps_what_is_whole(tmp_path):
    class Stopping(Recorder):
        def end(self, slot, outcome):
            raise KeyboardInterrupt

    jobs = [job("quick"), job("slow", ends="waits")]
    assert engine.execute(jobs, tmp_path, processes=2, display=Stopping()) == []
    outcomes, _ = execute(jobs, tmp_path, train=False)
    assert [o.job.labels["method"] for o in outcomes] == ["quick"]


def test_a_worker_that_begins_after_a_change_of_the_sources_passes_nothing_off(
        tmp_path, monkeypatch):
    """The second worker has other sources than those that its job was planned with."""
    class Editor(Recorder):
        def end(self, slot, outcome):
            os.environ["FAKE_CODE"] = "c0de0001"

    monkeypatch.setenv("FAKE_CODE", "c0de0000")
    monkeypatch.setattr(engine, "RUNS_PER_WORKER", 1)
    jobs = [job("m"), job("n")]
    outcomes = engine.execute(jobs, tmp_path, processes=1, display=Editor())
    assert [bool(o.failure) for o in outcomes] == [False, True] and begun(outcomes[1]) == 0
    assert "its sources have changed since the sweep began" in outcomes[1].failure
    (_, again), _ = execute(jobs, tmp_path)
    assert not again.failure and again.provenance.code == "c0de0001"


def test_a_worker_full_of_programs_gives_way_to_a_fresh_one(tmp_path, monkeypatch):
    """Every compiled program maps memory, and Linux allows a process so many maps."""
    share = engine.memory_maps(os.getpid())
    assert 0 < share < 1 and engine.memory_maps(2**22 + 1) == 0  # of nobody
    jobs = [job(name) for name in ("m", "n", "o")]

    def processes(workdir):
        outcomes = engine.execute(jobs, workdir, processes=1, display=Recorder())
        return {(outcome.folder / "begun").read_text() for outcome in outcomes}

    assert len(processes(tmp_path / "few")) == 1
    monkeypatch.setattr(engine, "MAPS_PER_WORKER", share / 1000)
    assert len(processes(tmp_path / "many")) == 3


def test_workers_go_round_the_accelerators(tmp_path, monkeypatch):
    """Three workers on two: each has one, and two share a memory; without any, all have cores."""
    monkeypatch.setattr(accelerators, "visible", lambda: ("GPU-a", "GPU-b"))
    jobs = [job(name) for name in ("m", "n")]
    outcomes, _ = execute(jobs, tmp_path)
    found = [json.loads((o.folder / "environment.json").read_text()) for o in outcomes]
    assert sorted(env[accelerators.VISIBLE] for env in found) == ["GPU-a", "GPU-b"]
    assert [accelerators.environment(slot, 3, ("0", "1"))[accelerators.VISIBLE]
            for slot in range(3)] == ["0", "1", "0"]
    shared = accelerators.environment(0, 3, ("0", "1"))
    assert shared["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
    assert shared["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.450"
    assert set(accelerators.environment(0, 2, ("0", "1"))) == {accelerators.VISIBLE}
    assert accelerators.environment(0, 2, ()) == {}


@pytest.mark.parametrize(("variables", "plugins", "expected"), [
    ({"CUDA_VISIBLE_DEVICES": "2,3"}, ["xla_cuda12"], ("2", "3")),
    ({"CUDA_VISIBLE_DEVICES": ""}, ["xla_cuda12"], ()),
    ({"CUDA_VISIBLE_DEVICES": "2,3"}, [], ()),
    ({"CUDA_VISIBLE_DEVICES": "2", "JAX_PLATFORMS": "cpu"}, ["xla_cuda12"], ())])
def test_accelerators_are_counted_where_jax_can_use_them(monkeypatch, variables, plugins, expected):
    for name in ("CUDA_VISIBLE_DEVICES", "JAX_PLATFORMS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [
        types.SimpleNamespace(name=name) for name in plugins])
    assert accelerators.visible() == expected
    assert accelerators.default_processes() == (len(expected) or os.cpu_count())


def test_bad_data_stop_the_sweep_in_one_line(tmp_path):
    with pytest.raises(UserError, match="there are no data"):
        execute([job(ends="no data")], tmp_path)
    with pytest.raises(UserError, match="cannot write to workdir"):
        (tmp_path / "file").touch()
        execute([job()], tmp_path / "file")


def test_workers_end_with_a_killed_engine(tmp_path):
    code = ("from tests.repro.test_repro_engine import execute, job; from pathlib import Path; "
            f"execute([job(ends='waits')], Path({str(tmp_path)!r}))")
    process = subprocess.Popen([sys.executable, "-c", f"if __name__ == '__main__':\n {code}"])
    try:
        deadline = time.monotonic() + 120
        while not (found := list(tmp_path.glob("runs/*/begun"))) or not found[0].read_text():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        worker = int(found[0].read_text())
    finally:
        process.kill()
        process.wait()
    deadline = time.monotonic() + 30
    while (Path("/proc") / str(worker)).exists():  # it ends when it next reports
        assert time.monotonic() < deadline
        time.sleep(0.1)
