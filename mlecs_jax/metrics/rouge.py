"""ROUGE of generated captions by the `rouge-score` package, with its stemmer.

C.-Y. Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004. ``rougeLsum`` wants one
sentence a line, which :func:`sentences` makes.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

import numpy as np
from nltk.stem import porter
from rouge_score import rouge_scorer, tokenize, tokenizers

NAMES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
PRIMARY = "rougeLsum"
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


class _CachedTokenizer(tokenizers.Tokenizer):
    """rouge-score's own tokens; words and texts come every round, and are stemmed once."""

    def __init__(self) -> None:
        stemmer = porter.PorterStemmer()
        word = functools.lru_cache(maxsize=100_000)(lambda w: tokenize.tokenize(w, stemmer))
        self._text = functools.lru_cache(maxsize=100_000)(
            lambda text: [t for w in tokenize.tokenize(text, None) for t in word(w)])

    def tokenize(self, text: str) -> list[str]:
        return self._text(text)


@functools.cache
def _scorer() -> rouge_scorer.RougeScorer:
    return rouge_scorer.RougeScorer(list(NAMES), tokenizer=_CachedTokenizer())


def sentences(text: str) -> str:
    """One sentence a line."""
    return "\n".join(_SENTENCE_END.split(text.strip()))


def rouge(references: Sequence[str], generated: Sequence[str]) -> dict[str, np.ndarray]:
    """F-measures of each pair in [0, 1], float64 ``[n]``, by name out of :data:`NAMES`.

    Raises:
      ValueError: different numbers of references and generated texts.
    """
    if len(references) != len(generated):
        raise ValueError(f"{len(references)} references but {len(generated)} generated texts")
    pairs = [_pair(reference, text) for reference, text in zip(references, generated, strict=True)]
    table = np.array(pairs, np.float64).reshape(-1, len(NAMES))
    return {name: table[:, i] for i, name in enumerate(NAMES)}


@functools.lru_cache(maxsize=50_000)
def _pair(reference: str, text: str) -> tuple[float, ...]:
    found = _scorer().score(sentences(reference), sentences(text))
    return tuple(float(found[name].fmeasure) for name in NAMES)
