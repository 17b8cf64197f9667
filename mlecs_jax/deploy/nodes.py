"""``python -m mlecs_jax.deploy cloud`` and ``edge``: one process of a deployment.

Both end cleanly on Ctrl-C and SIGTERM. With ``--attached`` they also end when their standard input
does, so that whoever started them cannot die and leave them behind.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from mlecs_jax.deploy import kit as kits
from mlecs_jax.deploy import nvflare_needed, systems
from mlecs_jax.deploy import session as sessions
from mlecs_jax.deploy.kit import Kit
from mlecs_jax.deploy.provision import is_loopback
from mlecs_jax.deploy.session import Session
from mlecs_jax.errors import UserError

PATIENCE_S = 20.0  # seconds that an orphan has to end by itself
GATHER_S = 60.0
POLL_S = 0.05
OK, FAILED = 0, 1

OnEvent = Callable[[str, dict[str, Any]], None]


class Arguments(argparse.ArgumentParser):
    """Command lines without a configuration; mistakes are :class:`UserError`."""

    def __init__(self, command: str, about: str):
        super().__init__(f"python -m mlecs_jax.deploy {command}", description=about,
                         allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def cloud_main(argv: list[str]) -> int:
    """Runs the cloud of a deployment; returns the exit code."""
    arguments = Arguments("cloud", "The cloud of a deployment, with whoever is there.")
    arguments.add_argument("--kit", type=Path, required=True, help="its folder of provision's")
    arguments.add_argument("--workdir", type=Path, help="the run's folder (default: KIT/run)")
    arguments.add_argument("--data", type=Path, help="its share of the data (default: KIT/data)")
    arguments.add_argument("--listen", default="", help="HOST:PORT instead of the kit's")
    arguments.add_argument("--gather", type=float, default=GATHER_S, metavar="S",
                           help="seconds to wait for the whole roster before the first round")
    arguments.add_argument("--events", action="store_true", help="events as JSON lines on stdout")
    arguments.add_argument("--attached", action="store_true", help="end when standard input does")
    options = arguments.parse_args(argv[1:])
    kit = kits.load(options.kit, cloud=True).at(options.listen)
    workdir = options.workdir or kit.folder / "run"
    with ending_with_parent(options.attached), stopping_on_signals():
        if options.events:
            run_cloud(kit, workdir, options.data or kit.data, print_event, options.gather)
            return OK
        session = kit.session()
        with systems.of(session.config).display(session, workdir) as display:
            summary = run_cloud(kit, workdir, options.data or kit.data, display.event,
                                options.gather)
        display.finish(summary)
    return OK


def run_cloud(
    kit: Kit, workdir: Path, data: Path, on_event: OnEvent, gather_s: float = GATHER_S
) -> dict[str, Any]:
    """The cloud of a deployment on the network; returns the run's summary.

    Args:
      gather_s: seconds that it waits for the whole roster before it begins or resumes; later
        devices join at the next session.

    Raises:
      UserError: see :class:`~mlecs_jax.deploy.cloud.CloudApp`,
        :class:`~mlecs_jax.deploy.mega_app.MegaCloudApp` and
        :class:`~mlecs_jax.deploy.nvflare_cloud.NVFlareTransport`.
    """
    prepare(kit)
    from mlecs_jax.deploy.nvflare_cloud import NVFlareTransport
    from mlecs_jax.deploy.status import Status

    session = kit.session()
    status = Status(workdir, session)
    emit = fan_out(status.event, on_event)
    present = [session]

    def latest() -> Session:
        present[0] = sessions.latest(present[0], kit.folder)
        return present[0]

    transport = NVFlareTransport(kit, session, emit, latest)
    emit("listening", {"address": kit.address})

    def on_app_event(kind: str, values: dict[str, Any]) -> None:
        emit(kind, values)
        if kind == "start" and values["complete"] < values["rounds"]:
            until = time.monotonic() + gather_s
            while len(transport.names()) < len(session.roster) and time.monotonic() < until:
                time.sleep(POLL_S)

    try:
        summary = systems.of(session.config).cloud(
            session, transport, workdir, data, on_app_event, latest).run()
    finally:
        transport.close()
    emit("finished", summary)
    return summary


def edge_main(argv: list[str]) -> int:
    """Runs one device of a deployment; returns the exit code."""
    arguments = Arguments("edge", "A device of a deployment: trains on its own data.")
    arguments.add_argument("--kit", type=Path, required=True, help="its folder of provision's")
    arguments.add_argument("--data", type=Path, help="its share of the data (default: KIT/data)")
    arguments.add_argument("--state", type=Path, help="where it keeps state (default: KIT/state)")
    arguments.add_argument("--turns", type=Path, metavar="FILE", help="compile one after another "
                           "with devices that have the same file, so that one compiles for all")
    arguments.add_argument("--connect", default="", help="HOST:PORT instead of the kit's")
    arguments.add_argument("--attached", action="store_true", help="end when standard input does")
    options = arguments.parse_args(argv[1:])
    kit = kits.load(options.kit, cloud=False).at(options.connect)
    session = kit.session()
    session.number(kit.name)
    with ending_with_parent(options.attached), stopping_on_signals():
        prepare(kit)
        from mlecs_jax.deploy.nvflare_edge import EdgeLink

        link = EdgeLink(kit, session, lambda line: say(f"{kit.name}: {line}"))
        with contextlib.closing(link):
            systems.of(session.config).serve(
                kit, session, link, options.data or kit.data, options.state or kit.state,
                options.turns)
    say(f"{kit.name}: the run is over")
    return OK


def prepare(kit: Kit) -> None:
    """What both ends need before JAX and NVFlare are imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    nvflare_needed.prepare(limit_bytes=kit.session().limits.limit_bytes,
                           loopback=is_loopback(kit.host))
    # NVFlare says a lot that is not for people; what matters comes as our own lines.
    logging.getLogger("nvflare").setLevel(logging.CRITICAL)
    import jax

    from mlecs_jax.experiment import use_compilation_cache

    use_compilation_cache()
    # Devices of one machine compile the same small programs: all are worth keeping.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@contextlib.contextmanager
def stopping_on_signals() -> Iterator[None]:
    """SIGTERM ends the process as Ctrl-C does: through ``finally``."""
    def stop(signum: int, frame: Any) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def ending_with_parent(attached: bool) -> Iterator[None]:
    """Ends this process when its standard input does, by force if it must."""
    def watch() -> None:
        while os.read(0, 4096):  # not sys.stdin: its lock would be held at exit
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(PATIENCE_S)
        os._exit(FAILED)

    if attached:
        threading.Thread(target=watch, daemon=True, name="parent").start()
    yield


def fan_out(*handlers: OnEvent) -> OnEvent:
    """One handler that calls several, one event at a time: events come from any thread."""
    lock = threading.Lock()

    def emit(kind: str, values: dict[str, Any]) -> None:
        with lock:
            for handler in handlers:
                handler(kind, values)

    return emit


def print_event(kind: str, values: dict[str, Any]) -> None:
    """An event as a JSON line on standard output."""
    print(json.dumps([kind, values]), flush=True)


def say(line: str) -> None:
    """A line for people."""
    print(line, flush=True)
