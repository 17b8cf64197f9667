"""`MemoryTransport`: cloud and devices in one process, every message through its bytes.

Devices answer in turn, so a run is the same every time. What a network does to them is told by two
functions: how long an answer takes, on a clock that only this transport has, and what becomes of
its bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from mlecs_jax.deploy import wire
from mlecs_jax.deploy.transport import Failure, opened
from mlecs_jax.deploy.wire import Message, WireError


@runtime_checkable
class Handler(Protocol):
    """What answers: :class:`mlecs_jax.deploy.edge.EdgeApp`, or something that pretends to be."""

    def handle(self, message: Message) -> Message: ...


class Gone(Exception):
    """Raised by a device that is killed while it works."""


class MemoryTransport:
    """A :class:`~mlecs_jax.deploy.transport.Transport` to devices of this process.

    Attributes:
      edges: devices by name; one that is taken out is not connected.
      clock: seconds that exchanges have taken.
      delay: ``(name, message) → seconds`` that the answer takes; beyond the deadline it is lost,
        and the device is busy for the rest of it.

    Args:
      limit_bytes: longest message that is taken.
      tamper: ``(name, question, bytes) → bytes`` of the answer as they arrive.
    """

    def __init__(
        self, edges: Mapping[str, Handler], limit_bytes: int = 1 << 28, *,
        delay: Callable[[str, Message], float] = lambda name, message: 0.0,
        tamper: Callable[[str, Message, bytes], bytes] = lambda name, question, data: data,
    ):
        self.edges = dict(edges)
        self.clock = 0.0
        self._limit, self._push_limit = limit_bytes, limit_bytes
        self.delay, self._tamper = delay, tamper
        self._busy_until: dict[str, float] = {}
        self._handler: Callable[[str, Message], Message] | None = None

    def names(self) -> list[str]:
        return [name for name in self.edges if self._busy_until.get(name, 0.0) <= self.clock]

    def exchange(
        self, targets: Sequence[str], message: Message, deadline: float,
        limit_bytes: int | None = None,
    ) -> tuple[dict[str, Message], dict[str, Failure]]:
        data, limit = wire.encode(message), min(limit_bytes or self._limit, self._limit)
        answers: dict[str, Message] = {}
        failures: dict[str, Failure] = {}
        longest = 0.0
        for name in targets:
            taken = self.delay(name, message)
            longest = max(longest, min(taken, deadline))
            found = self._answer(name, data, limit)
            if taken > deadline:
                self._busy_until[name] = self.clock + taken
                found = Failure("deadline", f"no answer in {deadline:g} s")
            if isinstance(found, Failure):
                failures[name] = found
            else:
                answers[name] = found
        self.clock += longest
        return answers, failures

    def on_push(
        self, handler: Callable[[str, Message], Message], limit_bytes: int | None = None
    ) -> None:
        self._handler = handler
        self._push_limit = min(limit_bytes or self._limit, self._limit)

    def push(self, name: str, message: Message) -> Message:
        """What the cloud answers a device that speaks first; both through bytes.

        Raises:
          ConnectionError: no cloud listens.
          WireError: the cloud refuses the message.
        """
        if self._handler is None:
            raise ConnectionError("no cloud listens")
        asked = wire.decode(self._tamper(name, message, wire.encode(message)),
                            limit_bytes=self._push_limit)
        return wire.decode(wire.encode(self._handler(name, asked)), limit_bytes=self._limit)

    def close(self) -> None:
        self._handler = None

    def _answer(self, name: str, data: bytes, limit_bytes: int) -> Message | Failure:
        if name not in self.edges:
            return Failure("gone", "not connected")
        question = wire.decode(data, limit_bytes=self._limit)
        try:
            answer = self.edges[name].handle(question)
        except Gone:
            self.edges.pop(name)
            return Failure("gone", "connection lost")
        except WireError as error:
            return Failure("error", str(error))
        return opened(self._tamper(name, question, wire.encode(answer)), limit_bytes)
