"""BERTScore with an encoder the user gives as a local directory; there is none without one.

T. Zhang et al., "BERTScore: Evaluating Text Generation with BERT", ICLR 2020: every token's hidden
state is matched greedily with the most similar one of the other text; precision over generated,
recall over reference tokens, F their harmonic mean. As in the authors' package, the first and last
token of a text ([CLS], [SEP]) may be matched but have no weight, an unknown word has one, and
RoBERTa reads a text as if a blank stood before it. Scores are rescaled, (F − b) / (1 − b), with b
the mean F of unrelated texts, measured here on the reference corpus itself. They depend on the
encoder, so their name carries it.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from mlecs_jax.errors import UserError

BASELINE_PAIRS = 1000
_BATCH = 64  # texts in one forward pass
_LENGTHS = (16, 32, 64, 128, 256, 512)  # tokens; one compiled program each
_KEPT = 1 << 26  # numbers of known states in memory, a quarter of a gigabyte


@dataclasses.dataclass(frozen=True, eq=False)
class Embedded:
    """A text in an encoder.

    Attributes:
      states: float32 ``[tokens, D]``.
      counts: bool ``[tokens]``: the token has a weight; False for what begins and ends a text.
    """

    states: np.ndarray
    counts: np.ndarray


@runtime_checkable
class Embedder(Protocol):
    """Texts to hidden states."""

    name: str

    def embed(self, texts: Sequence[str]) -> list[Embedded]:
        """Hidden states of every text."""
        ...


class DirectoryEncoder:
    """A BERT or RoBERTa encoder of a Hugging Face directory (:mod:`mlecs_jax.models.bert`)."""

    def __init__(self, directory: Path):
        from mlecs_jax.models import bert  # imports jax and transformers

        self.name = re.sub(r"[^A-Za-z0-9]+", "_", directory.resolve().name).strip("_")
        self._encode, self._tokenizer = bert.load(directory)
        config = bert.read_config(directory)
        self._before = " " if config.kind == "roberta" else ""
        self._longest = min(_LENGTHS[-1], self._tokenizer.model_max_length, config.longest)
        self._known: dict[str, Embedded] = {}  # the latest, of at most _KEPT numbers
        self._kept = 0

    def embed(self, texts: Sequence[str]) -> list[Embedded]:
        """See :class:`Embedder`; a text seen lately is not encoded again."""
        found = {text: self._known[text] for text in texts if text in self._known}
        new = dict(self._encoded(set(texts) - found.keys()))
        self._known |= new
        self._kept += sum(embedded.states.size for embedded in new.values())
        while self._kept > _KEPT:
            self._kept -= self._known.pop(next(iter(self._known))).states.size
        found |= new
        return [found[text] for text in texts]

    def means(self, texts: Sequence[str]) -> np.ndarray:
        """Mean state of each text's tokens that count, float32 ``[n, D]``; zeros for no token."""
        found = {text: own.states[own.counts].sum(axis=0) / max(1, own.counts.sum())
                 for text, own in self._encoded(set(texts))}
        return np.stack([found[text] for text in texts]).astype(np.float32)

    def _encoded(self, texts: set[str]) -> Iterator[tuple[str, Embedded]]:
        """States batch by batch, texts of about one length together."""
        ordered = sorted(texts, key=lambda text: (len(text), text))
        ends = {self._tokenizer.cls_token_id, self._tokenizer.sep_token_id}
        for start in range(0, len(ordered), _BATCH):
            batch = ordered[start:start + _BATCH]
            ids = [self._tokenizer.encode(self._before + text.strip(), truncation=True,
                                          max_length=self._longest) for text in batch]
            width = next(n for n in _LENGTHS if n >= max(map(len, ids)))
            tokens = np.zeros((_BATCH, width), np.int32)
            mask = np.zeros((_BATCH, width), bool)
            mask[:, 0] = True  # rows that fill the batch hold one token, so that none is empty
            for row, own in enumerate(ids):
                tokens[row, :len(own)], mask[row, :len(own)] = own, True
            states = np.asarray(self._encode(tokens, mask), np.float32)
            for text, own, state in zip(batch, ids, states, strict=False):
                # Copied: a view would hold the whole batch.
                yield text, Embedded(state[:len(own)].copy(),
                                     np.array([token not in ends for token in own], bool))


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


def greedy_f(reference: Embedded, generated: Embedded) -> float:
    """F of greedy matching by cosine; 0 where one of the texts has no token that counts."""
    if not reference.counts.any() or not generated.counts.any():
        return 0.0
    cosines = _unit(reference.states) @ _unit(generated.states).T
    recall = cosines.max(axis=1)[reference.counts].mean()
    precision = cosines.max(axis=0)[generated.counts].mean()
    total = float(recall + precision)
    return 2 * float(recall * precision) / total if total > 0 else 0.0


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
