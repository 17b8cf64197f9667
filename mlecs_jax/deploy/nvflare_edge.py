"""A device's end of a real network: connects, says hello, answers, and connects again."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, cast, get_args

import msgpack
from nvflare.apis.signal import Signal
from nvflare.fuel.f3.message import Message as Frame

from mlecs_jax.deploy import nvflare_cell, wire
from mlecs_jax.deploy.kit import SERVER, Kit
from mlecs_jax.deploy.nvflare_cell import CHANNEL, EXCHANGE, HELLO, PUSH, Gate
from mlecs_jax.deploy.session import Session
from mlecs_jax.deploy.wire import Message, Reason, WireError
from mlecs_jax.errors import UserError

HELLO_S = 30.0  # seconds that the cloud has to greet
GOODBYE_S = 5.0  # seconds that the last answer has to arrive
RETRY_S = 1.0  # seconds between attempts to reach a cloud that is away

logger = logging.getLogger(__name__)


class EdgeLink:
    """The connection of one device; also its :class:`~mlecs_jax.deploy.transport.Uplink`.

    Args:
      kit: the device's.
      session: what was provisioned.
      on_event: called with one line for people; from any thread.
    """

    def __init__(
        self, kit: Kit, session: Session, on_event: Callable[[str], None] = lambda line: None
    ):
        self._kit, self._session, self._on_event = kit, session, on_event
        self._work: queue.SimpleQueue[_Job | BaseException | None] = queue.SimpleQueue()
        self._busy = threading.Lock()
        self._greeted, self._stopped = threading.Event(), threading.Event()
        self._lost, self._pushing = threading.Event(), Signal()
        self._cell: Any = None

    def connect(self) -> None:
        """Finds the cloud, however long it takes, and is greeted.

        Raises:
          UserError: it is not the cloud of this kit, or it refuses this device.
          ConnectionError: :meth:`stop` was called.
        """
        waiting: list[str] = []

        def on_wait() -> None:
            if not waiting:
                waiting.append(f"waiting for the cloud at {self._kit.address}")
                self._on_event(waiting[0])

        nvflare_cell.find_cloud(self._kit, self._stopped.wait, on_wait)
        gate = Gate(self._kit.name, frozenset({SERVER}), self._session.limits.limit_bytes)
        self._cell = nvflare_cell.open_cell(self._kit, gate)
        self._cell.register_request_cb(channel=CHANNEL, topic=EXCHANGE, cb=self._on_exchange)
        self._cell.core_cell.set_cell_connected_cb(lambda peer: threading.Thread(
            target=self._hello, daemon=True).start())
        self._cell.core_cell.set_cell_disconnected_cb(lambda peer: self._on_lost())
        self._cell.start()

    def serve(self, handle: Callable[[Message], Message]) -> None:
        """Answers the cloud, in this thread, until it says that the run is over.

        Args:
          handle: :meth:`mlecs_jax.deploy.edge.EdgeApp.handle`. What it raises is told to the
            cloud, and the device goes on.

        Raises:
          UserError: the cloud refuses this device.
        """
        while (job := self._work.get()) is not None:
            if isinstance(job, BaseException):
                raise job
            answer, last = self._answer(job, handle)
            self._busy.release()  # before the answer is out, since the next question may follow it
            job.answer.set_result(answer)
            if last:
                self._lost.wait(GOODBYE_S)
                return

    def push(self, message: Message) -> Message:
        """See :class:`~mlecs_jax.deploy.transport.Uplink`."""
        if not self._greeted.is_set():
            raise ConnectionError("not connected")
        self._pushing = Signal()
        try:
            answer = nvflare_cell.asked(self._cell, SERVER, PUSH, wire.encode(message),
                                        self._session.limits.deadline_s, self._pushing)
        except PermissionError as error:
            reason, colon, detail = str(error).partition(": ")
            if colon and reason in get_args(Reason):
                raise WireError(cast(Reason, reason), detail) from None
            raise ConnectionError(str(error)) from None  # nobody takes updates yet
        return wire.decode(answer, limit_bytes=self._session.limits.limit_bytes)

    def persist(self, message: Message) -> Message:
        """:meth:`push`, again and again until there is an answer: clouds come back.

        A cloud that took the message before its answer was lost refuses it as a replay.

        Raises:
          UserError: the cloud refuses this device.
          ConnectionError: :meth:`stop` was called.
          WireError: see :meth:`push`.
        """
        while True:
            try:
                if isinstance(problem := self._work.get_nowait(), BaseException):
                    raise problem
            except queue.Empty:
                pass
            try:
                return self.push(message)
            except ConnectionError as error:
                logger.info("no answer: %s", error)
            if self._stopped.wait(RETRY_S):
                raise ConnectionError("stopped")

    def stop(self) -> None:
        """Ends :meth:`serve` after the message at hand; may be called from a signal handler."""
        self._stopped.set()
        self._work.put(None)

    def close(self) -> None:
        """Lets go of the network."""
        self._stopped.set()
        if self._cell is not None:
            nvflare_cell.close_cell(self._cell)

    def _on_exchange(self, frame: Frame) -> Future[Frame] | Frame:
        if not self._busy.acquire(blocking=False):
            return nvflare_cell.reply(error="still at work on an earlier message")
        job = _Job(bytes(frame.payload or b""))
        self._work.put(job)
        return job.answer

    def _answer(
        self, job: _Job, handle: Callable[[Message], Message]
    ) -> tuple[Frame, bool]:
        """Does a job: what goes back, and whether it was the last."""
        try:
            message = wire.decode(job.data, limit_bytes=self._session.limits.limit_bytes)
            answer = handle(message)
            return nvflare_cell.reply(wire.encode(answer)), message.header.kind == "finish"
        except (WireError, UserError) as error:
            problem = str(error)
        except Exception as error:
            logger.exception("could not answer")
            problem = f"{type(error).__name__}: {str(error)[:200]}"
        self._on_event(f"refused the cloud's message: {problem}")
        return nvflare_cell.reply(error=problem), False

    def _hello(self) -> None:
        """Greets the cloud, once no earlier message is at work; a refusal ends :meth:`serve`."""
        self._lost.clear()
        try:
            with self._busy:
                pass
            nvflare_cell.asked(self._cell, SERVER, HELLO,
                               msgpack.packb({"run": self._session.run}), HELLO_S)
            self._greeted.set()
            self._on_event(f"connected to {self._kit.address}")
        except PermissionError as error:
            self._work.put(UserError(f"the cloud at {self._kit.address} refuses: {error}"))
        except Exception as error:  # lost again meanwhile; the next connection greets anew
            logger.warning("no greeting: %s", error)

    def _on_lost(self) -> None:
        self._lost.set()
        self._pushing.trigger(True)
        if self._greeted.is_set() and not self._stopped.is_set():
            self._greeted.clear()
            self._on_event("connection lost; trying again")


class _Job:
    """A message to be answered."""

    def __init__(self, data: bytes):
        self.data = data
        self.answer: Future[Frame] = Future()
