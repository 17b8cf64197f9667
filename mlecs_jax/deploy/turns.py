"""Processes of one machine that compile one after another, so that one compiles for all."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Callable, Iterator
from pathlib import Path

from mlecs_jax.deploy.wire import Message


@contextlib.contextmanager
def turn(file: Path | None) -> Iterator[None]:
    """Waits until no other process holds a file, and holds it; None does neither."""
    if file is None:
        yield
        return
    with open(file, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def in_turns(
    handle: Callable[[Message], Message], file: Path | None
) -> Callable[[Message], Message]:
    """Handles the first message of every kind when it is this process's turn.

    Programs compile then, and the next process finds them in the cache.
    """
    seen: set[str] = set()

    def turned(message: Message) -> Message:
        kind = message.header.kind
        with turn(None if kind in seen else file):
            answer = handle(message)
        seen.add(kind)
        return answer

    return turned
