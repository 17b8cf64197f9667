"""``config.json`` of a Hugging Face directory as a :class:`DecoderConfig`, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from mlecs_jax.errors import UserError
from mlecs_jax.models.decoder import DecoderConfig, Family
from mlecs_jax.models.hf_files import CONFIG, read_json
from mlecs_jax.models.layers import RopeScaling

GENERATION = "generation_config.json"
DEEP = 12  # layers above which a loaded decoder scans over them: unrolled, compiling takes minutes
ACTIVATION_NAMES = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
                    "gelu_fast": "gelu_tanh", "gelu": "gelu", "silu": "silu", "swish": "silu",
                    "relu": "relu"}
ARCHITECTURES = {"gpt2": "GPT2LMHeadModel", "gptj": "GPTJForCausalLM", "llama": "LlamaForCausalLM",
                 "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
# What a checkpoint may ask for and this decoder does not do: (key, the value that is none of it).
UNSUPPORTED: dict[str, tuple[tuple[str, Any], ...]] = {
    "gpt2": (("scale_attn_by_inverse_layer_idx", False), ("scale_attn_weights", True),
             ("add_cross_attention", False)),
    "gptj": (),
    "llama": (("mlp_bias", False), ("partial_rotary_factor", 1.0)),
    "qwen2": (("use_sliding_window", False), ("partial_rotary_factor", 1.0)),
    "qwen3": (("use_sliding_window", False), ("partial_rotary_factor", 1.0)),
}


def read(directory: Path, scan_layers: bool | None = None) -> DecoderConfig:
    """The decoder's shape.

    Args:
      scan_layers: None: where there are more than 12 layers, which are then also rematerialised.

    Raises:
      UserError: an architecture or option this decoder does not have, or a missing value.
    """
    path = directory.expanduser() / CONFIG
    values = read_json(path)
    kind = values.get("model_type")
    if kind not in ARCHITECTURES:
        raise UserError(f"{path}: model_type is {kind!r}; {', '.join(ARCHITECTURES)} can be loaded")
    for key, harmless in UNSUPPORTED[kind]:
        if values.get(key, harmless) != harmless:
            raise UserError(f"{path}: {key} = {values[key]} is not supported; use a checkpoint "
                            f"with {harmless}")
    family = cast(Family, kind)

    def get(key: str) -> Any:
        if values.get(key) is None:
            raise UserError(f"{path}: '{key}' is missing; copy the checkpoint's own config.json")
        return values[key]

    try:
        fields = (_gpt if kind in ("gpt2", "gptj") else _llama)(family, values, get, path)
        scan = fields["num_layers"] > DEEP if scan_layers is None else scan_layers
        return DecoderConfig(**fields, scan_layers=scan, remat=scan)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: {error}; copy the checkpoint's own config.json") from None


def _gpt(
    family: Family, values: Mapping[str, Any], get: Callable[[str], Any], path: Path
) -> dict[str, Any]:
    return dict(
        family=family, vocab_size=int(get("vocab_size")), num_layers=int(get("n_layer")),
        width=int(get("n_embd")), num_heads=int(get("n_head")),
        max_positions=int(get("n_positions")),
        rotary_dim=int(values.get("rotary_dim") or get("n_embd") // get("n_head")),
        mlp_width=values.get("n_inner"), norm_epsilon=float(values.get("layer_norm_epsilon", 1e-5)),
        activation=_activation(values.get("activation_function", "gelu_new"), path),
        tied=bool(values.get("tie_word_embeddings", family == "gpt2")))


def _llama(
    family: Family, values: Mapping[str, Any], get: Callable[[str], Any], path: Path
) -> dict[str, Any]:
    rope = values.get("rope_parameters") or {}  # since transformers 5; two keys before
    scaling = rope or values.get("rope_scaling") or {}
    return dict(
        family=family, vocab_size=int(get("vocab_size")), num_layers=int(get("num_hidden_layers")),
        width=int(get("hidden_size")), num_heads=int(get("num_attention_heads")),
        num_kv_heads=values.get("num_key_value_heads"), head_dim=values.get("head_dim"),
        max_positions=int(get("max_position_embeddings")), mlp_width=int(get("intermediate_size")),
        norm_epsilon=float(values.get("rms_norm_eps", 1e-6)),
        activation=_activation(values.get("hidden_act", "silu"), path),
        rope_theta=float(rope.get("rope_theta", values.get("rope_theta", 10_000.0))),
        rope_scaling=_scaling(scaling, path),
        attention_bias=family != "qwen2" and bool(values.get("attention_bias", False)),
        tied=bool(values.get("tie_word_embeddings", False)))


def _activation(name: str, path: Path) -> str:
    if name not in ACTIVATION_NAMES:
        raise UserError(f"{path}: activation '{name}' is not supported; "
                        f"{', '.join(ACTIVATION_NAMES)} are")
    return ACTIVATION_NAMES[name]


def _scaling(values: Mapping[str, Any], path: Path) -> RopeScaling | None:
    kind = values.get("rope_type", values.get("type", "default"))
    if kind == "default":
        return None
    if kind not in ("linear", "llama3"):
        raise UserError(f"{path}: rotary scaling '{kind}' is not supported; default, linear and "
                        "llama3 are")

    def get(key: str) -> float:
        if values.get(key) is None:
            raise UserError(f"{path}: '{key}' of the {kind} rotary scaling is missing; copy the "
                            "checkpoint's own config.json")
        return float(values[key])

    if kind == "linear":
        return RopeScaling("linear", get("factor"))
    return RopeScaling("llama3", get("factor"), get("low_freq_factor"), get("high_freq_factor"),
                       int(get("original_max_position_embeddings")))


def token_ids(value: Any) -> tuple[int, ...]:
    """Token ids of a ``bos_token_id`` or ``eos_token_id``: a number, several, or none."""
    values = value if isinstance(value, list) else [value]
    return tuple(v for v in values if isinstance(v, int) and not isinstance(v, bool))


def end_ids(directory: str | Path) -> tuple[int, ...]:
    """The tokens that end an answer of a checkpoint, as transformers has them: those of
    ``generation_config.json``, else of ``config.json``. Chat models list several.

    Raises:
      UserError: no such checkpoint, or one that names none.
    """
    directory = Path(directory).expanduser()
    files = [directory / GENERATION] if (directory / GENERATION).exists() else []
    for path in (*files, directory / CONFIG):
        if found := token_ids(read_json(path).get("eos_token_id")):
            return found
    raise UserError(f"{directory / CONFIG} names no eos_token_id, so no answer would end; use its "
                    "tokenizer's")


def to_hf(
    config: DecoderConfig, dtype: str, special: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The values of ``config.json`` that describe a decoder.

    Args:
      dtype: of the weights, e.g. ``float32``.
      special: ``bos_token_id`` and the like; those that begin and end a text are null unless given.
    """
    c = config
    hf_name = {own: name for name, own in reversed(ACTIVATION_NAMES.items())}
    activation = hf_name[c.activation or ("silu" if c.gated else "gelu_tanh")]
    values: dict[str, Any] = {
        "architectures": [ARCHITECTURES[c.family]], "model_type": c.family, "dtype": dtype,
        "vocab_size": c.vocab_size, "tie_word_embeddings": c.tied_head,
        "bos_token_id": None, "eos_token_id": None} | dict(special or {})
    if not c.gated:
        values |= {"n_layer": c.num_layers, "n_embd": c.width, "n_head": c.num_heads,
                   "n_positions": c.max_positions, "n_inner": c.mlp_width,
                   "layer_norm_epsilon": c.norm_epsilon, "activation_function": activation}
        return values | ({"rotary_dim": min(c.rotary_dim, c.head_width)}
                         if c.family == "gptj" else {})
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": c.rope_theta}
    if c.rope_scaling is not None:
        rope |= {"rope_type": c.rope_scaling.kind, "factor": c.rope_scaling.factor}
    if c.rope_scaling is not None and c.rope_scaling.kind == "llama3":
        rope |= {"low_freq_factor": c.rope_scaling.low, "high_freq_factor": c.rope_scaling.high,
                 "original_max_position_embeddings": c.rope_scaling.original_positions}
    values |= {
        "num_hidden_layers": c.num_layers, "hidden_size": c.width,
        "num_attention_heads": c.num_heads, "num_key_value_heads": c.kv_heads,
        "max_position_embeddings": c.max_positions,
        "intermediate_size": c.mlp_width or 4 * c.width, "rms_norm_eps": c.norm_epsilon,
        "hidden_act": activation, "rope_parameters": rope, "rope_theta": c.rope_theta}
    if c.head_dim is not None or c.family == "qwen3":  # where its default is another
        values["head_dim"] = c.head_width
    return values if c.family == "qwen2" else values | {"attention_bias": c.attention_bias}
