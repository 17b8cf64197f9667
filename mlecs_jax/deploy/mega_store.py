"""What the cloud of Mega-CE² keeps on disk: one file says what is true, models lie beside it.

::

    DIR/state.json                     Books: replaced whole, at once
    DIR/version-000007.safetensors     w_g of a version that is still needed
    DIR/edge-000007.safetensors        the model that made version 7, the last of its edge

A model's file is on disk before the books name it and removed after they no longer do, so that a
kill or a power loss at any moment leaves a whole state.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from mlecs_jax import channel, durable
from mlecs_jax.errors import UserError

Params = Any
STATE = "state.json"


@dataclasses.dataclass
class EdgeNotes:
    """What the cloud knows of an edge.

    Attributes:
      count: its training segments; ``ends``, those of each of its ends.
      read: the version that its last model was trained from.
      serial: models taken from it.
      model: the version that its last model made; 0: none yet, the initial model stands for it.
      answers: plain arrays of its last word (``finish``); None before.
    """

    count: int
    ends: list[int] = dataclasses.field(default_factory=list)
    read: int = 0
    serial: int = 0
    model: int = 0
    answers: dict[str, Any] | None = None


@dataclasses.dataclass
class Version:
    """A version whose line is not written yet, or the best one.

    Attributes:
      number: from 1.
      edge: number of the edge whose model made it.
      staleness: versions made meanwhile.
      time: seconds of the run until then.
      due: whether edges score it.
      tallies: what they said, ``{name: {split: tally as JSON has it}}``.
    """

    number: int
    edge: int
    staleness: int
    time: float
    due: bool
    tallies: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Books:
    """The state of a run but for its models.

    Attributes:
      version: versions made.
      closed: versions whose line is written.
      seconds: of the run, without interruptions.
      edges: those that have begun, by name.
      open: versions made and not closed, in order.
      best: the version with the lowest validation error.
      downloads: models sent to edges.
      refused: messages that were not taken, by reason; ``refused_of``, by device.
    """

    version: int = 0
    closed: int = 0
    seconds: float = 0.0
    edges: dict[str, EdgeNotes] = dataclasses.field(default_factory=dict)
    open: list[Version] = dataclasses.field(default_factory=list)
    best: Version | None = None
    downloads: int = 0
    refused: dict[str, int] = dataclasses.field(default_factory=dict)
    refused_of: dict[str, int] = dataclasses.field(default_factory=dict)


class Store:
    """Books and models of one run, in a folder.

    Args:
      folder: created if absent; its contents are taken up.
      initial: w_g of version 0; of the structure of all models.

    Attributes:
      books: changed in place, and true once :meth:`commit` has returned.

    Raises:
      UserError: the folder cannot be written, or is damaged.
    """

    def __init__(self, folder: Path, initial: Params):
        self._folder, self._initial = folder, initial
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write to {folder}: {error.strerror}; choose another "
                            "--workdir") from None
        self.books = self._read()
        self._kept = self._needed()
        self._models = {path: self._load(path) for path in self._kept}
        self._forget()

    def model(self, version: int) -> Params:
        """w_g of the present version, of an open one, or of the best."""
        return self._models[_of_version(version)] if version else self._initial

    def last(self, name: str) -> Params:
        """The last model of an edge; at first the initial one."""
        notes = self.books.edges.get(name)
        return self._models[_of_edge(notes.model)] if notes and notes.model else self._initial

    def add(self, version: int, model: Params, pushed: Params) -> None:
        """Keeps the model of a version and the one that made it, for the books to name."""
        for path, tree in ((_of_version(version), model), (_of_edge(version), pushed)):
            self._models[path] = tree
            temporary = self._folder / f".{path}.new"
            save_file({name: np.ascontiguousarray(x) for name, x in channel.pack(tree).items()},
                      temporary)
            durable.replace(temporary, self._folder / path)

    def commit(self) -> None:
        """Makes the books true, on disk, and forgets the models that they no longer name."""
        durable.write(self._folder / STATE, json.dumps(dataclasses.asdict(self.books)) + "\n")
        self._kept = self._needed()
        self._forget()

    def _needed(self) -> set[str]:
        books = self.books
        versions = {books.version, *(version.number for version in books.open)}
        if books.best:
            versions.add(books.best.number)
        return {_of_version(number) for number in versions if number} | {
            _of_edge(notes.model) for notes in books.edges.values() if notes.model}

    def _forget(self) -> None:
        self._models = {path: self._models[path] for path in self._kept}
        for path in self._folder.glob("*.safetensors"):
            if path.name not in self._kept:
                path.unlink()

    def _read(self) -> Books:
        path = self._folder / STATE
        if not path.exists():
            return Books()
        try:
            values = json.loads(path.read_text())
            values["edges"] = {name: EdgeNotes(**own) for name, own in values["edges"].items()}
            values["open"] = [Version(**own) for own in values["open"]]
            values["best"] = Version(**values["best"]) if values["best"] else None
            return Books(**values)
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"{path} is damaged; restore it, or use another --workdir to begin "
                            "again") from None

    def _load(self, path: str) -> Params:
        try:
            found = load_file(self._folder / path)
        except (OSError, SafetensorError, ValueError):
            raise UserError(f"{self._folder / path} is missing or damaged; restore it, or use "
                            "another --workdir to begin again") from None
        expected = {name: (x.shape, x.dtype) for name, x in channel.pack(self._initial).items()}
        if {name: (x.shape, x.dtype) for name, x in found.items()} != expected:
            raise UserError(f"{self._folder / path} is of another shape; use another --workdir")
        return channel.unpack(found)


def _of_version(number: int) -> str:
    return f"version-{number:06d}.safetensors"


def _of_edge(number: int) -> str:
    return f"edge-{number:06d}.safetensors"
