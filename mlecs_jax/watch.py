"""No process of a run waits for one that is gone, and none is cut off in the middle.

A thread beside the run tells the others every second that this process lives, and listens: to them,
to SIGTERM, and to what the first of them to notice something says. The run itself may be inside a
compiled program for minutes, where Python's own signal handlers do not run.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

BEAT = 1.0  # s between signs of life
LOST_AFTER = 25.0  # s without one; starved of its CPU a process is not lost yet
STUCK_AFTER = 1800.0  # s that the others wait for one that lives and does not come further
GRACE = 20.0  # s from SIGTERM to the end of a round, unless said otherwise; many kill after 30
LINGER = 3.0  # s that process 0, who carries the messages, outlives the others
LOST = 75  # exit code where another process is missing: temporary, start again (sysexits.h)
ROOT = "mlecs"


class Steps:
    """How far the main thread has come: the steps that all processes take in the same order, such
    as barriers and transfers.

    Attributes:
      count: steps begun.
      at: the latest, in words.
    """

    def __init__(self) -> None:
        self.count, self.at = 0, "the start"

    def take(self, at: str) -> None:
        """The main thread begins a step."""
        self.count, self.at = self.count + 1, at


STEPS = Steps()
"""Of this process."""


@runtime_checkable
class Board(Protocol):
    """Short texts by key that all processes see."""

    def set(self, key: str, value: str) -> None:
        """Writes or overwrites."""

    def wait(self, key: str, seconds: float) -> str | None:
        """The value, once it is there; None if it does not come."""

    def folder(self, key: str) -> Mapping[str, str]:
        """Everything below a key."""
        ...


class CoordinatorBoard:
    """The :class:`Board` of JAX's coordination service, carried by process 0."""

    def __init__(self) -> None:
        from jax._src import distributed  # JAX has no public name for its key-value store

        self._client: Any = distributed.global_state.client

    def set(self, key: str, value: str) -> None:
        self._client.key_value_set(f"{ROOT}/{key}", value, allow_overwrite=True)

    def wait(self, key: str, seconds: float) -> str | None:
        import jax

        try:
            return self._client.blocking_key_value_get(f"{ROOT}/{key}", int(seconds * 1000))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" in str(error):
                return None
            raise

    def folder(self, key: str) -> dict[str, str]:
        start = f"{ROOT}/{key}/"
        return {name.removeprefix(start): value
                for name, value in self._client.key_value_dir_get(start)}


