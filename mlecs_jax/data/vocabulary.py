"""Tokenizers with a vocabulary: trained on given texts, or the one a backbone came with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlecs_jax.errors import UserError

END = "<|endoftext|>"


class VocabularyTokenizer:
    """What the program needs (:class:`mlecs_jax.data.text.Tokenizer`) of a transformers tokenizer.

    No special tokens are added to a text, and decoding stops at the first end of sequence.

    Attributes:
      wrapped: the transformers tokenizer.

    Raises:
      UserError: it has no end-of-sequence token.
    """

    def __init__(self, tokenizer: Any):
        if tokenizer.eos_token_id is None:
            raise UserError("the backbone's tokenizer has no end-of-sequence token, so no answer "
                            "could end; set eos_token in its tokenizer_config.json")
        self.wrapped = tokenizer
        self.eos_token_id = int(tokenizer.eos_token_id)
        self._size = 1 + max(tokenizer.get_vocab().values())

    def __len__(self) -> int:
        """One more than the highest token id."""
        return self._size

    def encode(self, text: str) -> list[int]:
        """Token ids, without any special token."""
        return list(self.wrapped.encode(text, add_special_tokens=False))

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text up to the first end-of-sequence token; padding (-1) is no token."""
        return self.wrapped.decode(until(token_ids, self.eos_token_id),
                                      skip_special_tokens=True)

    def begins(self, other: VocabularyTokenizer) -> bool:
        """Whether the other numbers this one's tokens alike, and what more it has comes after them,
        as GPT-J's 143 tokens without a text come after GPT-2's."""
        own, whole = self.wrapped.get_vocab(), other.wrapped.get_vocab()
        return all(whole.get(token) == i for token, i in own.items()) and all(
            token in own for token, i in whole.items() if i < len(self))


def trained_bpe(texts: Sequence[str], size: int) -> VocabularyTokenizer:
    """A byte-level BPE of at most ``size`` tokens learnt from texts; any text can be encoded.

    The same texts give the same tokenizer.

    Raises:
      UserError: fewer tokens than the 256 bytes and the end of sequence.
    """
    if size < 257:
        raise UserError(f"captions.vocabulary is {size}; give at least 257, the bytes and the end "
                        "of sequence")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=size, special_tokens=[END], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    return VocabularyTokenizer(PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=END, bos_token=END, pad_token=END,
        clean_up_tokenization_spaces=False))


def until(token_ids: Sequence[int], end: int) -> list[int]:
    """Tokens before the first ``end``, without padding (negative ids)."""
    ids = [int(token) for token in token_ids if token >= 0]
    return ids[:ids.index(end)] if end in ids else ids
