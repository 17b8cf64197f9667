"""Writes the folder that :mod:`mlecs_jax.mega.predictor` serves, from a trained model."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import jax
import jax.export
import jax.numpy as jnp
import msgpack
import numpy as np
from jaxtyping import Array, Float

from mlecs_jax.data.sentiment import MODALITIES, SentimentBatch
from mlecs_jax.errors import UserError
from mlecs_jax.mega.predictor import DESCRIPTION, FORMAT, PROGRAM, WEIGHTS, sha256
from mlecs_jax.models.adapters import Adapters
from mlecs_jax.models.sentiment import Params, SentimentModel
from mlecs_jax.serving.description import SENTIMENT

if TYPE_CHECKING:
    from mlecs_jax.served import Served

Moments = Mapping[str, tuple[np.ndarray, np.ndarray]]
PLATFORMS = ("cpu", "cuda", "tpu")


def export(
    folder: Path, model: SentimentModel, params: Params,
    shapes: Mapping[str, tuple[int, int]], *,
    adapters: Adapters | None = None, moments: Moments | None = None,
) -> None:
    """Writes a predictor of one reading at a time.

    Args:
      folder: created if absent.
      shapes: ``{modality: (T, d)}`` that it reads, all three.
      adapters: of the edge that will serve; None: the global model.
      moments: of the training features (:func:`mlecs_jax.data.sentiment.moments`), so that the
        predictor takes features as they are measured; None: they come standardised.
    """
    state = {"model": params, "adapters": adapters,
             "moments": {name: tuple(np.asarray(x, np.float32) for x in pair)
                         for name, pair in (moments or {}).items()}}

    def respond(state: Any, inputs: list[Array]) -> Float[Array, " 1"]:
        read = [standardised(x, state["moments"].get(name))
                for name, x in zip(MODALITIES, inputs, strict=True)]
        return answers(model, state, read)

    _write(folder, model.name, state, respond, shapes)


def export_node(folder: Path, node: Served) -> None:
    """Writes a predictor of packets from a node of a finished run, personal adapter and
    standardisation included.

    Raises:
      UserError: a node of the other system, or a folder that cannot be written.
    """
    known = node.description
    if known.task != SENTIMENT:
        raise UserError(f"packets carry readings for Mega-CE², and this is a node of "
                        f"{known.method}; leave --packets out")
    shapes = {name: (int(modality.shape[0]), int(modality.shape[1]))
              for name, modality in known.modalities.items()}

    def respond(state: Any, inputs: list[Array]) -> Float[Array, " 1"]:
        return node.respond(state, inputs, jnp.ones((1, len(shapes)), bool))  # silence is zeros

    try:
        _write(folder, f"{known.method}, {known.node}", node.weights, respond, shapes)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}") from None


def _write(
    folder: Path, name: str, state: Any, respond: Callable[[Any, list[Array]], Array],
    shapes: Mapping[str, tuple[int, int]],
) -> None:
    """The folder's three files.

    Args:
      name: for people.
      state: a tree of arrays, which ``respond`` takes, and the inputs in the order of ``shapes``.
    """
    leaves, structure = jax.tree.flatten(state)
    leaves = [np.asarray(leaf) for leaf in leaves]

    def predict(leaves: list[Array], inputs: list[Array]) -> Array:
        return respond(jax.tree.unflatten(structure, leaves), inputs)

    def abstract(shape, dtype=np.float32):
        return jax.ShapeDtypeStruct(shape, dtype)

    exported = jax.export.export(jax.jit(predict), platforms=PLATFORMS)(
        [abstract(leaf.shape, leaf.dtype) for leaf in leaves],
        [abstract((1, *shapes[name])) for name in MODALITIES])
    program = bytes(exported.serialize())
    archive = io.BytesIO()
    np.savez(archive, **{str(i): leaf for i, leaf in enumerate(leaves)})
    weights = archive.getvalue()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PROGRAM).write_bytes(program)
    (folder / WEIGHTS).write_bytes(weights)
    (folder / DESCRIPTION).write_bytes(bytes(msgpack.Packer().pack({
        "format": FORMAT, "model": name,
        "shapes": {name: list(shapes[name]) for name in MODALITIES},
        "sha256": {PROGRAM: sha256(program), WEIGHTS: sha256(weights)}})))


def answers(
    model: SentimentModel, state: Mapping[str, Any], read: list[Float[Array, "B _ _"]]
) -> Float[Array, " B"]:
    """Sentiment of standardised readings, in [-3, 3].

    Args:
      state: ``model``, its parameters, and ``adapters``, None for none.
      read: a sequence of each of :data:`MODALITIES`, lengths and widths their own.
    """
    apply = cast(Any, model.apply)  # the cross-modal transformer takes adapters besides
    batch = SentimentBatch(*read, labels=jnp.zeros(read[0].shape[0]))
    options = {} if state["adapters"] is None else {"adapters": state["adapters"]}
    return jnp.clip(apply(state["model"], batch, **options), -3.0, 3.0)


def standardised(
    x: Float[Array, "B T d"], moments: tuple[Array, Array] | None
) -> Float[Array, "B T d"]:
    """As :func:`mlecs_jax.data.sentiment.standardise` does it."""
    if moments is None:
        return x
    mean, std = moments
    real = jnp.any(x != 0, axis=-1, keepdims=True)
    return jnp.clip((x - mean) / std, -5.0, 5.0) * real
