"""A trained node as something that answers: its program, what that reads, how it is worded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from mlecs_jax import answers, captions
from mlecs_jax.answers import Question
from mlecs_jax.config import Config
from mlecs_jax.data import table_files
from mlecs_jax.data.featurise import HASHED
from mlecs_jax.data.samples import Samples
from mlecs_jax.data.text import Tokenizer
from mlecs_jax.errors import UserError
from mlecs_jax.federation import standardised
from mlecs_jax.models.multimodal import Batch, MultimodalModel
from mlecs_jax.restore import Restored
from mlecs_jax.scoring import PRIMARY
from mlecs_jax.serving.description import (
    CAPTIONS,
    CLASSES,
    IMAGE,
    NUMBERS,
    TEXT,
    Description,
    Modality,
)
from mlecs_jax.serving.predictor import Predictor
from mlecs_jax.serving.readings import Row
from mlecs_jax.setting import Setting

SERVER = "server"
NO_COLUMNS: Mapping[str, tuple[str, ...]] = {}
Tree = Any


@dataclasses.dataclass(frozen=True)
class Served:
    """A node that answers.

    Attributes:
      weights: all that its program needs: backbone, trained groups, moments.
      respond: pure, ``(weights, inputs, mask) → answers`` as
        :data:`mlecs_jax.serving.predictor.Program` says, of any number of rows.
      tokenizer: of captions; None elsewhere.
      rows: readings ``[n]`` that it was scored on (test rows), as a user would give them.
      truth: the answer to each.
    """

    description: Description
    weights: Tree
    respond: Callable[[Tree, list[Array], Bool[Array, "B M"]], Any]
    tokenizer: Tokenizer | None
    rows: Sequence[Row]
    truth: Sequence[str]

    def predictor(self) -> Predictor:
        """It in this process."""
        respond = jax.jit(self.respond)
        return Predictor(self.description,
                         lambda inputs, mask: respond(self.weights, inputs, mask),
                         None if self.tokenizer is None else self.tokenizer.decode)


def node(run: Restored, device: int | None) -> Served:
    """A device (None: the server) of a run that was restored ``unanswered``.

    Raises:
      UserError: there is no such node.
    """
    questions: dict[str, Question] = run.method.evaluate(run.state, run.rounds - 1)
    federation, config = run.setting.federation, run.setting.config
    columns = _columns(config)
    if device is None:
        if SERVER not in questions:
            raise UserError(f"method {config.method.name} has no server that answers; give "
                            f"--device=0 to {federation.num_clients - 1}")
        return of_server(questions[SERVER], run.rounds, columns)
    if not 0 <= device < federation.num_clients:
        raise UserError(f"there is no device {device}; the run has devices 0 to "
                        f"{federation.num_clients - 1}, and --device=server")
    rows = federation.held_out_rows(device, "test")
    return of_device(questions[PRIMARY], device, run.rounds, rows, columns)


def of_server(
    question: Question, rounds: int, columns: Mapping[str, tuple[str, ...]] = NO_COLUMNS
) -> Served:
    """The server that a method asks; for arguments see :func:`of_device`."""
    setting = question.setting
    every = np.ones(len(setting.federation.modalities), bool)
    return _served(setting, SERVER, setting.llm, setting.cloud["llm"], question.params, every,
                   rounds, setting.federation.held_out_rows(None, "test"), columns)


def of_device(
    question: Question, device: int, rounds: int, rows: np.ndarray,
    columns: Mapping[str, tuple[str, ...]] = NO_COLUMNS,
) -> Served:
    """One of the devices that a method asks.

    Args:
      device: its number, also where the setting is of it alone.
      rounds: complete ones.
      rows: ``[n]`` of the setting's samples, its test rows.
      columns: names of a table's columns, by modality.
    """
    setting = question.setting
    cohort, place = setting.place(device)
    params = jax.tree.map(lambda x: x[place], question.params[cohort])
    owned = np.any(setting.federation.owned, axis=0)[device]  # whatever it was trained with
    return _served(setting, f"device {device}", setting.cohorts[cohort].model,
                   setting.edge["slm"], params, owned, rounds, rows, columns)


def _served(
    setting: Setting, name: str, model: MultimodalModel, backbone: Tree, params: Tree,
    owned: np.ndarray, rounds: int, rows: np.ndarray, columns: Mapping[str, tuple[str, ...]],
) -> Served:
    """A node of its parts."""
    federation, config = setting.federation, setting.config

    def batch_of(weights: Tree, inputs: list[Array], mask: Array) -> Batch:
        named = dict(zip(federation.modalities, inputs, strict=True))
        return Batch(inputs=standardised(named, mask, weights["moments"]), mask=mask,
                     target=jnp.zeros((mask.shape[0], 1), jnp.int32))

    def classify(weights: Tree, inputs: list[Array], mask: Array):
        logits = answers.first_logits(model, weights["backbone"], weights["params"],
                                      batch_of(weights, inputs, mask))
        ids = jnp.asarray(setting.answer_ids)
        matches = jnp.argmax(logits, axis=-1)[:, None] == ids
        number = jnp.where(matches.any(1), jnp.argmax(matches, axis=1), -1)
        return number, jax.nn.softmax(logits, axis=-1)[:, ids]

    def caption(weights: Tree, inputs: list[Array], mask: Array):
        return captions.generate_batch(setting, model, weights["backbone"], weights["params"],
                                       batch_of(weights, inputs, mask))

    samples = federation.samples
    described = Description(
        node=name, method=config.method.name, dataset=samples.name, data_source=samples.source,
        rounds=rounds, task=CLASSES if samples.texts is None else CAPTIONS,
        modalities=modalities(config, samples, owned, columns),
        class_names=tuple(samples.class_names))
    return Served(
        description=described,
        weights={"backbone": backbone, "params": params, "moments": federation.moments},
        respond=classify if samples.texts is None else caption,
        tokenizer=None if samples.texts is None else setting.tokenizer,
        rows=[_row(samples, int(i), owned) for i in rows],
        truth=[samples.class_names[samples.labels[i]] if samples.labels is not None
               else (samples.texts or ())[i] for i in rows])


def _row(samples: Samples, i: int, owned: np.ndarray) -> Row:
    has = samples.present[i] & owned
    return {name: samples.inputs[name][i].astype(np.float32)
            for name, there in zip(samples.modalities, has, strict=True) if there}


def modalities(
    config: Config, samples: Samples, owned: np.ndarray,
    columns: Mapping[str, tuple[str, ...]] = NO_COLUMNS,
) -> dict[str, Modality]:
    """How readings of a dataset are given; ``columns`` are the names of a table's."""
    words = _words(config)
    result = {}
    for (name, values), own in zip(samples.inputs.items(), owned, strict=True):
        kind = IMAGE if values.dtype == np.uint8 else TEXT if name in words else NUMBERS
        result[name] = Modality(
            shape=tuple(values.shape[1:]), kind=kind, owned=bool(own),
            columns=columns.get(name, ()),
            shrink="box" if config.data.name == "ur_fall" else "bilinear")
    return result


def _words(config: Config) -> frozenset[str]:
    """Modalities that a dataset makes of words, in a way that needs no files."""
    if config.captions is None or config.captions.featuriser != HASHED:
        return frozenset()
    if not config.captions.features:
        return frozenset(("vision", "audio", "subtitle"))
    # Files of vectors come first; subtitles without one go through the featuriser.
    folder = Path(config.captions.features).expanduser()
    if not folder.is_dir():  # on a device of a deployment: ask for vectors, whoever made them
        return frozenset()
    there = any((folder / f"subtitle{end}").exists() for end in (".npz", ".safetensors", ""))
    return frozenset() if there else frozenset(("subtitle",))


def _columns(config: Config) -> dict[str, tuple[str, ...]]:
    """Column names of a table's modalities."""
    if config.data.name != "table":
        return {}
    entries = table_files.read_manifest(Path(config.data.manifest)).child("modalities")
    return {name: tuple(entries.child(name).keys.get("columns", ())) for name in entries.keys}
