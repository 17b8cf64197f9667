"""BERTScore with an encoder made up on the spot: a fixed vector per word."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from mlecs_jax.errors import UserError
from mlecs_jax.metrics import bertscore

GOLDEN = Path(__file__).parents[1] / "golden/bert"
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


@pytest.fixture
def encoder_directory(tmp_path):
    """The golden BERT with a tokenizer of words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    directory = Path(shutil.copytree(GOLDEN, tmp_path / "tiny-bert"))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(20))]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]",
        unk_token="[UNK]", model_max_length=16).save_pretrained(str(directory))
    config = json.loads((directory / "config.json").read_text())
    assert config["vocab_size"] >= len(words)
    return directory


def test_an_encoder_directory_gives_states_without_special_tokens(encoder_directory):
    encoder = bertscore.load_encoder(encoder_directory)
    assert encoder.name == "tiny_bert"
    short, long, again = encoder.embed(["w1 w2", "w3 " * 40, "w1 w2"])
    assert short.shape == (2, json.loads((encoder_directory / "config.json").read_text())[
        "hidden_size"])
    assert len(long) == 14  # model_max_length, less [CLS] and [SEP]
    np.testing.assert_array_equal(short, again)
    alone = bertscore.DirectoryEncoder(encoder_directory).embed(["w1 w2"])[0]
    np.testing.assert_allclose(short, alone, atol=1e-5)  # what is beside it in a batch is nothing
    found = bertscore.bertscore(encoder, ["w1 w2", "w1 w2"], ["w1 w2", "w9 w4 w5"], 0.0)
    assert found[0] == pytest.approx(1) and found[1] < 1
