"""BERT and RoBERTa encoders of a local Hugging Face directory, forward pass only.

Post-norm transformer encoder (Devlin et al., 2019; Liu et al., 2019, whose positions begin after
the padding id and count tokens alone). Shape letters: B batch, S tokens, D width, N heads.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mlecs_jax.errors import UserError
from mlecs_jax.models import hf, hf_files
from mlecs_jax.models.decoder import ACTIVATIONS
from mlecs_jax.models.hf_config import ACTIVATION_NAMES

Params = dict[str, Any]
Tokens = Int[np.ndarray, "B S"] | Int[Array, "B S"]
Mask = Bool[np.ndarray, "B S"] | Bool[Array, "B S"]
Encode = Callable[[Any, Any], Float[Array, "B S D"]]
# Layers that agree best with human judgement, as BERTScore's authors found: (kind, layers) → layer.
BEST_LAYERS = {("bert", 12): 9, ("bert", 24): 18, ("roberta", 12): 10, ("roberta", 24): 17}
_LINEAR = {"query": "attention.self.query", "key": "attention.self.key",
           "value": "attention.self.value", "mixed": "attention.output.dense",
           "up": "intermediate.dense", "down": "output.dense"}
_NORMS = {"attention_norm": "attention.output.LayerNorm", "output_norm": "output.LayerNorm"}


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """The shape of an encoder.

    Attributes:
      kind: ``bert`` or ``roberta``.
      num_layers, width, num_heads, mlp_width: as in the checkpoint.
      vocab_size, types: rows of the token and token-type embeddings.
      first_position: position of the first token; max_positions: rows of their embedding.
    """

    kind: str
    num_layers: int
    width: int
    num_heads: int
    mlp_width: int
    vocab_size: int
    types: int
    first_position: int
    max_positions: int
    norm_epsilon: float
    activation: str

    @property
    def longest(self) -> int:
        """Most tokens a text may have."""
        return self.max_positions - self.first_position


def load(directory: str | Path, *, layer: int | None = None) -> tuple[Encode, Any]:
    """An encoder and its tokenizer.

    Args:
      directory: with ``config.json``, ``model.safetensors`` and the tokenizer's files.
      layer: whose hidden states are given, 0 being the embeddings; None: the one that BERTScore's
        authors recommend for a model of this kind and depth, else the last.

    Returns:
      ``encode(token_ids [B, S], mask [B, S]) → float32 [B, S, D]`` (True at tokens, padding on the
      right; states at padding mean nothing), compiled once per shape, and the tokenizer.

    Raises:
      UserError: no BERT or RoBERTa there, a layer it does not have, a missing or mis-shaped tensor
        by name, or no tokenizer of its own. ``encode`` raises it for texts longer than the
        encoder's positions.
    """
    directory = Path(directory)
    encode = load_encoder(directory, layer=layer)
    return encode, hf.load_tokenizer(directory)


def load_encoder(directory: Path, *, layer: int | None = None) -> Encode:
    """The encoder of :func:`load` alone."""
    config = read_config(directory)
    if layer is None:
        layer = BEST_LAYERS.get((config.kind, config.num_layers), config.num_layers)
    if not 0 <= layer <= config.num_layers:
        raise UserError(f"{directory} has {config.num_layers} layers; layer {layer} is none of "
                        "them")
    config = dataclasses.replace(config, num_layers=layer)  # what lies above is never read
    params = _read(directory, config)

    def encode(tokens: Tokens, mask: Mask) -> Float[Array, "B S D"]:
        longest = int(np.asarray(mask).sum(axis=1).max())
        if longest > config.longest:
            raise UserError(f"a text of {longest} tokens is longer than the encoder's "
                            f"{config.longest}; truncate it")
        return hidden(config, params, jnp.asarray(tokens), jnp.asarray(mask))

    return encode


def read_config(directory: Path) -> EncoderConfig:
    """The shape in ``config.json``.

    Raises:
      UserError: another architecture, or a missing value.
    """
    path = directory / hf_files.CONFIG
    values = hf_files.read_json(path)
    kind = values.get("model_type")
    if kind not in ("bert", "roberta"):
        raise UserError(f"{path}: model_type is {kind!r}; bert and roberta can be encoders")
    if values.get("position_embedding_type", "absolute") != "absolute":
        raise UserError(f"{path}: only absolute positions are supported")
    activation = values.get("hidden_act", "gelu")
    if activation not in ACTIVATION_NAMES:
        raise UserError(f"{path}: activation '{activation}' is not supported")
    try:
        return EncoderConfig(
            kind, int(values["num_hidden_layers"]), int(values["hidden_size"]),
            int(values["num_attention_heads"]), int(values["intermediate_size"]),
            int(values["vocab_size"]), int(values["type_vocab_size"]),
            int(values["pad_token_id"]) + 1 if kind == "roberta" else 0,
            int(values["max_position_embeddings"]), float(values["layer_norm_eps"]),
            ACTIVATION_NAMES[activation])
    except KeyError as error:
        raise UserError(f"{path}: {error} is missing; copy the checkpoint's own") from None


@functools.partial(jax.jit, static_argnums=0)
def hidden(
    config: EncoderConfig, params: Params, tokens: Int[Array, "B S"], mask: Bool[Array, "B S"]
) -> Float[Array, "B S D"]:
    """Hidden states after the last of ``config.num_layers`` layers."""
    positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0) + config.first_position
    positions = jnp.minimum(positions, config.max_positions - 1)  # padding alone gets there
    x = (params["words"][tokens] + params["positions"][positions] + params["types"][0])
    x = _norm(x, params["norm"], config.norm_epsilon)
    act = ACTIVATIONS[config.activation]
    for block in params["layers"]:
        heads = [_linear(x, block[name]).reshape(*x.shape[:2], config.num_heads, -1)
                 for name in ("query", "key", "value")]
        mixed = jax.nn.dot_product_attention(*heads, mask=mask[:, None, None])
        mixed = _linear(mixed.reshape(x.shape), block["mixed"])
        x = _norm(x + mixed, block["attention_norm"], config.norm_epsilon)
        x = _norm(x + _linear(act(_linear(x, block["up"])), block["down"]), block["output_norm"],
                  config.norm_epsilon)
    return x


def _linear(x: Array, layer: Params) -> Array:
    return x @ layer["weight"].T + layer["bias"]


def _norm(x: Array, layer: Params, epsilon: float) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + epsilon) * layer["weight"] + layer["bias"]


def _read(directory: Path, config: EncoderConfig) -> Params:
    """All parameters that :func:`hidden` reads; tensors of heads and poolers are left alone."""
    found = {}
    for name, file in hf_files.tensor_files(directory).items():
        bare = name.removeprefix(f"{config.kind}.")
        for old, new in ((".gamma", ".weight"), (".beta", ".bias")):  # of TensorFlow's checkpoints
            bare = bare.removesuffix(old) + new if bare.endswith(old) else bare
        found[bare] = (file, name)
    wanted = dict(_shapes(config))
    if missing := wanted.keys() - found.keys():
        raise UserError(f"{directory} lacks tensor '{min(missing)}' for the {config.kind} in its "
                        f"{hf_files.CONFIG}; config and weights are not of one checkpoint")
    values = {name: jnp.asarray(value, jnp.float32) for name, value in hf_files.read_tensors(
        directory, {name: found[name] for name in wanted}, wanted)}

    def pair(name: str) -> Params:
        return {leaf: values[f"{name}.{leaf}"] for leaf in ("weight", "bias")}

    return {
        "words": values["embeddings.word_embeddings.weight"],
        "positions": values["embeddings.position_embeddings.weight"],
        "types": values["embeddings.token_type_embeddings.weight"],
        "norm": pair("embeddings.LayerNorm"),
        "layers": [{own: pair(f"encoder.layer.{i}.{name}")
                    for own, name in (_LINEAR | _NORMS).items()}
                   for i in range(config.num_layers)]}


def _shapes(config: EncoderConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the tensors read."""
    d, hidden = config.width, config.mlp_width
    for name, rows in (("word", config.vocab_size), ("position", config.max_positions),
                       ("token_type", config.types)):
        yield f"embeddings.{name}_embeddings.weight", (rows, d)
    norms = ["embeddings.LayerNorm"]
    for i in range(config.num_layers):
        for own, name in _LINEAR.items():
            d_out, d_in = {"up": (hidden, d), "down": (d, hidden)}.get(own, (d, d))
            yield f"encoder.layer.{i}.{name}.weight", (d_out, d_in)
            yield f"encoder.layer.{i}.{name}.bias", (d_out,)
        norms += [f"encoder.layer.{i}.{name}" for name in _NORMS.values()]
    for name in norms:
        yield f"{name}.weight", (d,)
        yield f"{name}.bias", (d,)
