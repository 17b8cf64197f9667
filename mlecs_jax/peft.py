"""LoRA trees as PEFT adapters: ``adapter_config.json`` and ``adapter_model.safetensors``.

An adapter written here loads with ``peft.PeftModel.from_pretrained`` on the same base model, and
one trained there loads here. A layer's ``a [d_in, r]`` and ``b [r, *d_out]`` are PEFT's
``lora_A.weight [r, d_in]`` and ``lora_B.weight [d_out, r]``; the scale alpha / r is the same.
"""

from __future__ import annotations

import collections
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError
from safetensors.numpy import save_file

from mlecs_jax.errors import UserError
from mlecs_jax.lora import Lora, LoraConfig
from mlecs_jax.models import hf_files, hf_names
from mlecs_jax.models.decoder import Decoder, DecoderConfig

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_TENSOR = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
_LAYER = re.compile(r".*\.\d+\.")
# What an adapter may have beyond low-rank terms: (key, values that are none of it).
_UNSUPPORTED = (("use_dora", (False, None)), ("use_rslora", (False, None)),
                ("bias", ("none", None)), ("lora_bias", (False, None)),
                ("modules_to_save", (None, [])), ("alpha_pattern", ({}, None)),
                ("trainable_token_indices", (None,)), ("use_qalora", (False, None)))
# Ways to begin that leave the base model as it is; others (PiSSA, OLoRA, CorDA, LoftQ) take the
# adapter's first value out of its weights.
_HARMLESS_INITS = (True, False, None, "gaussian", "eva", "orthogonal")
Path_ = tuple[str, ...]


def save(
    directory: str | Path, config: DecoderConfig, lora: Lora, lora_config: LoraConfig, *,
    base_model: str | None = None,
) -> None:
    """Writes a LoRA tree as a PEFT adapter; leaves keep their dtype.

    Args:
      config: of the decoder whose layers are adapted.
      lora: see :mod:`mlecs_jax.lora`; ranks may differ from layer to layer.
      lora_config: alpha and dropout.
      base_model: what the adapter is for, e.g. the base model's directory or hub name.

    Raises:
      UserError: the directory cannot be written.
    """
    directory = Path(directory)
    tensors, ranks = {}, {}
    for path, pair in _layers(lora).items():
        name = hf_names.module_name(config, "/".join(path))
        a, b = np.asarray(pair["a"]), np.asarray(pair["b"])
        ranks[name] = a.shape[1]
        for letter, value in (("A", a.T), ("B", b.reshape(len(b), -1).T)):
            tensors[f"base_model.model.{name}.lora_{letter}.weight"] = np.ascontiguousarray(value)
    rank = collections.Counter(ranks.values()).most_common(1)[0][0]
    values = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base_model,
        "r": rank, "lora_alpha": lora_config.alpha, "lora_dropout": lora_config.dropout,
        "rank_pattern": {name: r for name, r in ranks.items() if r != rank}, "alpha_pattern": {},
        "target_modules": _targets(list(ranks), config.num_layers), "bias": "none",
        "fan_in_fan_out": config.family in hf_names.IN_BY_OUT, "inference_mode": True,
        "init_lora_weights": True, "use_rslora": False, "use_dora": False, "modules_to_save": None}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
        (directory / CONFIG).write_text(json.dumps(values, indent=2) + "\n")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{directory} cannot be written ({error})") from None


