"""Text files as documents, and documents as one stream of tokens."""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from mlecs_jax.data.text import Tokenizer
from mlecs_jax.data.vocabulary import END, VocabularyTokenizer, trained_bpe
from mlecs_jax.errors import UserError

WORDS = 3  # strings of fewer words in a JSON file are names and numbers
SMALLEST_VOCABULARY = 257  # the bytes and the end of sequence


def read(patterns: str) -> list[str]:
    """Documents, each once: the lines of text files, and every string of three words or more in
    ``.json``. What is held out is so never among what is trained on.

    Args:
      patterns: comma-separated file names; ``*`` and environment variables are expanded.

    Raises:
      UserError: a pattern without files, an unset variable, a file that is no text, no text.
    """
    documents: list[str] = []
    for pattern in filter(None, (p.strip() for p in patterns.split(","))):
        expanded = os.path.expanduser(os.path.expandvars(pattern))
        if unset := re.search(r"\$\{?(\w+)", expanded):
            raise UserError(f"data.files: {pattern} needs the environment variable {unset[1]}; "
                            "set it, or name text files")
        files = [Path(p) for p in sorted(glob.glob(expanded, recursive=True))]
        if not any(path.is_file() for path in files):
            raise UserError(f"data.files: no file matches {pattern}")
        for path in filter(Path.is_file, files):
            documents += _documents(path)
    if not documents:
        raise UserError("data.files: there is no text in them; name files with text")
    return list(dict.fromkeys(documents))


def _documents(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            return list(_sentences(json.loads(text)))
    except (OSError, ValueError) as error:
        raise UserError(f"data.files: {path} cannot be read as text ({error})") from None
    return [line for line in map(str.strip, text.splitlines()) if line]


def _sentences(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _sentences(item)
    elif isinstance(value, str) and len(value.split()) >= WORDS:
        yield " ".join(value.split())


def tokenizer(directory: str, size: int, documents: Sequence[str]) -> VocabularyTokenizer:
    """The tokenizer of a directory, or a BPE of at most ``size`` tokens learnt from the documents.

    Args:
      directory: with ``tokenizer.json``, or with GPT-2's two files (``vocab.json`` or
        ``*encoder.json``, ``merges.txt`` or ``*vocab.bpe``); empty: learn one.

    Raises:
      UserError: no tokenizer there, or a vocabulary too small.
    """
    if not directory:
        if size < SMALLEST_VOCABULARY:
            raise UserError(f"tokenizer.vocabulary is {size}; give at least {SMALLEST_VOCABULARY}, "
                            "the bytes and the end of sequence")
        return trained_bpe(documents, size)
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = Path(os.path.expandvars(directory))
    try:
        if (folder / "tokenizer.json").exists():
            bpe = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        else:
            vocabulary, merges = ([path for pattern in patterns
                                   for path in sorted(folder.glob(pattern))] for patterns in (
                ("vocab.json", "*encoder.json"), ("merges.txt", "*vocab.bpe")))
            if not vocabulary or not merges:
                raise UserError(f"tokenizer.directory: {folder} holds neither tokenizer.json nor "
                                "GPT-2's vocab.json and merges.txt")
            bpe = tokenizers.Tokenizer(models.BPE.from_file(str(vocabulary[0]), str(merges[0])))
            bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            bpe.decoder = decoders.ByteLevel()
    except UserError:
        raise
    except Exception as error:  # the tokenizers library raises no narrower kind
        raise UserError(f"tokenizer.directory: the files in {folder} cannot be read "
                        f"({error})") from None
    if bpe.token_to_id(END) is None:
        raise UserError(f"tokenizer.directory: the tokenizer in {folder} has no {END} token")
    return VocabularyTokenizer(PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=END, bos_token=END, pad_token=END,
        clean_up_tokenization_spaces=False))


def streams(
    documents: Sequence[str], tokenizer: Tokenizer, held_out: float, seed: int, window: int
) -> tuple[Int[np.ndarray, " tokens"], Int[np.ndarray, "windows length"]]:
    """Shuffled documents, each ended by the end of sequence: a stream to train on, and windows of
    ``window + 1`` tokens of the held-out share, at least one of each.

    Raises:
      UserError: too little text for one window of both.
    """
    order = np.random.default_rng(seed).permutation(len(documents))
    cut = max(1, round(held_out * len(documents)))

    def stream(rows: np.ndarray) -> np.ndarray:
        ids = [token for row in rows for token in (*tokenizer.encode(documents[int(row)]),
                                                            tokenizer.eos_token_id)]
        return np.asarray(ids, np.int32)

    kept, training = stream(order[:cut]), stream(order[cut:])
    windows = len(kept) // (window + 1)
    if not windows or len(training) <= window + 1:
        raise UserError(f"data.files: {len(training)} tokens to train on and {len(kept)} held out "
                        f"make no window of {window + 1} each; give more text, a larger "
                        "data.held_out or a shorter train.length")
    return training, kept[:windows * (window + 1)].reshape(windows, window + 1)
