"""Messages as bytes: a typed header, a table of arrays, their payload. No code travels.

::

    [schema, header, [[path, dtype, shape] …], payload]      msgpack, in this order

The payload is :func:`mlecs_jax.channel.serialise`'s, byte for byte what a simulation counts. The
checksum in the header covers header, table and payload; it finds damage and mistakes. That a
message comes from whom it names is the transport's to prove (mutual TLS).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any, Literal, get_args

import msgpack
import numpy as np

from mlecs_jax import channel
from mlecs_jax.channel import Entry

SCHEMA = 1
CLOUD = "cloud"
"""The sender's name in messages of the cloud; no device may have it."""

Kind = Literal["begin", "round", "evaluate", "push", "finish", "over"]
"""What a message of ML-ECS asks, and what its answer answers:

========== ===================================== ==============================================
kind       the cloud's arrays                    the device's answer
========== ===================================== ==============================================
begin      LoRA of the last complete round       counts: modalities, samples, parameters
round      anchors of the public samples         LoRA (encoded) and its number of modalities
evaluate   LoRA after the round                  losses of the round, scores on held-out rows
finish     nothing                               nothing
========== ===================================== ==============================================

In Mega-CE² edges speak first: :mod:`mlecs_jax.deploy.mega_cloud` has its table.
"""

Reason = Literal["malformed", "schema", "oversized", "checksum", "session", "sender", "kind",
                 "replay", "round", "path", "dtype", "shape", "not_finite", "length", "modalities",
                 "range"]
"""Why a message is refused; what a run counts."""

MAX_PATH = 512  # characters
MAX_RANK = 8
MAX_ROWS = 1 << 12  # arrays
MAX_HEAD = 1 << 18  # bytes before the payload: as objects they take up to seventy times as much
SLACK = MAX_HEAD + 16  # by which a message is longer than its payload
BINARY = {0xC4: 1, 0xC5: 2, 0xC6: 4}  # msgpack's mark of bytes, and bytes of their length


def plain(text: str) -> str:
    """Text of another machine, as one line for a terminal, a log or a report: what cannot be seen
    (control characters, marks that turn the direction of writing) is shown as ``�``."""
    return "".join(letter if letter.isprintable() else " " if letter.isspace() else "\ufffd"
                   for letter in text)


class WireError(Exception):
    """A message that is not to be trusted: ``reason``, and what exactly was found,
    :func:`plain`, since it may quote the message."""

    def __init__(self, reason: Reason, detail: str):
        detail = plain(detail)
        super().__init__(f"{reason}: {detail}")
        self.reason: Reason = reason
        self.detail = detail


@dataclasses.dataclass(frozen=True)
class Header:
    """What every message says of itself.

    Attributes:
      kind: see :data:`Kind`; an answer has the kind of what it answers (in Mega-CE², of what the
        edge is to say next).
      session: of :meth:`mlecs_jax.deploy.session.Session.id`; a message of another session is
        refused.
      round: of the training rounds, from 0; in ``begin`` how many are complete.
      sender: a name of the roster, or :data:`CLOUD`.
      modalities: how many modalities the sender has in this round; 0 from the cloud.
      serial: number of the exchange, given by who asks and repeated in the answer, so that an
        answer counts once and an old one never again.
    """

    kind: Kind
    session: str
    round: int
    sender: str
    modalities: int
    serial: int


@dataclasses.dataclass(frozen=True)
class Message:
    """A header and flat arrays by tree path (:func:`mlecs_jax.channel.pack`)."""

    header: Header
    arrays: Mapping[str, np.ndarray]


def encode(message: Message) -> bytes:
    """A message as bytes.

    Raises:
      ValueError: an array of a type that no message holds, or more arrays than one may have.
    """
    table, payload = channel.serialise(message.arrays)
    header = dataclasses.asdict(message.header)
    rows = [list(entry) for entry in table]
    checksum = _checksum(header, rows, payload)
    data = _packed([SCHEMA, header | {"checksum": checksum}, rows, payload])
    if len(rows) > MAX_ROWS or len(data) - len(payload) > MAX_HEAD:
        raise ValueError(f"{len(rows)} arrays, named in {len(data) - len(payload)} bytes, are more "
                         f"than a message holds ({MAX_ROWS}, {MAX_HEAD})")
    return data


