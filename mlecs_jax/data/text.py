"""Text in and out of a language model: tokenizer, class answers, targets."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from mlecs_jax.data.samples import Samples
from mlecs_jax.errors import UserError

ANSWERS = string.digits + string.ascii_letters  # one distinct token per class in any tokenizer
PADDING = -1  # in targets; never a token id


@runtime_checkable
class Tokenizer(Protocol):
    """What the program needs of a tokenizer (a transformers tokenizer offers it too)."""

    eos_token_id: int

    def __len__(self) -> int: ...
    def encode(self, text: str) -> list[int]: ...
    def decode(self, token_ids: Sequence[int]) -> str: ...


class ByteTokenizer:
    """UTF-8 bytes as tokens and one end-of-sequence token: needs no files, knows any text."""

    eos_token_id = 256

    def __len__(self) -> int:
        return 257

    def encode(self, text: str) -> list[int]:
        """Token ids 0…255."""
        return list(text.encode())

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text up to the first end-of-sequence token."""
        ids = list(token_ids)
        if self.eos_token_id in ids:
            ids = ids[:ids.index(self.eos_token_id)]
        return bytes(i for i in ids if i < 256).decode(errors="replace")


def answer_ids(num_classes: int, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The token that answers each class: 0…9, then letters.

    Raises:
      UserError: more classes than single-token answers.
    """
    if num_classes > len(ANSWERS):
        raise UserError(f"{num_classes} classes: at most {len(ANSWERS)} can be answered by one "
                        "token; merge classes")
    ids = [tokenizer.encode(answer) for answer in ANSWERS[:num_classes]]
    if any(len(token) != 1 for token in ids):
        raise UserError("the tokenizer splits single digits or letters into several tokens; "
                        "use another backbone for classification")
    return tuple(token[0] for token in ids)


def targets(samples: Samples, tokenizer: Tokenizer, max_tokens: int = 70) -> np.ndarray:
    """Answer tokens and end-of-sequence per sample, int32 ``[n, T]``, padded with -1.

    A text begins with a blank, as words inside a text do, since it follows the prompt.

    Args:
      max_tokens: longest text target kept, T ≤ max_tokens + 1 (ML-ECS: captions of ≤ 70 tokens);
        one that is cut has no end-of-sequence token, so that no model learns to stop midway.
    """
    if samples.labels is not None:
        answers = np.asarray(answer_ids(len(samples.class_names), tokenizer), np.int32)
        end = np.full(len(samples), tokenizer.eos_token_id, np.int32)
        return np.stack([answers[samples.labels], end], axis=1)
    rows = []
    for text in samples.texts or ():
        ids = tokenizer.encode(" " + text.strip())
        rows.append(ids[:max_tokens] if len(ids) > max_tokens else [*ids, tokenizer.eos_token_id])
    padded = np.full((len(rows), max(map(len, rows))), PADDING, np.int32)
    for row, ids in zip(padded, rows, strict=True):
        row[:len(ids)] = ids
    return padded
