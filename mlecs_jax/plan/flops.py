"""Floating-point operations of the stages, by formula: products of matrices alone.

A compiler's own count takes the body of a loop once, so that it says little about scanned layers
and counted steps; on unrolled small models the two agree (tests/plan).

B samples of T positions, n = B T; a multiplication and an addition are two operations. A frozen
matrix of P entries costs 2nP forward and 2nP backward (its own gradient is never formed), an
adapter of P entries 2nP and 4nP. Rematerialised layers run forward twice, but for the outputs that
nothing but the residual stream needs.
"""

from __future__ import annotations

import math
import re
from typing import Any

import jax

from mlecs_jax import sharding
from mlecs_jax.models.decoder import DecoderConfig

Tree = Any
LAST = {  # products whose results only the residual stream takes: not computed again
    "gptj": r"(attention/out_proj|mlp_fc_out)", "gpt2": r"mlp_c_proj"}
LAST_GATED = r"mlp_down_proj"
CROSS_ENTROPY, TEACHER, STUDENT = 2, 1, 2  # passes over the vocabulary head


def entries(tree: Tree, pattern: str = "") -> int:
    """Scalars in the leaves whose path matches."""
    return sum(math.prod(leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
               if re.search(pattern, sharding.path_name(path)))


def block_forward(config: DecoderConfig, backbone: Tree, lora: Tree, batch: int, length: int,
                  columns: int | None = None) -> float:
    """All layers, forward; ``columns`` that a query sees where a cache holds more than ``length``.

    The whole square of scores is computed, masked or not.
    """
    tokens = batch * length
    attention = 4 * batch * length * (columns or length) * config.num_heads * config.head_width
    return float(2 * tokens * (entries(backbone, r"block.*kernel$") + entries(lora))
                 + attention * config.num_layers)


def block_training(
    config: DecoderConfig, backbone: Tree, lora: Tree, batch: int, length: int
) -> float:
    """All layers, forward and backward, with frozen matrices and trained adapters."""
    tokens = batch * length
    forward = block_forward(config, backbone, lora, batch, length)
    total = 3 * forward - 2 * tokens * entries(backbone, r"block.*kernel$")
    if config.remat:
        last = LAST.get(config.family, LAST_GATED)
        total += forward - 2 * tokens * (
            entries(backbone, rf"block.*{last}/kernel$") + entries(lora, rf"{last}/b$"))
    return total


def head(config: DecoderConfig, batch: int, answer: int, passes: int) -> float:
    """Passes of answer positions over the vocabulary."""
    return 2.0 * batch * answer * config.vocab_size * config.width * passes


def outside(groups: Tree, batch: int, *, training: bool) -> float:
    """Extractor, connector and generator: a product a sample and matrix."""
    own = {name: tree for name, tree in groups.items() if name != "lora"}
    return (6.0 if training else 2.0) * batch * entries(own, r"kernel$")
