"""ROUGE against figures worked out by hand, and against the package it wraps."""

import numpy as np
import pytest
from rouge_score import rouge_scorer

from mlecs_jax.metrics import rouge


def scores(reference, text):
    return {name: float(values[0]) for name, values in rouge.rouge([reference], [text]).items()}


def test_by_hand():
    """4 reference and 3 generated words, 2 shared, in order, never side by side."""
    found = scores("a dog runs fast", "a cat runs")
    precision, recall = 2 / 3, 2 / 4
    f = 2 * precision * recall / (precision + recall)
    assert found == pytest.approx({"rouge1": f, "rouge2": 0.0, "rougeL": f, "rougeLsum": f})


def test_stems_case_and_punctuation_do_not_matter():
    assert scores("The dogs are running.", "the dog are run")["rouge2"] == 1.0


def test_lsum_takes_sentences_apart():
    """Swapped sentences cost ROUGE-L, which keeps one order, and not ROUGE-LSum."""
    found = scores("A dog runs here. Two men sing.", "Two men sing. A dog runs here.")
    assert found["rougeLsum"] == 1.0 > found["rougeL"]
    assert rouge.sentences("One. Two? Three") == "One.\nTwo?\nThree"


def test_empty_texts_score_zero():
    assert set(scores("a dog", "").values()) == {0.0}
    assert all(values.shape == (0,) for values in rouge.rouge([], []).values())


def test_cached_tokens_change_nothing():
    rng = np.random.default_rng(0)
    words = np.array("a man is running and the dogs barked loudly while music's playing".split())
    texts = [" ".join(rng.choice(words, rng.integers(1, 12))) for _ in range(60)]
    found = rouge.rouge(texts[:30], texts[30:])
    scorer = rouge_scorer.RougeScorer(list(rouge.NAMES), use_stemmer=True)
    for i, (reference, text) in enumerate(zip(texts[:30], texts[30:], strict=True)):
        for name, expected in scorer.score(reference, text).items():
            assert found[name][i] == pytest.approx(expected.fmeasure)


def test_unequal_numbers_are_refused():
    with pytest.raises(ValueError, match="2 references but 1"):
        rouge.rouge(["a", "b"], ["a"])
