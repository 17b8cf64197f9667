"""One command: a cloud and three device processes with certificates, equal to the simulation."""

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("nvflare", reason="a deployment needs NVFlare: pip install -e '.[deploy]'")

from mlecs_jax import experiment
from tests import small
from tests.deploy.network import ROOT, alone, environment, listening, peers, wait_for

ROUNDS = 10
ARGUMENTS = ["--devices=3", "--config=ur_fall:smoke", f"--config.train.rounds={ROUNDS}",
             *(f"--config.{name}={value}" for name, value in small.SHRUNK.items())]


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """The command at work, its folder, and a thread that notes every socket its processes have.

    Where that is possible they have no network but the loopback: what needs another fails.
    """
    workdir = tmp_path_factory.mktemp("local") / "run"
    process = start(workdir, *alone())
    seen = {"listening": set(), "peers": set(), "processes": set()}

    def watch():
        while process.poll() is None:
            family = tree(process.pid)
            seen["processes"] |= family
            seen["listening"] |= listening(family)
            seen["peers"] |= peers(family)
            time.sleep(1.0)

    watcher = threading.Thread(target=watch)
    watcher.start()
    yield workdir, process, watcher, seen
    process.terminate()  # where a test gave up on it
    watcher.join()


@pytest.fixture(scope="module")
def simulated(running, tmp_path_factory):
    """The same run in this process, while the deployment is at work."""
    workdir = tmp_path_factory.mktemp("simulated")
    return workdir, experiment.run(small.config(**{"train.rounds": ROUNDS}), workdir)


@pytest.fixture(scope="module")
def deployed(running, simulated):
    """The command's folder and output, and every socket that its processes were seen to have."""
    workdir, process, watcher, seen = running
    output = process.stdout.read().decode()
    process.stdout.close()
    watcher.join()
    assert process.wait() == 0, output
    return workdir, output, seen


def test_metrics_equal_the_simulations(deployed, simulated):
    ours, theirs = (lines(folder) for folder in (deployed[0], simulated[0]))
    assert len(ours) == len(theirs) == ROUNDS
    for own, other in zip(ours, theirs, strict=True):
        assert close(own["train"], other["train"]) and close(own["eval"], other["eval"])
        assert own["modalities"] == other["modalities"]
        assert own["deployment"]["answered"] == ["edge-0", "edge-1", "edge-2"]
    summary = json.loads((deployed[0] / "summary.json").read_text())
    for part in ("client", "server", "best_val"):
        assert close(summary[part], simulated[1][part]), part
    assert summary["communication"] == simulated[1]["communication"]


def test_the_same_report_and_one_display(deployed):
    workdir, output, _ = deployed
    assert (workdir / "report.html").stat().st_size > 10_000
    assert f"round {ROUNDS}/{ROUNDS}" in output and "SIMULATED" in output
    assert "mutual TLS" in output and f"report: {workdir / 'report.html'}" in output.replace(
        "\n", "")


def test_no_socket_leaves_the_machine(deployed):
    """Of cloud, devices and supervisor, looked at every second from start to end."""
    _, _, seen = deployed
    assert len(seen["processes"]) >= 5
    assert len(seen["listening"]) == 1  # the cloud's
    assert all(address.is_loopback for address, _ in seen["listening"] | seen["peers"])
    assert seen["peers"]


def test_no_process_is_left(deployed):
    assert not [pid for pid in deployed[2]["processes"] if Path(f"/proc/{pid}").exists()]


def test_what_was_provisioned(deployed):
    workdir, _, _ = deployed
    for key in workdir.rglob("*.key"):
        assert key.stat().st_mode & 0o077 == 0
    assert not list((workdir / "kits" / "edge-0").rglob("rootCA.key"))


def test_status_of_a_finished_run(deployed, capsys):
    from mlecs_jax.deploy import status

    assert status.main(["status", f"--workdir={deployed[0]}"]) == 0
    shown = capsys.readouterr().out
    assert f"finished | round {ROUNDS}/{ROUNDS}" in shown and "edge-2" in shown


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopping_leaves_no_processes_and_the_same_command_resumes(deployed, tmp_path, end):
    workdir = tmp_path / "run"
    process = start(workdir)
    wait_for(lambda: len(lines(workdir)) >= 2, "two rounds are made", 300)
    family = tree(process.pid)
    assert len(family) >= 5
    process.send_signal(end)
    process.wait(60)
    wait_for(lambda: not [pid for pid in family if Path(f"/proc/{pid}").exists()],
             "all processes ended", 60)
    process.stdout.close()
    again = start(workdir)
    output = again.communicate(timeout=300)[0].decode()
    assert again.returncode == 0 and "resuming after round" in output, output
    for own, other in zip(lines(workdir), lines(deployed[0]), strict=True):
        assert close(own["train"], other["train"]) and close(own["eval"], other["eval"])


def start(workdir: Path, *before: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*before, sys.executable, "-m", "mlecs_jax.deploy", "local", *ARGUMENTS,
         f"--workdir={workdir}"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        env=environment(), cwd=ROOT)


def tree(pid: int) -> set[int]:
    """A process and all that descend from it."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parents[int(folder.name)] = int(
                    (folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue  # it has just ended
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def lines(workdir: Path) -> list[dict]:
    try:
        text = (workdir / "metrics.jsonl").read_text()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines() if line.endswith("}")]


def close(a, b) -> bool:
    """Nested numbers within 1e-5, everything else equal."""
    if isinstance(a, dict):
        return set(a) == set(b) and all(close(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(close, a, b))
    if isinstance(a, float) or isinstance(b, float):
        return bool(np.isclose(a, b, rtol=1e-5, atol=1e-5, equal_nan=True))
    return a == b
