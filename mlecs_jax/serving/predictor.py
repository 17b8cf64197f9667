"""A node's program behind named readings: rows in, answers out.

The same class answers in a run's process and, loaded from one file, on a machine that has neither
the run nor the training code.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np

from mlecs_jax.errors import UserError
from mlecs_jax.serving.description import CAPTIONS, CLASSES, Description

DESCRIPTION, PROGRAM, WEIGHTS, TOKENS = "predictor.json", "program.bin", "weights/{}.npy", "tokens"
FORMAT = 1
LARGEST_BATCH = 64
Answer = dict[str, Any]
"""``class`` (None: no class was answered) and ``probabilities``; ``caption``; or ``sentiment``."""

Program = Callable[[list[np.ndarray], np.ndarray], Any]
"""``([float32 [B, …] per modality], bool [B, M]) →`` for classes the number answered, int ``[B]``
(-1: none), and probabilities ``[B, C]``; caption tokens ``[B, T]``; or sentiments ``[B]``."""


class Predictor:
    """Answers of one node.

    Args:
      program: of any number of rows.
      decode: tokens to text, for captions.
    """

    def __init__(self, description: Description, program: Program,
                 decode: Callable[[Sequence[int]], str] | None = None):
        self.description = description
        self._program = program
        self._decode = decode

    def predict(self, rows: Sequence[Mapping[str, Any]]) -> list[Answer]:
        """The answer to each row ``{modality: numbers of its shape}``, in any subset of modalities.

        Raises:
          UserError: a reading of another shape, or of a modality that the node does not have.
        """
        answers: list[Answer] = []
        for start in range(0, len(rows), LARGEST_BATCH):
            chunk = rows[start:start + LARGEST_BATCH]
            inputs, mask = self._stacked(chunk)
            # Sizes are powers of two, so that few programs are compiled; filling is cut off.
            size = 1 << (len(chunk) - 1).bit_length()
            fill = np.resize(np.arange(len(chunk)), size)
            out = jax.device_get(self._program([x[fill] for x in inputs], mask[fill]))
            answers += self._answers(out)[:len(chunk)]
        return answers

    def _stacked(self, rows: Sequence[Mapping[str, Any]]) -> tuple[list[np.ndarray], np.ndarray]:
        modalities = self.description.modalities
        mask = np.zeros((len(rows), len(modalities)), bool)
        inputs = [np.zeros((len(rows), *m.shape), np.float32) for m in modalities.values()]
        place = {name: i for i, name in enumerate(modalities)}
        for number, row in enumerate(rows):
            for name, value in row.items():
                if name not in self.description.owned:
                    raise UserError(f"row {number}: {self.description.node} has no '{name}'; it "
                                    f"reads {', '.join(self.description.owned)}")
                reading = np.asarray(value, np.float32)
                if reading.shape != modalities[name].shape:
                    raise UserError(f"row {number}: {name} has shape {reading.shape}, this model "
                                    f"reads {modalities[name].shape}")
                inputs[place[name]][number] = reading
                mask[number, place[name]] = True
        return inputs, mask

    def _answers(self, out: Any) -> list[Answer]:
        task, names = self.description.task, self.description.class_names
        if task == CLASSES:
            numbers, probabilities = out
            return [{"class": names[n] if n >= 0 else None,
                     "probabilities": dict(zip(names, map(float, p), strict=True))}
                    for n, p in zip(numbers, probabilities, strict=True)]
        if task == CAPTIONS:
            assert self._decode is not None
            return [{"caption": self._decode(tokens.tolist()).strip()} for tokens in out]
        return [{"sentiment": float(value)} for value in out]


def load(path: str | Path) -> Predictor:
    """The predictor of a file that ``python -m mlecs_jax.predict export`` wrote.

    Raises:
      UserError: there is none, or it is damaged or of another format.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            found = json.loads(archive.read(DESCRIPTION))
            if found["format"] != FORMAT:
                raise UserError(f"{path} has format {found['format']}, this version reads {FORMAT};"
                                " export it again")
            exported = jax.export.deserialize(bytearray(archive.read(PROGRAM)))
            # One at a time, straight onto the device: a backbone is not held twice.
            weights = [jax.device_put(_array(archive, WEIGHTS.format(i), dtype))
                       for i, dtype in enumerate(found["weights"])]
            table = archive.read(TOKENS) if "tokens" in found else b""
            description = Description.from_json(found["description"])
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} holds no predictor, or a damaged one "
                        f"({str(error).splitlines()[0]}); export it again") from None
    call = jax.jit(exported.call)
    decode = _decoder(table, found["tokens"], found["end"]) if "tokens" in found else None
    return Predictor(description, lambda inputs, mask: call(weights, inputs, mask), decode)


def _array(archive: zipfile.ZipFile, name: str, dtype: str) -> np.ndarray:
    with archive.open(name) as file:
        return np.lib.format.read_array(file, allow_pickle=False).view(jax.numpy.dtype(dtype))


def _decoder(table: bytes, lengths: Sequence[int], end: int) -> Callable[[Sequence[int]], str]:
    """Text of tokens up to the first end of sequence; negative ids are padding."""
    edges = np.concatenate([[0], np.cumsum(lengths)])

    def decode(tokens: Sequence[int]) -> str:
        ids = [token for token in tokens if token >= 0]
        ids = ids[:ids.index(end)] if end in ids else ids
        return b"".join(table[edges[i]:edges[i + 1]] for i in ids).decode(errors="replace")

    return decode
