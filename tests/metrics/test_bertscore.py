"""BERTScore with an encoder made up on the spot: a fixed vector per word."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from mlecs_jax.data import featurise
from mlecs_jax.errors import UserError
from mlecs_jax.metrics import bertscore
from tests import tiny_models

VECTORS = {"dog": (1, 0, 0), "cat": (0.8, 0.6, 0), "runs": (0, 0, 1), "rock": (0, 1, 0)}


class Words:
    """A word's state is its vector, whatever stands around it; <words> have no weight."""

    name = "words"

    def embed(self, texts):
        return [bertscore.Embedded(
            np.array([VECTORS[w.strip("<>")] for w in text.split()], np.float32).reshape(-1, 3),
            np.array(["<" not in w for w in text.split()], bool)) for text in texts]


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


def test_what_has_no_weight_may_still_be_matched():
    """As in the authors' greedy_cos_idf: weights are zero, columns of the similarity stay.
    'cat' finds the other text's <cat>, 1; 'dog' its 'cat', .8."""
    precision, recall = 1.0, 0.8
    assert score("<cat> dog", "cat") == pytest.approx(2 * precision * recall / (1 + 0.8))
    assert score("<cat> dog", "<cat>") == 0.0


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
    return tiny_models.bert(tmp_path / "tiny-bert", [f"w{i}" for i in range(20)])


def test_an_encoder_directory_gives_states_and_what_counts(encoder_directory):
    encoder = bertscore.load_encoder(encoder_directory)
    assert encoder.name == "tiny_bert"
    short, long, again, strange = encoder.embed(["w1 w2", "w3 " * 40, "w1 w2", "w1 zebra"])
    width = json.loads((encoder_directory / "config.json").read_text())["hidden_size"]
    assert short.states.shape == (4, width)  # with [CLS] and [SEP], which have no weight
    assert short.counts.tolist() == strange.counts.tolist() == [False, True, True, False]
    assert len(long.states) == 16 and long.counts.sum() == 14  # model_max_length
    assert again is short
    alone = bertscore.DirectoryEncoder(encoder_directory).embed(["w1 w2"])[0]
    np.testing.assert_allclose(short.states, alone.states, atol=1e-5)  # its batch is nothing to it
    found = bertscore.bertscore(encoder, ["w1 w2", "w1 w2"], ["w1 w2", "w9 w4 w5"], 0.0)
    assert found[0] == pytest.approx(1) and found[1] < 1
    vectors = featurise.featuriser(str(encoder_directory), 0)(["w1 w2", " ", "w1 w2"])
    np.testing.assert_allclose(vectors[0], short.states[1:3].mean(axis=0), rtol=1e-6)
    np.testing.assert_array_equal(vectors[0], vectors[2])
    assert vectors.shape == (3, width) and not vectors[1].any()


def test_memory_of_known_texts_is_bounded(encoder_directory, monkeypatch):
    encoder = bertscore.DirectoryEncoder(encoder_directory)
    size = encoder.embed(["w1 w2"])[0].states.size
    monkeypatch.setattr(bertscore, "_KEPT", 3 * size)
    texts = [f"w{i} w2" for i in range(8)]
    found = encoder.embed(texts)
    assert len(found) == 8 and encoder._known.keys() < set(texts)
    assert sum(own.states.size for own in encoder._known.values()) == encoder._kept <= 3 * size
    before = encoder._kept
    encoder.means(["w5 w6 w7"])
    assert encoder._kept == before and "w5 w6 w7" not in encoder._known


def test_roberta_reads_a_blank_before_the_first_word(tmp_path):
    """Its byte-level tokens of 'a' and ' a' differ; the authors' package takes the second."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    directory = Path(shutil.copytree(tiny_models.GOLDEN / "roberta", tmp_path / "tiny-roberta"))
    words = ["<s>", "<pad>", "</s>", "<unk>", "a", "Ġa", "b"]
    tokenizer = Tokenizer(models.BPE({w: i for i, w in enumerate(words + ["Ġ"])}, [("Ġ", "a")],
                                     unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, cls_token="<s>", bos_token="<s>", eos_token="</s>",
        sep_token="</s>", pad_token="<pad>", unk_token="<unk>",
        model_max_length=8).save_pretrained(str(directory))
    seen = []
    encoder = bertscore.DirectoryEncoder(directory)
    encode = encoder._encode
    encoder._encode = lambda tokens, mask: (seen.append(tokens), encode(tokens, mask))[1]
    own = encoder.embed(["a"])[0]
    assert seen[0][0, :3].tolist() == [0, 5, 2] and own.counts.tolist() == [False, True, False]
