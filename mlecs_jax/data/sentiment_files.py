"""Prepared MOSI and MOSEI: users' pickle files converted once to NumPy archives, and read back."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mlecs_jax.data import mult_pickles, paths, prepared
from mlecs_jax.data.sentiment import SentimentData
from mlecs_jax.errors import UserError

_ARCHIVE = "segments.npz"


def prepare(name: str, source: Path | None) -> bool:
    """Converts every known pickle file under a folder.

    Args:
      name: ``mosi`` or ``mosei``.
      source: the folder; None: ``$MLECS_DATA_DIR/<name>``.

    Returns:
      Whether anything was made now.

    Raises:
      UserError: no known file there, or one that is refused.
    """
    folder = source or paths.data_dir() / name
    known = mult_pickles.FILES[name] | mult_pickles.MMSA_FILES
    found = [folder / file for file in known if (folder / file).is_file()]
    if not found:
        raise UserError(f"{folder} holds none of {', '.join(known)}; give the folder of one as "
                        "--source")
    made = [prepared.prepare_once(prepared_folder(name, known[path.name]),
                                  prepared.fingerprint(folder, [path], version=2),
                                  lambda staging, path=path: _write(staging, path))
            for path in found]
    return any(made)


def _write(staging: Path, path: Path) -> Path:
    arrays = mult_pickles.read_segments(path)
    folder = staging / "made"
    folder.mkdir()
    np.savez(folder / _ARCHIVE, allow_pickle=False, **arrays)
    return folder


def prepared_folder(name: str, form: str) -> Path:
    """Where a form of a dataset is prepared."""
    return paths.prepared_dir() / name / form


def prepared_forms(name: str) -> list[str]:
    """Forms that are ready to load."""
    return [form for form in mult_pickles.FORMS
            if prepared.is_prepared(prepared_folder(name, form))]


def load_prepared(name: str, form: str, window: int | None = None) -> SentimentData:
    """A prepared form.

    Args:
      window: None; what is asked for in vain is refused.

    Raises:
      UserError: it is not prepared, or a window is asked for.
    """
    if window is not None:
        raise UserError(f"data.window is {window}; {name} as {form} has sequences of words and "
                        "frames, use 0")
    if form not in prepared_forms(name):
        raise UserError(f"{name} is not prepared as {form}; run python -m mlecs_jax.data.prepare "
                        f"{name} --source=FOLDER with the folder of its pickle file")
    with np.load(prepared_folder(name, form) / _ARCHIVE, allow_pickle=False) as archive:
        return SentimentData(name=name, source="real", form=form, **dict(archive))


def read_archive(path: Path, columns: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Columns of a NumPy archive of plain arrays.

    Raises:
      UserError: the file or a column is missing.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; set MLECS_DATA_DIR to the folder of datasets, or "
                        "use data.source=simulated")
    with np.load(path, allow_pickle=False) as archive:
        missing = [name for name in columns if name not in archive]
        if missing:
            raise UserError(f"{path} has no column '{missing[0]}'")
        return {name: archive[name] for name in columns}
