"""LoRA trees as PEFT adapters: ``adapter_config.json`` and ``adapter_model.safetensors``.

An adapter written here loads with ``peft.PeftModel.from_pretrained`` on the same base model, and
one trained there loads here. A layer's ``a [d_in, r]`` and ``b [r, *d_out]`` are PEFT's
``lora_A.weight [r, d_in]`` and ``lora_B.weight [d_out, r]``; the scale alpha / r is the same.

``python -m mlecs_jax.peft --run=DIR --node=J|server --out=FOLDER [--merged]`` takes the LoRA of a
node out of a run's folder.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError
from safetensors.numpy import save_file

from mlecs_jax.errors import UserError
from mlecs_jax.lora import Lora, LoraConfig, Params, count, merge
from mlecs_jax.models import hf, hf_files, hf_names
from mlecs_jax.models.decoder import Decoder, DecoderConfig
from mlecs_jax.serving import command

if TYPE_CHECKING:
    from mlecs_jax.restore import Restored

DESCRIPTION = """Writes the LoRA of one node of a run, after its newest complete round, as a PEFT
adapter; with --merged the whole backbone with it folded in, as a Hugging Face directory. What turns
readings into soft prompts is not in either: python -m mlecs_jax.predict export has all."""
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


def from_run(run: Restored, device: int | None, out: Path, *, merged: bool = False) -> str:
    """Writes the LoRA of a node, or its backbone merged with it; returns in words what is written.

    Args:
      run: restored ``unanswered``.
      device: its number; None: the server, whose LLM's it is.
      out: a folder that is not there yet, or empty.

    Raises:
      UserError: there is no such node, or the folder cannot be written or holds something.
    """
    from mlecs_jax import backbones

    _check_free(out)
    setting = run.setting
    which = "llm" if device is None else "slm"
    decoder, frozen, lora = _adapted(run, device)
    node = "the server" if device is None else f"device {device}"
    name = backbones.resolve(setting.config, setting.federation.samples)[0][which]
    directory = name.startswith(backbones.HF)
    base = str(Path(name.removeprefix(backbones.HF)).expanduser()) if directory else None
    if merged:
        # Bytes as tokens are no tokenizer of transformers.
        tokenizer = None if base else getattr(setting.tokenizer, "wrapped", None)
        hf.save(out, decoder.config, merge(frozen, lora, decoder.lora_config.alpha),
                tokenizer=tokenizer, source=base)
        return (f"{out}: {name} of {node} after {run.rounds} rounds, its LoRA merged, "
                f"{'with' if base or tokenizer else 'without a'} tokenizer")
    save(out, decoder.config, lora, decoder.lora_config, base_model=base)
    where = (f"for {base}" if base else f"for {name}, which is drawn from a seed and in no file: "
             "--merged writes the whole")
    return f"{out}: LoRA of {node} after {run.rounds} rounds, {count(lora):,} numbers, {where}"


def _adapted(run: Restored, device: int | None) -> tuple[Decoder, Params, Lora]:
    """A node's decoder, its frozen parameters and its adapters."""
    from mlecs_jax.scoring import PRIMARY

    questions = run.method.evaluate(run.state, run.rounds - 1)
    last = run.setting.federation.num_clients - 1
    if device is None:
        if "server" not in questions:
            raise UserError(f"method {run.setting.config.method.name} trains no LoRA of a server; "
                            f"give --node=0 to {last}")
        asked = questions["server"]
        return asked.setting.llm.decoder, asked.setting.cloud["llm"], asked.params["lora"]
    if not 0 <= device <= last:
        raise UserError(f"there is no device {device}; the run has devices 0 to {last}, and "
                        "--node=server")
    asked = questions[PRIMARY]
    cohort, place = asked.setting.place(device)
    lora = jax.tree.map(lambda x: x[place], asked.params[cohort]["lora"])
    return asked.setting.cohorts[cohort].model.decoder, asked.setting.edge["slm"], lora


def _check_free(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out={out} is there already and not empty; name a new folder")


def main(argv: Sequence[str]) -> int:
    """Returns the exit code: 0, or 2 after one line that says what is wrong."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's cache chatter is not the user's
    return command.run(lambda: _main(argv))


def _main(argv: Sequence[str]) -> None:
    parser = command.Parser(prog="python -m mlecs_jax.peft", description=DESCRIPTION,
                            formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, metavar="DIR", help="folder of the run")
    parser.add_argument("--node", required=True, metavar="J|server",
                        help="number of a device, or server")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="what is written")
    parser.add_argument("--merged", action="store_true",
                        help="the backbone with the adapter folded in, in place of the adapter")
    given = parser.parse_args(argv)
    device = command.node_number("--node", given.node)
    out = Path(given.out).expanduser()
    _check_free(out)  # before data and backbones are read

    from mlecs_jax import experiment, restore

    experiment.use_compilation_cache()
    run = restore.restored(Path(given.run).expanduser(), unanswered=True)
    print(from_run(run, device, out, merged=given.merged))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
