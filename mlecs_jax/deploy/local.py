"""``python -m mlecs_jax.deploy local``: a whole deployment on this machine, by one command.

A cloud and its devices as processes of their own, certificates and mutual TLS, on the loopback
address. What it shows and writes is what ``python -m mlecs_jax.run`` shows and writes.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from mlecs_jax import cli
from mlecs_jax.deploy import kit as kits
from mlecs_jax.deploy import provision, systems, wire
from mlecs_jax.deploy.kit import Kit
from mlecs_jax.errors import UserError

USAGE = """usage: python -m mlecs_jax.deploy local [--devices=3] [--config=ur_fall]
                                     [--config.KEY=VALUE …] [--workdir=DIR] [--deadline=S]

  --devices   how many device processes, or their names with commas
  --workdir   folder of the run; the same command again resumes it
              (default: runs/deploy-DATASET-METHOD-<hash of the config>)
  --deadline  seconds a device has for an answer"""

HOST = "127.0.0.1"
GATHER_S = 600.0  # ours all come, however slow this machine
RESTARTS = 3  # of one device that dies
LOOK_S = 0.5  # seconds between looks at devices' processes
PATIENCE_S = 15.0  # seconds that processes have to end by themselves


def main(argv: list[str]) -> int:
    """Runs or resumes a deployment on this machine; returns the exit code."""
    if not any(word.startswith("--config=") or word in ("--config", "-h", "--help")
               for word in argv):
        argv = [argv[0], "--config=ur_fall", *argv[1:]]
    values, options = cli.parse(argv, USAGE, {"devices": "3", "workdir": "", "deadline": ""})
    names = provision.roster(options["devices"])
    system, values = systems.of(values), systems.with_devices(values, len(names))
    limits = ({"deadline_s": provision.number("deadline", options["deadline"], float)}
              if options["deadline"] else {})

    from mlecs_jax import run as runs
    from mlecs_jax.deploy.nodes import stopping_on_signals

    workdir = Path(options["workdir"] or runs.default_workdir(system.parse(values)).replace(
        "runs/", "runs/deploy-", 1))
    with stopping_on_signals():
        folders = prepare(workdir, values, names, limits)
        session = folders[0].session()
        with (system.display(session, workdir) as display,
              Deployment(folders, workdir) as deployment):
            summary = deployment.run(display.event)
        display.finish(summary)
    return 0


def prepare(
    workdir: Path, values: Mapping[str, Any], names: tuple[str, ...], limits: Mapping[str, Any]
) -> list[Kit]:
    """The kits of a run's folder, written the first time, the cloud's first.

    Raises:
      UserError: the folder holds a deployment of another configuration, see also
        :func:`mlecs_jax.deploy.provision.write`.
    """
    folder = workdir / "kits"
    if not folder.exists():
        unfinished = workdir / ".kits"
        if unfinished.exists():
            raise UserError(f"{unfinished} is left of a start that was killed; remove it")
        provision.write(unfinished, values, names, HOST, free_port(),
                        limits=provision.Limits(**limits))
        os.rename(unfinished, folder)  # whole or not at all
    cloud = kits.load(folder / wire.CLOUD, cloud=True)
    session = cloud.session()
    if session.founders != names or dict(session.config) != _plain(values):
        raise UserError(f"{workdir} holds a deployment of another configuration; use another "
                        "--workdir or the same values")
    return [cloud, *(kits.load(folder / name, cloud=False) for name in session.roster)]


class Deployment:
    """The processes of a deployment; a context manager that leaves none behind.

    Args:
      folders: the kits, the cloud's first.
      workdir: the run's folder; processes write ``logs/NAME.log`` there.
    """

    def __init__(self, folders: list[Kit], workdir: Path):
        self._cloud_kit, self._kits = folders[0], {kit.name: kit for kit in folders[1:]}
        self._workdir, self._logs = workdir, workdir / "logs"
        self._address = f"{HOST}:{free_port()}"
        self._events: queue.SimpleQueue[tuple[str, dict[str, Any]] | None] = queue.SimpleQueue()
        self._restarts = dict.fromkeys(self._kits, 0)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Deployment:
        self._logs.mkdir(parents=True, exist_ok=True)
        try:
            self.start_cloud()
            for name in self._kits:
                self.start_edge(name)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        self.stop()

    def run(self, on_event: Any) -> dict[str, Any]:
        """Passes on the cloud's events until the run is over; returns its summary.

        A device that dies is started again, a few times.

        Raises:
          UserError: the cloud ended without a summary, or a device cannot take part.
        """
        summary, looked = None, time.monotonic()
        while True:
            if time.monotonic() - looked > LOOK_S:  # also where rounds are shorter than that
                looked = time.monotonic()
                self._look_after_devices(on_event)
            try:
                event = self._events.get(timeout=LOOK_S)
            except queue.Empty:
                continue
            if event is None:
                break
            kind, values = event
            if kind == "finished":
                summary = values
            else:
                on_event(kind, values)
        if summary is None:
            self.processes[wire.CLOUD].wait()
            raise UserError(f"the cloud ended early: {self._last_line(wire.CLOUD)}")
        self._wait(PATIENCE_S)
        return summary

    def start_cloud(self) -> None:
        """Starts the cloud, again where it has ended: at the same address, so that devices that are
        there find it; then :meth:`run` again."""
        self._forget(wire.CLOUD)
        cloud = self._start(wire.CLOUD, "cloud", f"--kit={self._cloud_kit.folder}",
                            f"--workdir={self._workdir}", f"--listen={self._address}",
                            "--events", f"--gather={GATHER_S}", stdout=subprocess.PIPE)
        assert cloud.stdout is not None
        threading.Thread(target=self._read, args=(cloud.stdout,), daemon=True).start()

    def start_edge(self, name: str) -> None:
        """Starts a device, again where it has ended."""
        self._forget(name)
        self._start(name, "edge", f"--kit={self._kits[name].folder}", f"--connect={self._address}",
                    f"--turns={self._logs / '.turn'}")

    def stop(self) -> None:
        """Ends what still runs: by request, and after a while by force."""
        for process in self.processes.values():
            if process.poll() is None:
                process.terminate()
        self._wait(PATIENCE_S)
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
            process.wait()
            _close(process)

    def _forget(self, name: str) -> None:
        """Lets go of a process that has ended, if there was one."""
        if (process := self.processes.pop(name, None)) is not None:
            process.wait()
            _close(process)

    def _start(self, name: str, *words: str, stdout: int | None = None) -> subprocess.Popen[bytes]:
        with open(self._logs / f"{name}.log", "ab") as log:
            # In sessions of their own: Ctrl-C is for us, and we tell them.
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", "mlecs_jax.deploy", *words, "--attached"],
                stdin=subprocess.PIPE, stdout=stdout or log, stderr=log, start_new_session=True)
        return self.processes[name]

    def _read(self, stream: IO[bytes]) -> None:
        """Puts the cloud's events into the queue; None when it has ended."""
        for line in stream:
            with contextlib.suppress(ValueError):
                kind, values = json.loads(line)
                self._events.put((kind, values))
        self._events.put(None)

    def _look_after_devices(self, on_event: Any) -> None:
        for name in self._kits:
            code = self.processes[name].poll()
            if code is None or code == 0:
                continue
            if code == 2 or self._restarts[name] == RESTARTS:
                raise UserError(f"{name} ended: {self._last_line(name)}")
            self._restarts[name] += 1
            on_event("device", {"device": name, "what": f"its process died (code {code}); "
                                                        "started again"})
            self.start_edge(name)

    def _last_line(self, name: str) -> str:
        log = self._logs / f"{name}.log"
        lines = log.read_text(errors="replace").strip().splitlines()
        return f"{lines[-1].removeprefix('error: ') if lines else 'no word'} (all in {log})"

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        for process in self.processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))


def _close(process: subprocess.Popen[bytes]) -> None:
    """Closes the pipes to a process that has ended."""
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()


def free_port() -> int:
    """A port of the loopback address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as they come back from JSON."""
    return json.loads(json.dumps(values))
