"""Runs of real processes: the numbers of one process, and an end together when one is lost."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mlecs_jax import cli, experiment, watch
from mlecs_jax import config as configs
from tests import small

AVERAGING = Path(__file__).with_name("averaging.py")
FLAGS = ["--config=ur_fall:smoke", "--config.partition.num_clients=4",
         *(f"--config.{name}={value}" for name, value in small.SHRUNK.items())]
pytestmark = pytest.mark.multiprocess


def flags(rounds: int, method: str | Path = AVERAGING) -> list[str]:
    return [*FLAGS, f"--config.train.rounds={rounds}", f"--config.method.name={method}"]


@contextlib.contextmanager
def started(count: int, workdir: Path, arguments: list[str], devices: int = 1):
    """The processes of one run on this machine; those that are left are killed at the end."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}
    alone = [] if count == 1 else [f"--coordinator=localhost:{port}", f"--processes={count}"]
    processes = [subprocess.Popen(
        [sys.executable, "-m", "mlecs_jax.run", *arguments, f"--workdir={workdir}", *alone,
         *([f"--process={i}"] if alone else [])],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for i in range(count)]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def finished(processes, seconds=600) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of each."""
    said = [process.communicate(timeout=seconds) for process in processes]
    return [(process.returncode, *texts)
            for process, texts in zip(processes, said, strict=True)]


def wait_for_rounds(workdir: Path, rounds: int, processes, seconds=300) -> None:
    deadline = time.monotonic() + seconds
    while len(lines(workdir)) < rounds:
        assert time.monotonic() < deadline and all(p.poll() is None for p in processes)
        time.sleep(0.05)


def lines(workdir: Path) -> list[dict]:
    path = workdir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def reference(tmp_path_factory, rounds: int, method: str | Path = AVERAGING) -> Path:
    """The same run in this process, devices and cloud on one accelerator."""
    workdir = tmp_path_factory.mktemp("alone")
    values, _ = cli.parse(["run", *flags(rounds, method)], "", {})
    experiment.run(configs.parse(values), workdir)
    return workdir


def assert_same_numbers(expected: Path, found: Path) -> None:
    one, many = lines(expected), lines(found)
    assert len(one) == len(many)
    for a, b in zip(one, many, strict=True):
        for part in ("train", "eval"):
            assert_close(a[part], b[part])
    one, many = (json.loads((path / "summary.json").read_text()) for path in (expected, found))
    assert set(one) == set(many)
    for name in ("client", "server", "communication", "best_val"):
        assert_close(one[name], many[name])


def assert_close(a, b) -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        a, b = list(a.values()), [b[name] for name in a]
    if isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_close(x, y)
    elif isinstance(a, float):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5)
    else:
        assert a == b


@pytest.fixture(scope="module")
def averaged(tmp_path_factory) -> Path:
    return reference(tmp_path_factory, 3)


def test_two_processes_give_the_numbers_of_one(averaged, tmp_path):
    """Devices on one process' accelerator, the cloud on the other's."""
    with started(2, tmp_path / "two", flags(3)) as processes:
        first, second = finished(processes)
    assert first[0] == second[0] == 0, first[2] + second[2]
    assert_same_numbers(averaged, tmp_path / "two")
    assert "report: " in first[1] and "round" not in second[1]  # one process speaks
    assert {path.name for path in (tmp_path / "two").iterdir()} == {
        "config.json", "metrics.jsonl", "summary.json", "report.html", "checkpoints", "events",
        ".lock"}


@pytest.mark.slow
@pytest.mark.parametrize("count,devices,cloud", [(2, 2, 2), (2, 2, 1), (4, 1, 1), (4, 1, 2),
                                                 (4, 2, 4)])
def test_any_number_of_processes_gives_the_numbers_of_one(
        averaged, tmp_path, count, devices, cloud):
    """Also where a process owns devices of both tiers, or of none, and the LLM is split."""
    with started(count, tmp_path, [*flags(3), f"--config.topology.cloud_devices={cloud}"],
                 devices) as processes:
        ends = finished(processes)
    assert {code for code, _, _ in ends} == {0}, ends
    assert_same_numbers(averaged, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("count,devices,cloud", [(2, 1, 1), (4, 2, 4)])
def test_ml_ecs_on_several_processes_has_the_losses_of_one(
        tmp_path_factory, tmp_path, count, devices, cloud):
    alone = reference(tmp_path_factory, 2, "ml_ecs")
    with started(count, tmp_path, [*flags(2, "ml_ecs"), f"--config.topology.cloud_devices={cloud}"],
                 devices) as processes:
        ends = finished(processes, 1500)
    assert {code for code, _, _ in ends} == {0}, ends
    assert_same_numbers(alone, tmp_path)


MEGA = ["--config=mosi:smoke", *(f"--config.{name}={value}" for name, value in {
    "data.source": "simulated", "data.simulated_segments": 120, "partition.minimum": 8,
    "partition.edges": 2, "model.modalities": "text,vision", "model.targets": "text",
    "train.rounds": 1, "train.batch_size": 8, "adapter.batch_size": 8,
    "adapter.epochs": 1}.items())]


@pytest.mark.slow
def test_mega_ce2_on_two_processes_has_the_versions_of_one(tmp_path):
    for count, folder in ((1, "one"), (2, "two")):
        with started(count, tmp_path / folder, MEGA) as processes:
            ends = finished(processes, 1500)
        assert {code for code, _, _ in ends} == {0}, ends
    one, two = lines(tmp_path / "one"), lines(tmp_path / "two")
    assert len(one) == len(two) >= 2
    for a, b in zip(one, two, strict=True):
        for part in ("edges", "train", "eval"):
            assert_close(a.get(part), b.get(part))
    one, two = (json.loads((tmp_path / name / "summary.json").read_text())
                for name in ("one", "two"))
    for part in ("server", "client", "edges", "communication"):
        assert_close(one[part], two[part])


@pytest.mark.slow
@pytest.mark.parametrize("lost", [2, 0])
def test_a_killed_process_ends_all_and_the_rest_resume(tmp_path_factory, tmp_path, lost):
    """Four processes lose one, two go on and lose one, one ends the run as if nothing had been."""
    rounds = 60
    alone = reference(tmp_path_factory, rounds)
    for count, victim in ((4, lost), (2, 1)):
        before = len(lines(tmp_path))
        with started(count, tmp_path, flags(rounds)) as processes:
            wait_for_rounds(tmp_path, before + 3, processes)
            processes[victim].send_signal(signal.SIGKILL)
            begun = time.monotonic()
            ends = finished(processes, 60)
            assert time.monotonic() - begun < 60
        for i, (code, _, said) in enumerate(ends):
            if i != victim:
                assert code == watch.LOST, said
                last = said.splitlines()[-1]
                assert last.startswith(f"error: process {victim} of {count} is missing, ")
                assert "complete rounds saved, the same command resumes on any number" in last
        assert not (tmp_path / "summary.json").exists()
    with started(1, tmp_path, flags(rounds)) as processes:
        ((code, said, _),) = finished(processes)
    assert code == 0 and "resuming after round" in said
    assert_same_numbers(alone, tmp_path)


@pytest.mark.slow
def test_sigterm_to_one_process_saves_and_ends_all_with_0(tmp_path_factory, tmp_path):
    rounds = 40
    alone = reference(tmp_path_factory, rounds)
    with started(2, tmp_path, flags(rounds)) as processes:
        wait_for_rounds(tmp_path, 2, processes)
        processes[1].send_signal(signal.SIGTERM)
        ends = finished(processes, 60)
    assert [code for code, _, _ in ends] == [0, 0], ends
    complete = len(lines(tmp_path))
    assert 2 <= complete < rounds
    assert f"stopped after round {complete}, which is saved; the same command resumes" in ends[0][2]
    with started(2, tmp_path, flags(rounds)) as processes:
        ends = finished(processes)
    assert f"resuming after round {complete}" in ends[0][1]
    assert_same_numbers(alone, tmp_path)


@pytest.mark.slow
def test_processes_that_do_not_run_the_same_are_named(tmp_path):
    with started(2, tmp_path, flags(3)) as processes:
        processes[1].kill()
        other = subprocess.Popen([*processes[1].args, "--config.seed=1"], env=os.environ | {
            "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}, stderr=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True)
        ends = finished([processes[0], other], 120)
    for code, _, said in ends:
        assert code == 2
        assert "process 1 of 2 has another configuration or dataset than process 0" in said


@pytest.mark.slow
def test_sigterm_to_a_process_alone_saves_and_ends_with_0(tmp_path):
    with started(1, tmp_path, flags(400)) as processes:
        wait_for_rounds(tmp_path, 2, processes)
        processes[0].send_signal(signal.SIGTERM)
        ((code, _, said),) = finished(processes, 60)
    assert code == 0 and "which is saved; the same command resumes" in said
    assert not (tmp_path / "summary.json").exists()
