"""Backbones by name: shapes of the papers' models, and small seeded ones."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Literal, cast

from mlecs_jax.errors import UserError
from mlecs_jax.models import hf_config
from mlecs_jax.models.decoder import DecoderConfig, Family

DIRECTORY = "hf:"
PRETRAINED = "pretrained:"  # before a name: trained on public text, see mlecs_jax.backbones
GPT2_VOCABULARY = 50_257
GPTJ_VOCABULARY = 50_400  # GPT-2's 50,257 and 143 unused rows

_SMALL = re.compile(r"(gpt2|gptj|llama|qwen2|qwen3)-(\d+)x(\d+)(?:x(\d+))?")
_NAMED: dict[str, tuple[Family, int, int, int, int, int]] = {
    # name: (family, vocabulary, layers, width, heads, positions)
    "gpt2": ("gpt2", GPT2_VOCABULARY, 12, 768, 12, 1024),
    # GPT-J's number of rows: a mesh can split them, and the server's two heads alike.
    "gpt2-large": ("gpt2", GPTJ_VOCABULARY, 36, 1280, 20, 1024),
    "gpt-j-6b": ("gptj", GPTJ_VOCABULARY, 28, 4096, 16, 2048),
}
HALF = ("gpt2-large", "gpt-j-6b")  # of a size for accelerators: bfloat16


def decoder_config(
    name: str, vocab_size: int, dtype: Literal["float32", "bfloat16"] | None = None
) -> DecoderConfig:
    """The shape of a named backbone.

    Args:
      name: ``gpt2``, ``gpt2-large``, ``gpt-j-6b``; ``FAMILY-LAYERSxWIDTH[xHEADS]`` for a small
        one (4 heads unless given), e.g. ``gpt2-2x64`` or ``llama-6x256``; or ``hf:DIRECTORY``, a
        checkpoint (:mod:`mlecs_jax.models.hf`).
      vocab_size: tokens of the tokenizer in use; a small backbone gets just these, rounded up to
        a multiple of 8, a named one keeps its own if that is larger.
      dtype: of a directory's parameters, whatever the file has; None: float32. Shapes have their
        own.

    Raises:
      UserError: an unknown name, an impossible shape, or a directory's embedding too small.
    """
    if name.startswith(DIRECTORY):
        config = hf_config.read(Path(name.removeprefix(DIRECTORY)))
        if config.vocab_size < vocab_size:
            raise UserError(f"{name}: its embedding has {config.vocab_size} rows for {vocab_size} "
                            "tokens; use its own tokenizer")
        return dataclasses.replace(config, dtype=dtype or config.dtype)
    if name in _NAMED:
        family, vocabulary, layers, width, heads, positions = _NAMED[name]
        return DecoderConfig(family, max(vocabulary, vocab_size), layers, width, heads,
                             max_positions=positions, scan_layers=True, remat=True,
                             dtype="bfloat16" if name in HALF else "float32")
    match = _SMALL.fullmatch(name)
    if not match:
        raise UserError(f"unknown backbone '{name}'; use {', '.join(_NAMED)}, a small one such as "
                        "gpt2-2x64 or gptj-3x128 (layers x width), or hf:DIRECTORY")
    layers, width, heads = (int(x) for x in (*match.groups()[1:3], match[4] or 4))
    if not layers or not heads or width % (2 * heads):
        raise UserError(f"backbone '{name}': the width must be a multiple of twice the "
                        f"{heads} heads")
    family = cast(Family, match[1])  # the pattern takes no other
    return DecoderConfig(family, -(-vocab_size // 8) * 8, layers, width, heads,
                         rotary_dim=max(2, width // heads // 4 * 2))
