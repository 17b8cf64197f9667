"""Packets from end devices: a checked header, a compressed array, and a receiver that doubts both.

On the wire, all integers big-endian::

    'MCE2' | version u8 | header length u16 | header: msgpack map | payload | CRC-32 u32

The CRC covers everything before it. A receiver takes what a registered device may send, once:
anything else is refused under a named reason and counted. Numbers of packets begin anew with every
registration, which gives the device a session: one that was restarted registers again, and nothing
recorded in an earlier session is taken. A CRC finds damage, not forgery; the bounds here keep a
forger from locking others out for long, the transport (TLS) keeps him out. Imports only NumPy and
msgpack, so that end devices and the exported predictor share it.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from mlecs_jax.mega import codecs
from mlecs_jax.mega.codecs import Codec, CodecError

MAGIC, VERSION = b"MCE2", 2
_PREFIX = struct.Struct(">4sBH")
_CRC = struct.Struct(">I")
MAX_HEADER = 1024  # bytes
MAX_SEQUENCE = 2**63 - 1
MAX_RANK = 4
FIELDS = {"time_us": int, "device": str, "session": int, "sequence": int,
          "modality": str, "shape": list, "dtype": str, "quality": float, "codec": str}


class PacketError(ValueError):
    """A packet that must not be used; ``reason`` names why in one word, for the counts."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class Header:
    """What a packet says about itself.

    Attributes:
      time_us: microseconds since the epoch when the reading ended, by the device's clock.
      device: the id under which the device registered.
      session: that the reply to its registration gave it.
      sequence: rises by one with every packet of the session, from 0.
      modality: ``text``, ``audio`` or ``vision``.
      shape: of the array, usually ``(T, d)``.
      dtype: of the array before encoding; always ``float32`` in this version.
      quality: share of the reading that is usable, in [0, 1] (see :func:`clean`).
      codec: name of a :class:`mlecs_jax.mega.codecs.Codec`.
    """

    time_us: int
    device: str
    session: int
    sequence: int
    modality: str
    shape: tuple[int, ...]
    quality: float
    codec: str
    dtype: str = "float32"


