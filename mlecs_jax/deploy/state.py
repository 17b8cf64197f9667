"""What a device keeps on disk: its state after the last rounds, so that it comes back after a kill
and can go back to where a cloud is that was killed."""

from __future__ import annotations

import dataclasses
import fcntl
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mlecs_jax import durable, runlog
from mlecs_jax.errors import UserError

Tree = Any
SENT = "sent"
KEPT = 3  # rounds: a cloud that is killed is at most two behind


@dataclasses.dataclass(frozen=True)
class Notes:
    """What a device remembers beside arrays.

    Attributes:
      rounds: of training that the state has seen.
      session: the present one; empty before the first.
      serial: of the last exchange answered.
      losses: of the last round, ``{'STAGE/NAME': mean}``, and which round it was.
    """

    rounds: int = 0
    session: str = ""
    serial: int = 0
    losses: dict[str, float] = dataclasses.field(default_factory=dict)
    losses_of: int = -1


class EdgeState:
    """Saved states of one device, numbered by rounds.

    Args:
      run: the deployment's identity; a folder serves one.

    Raises:
      UserError: the folder cannot be written, is in use by another process, or is of another run.
    """

    def __init__(self, folder: Path, run: str):
        self._folder = folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # private
            self._lock = open(folder / ".lock", "w")  # held as long as the device is there
        except OSError as error:
            raise UserError(f"cannot write to {folder}: {error.strerror}; choose another folder "
                            "for the device's state") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise UserError(f"another process runs this device in {folder}; stop it first"
                            ) from None
        owner = folder / "run"
        if owner.exists() and owner.read_text().strip() != run:
            self._lock.close()
            raise UserError(f"{folder} holds the state of another deployment; choose another "
                            "folder, or empty it")
        owner.write_text(run + "\n")

    def save(self, tree: Tree, notes: Notes) -> None:
        """Saves a state, whole or not at all, and forgets old ones."""
        path = self._path(notes.rounds)
        temporary = path.with_name(f".{path.name}.new")
        arrays = {jax.tree_util.keystr(where): np.asarray(leaf)
                  for where, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        save_file(arrays, temporary, metadata={"notes": json.dumps(dataclasses.asdict(notes))})
        durable.replace(temporary, path)
        for old in self._rounds()[:-KEPT]:
            self._path(old).unlink()

    def restore(self, like: Tree, rounds: int | None = None) -> tuple[Tree, Notes] | None:
        """A saved state, placed as ``like``: of some rounds, or the newest that can be read; None
        where there is none.

        Raises:
          UserError: it is of another shape.
        """
        return read(self._folder, like, rounds)

    def forget_after(self, rounds: int) -> None:
        """Removes states of more rounds: the cloud went back, and they will not come to be."""
        for found in self._rounds():
            if found > rounds:
                self._path(found).unlink()

    def keep_samples(self, samples: Sequence[Mapping[str, Any]]) -> None:
        """Writes ``samples.jsonl``, captions of own rows to read, a line each."""
        runlog.write_samples(self._folder, samples)

    @property
    def sent(self) -> int:
        """Uploads that have been counted.

        Raises:
          UserError: the file cannot be read.
        """
        path = self._folder / SENT
        try:
            return int(path.read_text()) if path.exists() else 0
        except (OSError, ValueError):
            raise UserError(f"{path} is damaged: how many uploads have left this device is not "
                            "known any more; write the number into it") from None

    def count_upload(self) -> None:
        """Counts one more upload for good: going back to an older state does not undo it."""
        durable.write(self._folder / SENT, f"{self.sent + 1}\n")

    def close(self) -> None:
        """Ends the claim on the folder."""
        self._lock.close()

    def _path(self, rounds: int) -> Path:
        return _path(self._folder, rounds)

    def _rounds(self) -> list[int]:
        return _rounds(self._folder)


def read(folder: Path, like: Tree, rounds: int | None = None) -> tuple[Tree, Notes] | None:
    """See :meth:`EdgeState.restore`; the device may be at work meanwhile, since every file is
    whole."""
    for found in reversed(_rounds(folder)) if rounds is None else [rounds]:
        try:
            with safe_open(_path(folder, found), framework="np") as file:
                notes = Notes(**json.loads(file.metadata()["notes"]))
                arrays = {name: file.get_tensor(name) for name in file.keys()}
        except (OSError, SafetensorError, ValueError, TypeError, KeyError):
            continue  # torn, or not there: the round before is kept for this
        return _placed(folder, arrays, like), notes
    return None


def _placed(folder: Path, arrays: dict[str, np.ndarray], like: Tree) -> Tree:
    def place(where: Any, leaf: Any) -> jax.Array:
        values = arrays.get(jax.tree_util.keystr(where))
        if values is None or values.shape != leaf.shape or values.dtype != leaf.dtype:
            raise UserError(f"the state in {folder} is of another shape at "
                            f"{jax.tree_util.keystr(where)}; choose another folder")
        return jax.device_put(values, leaf.sharding)

    return jax.tree.map_with_path(place, like)


def _path(folder: Path, rounds: int) -> Path:
    return folder / f"state-{rounds:06d}.safetensors"


def _rounds(folder: Path) -> list[int]:
    return sorted(int(path.stem.partition("-")[2]) for path in folder.glob("state-*.safetensors"))
