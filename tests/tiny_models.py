"""Tiny models of random weights in Hugging Face directories, for tests of what reads them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from mlecs_jax.data.vocabulary import VocabularyTokenizer
from mlecs_jax.models import hf, zoo
from mlecs_jax.models.decoder import Decoder

GOLDEN = Path(__file__).parent / "golden"


def decoder(directory: Path, shape: str, tokenizer: VocabularyTokenizer, seed: int = 0) -> Path:
    """A decoder of a shape (:mod:`mlecs_jax.models.zoo`) with its tokenizer."""
    config = zoo.decoder_config(shape, len(tokenizer))
    params = Decoder(config).init(jax.random.key(seed), jnp.zeros((1, 1), jnp.int32))["params"]
    hf.save(directory, config, jax.device_get(params), tokenizer=tokenizer.wrapped)
    return directory


def bert(directory: Path, words: Sequence[str]) -> Path:
    """The golden BERT with a tokenizer of words, texts of at most 16 tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    shutil.copytree(GOLDEN / "bert", directory)
    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words]
    assert len(known) <= json.loads((directory / "config.json").read_text())["vocab_size"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(known)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]",
        unk_token="[UNK]", model_max_length=16).save_pretrained(str(directory))
    return directory
