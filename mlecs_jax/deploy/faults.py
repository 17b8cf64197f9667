"""Devices that break and devices that lie, for tests and the fault drill.

Each wraps an honest device and changes what it answers to ``round``. They know what a real one
would: its own messages and the cloud's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from mlecs_jax.deploy.memory import Gone, Handler
from mlecs_jax.deploy.wire import Message

Arrays = Mapping[str, np.ndarray]


class Faulty:
    """A device whose uploads go through ``change`` from round ``begin`` on.

    Args:
      change: ``(upload, arrays of the last broadcast, the upload before or None) → upload``.
    """

    def __init__(
        self, honest: Handler, change: Callable[[Message, Arrays, Message | None], Message],
        begin: int = 0,
    ):
        self.honest, self._change, self._begin = honest, change, begin
        self._known: Arrays = {}
        self._before: Message | None = None

    def handle(self, message: Message) -> Message:
        answer = self.honest.handle(message)
        if message.header.kind in ("begin", "evaluate"):
            self._known = message.arrays
        if message.header.kind != "round":
            return answer
        sent, before = answer, self._before
        if message.header.round >= self._begin:
            sent = self._change(answer, self._known, before)
        self._before = answer
        return sent


class Dying:
    """A device that is killed while it works on a message of some kind and round."""

    def __init__(self, honest: Handler, kind: str, r: int):
        self.honest, self._when = honest, (kind, r)

    def handle(self, message: Message) -> Message:
        if (message.header.kind, message.header.round) == self._when:
            raise Gone
        return self.honest.handle(message)


def sends_nan(upload: Message, known: Arrays, before: Message | None) -> Message:
    """One NaN in one array."""
    path = _first(upload)
    values = upload.arrays[path].copy()
    values.reshape(-1)[0] = np.nan
    return dataclasses.replace(upload, arrays={**upload.arrays, path: values})


def sends_wrong_shape(upload: Message, known: Arrays, before: Message | None) -> Message:
    """One array a row longer."""
    path = _first(upload)
    values = upload.arrays[path]
    longer = np.concatenate([values, values[:1]])
    return dataclasses.replace(upload, arrays={**upload.arrays, path: longer})


def sends_wrong_type(upload: Message, known: Arrays, before: Message | None) -> Message:
    """One array in double precision."""
    path = _first(upload)
    return dataclasses.replace(upload, arrays={
        **upload.arrays, path: upload.arrays[path].astype(np.float64)})


def sends_another_path(upload: Message, known: Arrays, before: Message | None) -> Message:
    """An array that nobody asked for."""
    return dataclasses.replace(upload, arrays={
        **upload.arrays, "extractor/weights": np.zeros(3, np.float32)})


def sends_wrong_round(upload: Message, known: Arrays, before: Message | None) -> Message:
    """A header of the round before last."""
    header = dataclasses.replace(upload.header, round=upload.header.round + 1)
    return dataclasses.replace(upload, header=header)


def sends_other_session(upload: Message, known: Arrays, before: Message | None) -> Message:
    """A header of a session that never was."""
    header = dataclasses.replace(upload.header, session="elsewhere.1-00")
    return dataclasses.replace(upload, header=header)


def sends_as_another(upload: Message, known: Arrays, before: Message | None) -> Message:
    """Another sender's name."""
    return dataclasses.replace(upload, header=dataclasses.replace(upload.header, sender="d0"))


def replays(upload: Message, known: Arrays, before: Message | None) -> Message:
    """The upload of the round before, as it was; the first one is honest."""
    return upload if before is None else before


def claims_too_many(upload: Message, known: Arrays, before: Message | None) -> Message:
    """A weight of a thousand modalities."""
    return dataclasses.replace(
        upload, header=dataclasses.replace(upload.header, modalities=1000),
        arrays={**upload.arrays, "modalities": np.array(1000, np.int32)})


def claims_another(upload: Message, known: Arrays, before: Message | None) -> Message:
    """One modality more than it has, or fewer, consistently."""
    claim = upload.header.modalities % 3 + 1
    return dataclasses.replace(
        upload, header=dataclasses.replace(upload.header, modalities=claim),
        arrays={**upload.arrays, "modalities": np.array(claim, np.int32)})


def sends_absurdity(upload: Message, known: Arrays, before: Message | None) -> Message:
    """Every number of one array is as large as float32 goes: finite, and nothing that is learnt
    from it would be."""
    path = _first(upload)
    return dataclasses.replace(upload, arrays={
        **upload.arrays, path: np.full_like(upload.arrays[path], 3e38)})


def flips(factor: float) -> Callable[[Message, Arrays, Message | None], Message]:
    """Poison that looks well: the device's own difference to what was broadcast, turned round and
    ``factor`` times as long. Every number is finite and every shape right."""
    def change(upload: Message, known: Arrays, before: Message | None) -> Message:
        changed = {path: (known[path] - factor * (values - known[path])).astype(values.dtype)
                   if path in known else values for path, values in upload.arrays.items()}
        return dataclasses.replace(upload, arrays=changed)

    return change


def _first(upload: Message) -> str:
    """The first array of floats by path."""
    return min(path for path, values in upload.arrays.items() if values.dtype.kind == "f")
