"""Checkpoints by orbax: one step per complete round, the newest two kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
from flax import serialization
from orbax.checkpoint import v1 as ocp

from mlecs_jax.errors import UserError

State = Any
KEPT = 2


class Checkpoints:
    """Saved states of a run, numbered by complete rounds."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._checkpointer = ocp.training.Checkpointer(
            folder.absolute(),
            preservation_policy=ocp.training.preservation_policies.LatestN(KEPT),
            cleanup_tmp_directories=True)  # what a killed save left behind

    @property
    def latest(self) -> int:
        """Number of complete rounds saved, 0 if none."""
        found = self._checkpointer.latest
        return 0 if found is None else found.step

    def save(self, rounds: int, state: State) -> None:
        """Saves the state after ``rounds`` complete rounds; returns when it is safe on disk."""
        self._checkpointer.save_checkpointables(
            rounds, {"state": serialization.to_state_dict(state)})

    def restore(self, like: State) -> State:
        """The newest state, with the structure, shapes, types and placement of ``like``.

        Raises:
          UserError: the checkpoint is of another shape.
        """
        template = serialization.to_state_dict(like)
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), template)
        try:
            saved = self._checkpointer.load_checkpointables(None, {"state": abstract})["state"]
            mismatch = _first_mismatch(abstract, saved)
        except (ValueError, KeyError, TypeError, OSError) as error:
            mismatch = str(error).strip().splitlines()[0]
        if mismatch:
            raise UserError(f"checkpoint in {self._folder} is of another shape ({mismatch}); use "
                            "another --workdir, or remove this one to begin again")
        return serialization.from_state_dict(like, saved)

    def close(self) -> None:
        self._checkpointer.close()



def _first_mismatch(abstract: Any, saved: Any) -> str | None:
    """Path and shapes of the first leaf that differs; None if all agree."""
    expected = {jax.tree_util.keystr(path): leaf.shape
                for path, leaf in jax.tree_util.tree_leaves_with_path(abstract)}
    found = {jax.tree_util.keystr(path): leaf.shape
             for path, leaf in jax.tree_util.tree_leaves_with_path(saved)}
    for path in {**expected, **found}:
        if expected.get(path) != found.get(path):
            return f"{path}: expected {expected.get(path)}, found {found.get(path)}"
    return None
