"""Checkpoints by orbax: one step per complete round, the newest two kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import jax
from flax import serialization
from orbax.checkpoint import v1 as ocp

from mlecs_jax.distributed import ALONE, Group
from mlecs_jax.errors import UserError

State = Any
KEPT = 2
DAMAGED = (ValueError, KeyError, TypeError, AttributeError, OSError)  # orbax on torn files


class Checkpoints:
    """Saved states of a run, numbered by complete rounds.

    Args:
      folder: of all processes; the first of them makes and removes what is in it.
      group: the processes of the run. States are then
        :meth:`mlecs_jax.topology.Topology.everywhere`.

    Raises:
      UserError: the path is not a folder.
    """

    def __init__(self, folder: Path, group: Group = ALONE):
        self._group = group
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is not a folder; remove it or use another --workdir")
        self._folder = folder
        self._checkpointer = ocp.training.Checkpointer(
            str(folder.absolute()),
            # orbax's own policies do not match its protocol's parameter types.
            preservation_policy=cast(Any, ocp.training.preservation_policies.LatestN(KEPT)),
            cleanup_tmp_directories=True)  # what a killed save left behind

    def save(self, rounds: int, state: State) -> None:
        """Saves the state after ``rounds`` complete rounds; returns when it is safe on disk."""
        self._checkpointer.save_checkpointables(
            rounds, {"state": serialization.to_state_dict(state)}, overwrite=True)

    def restore(self, like: State) -> tuple[int, State]:
        """Complete rounds and state of the newest checkpoint that can be read, ``(0, like)`` if
        there is none; structure, shapes, types and placement are those of ``like``.

        Raises:
          UserError: the checkpoint is of another shape, or none can be read.
        """
        template = serialization.to_state_dict(like)
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), template)
        steps = self._group.shared("checkpoints", lambda: sorted(
            (found.step for found in self._checkpointer.checkpoints), reverse=True))
        for step in steps:
            saved = self._load(step, abstract)
            if all(self._group.gather("checkpoint", "" if saved is None else "whole")):
                return step, serialization.from_state_dict(like, saved)
            # A torn file: the round before is kept for this.
        if steps:
            raise UserError(f"the checkpoints in {self._folder} are damaged; restore them, or use "
                            "another --workdir to begin again")
        return 0, like

    def _load(self, step: int, abstract: Any) -> Any:
        """The state of a checkpoint; None if it is damaged.

        Raises:
          UserError: it is of another shape.
        """
        try:
            found = self._checkpointer.checkpointables_metadata(step).metadata["state"]
            if not jax.tree.leaves(found):
                return None  # its description is torn
            mismatch = _first_mismatch(abstract, found)
            if not mismatch:
                return self._checkpointer.load_checkpointables(step, {"state": abstract})["state"]
        except DAMAGED:
            return None
        raise UserError(f"checkpoint {step} in {self._folder} is of another shape "
                        f"({mismatch}); use another --workdir")

    def close(self) -> None:
        self._checkpointer.close()


def _first_mismatch(abstract: Any, saved: Any) -> str | None:
    """Path and shapes of the first leaf that differs; None if all agree."""
    expected, found = ({jax.tree_util.keystr(path): tuple(leaf.shape) for path, leaf in
                        jax.tree_util.tree_leaves_with_path(tree)} for tree in (abstract, saved))
    for path in {**expected, **found}:
        if expected.get(path) != found.get(path):
            return f"{path}: expected {expected.get(path)}, found {found.get(path)}"
    return None
