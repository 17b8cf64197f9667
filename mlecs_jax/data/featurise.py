"""Text as feature vectors, for modalities that are given as words (captions, subtitles).

Two named featurisers: ``hashed-ngrams-v1`` needs no files and no fitting, so that the same text
has the same vector everywhere; a directory of a BERT or RoBERTa encoder gives mean hidden states of
the layer that says most about meaning.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mlecs_jax.data.hashed_ngrams import NAME as HASHED
from mlecs_jax.data.hashed_ngrams import hashed_ngrams
from mlecs_jax.errors import UserError

Featuriser = Callable[[Sequence[str]], np.ndarray]
"""``n`` texts to float32 ``[n, width]``; an empty text is a zero vector."""


def featuriser(name: str, width: int) -> Featuriser:
    """The featuriser of a name: ``hashed-ngrams-v1`` with ``width`` numbers, or a directory.

    Raises:
      UserError: neither a known name nor a directory.
    """
    if name == HASHED:
        return functools.partial(hashed_ngrams, width=width)
    directory = Path(name).expanduser()
    if directory.is_dir():
        return functools.partial(_encoder_means, directory)
    raise UserError(f"captions.featuriser is '{name}'; use {HASHED}, or the directory of a BERT or "
                    "RoBERTa encoder")


def _encoder_means(directory: Path, texts: Sequence[str]) -> np.ndarray:
    """Mean hidden state of a user's encoder over each text's tokens, of the layer that BERTScore's
    authors recommend for a model of its kind and depth (:data:`bert.BEST_LAYERS`), else the last.
    """
    from mlecs_jax.metrics.bertscore import load_encoder  # imports jax and transformers

    vectors = load_encoder(directory).means(texts)
    vectors[[not text.strip() for text in texts]] = 0
    return vectors