def load(directory: str | Path, config: DecoderConfig) -> tuple[Lora, LoraConfig]:
    """A PEFT adapter as a LoRA tree, and its alpha and dropout.

    Args:
      config: of the decoder to adapt; with ``scan_layers`` its layers' adapters are stacked.

    Raises:
      UserError: no adapter there, one of another kind or model, or a mis-shaped or missing tensor.
    """
    directory = Path(directory)
    values = hf_files.read_json(directory / CONFIG)
    if values.get("peft_type") != "LORA":
        raise UserError(f"{directory / CONFIG}: peft_type is {values.get('peft_type')!r}; only "
                        "LORA can be loaded")
    for key, harmless in _UNSUPPORTED:
        if values.get(key) not in harmless:
            raise UserError(f"{directory / CONFIG}: {key} = {values[key]} is not supported; use a "
                            "plain LoRA adapter, or merge it into its base model")
    if values.get("init_lora_weights") not in _HARMLESS_INITS:
        raise UserError(f"{directory / CONFIG}: init_lora_weights = {values['init_lora_weights']} "
                        "changes the base model; save it with path_initial_model_for_weight_"
                        "conversion, or merge it into its base model")
    kernels = _kernels(config)
    layers: dict[Path_, dict[str, np.ndarray]] = {}
    with hf_files.open_tensors(directory / WEIGHTS) as opened:
        for name in opened.keys():
            match = _TENSOR.fullmatch(name)
            if not match or match[1] not in kernels:
                raise UserError(f"{directory / WEIGHTS}: tensor '{name}' adapts no layer of this "
                                f"{config.family} of {config.num_layers} layers")
            path, _ = kernels[match[1]]
            layers.setdefault(path, {})[match[2].lower()] = opened.get_tensor(name)
    if not layers:
        raise UserError(f"{directory / WEIGHTS} holds no adapter")
    tree = {}
    for name, (path, shape) in kernels.items():
        if path in layers:
            tree |= {(*path, leaf): value for leaf, value in _laid_out(
                f"{directory / WEIGHTS}: layer '{name}'", layers[path], shape).items()}
    if config.scan_layers:
        tree = _stacked(tree, config, directory)
    try:
        lora_config = LoraConfig(float(values["lora_alpha"]), float(values.get("lora_dropout", 0)))
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{directory / CONFIG}: lora_alpha or lora_dropout is missing or no "
                        "number") from None
    return traverse_util.unflatten_dict(tree), lora_config


def _laid_out(
    where: str, pair: Mapping[str, np.ndarray], shape: tuple[int, ...]
) -> dict[str, jax.Array]:
    """``a`` and ``b`` of a layer whose kernel has this shape, checked."""
    if set(pair) != {"a", "b"}:
        raise UserError(f"{where} has only one of lora_A and lora_B")
    (rank, d_in), (d_out, rank_b) = pair["a"].shape, pair["b"].shape
    if (d_in, d_out, rank) != (shape[0], int(np.prod(shape[1:])), rank_b):
        raise UserError(f"{where} has lora_A {pair['a'].shape} and lora_B {pair['b'].shape}, the "
                        f"layer is {shape[0]} by {int(np.prod(shape[1:]))}; it is another model's")
    return {"a": jnp.asarray(pair["a"].T), "b": jnp.asarray(pair["b"].T.reshape(-1, *shape[1:]))}


def _kernels(config: DecoderConfig) -> dict[str, tuple[Path_, tuple[int, ...]]]:
    """Path (unrolled) and kernel shape of every layer, by its name in a checkpoint."""
    model = Decoder(config)
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))["params"]
    out = {}
    for tensor in hf_names.tensors(config, shapes):
        if tensor.path[-1] == "kernel":
            leaf = hf_names.flatten(shapes)[tensor.path]
            stacked = tensor.layer is not None
            path = (f"block_{tensor.layer}", *tensor.path[1:-1]) if stacked else tensor.path[:-1]
            out[tensor.name.removesuffix(".weight")] = (path, leaf.shape[stacked:])
    return out


def _layers(lora: Lora) -> dict[Path_, dict[str, Any]]:
    """``{'a', 'b'}`` by the path of each layer, stacked ones taken apart."""
    out: dict[Path_, dict[str, Any]] = {}
    for path, leaf in hf_names.flatten(lora).items():
        if path[0] != "blocks":
            out.setdefault(path[:-1], {})[path[-1]] = leaf
            continue
        for i, layer in enumerate(leaf):
            out.setdefault((f"block_{i}", *path[1:-1]), {})[path[-1]] = layer
    return out


def _stacked(tree: dict[Path_, Any], config: DecoderConfig, directory: Path) -> dict[Path_, Any]:
    """Leaves of ``block_i/…`` stacked under ``blocks/…``."""
    out = {}
    for rest in dict.fromkeys(path[1:] for path in tree):
        leaves = [tree.get((f"block_{i}", *rest)) for i in range(config.num_layers)]
        if len({None if leaf is None else leaf.shape for leaf in leaves}) > 1:
            raise UserError(f"{directory}: not every layer has an adapter of one rank on "
                            f"{'/'.join(rest[:-1])}; load the model with scan_layers=False")
        out["blocks", *rest] = jnp.stack(leaves)  # pyright: ignore[reportArgumentType]
    return out


def _targets(names: list[str], num_layers: int) -> list[str]:
    """PEFT's target_modules: what follows the layer number where all layers have it, else whole
    names. PEFT matches ends of names, so ``attn.c_proj`` leaves ``mlp.c_proj`` alone."""
    ends = collections.Counter(_LAYER.sub("", name) for name in names)
    return sorted({end if ends[end := _LAYER.sub("", name)] == num_layers else name
                   for name in names})
