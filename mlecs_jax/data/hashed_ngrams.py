"""Text as feature vectors by hashing: the same text has the same vector everywhere, without files
and without fitting. NumPy alone, so that exported predictors read texts too."""

from __future__ import annotations

import functools
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

NAME = "hashed-ngrams-v1"
_ROWS = 1 << 14  # of the projection: n-grams that share a row are one feature
_WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)?")
# Words that say little about what a text is about: an encoder of 64 numbers has no room for them.
_COMMON = frozenset(
    "a an the and or but if then so as of to in on at by for with from into over up down out off "
    "is are was were be been being am do does did have has had will would can could may might "
    "i you he she it we they me him her us them my your his its our their this that these those "
    "there here what which who how when where while not no just like very some any all".split())
_COMMON_WEIGHT, _PAIR_WEIGHT, _PART_WEIGHT = 0.1, 0.5, 0.3


def hashed_ngrams(texts: Sequence[str], *, width: int) -> np.ndarray:
    """Words, pairs of neighbouring words and four-letter parts of words, hashed (CRC-32) to rows
    of one fixed Gaussian matrix and summed with weight √count; unit length.

    Returns:
      float32 ``[n, width]``; zeros for a text without a word.
    """
    projection = _projection(width)
    vectors = np.zeros((len(texts), width), np.float32)
    for vector, text in zip(vectors, texts, strict=True):
        grams = _grams(text)
        if grams:
            rows, weights = zip(*grams.items(), strict=True)
            vector[:] = np.asarray(weights, np.float32) @ projection[list(rows)]
            vector /= np.linalg.norm(vector)
    return vectors


def _grams(text: str) -> dict[int, float]:
    """Weight of each projection row that a text touches."""
    words = _WORD.findall(text.lower())
    telling = [word for word in words if word not in _COMMON]
    weights: defaultdict[int, float] = defaultdict(float)
    for gram, count in Counter(words).items():
        weights[_row("w", gram)] += (_COMMON_WEIGHT if gram in _COMMON else 1.0) * count**0.5
    for (first, second), count in Counter(zip(telling, telling[1:], strict=False)).items():
        weights[_row("p", f"{first} {second}")] += _PAIR_WEIGHT * count**0.5
    parts = Counter(part for word in telling if len(word) > 4
                    for part in (word[i:i + 4] for i in range(len(word) - 3)))
    for part, count in parts.items():
        weights[_row("c", part)] += _PART_WEIGHT * count**0.5
    return weights


def _row(kind: str, gram: str) -> int:
    return zlib.crc32(f"{kind}:{gram}".encode()) % _ROWS


@functools.lru_cache(maxsize=2)
def _projection(width: int) -> np.ndarray:
    generator = np.random.Generator(np.random.Philox(0))
    return generator.standard_normal((_ROWS, width), np.float32)


def joined(captions: Iterable[str] | str) -> str:
    """Captions of one modality as sentences of one text, each once."""
    lines = [captions] if isinstance(captions, str) else captions
    return ". ".join(dict.fromkeys(stripped for line in lines if (stripped := line.strip(" ."))))
