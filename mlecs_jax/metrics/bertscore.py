"""BERTScore with an encoder the user gives as a local directory; there is none without one.

T. Zhang et al., "BERTScore: Evaluating Text Generation with BERT", ICLR 2020: every token's hidden
state is matched greedily with the most similar one of the other text; precision over generated,
recall over reference tokens, F their harmonic mean. Scores are rescaled, (F − b) / (1 − b), with b
the mean F of unrelated texts, measured here on the reference corpus itself. They depend on the
encoder, so their name carries it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from mlecs_jax.errors import UserError

BASELINE_PAIRS = 1000
_BATCH = 64  # texts in one forward pass
_LENGTHS = (16, 32, 64, 128, 256, 512)  # tokens; one compiled program each


@runtime_checkable
class Embedder(Protocol):
    """Texts to hidden states."""

    name: str

    def embed(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Float32 ``[tokens, D]`` per text, special tokens left out."""
        ...


class DirectoryEncoder:
    """A BERT or RoBERTa encoder of a Hugging Face directory (:mod:`mlecs_jax.models.bert`)."""

    def __init__(self, directory: Path):
        from mlecs_jax.models import bert  # imports jax and transformers

        self.name = re.sub(r"[^A-Za-z0-9]+", "_", directory.resolve().name).strip("_")
        self._encode, self._tokenizer = bert.load(directory)
        self._known: dict[str, np.ndarray] = {}

    def embed(self, texts: Sequence[str]) -> list[np.ndarray]:
        """See :class:`Embedder`; a text seen before is not encoded again."""
        new = sorted({text for text in texts if text not in self._known}, key=len)
        for start in range(0, len(new), _BATCH):
            self._add(new[start:start + _BATCH])
        return [self._known[text] for text in texts]

    def _add(self, texts: list[str]) -> None:
        longest = min(_LENGTHS[-1], self._tokenizer.model_max_length)
        ids = [self._tokenizer.encode(text, truncation=True, max_length=longest) for text in texts]
        width = next(n for n in _LENGTHS if n >= max(map(len, ids)))
        tokens = np.zeros((_BATCH, width), np.int32)
        mask = np.zeros((_BATCH, width), bool)
        mask[:, 0] = True  # rows that fill the batch hold one token, so that none is empty
        for row, own in enumerate(ids):
            tokens[row, :len(own)], mask[row, :len(own)] = own, True
        states = np.asarray(self._encode(tokens, mask), np.float32)
        special = set(self._tokenizer.all_special_ids)
        for text, own, state in zip(texts, ids, states, strict=False):
            kept = [i for i, token in enumerate(own) if token not in special]
            self._known[text] = state[kept]


@functools.lru_cache(maxsize=2)
def load_encoder(directory: Path) -> DirectoryEncoder:
    """The encoder of a directory, loaded once a process.

    Raises:
      UserError: no such directory, or no encoder that can be read.
    """
    if not directory.is_dir():
        raise UserError(f"no encoder directory {directory}; give one with config.json, "
                        "model.safetensors and the tokenizer's files")
    return DirectoryEncoder(directory)


def bertscore(
    encoder: Embedder, references: Sequence[str], generated: Sequence[str], baseline: float
) -> np.ndarray:
    """Rescaled F of each pair, float64 ``[n]``, 1 for equal texts and about 0 for unrelated ones.

    Args:
      baseline: of :func:`corpus_baseline`; 0 leaves F as it is.

    Raises:
      ValueError: different numbers of texts.
    """
    if len(references) != len(generated):
        raise ValueError(f"{len(references)} references but {len(generated)} generated texts")
    pairs = zip(encoder.embed(references), encoder.embed(generated), strict=True)
    return (np.array([greedy_f(a, b) for a, b in pairs], np.float64) - baseline) / (1 - baseline)


def corpus_baseline(encoder: Embedder, references: Sequence[str], seed: int = 0) -> float:
    """Mean F of references paired at random with other ones, at most :data:`BASELINE_PAIRS`."""
    rng = np.random.default_rng(seed)
    texts = list(dict.fromkeys(references))
    if len(texts) < 2:
        return 0.0
    n = min(BASELINE_PAIRS, len(texts))
    first = rng.permutation(len(texts))[:n]
    second = (first + rng.integers(1, len(texts), n)) % len(texts)  # never itself
    embedded = [encoder.embed([texts[i] for i in rows]) for rows in (first, second)]
    return float(np.mean([greedy_f(a, b) for a, b in zip(*embedded, strict=True)]))


def greedy_f(reference: np.ndarray, generated: np.ndarray) -> float:
    """F of greedy matching by cosine between states ``[R, D]`` and ``[G, D]``; 0 where one of the
    texts has no token."""
    if not len(reference) or not len(generated):
        return 0.0
    cosines = _unit(reference) @ _unit(generated).T
    recall, precision = cosines.max(axis=1).mean(), cosines.max(axis=0).mean()
    total = float(recall + precision)
    return 2 * float(recall * precision) / total if total > 0 else 0.0


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
