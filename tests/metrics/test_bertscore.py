"""BERTScore with an encoder made up on the spot: a fixed vector per word."""

from pathlib import Path

import numpy as np
import pytest

from mlecs_jax.errors import UserError
from mlecs_jax.metrics import bertscore

VECTORS = {"dog": (1, 0, 0), "cat": (0.8, 0.6, 0), "runs": (0, 0, 1), "rock": (0, 1, 0)}


class Words:
    """A word's state is its vector, whatever stands around it."""

    name = "words"

    def embed(self, texts):
        return [np.array([VECTORS[w] for w in text.split()], np.float32).reshape(-1, 3)
                for text in texts]


def score(reference, text, baseline=0.0):
    return float(bertscore.bertscore(Words(), [reference], [text], baseline)[0])


def test_by_hand():
    """dog↔cat .8, runs↔runs 1; 'rock' has its best match, .6, in 'cat'."""
    precision, recall = (0.8 + 1) / 2, (0.8 + 1) / 2
    assert score("dog runs", "cat runs") == pytest.approx(
        2 * precision * recall / (precision + recall))
    precision, recall = (0.8 + 1) / 2, (0.8 + 1 + 0.6) / 3
    assert score("dog runs rock", "cat runs") == pytest.approx(
        2 * precision * recall / (precision + recall))


def test_baseline_moves_unrelated_texts_to_zero_and_leaves_equal_ones_at_one():
    texts = ["dog runs", "rock", "cat", "runs dog"]
    baseline = bertscore.corpus_baseline(Words(), texts)
    assert 0 < baseline < 1
    assert score("dog", "dog", baseline) == pytest.approx(1.0)
    assert score("dog", "rock", baseline) == pytest.approx(-baseline / (1 - baseline))


def test_baseline_never_pairs_a_text_with_itself():
    assert bertscore.corpus_baseline(Words(), ["dog", "runs", "dog"]) == pytest.approx(0.0)
    assert bertscore.corpus_baseline(Words(), ["dog"]) == 0.0


def test_an_empty_caption_scores_zero():
    assert score("dog", "") == 0.0


def test_bad_input_is_named(tmp_path):
    with pytest.raises(ValueError, match="1 references but 0"):
        bertscore.bertscore(Words(), ["dog"], [], 0.0)
    with pytest.raises(UserError, match="no encoder directory"):
        bertscore.load_encoder(Path(tmp_path / "nothing"))
