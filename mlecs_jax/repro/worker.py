"""A worker process: many runs, one after the other, in one interpreter.

Imports, datasets, traces and compiled programs are paid for once a worker and not once a run. The
engine talks to it over a pipe; when the engine is gone, the pipe breaks and the worker ends.

A runner is a module with two functions::

    provenance(values) -> Provenance
    run(values, folder, extras, on_round) -> None     # on_round(complete, total), first with
                                                      # what is there of a run that is resumed
"""

from __future__ import annotations

import importlib
import os
import signal
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from mlecs_jax.errors import UserError


def main(connection: Connection, log: Path) -> None:
    """Serves requests ``(kind, runner, values, folder, extras, code)`` until the engine closes the
    pipe. A run is refused where the sources here are not those of ``code``: a worker that began
    later than the sweep would otherwise pass their numbers off as that version's.

    Replies are ``(kind, content)``: ``provenance``, ``round``, ``done`` (seconds) or ``failed``
    (a line for the user, and the traceback where the error was not theirs).
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the engine stops its workers
    _write_to(log)
    while True:
        try:
            kind, runner, values, folder, extras, code = connection.recv()
        except EOFError:
            return
        begun = time.perf_counter()
        try:
            found = importlib.import_module(runner)
            if kind == "provenance":
                reply: tuple[str, Any] = ("provenance", found.provenance(values))
            else:
                if found.provenance(values).code != code:
                    raise UserError("its sources have changed since the sweep began; the same "
                                    "command makes it, and keeps what is done")
                found.run(values, Path(folder), extras,
                          lambda *progress: connection.send(("round", progress)))
                reply = ("done", time.perf_counter() - begun)
        except BrokenPipeError:
            return
        except UserError as error:
            reply = ("failed", (str(error), ""))
        except Exception as error:
            reply = ("failed", (f"{type(error).__name__}: {error}".splitlines()[0],
                                traceback.format_exc()))
        try:
            connection.send(reply)
        except BrokenPipeError:
            return


def _write_to(log: Path) -> None:
    """Sends whatever libraries print to a file: the terminal belongs to the display."""
    log.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
