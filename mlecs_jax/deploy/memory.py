"""`MemoryTransport`: cloud and devices in one process, every message through its bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from mlecs_jax.deploy.edge import EdgeApp
from mlecs_jax.deploy.transport import Failure
from mlecs_jax.deploy.wire import Message


class MemoryTransport:
    """A :class:`~mlecs_jax.deploy.transport.Transport` to devices of this process.

    Args:
      edges: devices by name.
      limit_bytes: longest message that is taken.
    """

    def __init__(self, edges: Mapping[str, EdgeApp], limit_bytes: int = 1 << 28):
        raise NotImplementedError

    def names(self) -> list[str]:
        raise NotImplementedError

    def exchange(
        self, targets: Sequence[str], message: Message, deadline: float
    ) -> tuple[dict[str, Message], dict[str, Failure]]:
        raise NotImplementedError

    def on_push(self, handler: Callable[[str, Message], Message]) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError
