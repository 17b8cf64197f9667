"""Hugging Face directories: decoders in (tensor by tensor, onto a sharding) and out, tokenizers.

A directory holds ``config.json``, ``model.safetensors`` (or several files and their index) and a
tokenizer's files. Nothing is downloaded and no pickle is opened.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import NamedSharding, PartitionSpec, Sharding
from jax.typing import DTypeLike
from safetensors import SafetensorError
from safetensors.numpy import save_file

from mlecs_jax.errors import UserError
from mlecs_jax.lora import LoraConfig, Params
from mlecs_jax.models import hf_config, hf_files, hf_names
from mlecs_jax.models.decoder import Decoder, DecoderConfig
from mlecs_jax.models.hf_files import CONFIG, INDEX, WEIGHTS, Location
from mlecs_jax.models.hf_names import Tensor
from mlecs_jax.sharding import Placement

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
BESIDE_TOKENIZER = ("merges.txt", "tokenizer_config.json", "special_tokens_map.json",
                    "added_tokens.json", "chat_template.jinja")
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")
# Rows of an embedding that no token of its own tokenizer needs. In use: 143 (GPT-J), up to 418
# (Qwen2), of large vocabularies 2.4 % (100,015 tokens in 102,400 rows).
UNUSED_ROWS, UNUSED_SHARE = 512, 1 / 32
end_ids = hf_config.end_ids


def load(
    directory: str | Path, *, dtype: DTypeLike | None = jnp.float32, sharding: Placement = None,
    scan_layers: bool | None = None, lora_config: LoraConfig | None = None,
) -> tuple[Decoder, Params]:
    """A decoder and its parameters; ``model.apply({'params': params}, token_ids)`` gives logits.

    Tensors are read one at a time and placed before the next is read, so the host holds little
    more than the largest of them beside what stays on its own devices.

    Args:
      directory: of a GPT-2, GPT-J, Llama, SmolLM2, Qwen2 or Qwen3 checkpoint.
      dtype: of the parameters; None keeps each tensor's own.
      sharding: of every leaf, or a function of its '/'-joined path and shape; None: the default
        device.
      scan_layers: see :func:`mlecs_jax.models.hf_config.read`.

    Raises:
      UserError: no such checkpoint, an architecture that is not supported, a pickle, a damaged
        file, or a missing, unexpected or mis-shaped tensor, by name.
    """
    directory = Path(directory).expanduser()
    config = hf_config.read(directory, scan_layers)
    model = Decoder(config, lora_config or LoraConfig())
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))["params"]
    wanted = {tensor.name: tensor for tensor in hf_names.tensors(config, shapes)}
    locations = _locations(directory, config)
    _check_names(directory, config, wanted, locations)
    leaves = hf_names.flatten(shapes)
    params: dict[hf_names.Path, Any] = {}
    for name, value in hf_files.read_tensors(
            directory, locations, {name: tensor.shape for name, tensor in wanted.items()}):
        tensor = wanted[name]
        shape = leaves[tensor.path].shape
        kind = value.dtype if dtype is None else dtype
        value = hf_names.from_stored(config, tensor.path[-1], value,
                                     shape if tensor.layer is None else shape[1:])
        placed = (sharding("/".join(tensor.path), shape) if callable(sharding) else sharding)
        if tensor.layer is None:
            params[tensor.path] = _put(value, kind, placed)
            continue
        if tensor.path not in params:
            params[tensor.path] = jnp.zeros(shape, kind, device=placed)
        params[tensor.path] = _fill(params[tensor.path], _put(value, kind, _of_layer(placed)),
                                    tensor.layer)
        params[tensor.path].block_until_ready()  # else several layers wait in host memory
    return model, traverse_util.unflatten_dict(params)


def load_tokenizer(directory: str | Path) -> Any:
    """The directory's own tokenizer (``transformers``), local files only.

    Raises:
      UserError: none there, an empty one, or one of another model: a token beyond the embedding's
        rows, fewer tokens than padding accounts for, or a begin or end of text in the model's
        config that is an ordinary token.
    """
    directory = Path(directory).expanduser()
    tokenizer = read_tokenizer(directory)
    values = hf_files.read_json(directory / CONFIG)
    rows, highest = values.get("vocab_size"), max(tokenizer.get_vocab().values())
    if not isinstance(rows, int) or not (
            highest < rows <= highest + 1 + max(UNUSED_ROWS, rows * UNUSED_SHARE)):
        raise UserError(f"the tokenizer in {directory} has token ids up to {highest}, the model "
                        f"{rows} rows for them; it is another model's tokenizer")
    known = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    for name in SPECIAL[:2]:
        for token in hf_config.token_ids(values.get(name)):
            # One beyond the rows is a default that nobody set.
            if token < rows and token not in known:
                raise UserError(f"{directory / CONFIG} has {name} {token}, which is no special "
                                "token of the tokenizer there; it is another model's tokenizer")
    return tokenizer


def read_tokenizer(directory: Path) -> Any:
    """The tokenizer of a directory that need not hold a model.

    Raises:
      UserError: none there, or an empty one.
    """
    if not any((directory / name).exists() for name in TOKENIZER_FILES):
        raise UserError(f"{directory} holds no tokenizer ({', '.join(TOKENIZER_FILES)}); copy the "
                        "checkpoint's tokenizer files into it")
    from transformers import AutoTokenizer  # seconds to import

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise UserError(f"the tokenizer in {directory} cannot be read "
                        f"({' '.join(str(error).split())}); copy its files again") from None
    if not tokenizer.get_vocab() or not tokenizer.encode("a b", add_special_tokens=False):
        raise UserError(f"the tokenizer in {directory} is empty; copy its files again")
    return tokenizer


def save(
    directory: str | Path, config: DecoderConfig, params: Params, *, tokenizer: Any = None,
    source: str | Path | None = None, shard_bytes: int = 5 * 10**9,
) -> None:
    """Writes a directory that :func:`load`, and transformers, read; weights there before go.

    With adapters: ``save(directory, config, lora.merge(params, adapters, alpha), source=base)``.

    Args:
      params: of this config, stacked layers or not; each leaf keeps its dtype.
      tokenizer: saved beside the weights if given; the tokens that begin and end its texts go to
        the config.
      source: checkpoint that these parameters come from; the files of its tokenizer and generation
        settings are copied, and its special tokens' ids are kept.
      shard_bytes: files are split so that none is larger, unless a single tensor is.

    Raises:
      UserError: the directory cannot be written, the source cannot be read, or it is given beside a
        tokenizer.
    """
    directory = Path(directory).expanduser()
    if source is not None and tokenizer is not None:
        raise UserError("give hf.save a tokenizer or the source to take it from, not both")
    special = _special(tokenizer, None if source is None else Path(source).expanduser())
    leaves = hf_names.flatten(params)
    shards: list[list[Tensor]] = [[]]
    room = shard_bytes
    for tensor in hf_names.tensors(config, params):
        size = int(np.prod(tensor.shape)) * leaves[tensor.path].dtype.itemsize
        if size > room and shards[-1]:
            shards.append([])
            room = shard_bytes
        shards[-1].append(tensor)
        room -= size
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for stale in (directory / INDEX, *directory.glob("model*.safetensors")):
            stale.unlink(missing_ok=True)  # an old index would hide what is written now
        index = {}
        for i, tensors in enumerate(shards):
            file = (WEIGHTS if len(shards) == 1 else
                    f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors")
            save_file({t.name: _stored_value(config, leaves[t.path], t) for t in tensors},
                      directory / file, metadata={"format": "pt"})
            index |= {t.name: file for t in tensors}
        if len(shards) > 1:
            total = sum(leaf.nbytes for leaf in leaves.values())
            (directory / INDEX).write_text(json.dumps(
                {"metadata": {"total_size": total}, "weight_map": index}, indent=1))
        if tokenizer is not None:
            tokenizer.save_pretrained(str(directory))
        if source is not None:
            _copy_beside_weights(Path(source).expanduser(), directory)
        values = hf_config.to_hf(config, str(next(iter(leaves.values())).dtype), special)
        (directory / CONFIG).write_text(json.dumps(values, indent=1) + "\n")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{directory} cannot be written ({error})") from None


def _special(tokenizer: Any, source: Path | None) -> dict[str, Any]:
    """Special tokens' ids as ``config.json`` has them."""
    if source is not None:
        values = hf_files.read_json(source / CONFIG)
        return {name: values[name] for name in SPECIAL if name in values}
    return {} if tokenizer is None else {name: getattr(tokenizer, name) for name in SPECIAL[:2]}


def _copy_beside_weights(source: Path, directory: Path) -> None:
    """Copies the files of a tokenizer, and how it is to be answered with."""
    for name in (*TOKENIZER_FILES, *BESIDE_TOKENIZER, hf_config.GENERATION):
        path = source / name
        if path.exists() and path.resolve() != (directory / name).resolve():
            shutil.copyfile(path, directory / name)


def _stored_value(config: DecoderConfig, leaf: Any, tensor: Tensor) -> np.ndarray:
    value = np.asarray(leaf if tensor.layer is None else leaf[tensor.layer])
    return hf_names.to_stored(config, tensor.path[-1], value)


def _locations(directory: Path, config: DecoderConfig) -> dict[str, Location]:
    """Where every tensor is, by its full name; buffers and a repeated tied head left out."""
    found = hf_files.tensor_files(directory)
    prefix = hf_names.OPTIONAL_PREFIX.get(config.family, "")
    if any(name.startswith(prefix) for name in found):
        prefix = ""  # names are complete
    locations = {}
    for name, file in found.items():
        head = name.startswith("lm_head.")
        if not hf_names.BUFFERS.match(name) and not (head and config.tied_head):
            locations[name if head else prefix + name] = (file, name)
    return locations


def _check_names(
    directory: Path, config: DecoderConfig, wanted: Mapping[str, Tensor],
    locations: Mapping[str, Location],
) -> None:
    for problem, names in (("lacks", wanted.keys() - locations.keys()),
                           ("has unexpected", locations.keys() - wanted.keys())):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(f"{directory} {problem} tensor '{min(names)}'{more} for the "
                            f"{config.family} of {config.num_layers} layers in its "
                            f"{CONFIG}; config and weights are not of one checkpoint")


def _put(value: np.ndarray, dtype: DTypeLike, sharding: Sharding | None) -> jax.Array:
    """A host array on devices; returns when the host's copy is no longer needed."""
    return jax.device_put(np.asarray(value, dtype), sharding).block_until_ready()


def _of_layer(sharding: Sharding | None) -> Sharding | None:
    """Where one layer of a stacked leaf goes on its way into the stack."""
    if isinstance(sharding, NamedSharding):
        return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    return None


@functools.partial(jax.jit, donate_argnums=0)
def _fill(stack: jax.Array, layer: jax.Array, i: int | jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(stack, layer, i, 0)
