"""`NVFlareTransport`: the cloud's end of a real network, a :class:`Transport` over gRPC and TLS."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import msgpack
from nvflare.apis.signal import Signal
from nvflare.fuel.f3.message import Message as Frame

from mlecs_jax.deploy import nvflare_cell, wire
from mlecs_jax.deploy.kit import SERVER, Kit
from mlecs_jax.deploy.nvflare_cell import (
    CHANNEL,
    EXCHANGE,
    FOREVER,
    HELLO,
    PUSH,
    STRANGER_BYTES,
    Gate,
)
from mlecs_jax.deploy.session import Session
from mlecs_jax.deploy.status import CONNECTED
from mlecs_jax.deploy.transport import Failure, opened
from mlecs_jax.deploy.wire import Message, WireError

GOODBYE_S = 0.5  # a refused stranger hears why before its connection is closed


class NVFlareTransport:
    """A :class:`~mlecs_jax.deploy.transport.Transport` to devices on a network.

    A device is there once it has connected with the certificate of its name and said hello. One
    that loses its connection is gone at once, also in the middle of an exchange.

    Args:
      kit: the cloud's.
      session: who may take part.
      on_event: called with ``('device', {'device', 'what'})`` when one comes, leaves, or is
        refused; from any thread.
      latest: the session with devices that have been added meanwhile, asked when a stranger comes;
        None: it does not grow.

    Raises:
      UserError: the address cannot be listened on.
    """

    def __init__(
        self, kit: Kit, session: Session,
        on_event: Callable[[str, dict[str, Any]], None] = lambda kind, values: None,
        latest: Callable[[], Session] | None = None,
    ):
        self._session, self._on_event = session, on_event
        self._latest = latest or (lambda: session)
        self._lock = threading.Lock()
        self._peers: dict[str, _Call | None] = {}
        self._push = ThreadPoolExecutor(1, "push")
        self._answer_push: Callable[[str, Message], Message] | None = None
        self._asked = self._push_limit = 0
        self.gate = Gate(SERVER, frozenset(session.roster), session.limits.limit_bytes)
        nvflare_cell.check_listening(kit)
        self._cell = nvflare_cell.open_cell(kit, self.gate)
        for topic, handler in ((HELLO, self._on_hello), (PUSH, self._on_push)):
            self._cell.register_request_cb(channel=CHANNEL, topic=topic, cb=handler)
        self._cell.core_cell.set_cell_disconnected_cb(lambda peer: self._left(peer.info.fqcn))
        self._cell.start()

    def names(self) -> list[str]:
        """See :class:`Transport`; in the order of the roster."""
        with self._lock:
            return [name for name in self._session.roster
                    if name in self._peers and self._peers[name] is None]

    def connected(self) -> list[str]:
        """Devices that have a connection, busy or not."""
        with self._lock:
            return [name for name in self._session.roster if name in self._peers]

    def exchange(
        self, targets: Sequence[str], message: Message, deadline: float,
        limit_bytes: int | None = None,
    ) -> tuple[dict[str, Message], dict[str, Failure]]:
        """See :class:`Transport`."""
        until, limit = time.monotonic() + deadline, self._limit(limit_bytes)
        data = wire.encode(message)
        calls: dict[str, _Call] = {}
        failures: dict[str, Failure] = {}
        with self._lock:
            for name in targets:
                if name not in self._peers:
                    failures[name] = Failure("gone", "not connected")
                elif self._peers[name] is not None:
                    failures[name] = Failure("deadline", "still at work on an earlier message")
                else:
                    calls[name] = self._peers[name] = _Call()
        for name, call in calls.items():
            threading.Thread(target=self._ask, args=(name, call, data, limit), daemon=True,
                             name=f"ask-{name}").start()
        answers = {}
        for name, call in calls.items():
            found = call.outcome(until - time.monotonic())
            if isinstance(found, Message):
                answers[name] = found
            else:
                failures[name] = found or Failure("deadline", f"no answer within {deadline:g} s")
        return answers, failures

    def on_push(
        self, handler: Callable[[str, Message], Message], limit_bytes: int | None = None
    ) -> None:
        """See :class:`Transport`."""
        self._push_limit = self._limit(limit_bytes)
        self._answer_push = handler

    def close(self) -> None:
        """See :class:`Transport`."""
        with self._lock:
            calls, self._peers = [call for call in self._peers.values() if call], {}
        for call in calls:
            call.end(Failure("gone", "the cloud closes"))
        nvflare_cell.close_cell(self._cell)
        self._push.shutdown(wait=False, cancel_futures=True)

    def _limit(self, limit_bytes: int | None) -> int:
        """The longest message to look at. The gate takes the longest that was ever waited for: one
        that comes late must still end its call."""
        most = self._session.limits.limit_bytes
        limit = min(limit_bytes or most, most)
        self._asked = self.gate.limit_bytes = max(self._asked, limit)
        return limit

    def _ask(self, name: str, call: _Call, data: bytes, limit: int) -> None:
        """Waits for one device's answer, however long: an abandoned call keeps it busy."""
        try:
            answer = nvflare_cell.asked(self._cell, name, EXCHANGE, data, FOREVER, call.abort)
            call.end(opened(answer, limit))
        except PermissionError as error:
            call.end(Failure("error", str(error)))
        except Exception as error:  # NVFlare's, of many kinds: the connection is what failed
            call.end(Failure("gone", str(error)))
        with self._lock:
            if self._peers.get(name) is call:
                self._peers[name] = None

    def _on_hello(self, frame: Frame) -> Frame:
        name = nvflare_cell.sender(frame)
        try:
            run = msgpack.unpackb(bytes((frame.payload or b"")[:STRANGER_BYTES]),
                                  max_array_len=0, max_map_len=8, max_ext_len=0)["run"]
        except Exception:  # whatever the parser makes of a stranger's bytes
            run = None
        if name not in self._session.roster:
            self._session = self._latest()
            self.gate.peers = frozenset(self._session.roster)
        if name not in self._session.roster:
            problem = f"'{name}' is not on the roster of this session"
            threading.Timer(GOODBYE_S, self._cell.core_cell.communicator.remove_endpoint,
                            (name,)).start()
        elif run != self._session.run:
            problem = "the kit is of another session; use the one of this provisioning"
        else:
            with self._lock:
                known = name in self._peers
                self._peers.setdefault(name, None)
            if not known:
                self._on_event("device", {"device": name, "what": CONNECTED})
            return nvflare_cell.reply()
        self._on_event("device", {"device": wire.plain(name),
                                  "what": wire.plain(f"refused: {problem}")})
        return nvflare_cell.reply(error=problem)

    def _left(self, name: str) -> None:
        with self._lock:
            known = name in self._peers
            call = self._peers.pop(name, None)
        if call is not None:
            call.end(Failure("gone", "the connection was lost"))
        if known:
            self._on_event("device", {"device": name, "what": "connection lost"})

    def _on_push(self, frame: Frame) -> Future[Frame] | Frame:
        name = nvflare_cell.sender(frame)
        if self._answer_push is None or name not in self._session.roster:
            return nvflare_cell.reply(error="nobody takes updates here")
        return self._push.submit(self._pushed, name, bytes(frame.payload or b""))

    def _pushed(self, name: str, data: bytes) -> Frame:
        assert self._answer_push is not None
        try:
            message = wire.decode(data, limit_bytes=self._push_limit)
            return nvflare_cell.reply(wire.encode(self._answer_push(name, message)))
        except WireError as error:
            return nvflare_cell.reply(error=str(error))


class _Call:
    """One question to one device, until it is answered or its connection is lost."""

    def __init__(self) -> None:
        self.abort = Signal()
        self._found: Message | Failure | None = None
        self._done = threading.Event()

    def end(self, found: Message | Failure) -> None:
        """The first ending counts."""
        if not self._done.is_set():
            self._found = found
            self._done.set()
            self.abort.trigger(True)

    def outcome(self, seconds: float) -> Message | Failure | None:
        """What came within some seconds; None: nothing yet."""
        return self._found if self._done.wait(max(0.0, seconds)) else None
