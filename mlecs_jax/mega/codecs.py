"""Adaptive compression of feature arrays: how precisely, and whether deflated.

A codec is a precision (``float32``, ``float16``, ``int8``) with or without zlib, written
``'int8+zlib'``. Precision alone loses anything, by no more than :func:`error_bound`, so that the
choice between codecs (:func:`encode_within`) is a choice of size at a known price. NumPy and the
standard library only: this runs on end devices and in the exported predictor.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

PRECISIONS = ("float32", "float16", "int8")
FLOAT16_MAX_EXPONENT = 15  # 2¹⁵ < 65504
INT8_MAX = 127
LARGEST = np.float32(2.0**127)  # beyond it, rounding up overflows


class CodecError(ValueError):
    """A payload that no encoder wrote: wrong size, wrong stream or values that are not finite."""


@dataclasses.dataclass(frozen=True)
class Codec:
    """A precision and whether the bytes are deflated.

    Attributes:
      precision: ``float32`` (exact), ``float16`` (2 bytes a value, scaled by a power of two) or
        ``int8`` (1 byte a value, one float32 scale per channel of the last axis).
      deflate: zlib over the bytes.
    """

    precision: str
    deflate: bool

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise CodecError(f"unknown precision '{self.precision}'; use {', '.join(PRECISIONS)}")

    @property
    def name(self) -> str:
        return self.precision + ("+zlib" if self.deflate else "")

    @classmethod
    def parse(cls, name: str) -> Codec:
        """The codec of a name such as ``'float16+zlib'``.

        Raises:
          CodecError: no codec has that name.
        """
        precision, plus, rest = name.partition("+")
        if plus and rest != "zlib":
            raise CodecError(f"unknown codec '{name}'")
        return cls(precision, bool(plus))


LADDER = tuple(Codec(precision, deflate) for precision in PRECISIONS for deflate in (False, True))
"""Codecs from the most precise to the smallest; within a precision the cheap one comes first."""


def packed_size(shape: Sequence[int], precision: str) -> int:
    """Bytes of an array before zlib."""
    count = int(np.prod(shape, dtype=np.int64))
    if precision == "float32":
        return 4 * count
    if precision == "float16":
        return 1 + 2 * count
    return 4 * _channels(shape) + count


def encode(values: NDArray[np.float32], codec: Codec, level: int = 6) -> bytes:
    """The payload of an array.

    Args:
      values: float32, at least one axis, below 2¹²⁷ in magnitude.
      level: effort of zlib, 1 (fast) to 9 (small).

    Raises:
      CodecError: a scalar, or values that are not finite or too large for any precision to
        promise an error bound: clean the features first.
    """
    if not values.ndim:
        raise CodecError("a scalar; give an array of at least one axis")
    values = np.ascontiguousarray(values, np.float32)
    if not (np.abs(values) < LARGEST).all():
        raise CodecError("values are not finite; clean the features before encoding them")
    if codec.precision == "float32":
        packed = values.astype("<f4").tobytes()
    elif codec.precision == "float16":
        exponent = _exponent(values)
        packed = (exponent.to_bytes(1, "big", signed=True)
                  + np.ldexp(values, -exponent).astype("<f2").tobytes())
    else:
        scales = _scales(values)
        steps = np.divide(values, scales, out=np.zeros_like(values), where=scales > 0)
        quantised = np.clip(np.rint(steps), -INT8_MAX, INT8_MAX).astype(np.int8)
        packed = scales.astype("<f4").tobytes() + quantised.tobytes()
    return zlib.compress(packed, level) if codec.deflate else packed


def decode(payload: bytes, shape: Sequence[int], codec: Codec) -> NDArray[np.float32]:
    """The array of a payload, float32 ``shape``.

    A deflated stream is never inflated beyond the size that shape and precision imply.

    Raises:
      CodecError: the payload is not what :func:`encode` writes for that shape and codec.
    """
    shape = tuple(shape)
    size = packed_size(shape, codec.precision)
    packed = _inflate(payload, size) if codec.deflate else payload
    if len(packed) != size:
        raise CodecError(f"{len(packed)} bytes for {size}")
    if codec.precision == "float32":
        values = np.frombuffer(packed, "<f4").astype(np.float32)
    elif codec.precision == "float16":
        exponent = int.from_bytes(packed[:1], "big", signed=True)
        with np.errstate(over="ignore", invalid="ignore"):  # what no encoder writes: refused below
            values = np.ldexp(np.frombuffer(packed, "<f2", offset=1).astype(np.float32), exponent)
    else:
        channels = _channels(shape)
        scales = np.frombuffer(packed, "<f4", channels).astype(np.float32)
        if not (scales >= 0).all():
            raise CodecError("a negative scale")
        steps = np.frombuffer(packed, np.int8, offset=4 * channels)
        with np.errstate(over="ignore", invalid="ignore"):
            values = steps.reshape(-1, channels) * scales if channels else steps.astype(np.float32)
    values = values.reshape(shape)
    if not np.isfinite(values).all():
        raise CodecError("values that are not finite")
    return values


def error_bound(values: NDArray[np.float32], codec: Codec) -> NDArray[np.float32]:
    """Largest possible |decoded − value| of each value, in the shape of ``values``.

    float32: 0. float16: half a unit in the last of 11 bits, 2⁻¹¹ |x|, and 2⁻²⁵ · 2^exponent for
    values below float16's normal range. int8: half a step, scale / 2, where the scale of a channel
    is its largest magnitude / 127. Scaling itself rounds: a few units of float32, and its smallest
    normal number.
    """
    values = np.asarray(values, np.float32)
    rounding = np.abs(values) * np.float32(2.0**-22) + np.finfo(np.float32).tiny
    if codec.precision == "float32":
        return np.zeros_like(values)
    if codec.precision == "float16":
        smallest = np.ldexp(np.float32(2.0**-25), _exponent(values))
        return np.maximum(np.abs(values) * np.float32(2.0**-11), smallest) + rounding
    half = _scales(values) * np.float32(0.5 + 2.0**-21)
    return (np.broadcast_to(half, values.shape) + rounding).astype(np.float32)


def encode_within(
    values: NDArray[np.float32], budget: float, level: int = 6,
    ladder: Sequence[Codec] = LADDER,
) -> tuple[Codec, bytes]:
    """The most precise codec whose payload fits, else the smallest payload there is.

    Sizes without zlib are known beforehand, so that only deflating costs a trial. The last codec
    of the ladder must deflate: its payload is the answer where nothing fits.

    Args:
      budget: bytes the link carries before the deadline (:meth:`Link.bytes_within`).
      ladder: codecs to try, most precise first; a device begins at the precision it was told.
    """
    tried = []
    for codec in ladder:
        if codec.deflate or packed_size(values.shape, codec.precision) <= budget:
            payload = encode(values, codec, level)
            if len(payload) <= budget:
                return codec, payload
            tried.append((codec, payload))
    return min(tried, key=lambda pair: len(pair[1]))


def _inflate(payload: bytes, size: int) -> bytes:
    stream = zlib.decompressobj()
    try:
        packed = stream.decompress(payload, size + 1)
    except zlib.error:
        raise CodecError("not a zlib stream") from None
    if not stream.eof or stream.unused_data or len(packed) > size:
        raise CodecError(f"a zlib stream that does not end after {size} bytes")
    return packed


def _channels(shape: Sequence[int]) -> int:
    """Scales of an int8 payload: one per entry of the last axis."""
    return int(shape[-1])


def _scales(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """One step of int8 per channel: largest magnitude / 127, float32 ``[channels]``."""
    rows = values.reshape(-1, _channels(values.shape)) if values.size else np.zeros(
        (1, _channels(values.shape)), np.float32)
    return (np.abs(rows).max(axis=0) / np.float32(INT8_MAX)).astype(np.float32)


def _exponent(values: NDArray[np.float32]) -> int:
    """The power of two that brings the largest magnitude below 2¹⁵; 0 where it already is."""
    largest = float(np.abs(values).max(initial=0.0))
    return max(0, int(np.frexp(largest)[1]) - FLOAT16_MAX_EXPONENT)
