"""The pickle files that MOSI and MOSEI are passed around in, read without running their code.

Two families are known: MulT's (``mosi_data.pkl``, ``mosei_senti_data.pkl`` and their ``noalign``
forms) and MMSA's (``aligned_50.pkl``, ``unaligned_50.pkl``). A pickle is a program; this reader
runs only the part of it that builds NumPy arrays and plain Python values, and refuses the rest.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from mlecs_jax.data.sentiment import MODALITIES, NO_VIDEO, TEST, TRAIN, VALID, number_videos
from mlecs_jax.errors import UserError

FILES = {
    "mosi": {"mosi_data.pkl": "mult", "mosi_data_noalign.pkl": "mult_noalign"},
    "mosei": {"mosei_senti_data.pkl": "mult", "mosei_senti_data_noalign.pkl": "mult_noalign"},
}
"""Names of MulT's files and the form they are prepared as."""

MMSA_FILES = {"aligned_50.pkl": "mmsa_aligned", "unaligned_50.pkl": "mmsa_unaligned"}
"""Names of MMSA's files, the same for every dataset."""

FORMS = ("mult", "mult_noalign", "mmsa_aligned", "mmsa_unaligned")
_PARTS = {"train": TRAIN, "valid": VALID, "test": TEST}


def _latin1(text: Any, encoding: str = "latin1") -> bytes:
    """`codecs.encode` as protocol 2 uses it for bytes, and no other codec."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError(f"codec {encoding!r}")
    return text.encode("latin1")


def _allowed() -> dict[tuple[str, str], Callable[..., Any]]:
    import numpy._core.multiarray as multiarray
    import numpy._core.numeric as numeric

    made: dict[tuple[str, str], Callable[..., Any]] = {
        ("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): _latin1}
    for package in ("numpy.core", "numpy._core"):  # before and since NumPy 2
        made[f"{package}.multiarray", "_reconstruct"] = multiarray._reconstruct
        made[f"{package}.multiarray", "scalar"] = multiarray.scalar
        made[f"{package}.numeric", "_frombuffer"] = (
            numeric._frombuffer)  # pyright: ignore[reportAttributeAccessIssue]
    return made


class _NumpyUnpickler(pickle.Unpickler):
    """Knows NumPy's array constructors and nothing else."""

    _allowed = _allowed()

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._allowed[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name}") from None


def read_pickle(path: Path) -> Any:
    """The plain values and NumPy arrays of a pickle file.

    Strings written by Python 2 are read as Latin-1.

    Raises:
      UserError: the file names anything but NumPy's array constructors, or is no whole pickle.
    """
    try:
        with path.open("rb") as file:
            return _NumpyUnpickler(file, encoding="latin1").load()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} is refused: a pickle may build NumPy arrays alone, this one asks "
                        f"for {error}; get the file from its authors") from error
    except Exception as error:  # a broken stream can fail in any of pickle's or NumPy's ways
        raise UserError(f"{path} is no whole pickle of arrays ({type(error).__name__}: {error}); "
                        "get it again") from error


def read_segments(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file of either family, all parts in one.

    Returns:
      ``text``, ``audio``, ``vision`` float32 ``[n, T_m, d_m]``, zero-padded on the left, −inf in
      audio set to 0; ``labels`` float32 ``[n]``; ``videos`` int32 ``[n]``, all
      :data:`NO_VIDEO` where a part does not name them; ``canonical`` int8 ``[n]``.

    Raises:
      UserError: a file that is refused, or without a part or array, or of mismatched lengths.
    """
    parts = read_pickle(path)
    if not isinstance(parts, Mapping) or not set(_PARTS) <= set(parts):
        raise UserError(f"{path} holds no parts train, valid and test; is it MulT's or MMSA's?")
    columns: dict[str, list[np.ndarray]] = {name: [] for name in (*MODALITIES, "labels",
                                                                  "videos", "canonical")}
    for part, code in _PARTS.items():
        arrays = _part(path, part, parts[part])
        columns["canonical"].append(np.full(len(arrays["labels"]), code, np.int8))
        for name, array in arrays.items():
            columns[name].append(array)
    joined = {}
    for name in list(columns):
        pieces = columns.pop(name)
        if len({piece.shape[1:] for piece in pieces}) > 1:
            raise UserError(f"{path}: '{name}' differs in shape between parts")
        joined[name] = np.concatenate(pieces)
    names = joined["videos"]
    joined["videos"] = (number_videos(names) if (names != "").all()
                        else np.full(len(names), NO_VIDEO, np.int32))
    return joined


def _part(path: Path, part: str, arrays: Any) -> dict[str, np.ndarray]:
    labels = "regression_labels" if "regression_labels" in arrays else "labels"
    for name in (*MODALITIES, labels):
        if name not in arrays:
            raise UserError(f"{path}: part '{part}' has no '{name}'")
    y = np.asarray(arrays[labels], np.float32).reshape(-1)
    result: dict[str, np.ndarray] = {"labels": np.clip(y, -3, 3)}
    for name in MODALITIES:
        x = np.array(arrays[name], np.float32)
        if x.ndim != 3 or len(x) != len(y):
            raise UserError(f"{path}: part '{part}', '{name}' is {list(x.shape)}; expected "
                            f"[{len(y)}, time, features]")
        if name == "audio":
            x[x == -np.inf] = 0  # COVAREP's logarithm of silence
        if not np.isfinite(x).all():
            raise UserError(f"{path}: part '{part}', '{name}' holds values that are not finite")
        result[name] = left_padded(x)
    result["videos"] = _video_names(arrays.get("id"), len(y))
    return result


def _video_names(ids: Any, n: int) -> np.ndarray:
    """A video's name per segment; MMSA: ``video$_$clip``, MulT: rows of (video, start, end).

    Empty where a file has no ids, or not one for each segment.
    """
    if ids is None or len(ids) != n:
        return np.full(n, "")
    firsts = [row if isinstance(row, (str, bytes)) else np.ravel(row)[0] for row in ids]
    texts = [row.decode("latin1") if isinstance(row, bytes) else str(row) for row in firsts]
    return np.array([text.split("$_$")[0] for text in texts])


def left_padded(x: Float[np.ndarray, "n T d"]) -> Float[np.ndarray, "n T d"]:
    """Moves all-zero steps at the end of each sequence to its front."""
    steps = x.shape[1]
    real = x.any(axis=-1)
    trailing = np.where(real.any(axis=1), np.argmax(real[:, ::-1], axis=1), 0)
    if not trailing.any():
        return x
    order = (np.arange(steps)[None, :] - trailing[:, None]) % steps
    return np.take_along_axis(x, order[..., None], axis=1)
