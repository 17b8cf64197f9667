"""The edge's predictor: packets of one reading in, one sentiment out. No training code.

A predictor is a folder that :mod:`mlecs_jax.mega.export` writes::

    predictor.msgpack   what it expects, and hashes of the other two
    program.bin         the model as a serialised ``jax.export`` program
    weights.npz         its parameters, standardisation included, in the program's order

Loading and answering import JAX, NumPy and msgpack alone, so that an edge needs neither flax nor
the model's definition.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.export
import msgpack
import numpy as np
from numpy.typing import NDArray

from mlecs_jax.errors import UserError
from mlecs_jax.mega.packets import Receiver, Sender

DESCRIPTION, PROGRAM, WEIGHTS = "predictor.msgpack", "program.bin", "weights.npz"
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Answer:
    """What goes back to the end device.

    Attributes:
      device, time_us: of the reading.
      sentiment: in [-3, 3].
      missing: modalities that no usable packet brought; the model read them as silence.
    """

    device: str
    time_us: int
    sentiment: float
    missing: tuple[str, ...]

    def pack(self) -> bytes:
        """The answer as msgpack, some 60 bytes."""
        return bytes(msgpack.Packer(use_bin_type=True).pack(dataclasses.asdict(self)))


class Predictor:
    """A loaded predictor behind a receiver.

    Args:
      folder: written by :func:`mlecs_jax.mega.export.export`.
      devices: registered devices, best the live :attr:`registration.Registry.senders`; None:
        nobody is registered, and :meth:`predict` alone can be used.

    Raises:
      UserError: files are missing, damaged or of another format.
    """

    def __init__(self, folder: Path,
                 devices: Mapping[str, Sender] | None = None):
        try:
            found = msgpack.unpackb((folder / DESCRIPTION).read_bytes())
            program = (folder / PROGRAM).read_bytes()
            weights = (folder / WEIGHTS).read_bytes()
            if found["format"] != FORMAT:
                raise UserError(f"{folder} has format {found['format']}, this version reads "
                                f"{FORMAT}; export the predictor again")
            hashes = {PROGRAM: program, WEIGHTS: weights}
            if any(found["sha256"][name] != sha256(data) for name, data in hashes.items()):
                raise UserError(f"{folder}: files of several predictors, or damaged ones; export "
                                "the predictor again")
            self.shapes: dict[str, tuple[int, int]] = {
                name: (int(steps), int(width)) for name, (steps, width) in found["shapes"].items()}
        except (OSError, ValueError, KeyError, TypeError, msgpack.UnpackException) as error:
            raise UserError(f"{folder} holds no predictor ({error}); export one with "
                            "python -m mlecs_jax.predict export --packets") from None
        with np.load(io.BytesIO(weights)) as archive:
            self._weights = jax.device_put([archive[str(i)] for i in range(len(archive.files))])
        self._program = jax.jit(jax.export.deserialize(bytearray(program)).call)
        self.receiver = Receiver({} if devices is None else devices)

    def answer(self, reading: Sequence[bytes]) -> Answer | None:
        """The answer to the packets of one reading; None if none of them may be used.

        Refused packets are counted in ``receiver.refused``. Of packets of several devices or
        times, those of the first accepted one are the reading.
        """
        packets = [packet for data in reading if (packet := self.receiver.receive(data))]
        if not packets:
            return None
        first = packets[0].header
        features = {packet.header.modality: packet.values for packet in packets
                    if (packet.header.device, packet.header.time_us)
                    == (first.device, first.time_us)}
        missing = tuple(name for name in self.shapes if name not in features)
        return Answer(first.device, first.time_us, self.predict(features), missing)

    def predict(self, features: Mapping[str, NDArray[np.float32]]) -> float:
        """Sentiment of cleaned features, ``{modality: float32 [T, d]}``; a shorter sequence is
        padded on the left, an absent modality is read as silence.

        Raises:
          UserError: features of another width, or longer than the model reads.
        """
        inputs = []
        for name, (steps, width) in self.shapes.items():
            values = features.get(name, np.zeros((0, width), np.float32))
            if values.ndim != 2 or values.shape[1] != width or len(values) > steps:
                raise UserError(f"{name} has shape {values.shape}; this predictor reads at most "
                                f"{steps} steps of {width}")
            if len(values) < steps:
                values = np.concatenate(
                    [np.zeros((steps - len(values), width), np.float32), values])
            inputs.append(np.asarray(values, np.float32)[None])
        return float(np.asarray(self._program(self._weights, inputs))[0])


def sha256(data: bytes) -> str:
    """Hash of a file's bytes, hexadecimal."""
    return hashlib.sha256(data).hexdigest()
