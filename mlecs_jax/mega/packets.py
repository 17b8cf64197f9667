"""Packets from end devices: a checked header, a compressed array, and a receiver that doubts both.

On the wire, all integers big-endian::

    'MCE2' | version u8 | header length u16 | header: msgpack map | payload | CRC-32 u32

The CRC covers everything before it. A receiver takes what a registered device may send, once:
anything else is refused under a named reason and counted. Imports only NumPy and msgpack, so that
end devices and the exported predictor share it.
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

MAGIC, VERSION = b"MCE2", 1
_PREFIX = struct.Struct(">4sBH")
_CRC = struct.Struct(">I")
MAX_HEADER = 1024  # bytes
MAX_SEQUENCE = 2**63 - 1
MAX_RANK = 4
FIELDS = {"time_us": int, "device": str, "sequence": int, "modality": str, "shape": list,
          "dtype": str, "quality": float, "codec": str}


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
      sequence: rises by one with every packet of the device, from 0.
      modality: ``text``, ``audio`` or ``vision``.
      shape: of the array, usually ``(T, d)``.
      dtype: of the array before encoding; always ``float32`` in this version.
      quality: share of the reading that is usable, in [0, 1] (see :func:`clean`).
      codec: name of a :class:`mlecs_jax.mega.codecs.Codec`.
    """

    time_us: int
    device: str
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
class Limits:
    """What a receiver takes at most: bytes of a packet, and values of its array."""

    packet_bytes: int = 2**20
    values: int = 2**20


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
    try:
        values = codecs.decode(payload, header.shape, Codec.parse(header.codec))
    except CodecError as error:
        raise PacketError("payload", str(error)) from None
    return Packet(header, values)


class Receiver:
    """The edge's end of the link: takes each packet of a registered device once.

    Args:
      expected: ``{device id: {modality: shape}}``, from the registry's replies
        (:mod:`mlecs_jax.mega.registration`).
      window: how many packets of a device may arrive out of order; older ones count as replayed.

    Attributes:
      accepted: packets taken.
      refused: how many were refused for each reason.
    """

    def __init__(self, expected: Mapping[str, Mapping[str, tuple[int, ...]]],
                 limits: Limits = Limits(), window: int = 64):
        self.expected = expected
        self.limits = limits
        self.accepted = 0
        self.refused: collections.Counter[str] = collections.Counter()
        self._window = window
        self._newest: dict[str, int] = {}
        self._seen: dict[str, int] = {}  # bit i: packet newest − i was taken

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
        packet = decode(data, self.limits)
        header = packet.header
        modalities = self.expected.get(header.device)
        if modalities is None:
            raise PacketError("unregistered", f"device '{header.device}'")
        if modalities.get(header.modality) != header.shape:
            raise PacketError("unexpected", f"{header.modality} of shape {header.shape}")
        self._mark(header.device, header.sequence)
        return packet

    def _mark(self, device: str, sequence: int) -> None:
        """Notes a sequence number of a device.

        Raises:
          PacketError: ``replayed``: it was taken before, or is too old to know.
        """
        newest, seen = self._newest.get(device, -1), self._seen.get(device, 0)
        ahead = sequence - newest
        if ahead > 0:
            kept = (1 << self._window) - 1
            self._seen[device] = 1 if ahead > self._window else ((seen << ahead) | 1) & kept
            self._newest[device] = sequence
        elif -ahead >= self._window or seen >> -ahead & 1:
            raise PacketError("replayed", f"packet {sequence} of device '{device}'")
        else:
            self._seen[device] = seen | 1 << -ahead


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
