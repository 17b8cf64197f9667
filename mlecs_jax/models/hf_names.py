"""Names and layouts of a parameter here and in a Hugging Face checkpoint.

One table of regular expressions per architecture takes the '/'-joined path of a layer here to its
module name there, for reading, writing and adapters alike.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

import numpy as np
from flax import traverse_util

from mlecs_jax.models.decoder import DecoderConfig

Path = tuple[str, ...]

_GPT = (
    (r"(wte|wpe|ln_f)", r"transformer.\1"),
    (r"lm_head", r"lm_head"),
    (r"block_(\d+)/(ln_[12])", r"transformer.h.\1.\2"),
    (r"block_(\d+)/attention/(\w+)", r"transformer.h.\1.attn.\2"),
    (r"block_(\d+)/mlp_(\w+)", r"transformer.h.\1.mlp.\2"),
)
_LLAMA = (
    (r"wte", r"model.embed_tokens"),
    (r"ln_f", r"model.norm"),
    (r"lm_head", r"lm_head"),
    (r"block_(\d+)/ln_1", r"model.layers.\1.input_layernorm"),
    (r"block_(\d+)/ln_2", r"model.layers.\1.post_attention_layernorm"),
    (r"block_(\d+)/attention/(\w+/\w+)", r"model.layers.\1.self_attn.\2"),
    (r"block_(\d+)/attention/(\w+)", r"model.layers.\1.self_attn.\2"),
    (r"block_(\d+)/mlp_(\w+)", r"model.layers.\1.mlp.\2"),
)
MODULES = {"gpt2": _GPT, "gptj": _GPT, "llama": _LLAMA, "qwen2": _LLAMA, "qwen3": _LLAMA}
OPTIONAL_PREFIX = {"gpt2": "transformer.", "gptj": "transformer."}  # a bare model goes without
# Buffers of older checkpoints that hold no weight.
BUFFERS = re.compile(r"(.*\.)?(attn\.(bias|masked_bias)|rotary_emb\.inv_freq"
                     r"|attn\.embed_positions)$")
IN_BY_OUT = {"gpt2"}  # kernels are stored as here, [d_in, d_out]; elsewhere transposed
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}
ROOT_LEAVES = {"wte": ("wte", "weight"), "wpe": ("wpe", "weight"), "lm_head": ("lm_head", "weight"),
               "lm_head_bias": ("lm_head", "bias")}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a checkpoint and where it goes here.

    Attributes:
      name, shape: there.
      path: leaf here, e.g. ``('blocks', 'attention', 'c_attn', 'kernel')``.
      layer: index into the leaf's leading axis for a stacked layer, or None.
    """

    name: str
    shape: tuple[int, ...]
    path: Path
    layer: int | None


def module_name(config: DecoderConfig, layer: str) -> str:
    """The checkpoint's name of a layer here, e.g. ``block_0/attention/c_attn``."""
    for pattern, template in MODULES[config.family]:
        if match := re.fullmatch(pattern, layer):
            return match.expand(template)
    raise KeyError(layer)


def tensors(config: DecoderConfig, shapes: Mapping[str, Any]) -> Iterator[Tensor]:
    """Every tensor of the checkpoint of a decoder with these parameter shapes."""
    for path, leaf in flatten(shapes).items():
        if path[0] != "blocks":
            yield _tensor(config, path, path, leaf.shape, None)
            continue
        for i in range(leaf.shape[0]):
            yield _tensor(config, path, (f"block_{i}", *path[1:]), leaf.shape[1:], i)


def _tensor(
    config: DecoderConfig, path: Path, unrolled: Path, shape: tuple[int, ...], layer: int | None
) -> Tensor:
    if len(unrolled) == 1:
        root, leaf = ROOT_LEAVES[unrolled[0]]
    else:
        root, leaf = "/".join(unrolled[:-1]), LEAVES[unrolled[-1]]
    return Tensor(f"{module_name(config, root)}.{leaf}", stored_shape(config, unrolled[-1], shape),
                  path, layer)


def stored_shape(config: DecoderConfig, leaf: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in a checkpoint of a leaf of this shape here."""
    if leaf == "kernel":
        d_in, d_out = shape[0], math.prod(shape[1:])
        return (d_in, d_out) if config.family in IN_BY_OUT else (d_out, d_in)
    return (math.prod(shape),) if leaf == "bias" else tuple(shape)


def from_stored(
    config: DecoderConfig, leaf: str, value: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    """A checkpoint's tensor laid out as here, where it has ``shape``."""
    if leaf == "kernel" and config.family not in IN_BY_OUT:
        value = value.T
    return value.reshape(shape)


def to_stored(config: DecoderConfig, leaf: str, value: np.ndarray) -> np.ndarray:
    """A leaf (of one layer) laid out as in a checkpoint, contiguous."""
    if leaf == "kernel":
        value = value.reshape(len(value), -1)
        value = value if config.family in IN_BY_OUT else value.T
    elif leaf == "bias":
        value = value.reshape(-1)
    return np.ascontiguousarray(value)


def flatten(tree: Mapping[str, Any]) -> dict[Path, Any]:
    """Leaves by path; flax's own type also allows for inner nodes, which only an option keeps."""
    return cast(dict[Path, Any], traverse_util.flatten_dict(dict(tree)))