def decode(data: bytes, *, limit_bytes: int) -> Message:
    """The message of some bytes, whoever sent them.

    Args:
      limit_bytes: longest message that is looked at.

    Raises:
      WireError: anything but a whole, undamaged message of this schema.
    """
    if len(data) > limit_bytes:
        raise WireError("oversized", f"{len(data)} bytes, at most {limit_bytes} are taken")
    try:
        (schema, header, rows), payload = _parts(data)
    except Exception as error:  # whatever the parser makes of arbitrary bytes
        raise WireError("malformed", f"no message ({type(error).__name__})") from None
    if schema != SCHEMA:
        raise WireError("schema", f"schema {str(schema)[:20]}, this side speaks {SCHEMA}")
    known, checksum = _header(header)
    table = _table(rows)
    if checksum != _checksum(dataclasses.asdict(known), rows, payload):
        raise WireError("checksum", "the contents are not those that were sent")
    try:
        return Message(known, channel.deserialise(table, payload))
    except ValueError as error:
        raise WireError("malformed", str(error)) from None


def _parts(data: bytes) -> tuple[list[Any], memoryview]:
    """What stands before the payload, as objects, and the payload where it lies.

    Objects are made of a short head alone, and no more than a message has.

    Raises:
      ValueError: not the four parts of a message; msgpack's own errors too.
    """
    walker = msgpack.Unpacker()
    walker.feed(data[:MAX_HEAD + 1])
    if data[:1] != b"\x94" or walker.read_array_header() != 4:
        raise ValueError("not four parts")
    for _ in range(3):
        walker.skip()  # makes no objects
    at = walker.tell()
    start = at + 1 + BINARY[data[at]]
    if start + int.from_bytes(data[at + 1:start], "big") != len(data):
        raise ValueError("the payload is not as long as it says")
    return msgpack.unpackb(
        b"\x93" + data[1:at], strict_map_key=True, max_array_len=MAX_ROWS, max_map_len=16,
        max_str_len=MAX_PATH, max_bin_len=0, max_ext_len=0), memoryview(data)[start:]


def _packed(parts: list[Any]) -> bytes:
    data = msgpack.packb(parts)
    assert data is not None  # only a stream's packer returns nothing
    return data


def _checksum(header: Mapping[str, Any], rows: Any, payload: bytes | memoryview) -> str:
    digest = hashlib.sha256(_packed([dict(header), rows]))
    digest.update(payload)
    return digest.hexdigest()


def _header(values: Any) -> tuple[Header, str]:
    """The header and the checksum it came with."""
    kinds = {"kind": str, "session": str, "round": int, "sender": str, "modalities": int,
             "serial": int, "checksum": str}
    if not isinstance(values, dict) or set(values) != set(kinds):
        raise WireError("malformed", "the header has other fields")
    for name, kind in kinds.items():
        if type(values[name]) is not kind:
            raise WireError("malformed", f"header field '{name}' is no {kind.__name__}")
    checksum = values.pop("checksum")
    if values["kind"] not in get_args(Kind):
        raise WireError("kind", f"unknown kind '{values['kind'][:20]}'")
    return Header(**values), checksum


def _table(rows: Any) -> list[Entry]:
    table = []
    for row in rows if isinstance(rows, list) else [None]:
        if not isinstance(row, list) or len(row) != 3:
            raise WireError("malformed", "the table of arrays is damaged")
        path, dtype, shape = row
        if not isinstance(path, str) or not 0 < len(path) <= MAX_PATH or not isinstance(dtype, str):
            raise WireError("malformed", "an array without a proper name or type")
        if not isinstance(shape, list) or len(shape) > MAX_RANK or any(
                type(size) is not int for size in shape):
            raise WireError("malformed", f"'{path[:60]}' has no proper shape")
        table.append(Entry(path, dtype, tuple(shape)))
    if len({entry.path for entry in table}) != len(table):
        raise WireError("malformed", "an array is there twice")
    return table