@dataclasses.dataclass(frozen=True)
class Packet:
    """A header and its decoded array, float32 ``header.shape``."""

    header: Header
    values: NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Sender:
    """A registered device: its session and the shapes it was told to send, by modality."""

    session: int
    shapes: Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a receiver takes.

    Attributes:
      packet_bytes, values: at most, of a packet and of its array.
      window: how many packets of a device may arrive out of order; older ones count as replayed.
      jump: how far a sequence number may be ahead of the newest: more than are ever lost at once.
    """

    packet_bytes: int = 2**20
    values: int = 2**20
    window: int = 64
    jump: int = 2**12


@dataclasses.dataclass
class _Seen:
    """Of a session: its newest packet, and bit i of ``bits`` for packet newest − i."""

    session: int
    newest: int = -1
    bits: int = 0


def encode(header: Header, payload: bytes) -> bytes:
    """A packet's bytes from a header and a payload of :func:`mlecs_jax.mega.codecs.encode`.

    Raises:
      ValueError: a header longer than 1 kB (an overlong device id).
    """
    packed = _packed(dataclasses.asdict(header) | {"shape": list(header.shape)})
    if len(packed) > MAX_HEADER:
        raise ValueError(f"a header of {len(packed)} bytes; at most {MAX_HEADER} can be sent")
    body = _PREFIX.pack(MAGIC, VERSION, len(packed)) + packed + payload
    return body + _CRC.pack(zlib.crc32(body))


def decode(data: bytes, limits: Limits = Limits()) -> Packet:
    """The packet of some bytes, whole or not at all.

    Raises:
      PacketError: ``oversized``, ``truncated``, ``corrupted`` (magic, version, CRC), ``header``
        (fields missing, unknown, of another type or out of range) or ``payload``.
    """
    header, payload = _open(data, limits)
    return Packet(header, _decoded(header, payload))


class Receiver:
    """The edge's end of the link: takes each packet of a registered device once.

    Args:
      expected: senders by device id; read with every packet, so that a live mapping such as
        :attr:`mlecs_jax.mega.registration.Registry.senders` lets new devices in.

    Attributes:
      accepted: packets taken.
      refused: how many were refused for each reason.
    """

    def __init__(self, expected: Mapping[str, Sender], limits: Limits = Limits()):
        self.expected = expected
        self.limits = limits
        self.accepted = 0
        self.refused: collections.Counter[str] = collections.Counter()
        self._seen: dict[str, _Seen] = {}

    def receive(self, data: bytes) -> Packet | None:
        """The packet if it may be used, else None; never raises on any bytes."""
        try:
            packet = self._check(data)
        except PacketError as error:
            self.refused[error.reason] += 1
            return None
        self.accepted += 1
        return packet

    def _check(self, data: bytes) -> Packet:
        """Everything that the header tells comes before the payload is decoded or inflated."""
        header, payload = _open(data, self.limits)
        sender = self.expected.get(header.device)
        if sender is None:
            self._seen.pop(header.device, None)  # its registration has ended
            raise PacketError("unregistered", f"device '{header.device}'")
        if header.session != sender.session:
            raise PacketError("session", f"device '{header.device}' has registered again")
        if sender.shapes.get(header.modality) != header.shape:
            raise PacketError("unexpected", f"{header.modality} of shape {header.shape}")
        seen = self._seen.get(header.device)
        if seen is None or seen.session != header.session:
            seen = _Seen(header.session)
        marked = self._marked(seen, header)
        packet = Packet(header, _decoded(header, payload))
        self._seen[header.device] = marked
        return packet

    def _marked(self, seen: _Seen, header: Header) -> _Seen:
        """What has been seen once the packet is taken.

        Raises:
          PacketError: ``replayed``: it was taken before, or is too old to know; ``ahead``: of a
            number that no packet can have yet.
        """
        ahead, window = header.sequence - seen.newest, self.limits.window
        if ahead > self.limits.jump:
            raise PacketError("ahead", f"packet {header.sequence} after {seen.newest} of device "
                              f"'{header.device}'")
        if ahead > 0:
            bits = 1 if ahead > window else ((seen.bits << ahead) | 1) & ((1 << window) - 1)
            return _Seen(seen.session, header.sequence, bits)
        if -ahead >= window or seen.bits >> -ahead & 1:
            raise PacketError("replayed", f"packet {header.sequence} of device '{header.device}'")
        return _Seen(seen.session, seen.newest, seen.bits | 1 << -ahead)


def _decoded(header: Header, payload: bytes) -> NDArray[np.float32]:
    try:
        return codecs.decode(payload, header.shape, Codec.parse(header.codec))
    except CodecError as error:
        raise PacketError("payload", str(error)) from None


def _open(data: bytes, limits: Limits) -> tuple[Header, bytes]:
    if len(data) > limits.packet_bytes:
        raise PacketError("oversized", f"{len(data)} bytes")
    if len(data) < _PREFIX.size + _CRC.size:
        raise PacketError("truncated", f"{len(data)} bytes")
    body = data[:-_CRC.size]
    if zlib.crc32(body) != _CRC.unpack(data[-_CRC.size:])[0]:
        raise PacketError("corrupted", "the CRC does not match")
    magic, version, length = _PREFIX.unpack_from(body)
    if magic != MAGIC or version != VERSION:
        raise PacketError("corrupted", f"not a packet of version {VERSION}")
    if length > MAX_HEADER or _PREFIX.size + length > len(body):
        raise PacketError("header", f"{length} bytes")
    header = _header(body[_PREFIX.size:_PREFIX.size + length])
    if math.prod(header.shape) > limits.values:
        raise PacketError("oversized", f"an array of shape {header.shape}")
    return header, body[_PREFIX.size + length:]


def _header(packed: bytes) -> Header:
    try:
        fields = msgpack.unpackb(packed, raw=False, strict_map_key=True, max_ext_len=0)
        # One meaning, one encoding: a map in another order or with padded integers is not ours.
        if not isinstance(fields, dict) or set(fields) != set(FIELDS) or _packed(fields) != packed:
            raise ValueError("other fields than a packet has")
    except (ValueError, msgpack.UnpackException, RecursionError, TypeError) as error:
        raise PacketError("header", str(error)) from None
    for name, kind in FIELDS.items():
        if type(fields[name]) is not kind:
            raise PacketError("header", f"{name} is {type(fields[name]).__name__}")
    shape = fields["shape"]
    checks = {
        "time_us": 0 <= fields["time_us"] <= MAX_SEQUENCE,
        "device": fields["device"] != "",
        "session": 0 <= fields["session"] <= MAX_SEQUENCE,
        "sequence": 0 <= fields["sequence"] <= MAX_SEQUENCE,
        "shape": (0 < len(shape) <= MAX_RANK
                  and all(type(n) is int and 0 < n < 2**31 for n in shape)),
        "dtype": fields["dtype"] == "float32",
        "quality": 0.0 <= fields["quality"] <= 1.0,
    }
    for name, good in checks.items():
        if not good:
            raise PacketError("header", f"{name} is out of range")
    fields["shape"] = tuple(shape)
    return Header(**fields)


def _packed(fields: Mapping[str, Any]) -> bytes:
    """The header's bytes, fields always in the order of :data:`FIELDS`."""
    return bytes(msgpack.Packer(use_bin_type=True).pack({name: fields[name] for name in FIELDS}))