class Watch:
    """Watches over one process and, with a board, over the others; a context manager.

    Args:
      board: None for a process alone.
      index, count: which process this is, and of how many.
      saved: complete rounds on disk, for messages.
      leave: ends the process at once; replaced in tests.
      grace: seconds from SIGTERM to the end of a round; after them the process ends at once.
      steps: of the main thread.
    """

    def __init__(
        self, board: Board | None, index: int, count: int, saved: Callable[[], int],
        leave: Callable[[int], Any] = os._exit, grace: float = GRACE, steps: Steps = STEPS,
    ):
        self._board, self._index, self._count, self._saved = board, index, count, saved
        self._exit, self._grace, self._steps = leave, grace, steps
        self.stopping = False
        self._asked = False  # SIGTERM came here
        self._deadline = float("inf")
        self._beats = 0
        self._seen: dict[int, tuple[str, float]] = {}
        self._behind: dict[int, tuple[int, float]] = {}  # at which step, and since when
        self._looked = time.monotonic()
        self._ended = threading.Lock()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> Watch:
        self._undo = contextlib.ExitStack()
        # The C part of Python writes every signal here at once, whatever the main thread does.
        self._ears, mouth = socket.socketpair()
        mouth.setblocking(False)
        before = signal.signal(signal.SIGTERM, lambda *_: None)
        self._undo.callback(signal.signal, signal.SIGTERM, before)
        wakeup = signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False)
        self._undo.callback(signal.set_wakeup_fd, wakeup)
        self._undo.callback(mouth.close)
        if self._board is not None:
            # JAX aborts a process whose coordinator, process 0, is gone.
            self._undo.enter_context(said_on_abort(lambda: f"error: {self._missing([0])}"))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.rest()
        self._undo.close()
        self._ears.close()

    def rest(self) -> None:
        """Watches no longer."""
        self._done.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def end_all(self, why: str, line: str, code: int) -> None:
        """Ends this process now, and the others by telling them why.

        Args:
          why: what the others say of it.
          line: what this process says; empty if it has said it already.
        """
        if not self._ended.acquire(blocking=False):
            time.sleep(10 * LINGER)  # the other thread of this process is ending it
        if self._board is not None and why:
            with contextlib.suppress(Exception):  # without process 0 nobody can be told
                self._board.set(f"watch/ended/{self._index}", f"{code} {why}")
        self._say(line)
        if self._index == 0 and self._board is not None:
            time.sleep(LINGER)
        self._exit(code)

    def _run(self) -> None:
        while not self._done.is_set():
            heard, _, _ = select.select([self._ears], [], [], BEAT)
            if heard and signal.SIGTERM in self._ears.recv(64):
                self._asked = True
            if self._done.is_set():
                return
            try:
                self.look()
            except Exception:  # process 0 is gone: said_on_abort speaks; else the next look tells
                if self._done.is_set():
                    return

    def look(self) -> None:
        """One sign of life, and one look at what the others say."""
        now = time.monotonic()
        if now - self._looked > LOST_AFTER / 2:  # this process slept: it cannot judge the others
            self._seen.clear()
            self._behind.clear()
        self._looked = now
        said: Mapping[str, str] = {}
        if self._board is not None:
            self._beats += 1
            self._board.set(f"watch/beat/{self._index}", f"{self._beats} {self._steps.count} "
                            f"{self._steps.at}: {_place()}")
            if self._asked and not self.stopping:
                self._board.set("watch/stop", str(self._index))
            said = self._board.folder("watch")
        self._heed_stop(now, "stop" in said or self._asked)
        for name, text in said.items():
            if name.startswith("ended/") and name != f"ended/{self._index}":
                code, _, why = text.partition(" ")
                by = int(name.removeprefix("ended/"))
                self.end_all("", f"error: {why}" if int(code) == LOST else
                             f"error: process {by} of {self._count} ended: {why}", int(code))
        if self._board is not None:
            self._judge(now, said)

    def _heed_stop(self, now: float, asked: bool) -> None:
        if asked and not self.stopping:
            self.stopping, self._deadline = True, now + self._grace
            self._say("asked to stop: ending after this round")
        if now > self._deadline:
            self.end_all("", "stopped within a round, which is not saved; "
                         f"{self._resume()}", 0)

    def _judge(self, now: float, said: Mapping[str, str]) -> None:
        """Ends the run where somebody's signs of life have ceased."""
        for i in range(self._count):
            beat = said.get(f"beat/{i}", "")
            if self._seen.get(i, ("-", 0.0))[0] != beat:
                self._seen[i] = beat, now
        missing = [i for i, (_, since) in self._seen.items() if now - since > LOST_AFTER]
        if missing and not self.stopping:
            why = self._missing(missing)
            self.end_all(why, f"error: {why}", LOST)
        if why := self._lags(now, said):
            self.end_all(why, f"error: {why}", LOST)

    def _lags(self, now: float, said: Mapping[str, str]) -> str:
        """What to say of processes that live, but have not come as far as others for long; empty
        where all come on. The others wait for them inside a collective, for ever."""
        beats = [said.get(f"beat/{i}", "").split(" ", 2) for i in range(self._count)]
        if not all(len(beat) == 3 for beat in beats):
            return ""  # somebody has not begun
        counts = [int(count) for _, count, _ in beats]
        for i, count in enumerate(counts):
            if count == max(counts):
                self._behind.pop(i, None)
            elif self._behind.get(i, (-1, 0.0))[0] != count:
                self._behind[i] = count, now
        stuck = [i for i, (_, since) in self._behind.items() if now - since > STUCK_AFTER]
        if not stuck:
            return ""
        where = "; ".join(f"{i} at {beats[i][2]}" for i in stuck)
        who = f"process{'es' * (len(stuck) > 1)} {', '.join(map(str, stuck))} of {self._count}"
        return (f"{who} {'have' if len(stuck) > 1 else 'has'} not come further for "
                f"{STUCK_AFTER / 60:.0f} min while others wait ({where}); {self._resume()} on any "
                "number of processes")

    def _missing(self, processes: list[int]) -> str:
        numbers = ", ".join(map(str, processes))
        who = f"process{'es' * (len(processes) > 1)} {numbers} of {self._count}"
        return (f"{who} {'are' if len(processes) > 1 else 'is'} missing, the run cannot go on; "
                f"{self._resume()} on any number of processes")

    def _resume(self) -> str:
        rounds = self._saved()
        return (f"{rounds} complete round{'s' * (rounds != 1)} saved, the same command resumes")

    def _say(self, line: str) -> None:
        if line:
            show_cursor = "\x1b[?25h\r" if sys.stderr.isatty() else ""  # a live bar hides it
            os.write(2, f"{show_cursor}{line}\n".encode())


def _place() -> str:
    """Where the main thread is: file, line and function, of this package if it is in it."""
    main = threading.main_thread().ident
    frame = sys._current_frames().get(main) if main is not None else None
    own = innermost = frame
    package = os.path.dirname(os.path.abspath(__file__))
    while own is not None and not own.f_code.co_filename.startswith(package):
        own = own.f_back
    found = own or innermost
    if found is None:
        return "nowhere"
    code = found.f_code
    return f"{os.path.basename(code.co_filename)}:{found.f_lineno} in {code.co_name}"


@contextlib.contextmanager
def said_on_abort(line: str | Callable[[], str], code: int = LOST) -> Iterator[None]:
    """Within the block an abort of native code ends the process with ``line`` and ``code``.

    JAX's coordination service aborts a process, from a thread of its own, whose coordinator is
    gone. The handler runs in that thread, which holds no lock of Python's.
    """
    kind = ctypes.CFUNCTYPE(None, ctypes.c_int)

    def handler(_: int) -> None:
        os.write(2, f"{line() if callable(line) else line}\n".encode())
        os._exit(code)

    kept = kind(handler)
    libc = ctypes.CDLL(None)
    libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    before = libc.signal(signal.SIGABRT, ctypes.cast(kept, ctypes.c_void_p))
    try:
        yield
    finally:
        libc.signal(signal.SIGABRT, before)
