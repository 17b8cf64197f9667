"""Feature vectors of clips as users have them: one file or folder per modality, keyed by clip id.

``NAME.npz`` or ``NAME.safetensors`` with one array per clip, or ``NAME/CLIP_ID.npy``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from mlecs_jax.errors import UserError

Store = tuple[Iterable[str], Callable[[str], np.ndarray]]


def names(folder: Path, modality: str) -> frozenset[str] | None:
    """Clips that have a vector; None where the modality has no file.

    Raises:
      UserError: a file that cannot be read.
    """
    with _opened(folder, modality) as stored:
        return None if stored is None else frozenset(stored[0])


def read(folder: Path, modality: str, clips: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Float32 ``[n, *shape]``, zeros where a clip has no vector, and bool ``[n]``: it has one.

    Raises:
      UserError: a file that cannot be read, has none of the clips, or arrays of several shapes.
    """
    with _opened(folder, modality) as stored:
        found = {}
        if stored is not None:
            ids, get = stored
            known = frozenset(ids)
            found = {clip: get(clip) for clip in clips if clip in known}
    if not found:
        raise UserError(f"captions.features: {folder}/{modality} has none of the {len(clips)} "
                        "clips; its keys must be the annotations' clip_id")
    shapes = {vector.shape for vector in found.values()}
    if len(shapes) > 1:
        raise UserError(f"captions.features: {folder}/{modality} has arrays of shapes "
                        f"{', '.join(map(str, sorted(shapes)[:3]))}; pool them to one shape")
    vectors = np.zeros((len(clips), *shapes.pop()), np.float32)
    for row, clip in enumerate(clips):
        if clip in found:
            vectors[row] = found[clip]
    return vectors, np.array([clip in found for clip in clips], bool)


@contextlib.contextmanager
def _opened(folder: Path, modality: str) -> Iterator[Store | None]:
    """The clips of a modality's file and how to read one; None where there is no file."""
    path = folder / f"{modality}.npz"
    try:
        if path.exists():
            with np.load(path, allow_pickle=False) as stored:
                yield stored.files, stored.__getitem__
        elif (path := folder / f"{modality}.safetensors").exists():
            from safetensors import safe_open

            with safe_open(path, framework="numpy") as stored:
                yield stored.keys(), stored.get_tensor
        elif (path := folder / modality).is_dir():
            yield ([file.stem for file in path.glob("*.npy")],
                   lambda clip: np.load(path / f"{clip}.npy", allow_pickle=False))
        else:
            yield None
    except Exception as error:  # safetensors raises a type of its own for torn files
        raise UserError(f"captions.features: {path} cannot be read ({error})") from None
