"""An end device: readings are cleaned, given positions and a quality, and become packets.

§3.2 of Mega-CE²: ends serialise. Steps keep their place: padding stays zero on the left and every
codec keeps zero exactly, so that the model's positions, which it gives to steps that are not
zero, survive the trip. NumPy and msgpack only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from mlecs_jax.mega import codecs, packets
from mlecs_jax.mega.codecs import LADDER, PRECISIONS
from mlecs_jax.mega.links import Link
from mlecs_jax.mega.packets import Header
from mlecs_jax.mega.registration import Reply

MODALITIES = ("text", "audio", "vision")
LARGEST = 1e6
"""A magnitude that no feature reaches; beyond it a tracker has failed."""


def clean(
    modality: str, reading: NDArray[np.floating], length: int
) -> tuple[NDArray[np.float32], float]:
    """A reading ready to send, and the share of it that was usable.

    Values that are not finite, or absurdly large, become zero (COVAREP writes −inf for silence).
    Vision holds the last face seen over steps where the tracker lost it, which it reports as all
    zeros; in text and audio a step of zeros is a pause and stays one. A reading longer than
    ``length`` keeps its newest steps, a shorter one is zero-padded on the left.

    Args:
      reading: ``[t, d]``, any t.

    Returns:
      float32 ``[length, d]`` and the quality in [0, 1]: usable values of the kept steps, for
      vision those of steps with a face, over all values of ``length`` steps.

    Raises:
      ValueError: not ``[t, d]``, or an unknown modality.
    """
    if modality not in MODALITIES:
        raise ValueError(f"unknown modality '{modality}'; use {', '.join(MODALITIES)}")
    if reading.ndim != 2 or not reading.shape[1]:
        raise ValueError(f"a reading of shape {reading.shape}; give [steps, features]")
    kept = np.asarray(reading[max(0, len(reading) - length):], np.float32)
    usable = np.abs(kept) < LARGEST  # False for NaN
    values = np.where(usable, kept, np.float32(0))
    if modality == "vision" and len(values):
        seen = values.any(axis=1)
        usable = usable & np.expand_dims(seen, 1)
        newest = np.maximum.accumulate(np.where(seen, np.arange(len(values)), -1))
        values = np.where(np.expand_dims(newest >= 0, 1), values[np.maximum(newest, 0)], values)
    padded = np.zeros((length, reading.shape[1]), np.float32)
    padded[length - len(values):] = values
    return padded, float(usable.sum() / padded.size)


class EndDevice:
    """The sending side of one registered device.

    Args:
      id: as registered.
      reply: the edge's answer to the registration, made anew after every start.
      link: to the edge, for what fits before the deadline.
      clock: seconds since the epoch.
    """

    def __init__(self, id: str, reply: Reply, link: Link,
                 clock: Callable[[], float] = time.time):
        self.id = id
        self._reply = reply
        self._link = link
        self._clock = clock
        self._sequence = 0

    def serialise(self, readings: Mapping[str, NDArray[np.floating]]) -> list[bytes]:
        """One packet per modality of a reading; together they aim to meet the deadline.

        The budget of the deadline is shared in proportion to the sizes. Where even the smallest
        codec misses it the packet is sent all the same: late is for the edge to judge.
        """
        cleaned = {name: clean(name, reading, self._reply.lengths[name])
                   for name, reading in readings.items() if name in self._reply.lengths}
        total = sum(values.size for values, _ in cleaned.values())
        budget = self._link.bytes_within(self._reply.deadline)
        ladder = LADDER[2 * PRECISIONS.index(self._reply.dtype):]
        now = int(self._clock() * 1e6)
        result = []
        for name, (values, quality) in cleaned.items():
            codec, payload = codecs.encode_within(
                values, budget * values.size / total, self._reply.level, ladder)
            header = Header(now, self.id, self._reply.session, self._sequence, name, values.shape,
                            quality, codec.name)
            result.append(packets.encode(header, payload))
            self._sequence += 1
        return result
