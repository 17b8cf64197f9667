"""Readings of files and command lines, one row a sample, as a predictor takes them.

A row is ``{modality: float32 array}``; a modality that is not there is simply absent. Files are
``.npz`` (an array ``[n, …]`` per modality), ``.json`` (an object, a list of them, or one a line)
and ``.csv`` (a line a sample). ``NAME=VALUE`` gives one reading of one sample. Missing readings are
rows of NaN, nulls or empty cells.
"""

from __future__ import annotations

import csv
import dataclasses
import difflib
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlecs_jax.data.hashed_ngrams import hashed_ngrams, joined
from mlecs_jax.errors import UserError
from mlecs_jax.serving.description import IMAGE, SEQUENCE, TEXT, Description, Modality

TRUTH = "truth"  # a column of the known answers, shown beside those given
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
Row = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Readings:
    """Samples to answer.

    Attributes:
      rows: readings of each.
      truth: the answer of each where the file holds one.
    """

    rows: list[Row]
    truth: list[str | None]


def read(inputs: Sequence[str], description: Description,
         without: frozenset[str] = frozenset()) -> Readings:
    """The samples of one file, or one sample of ``NAME=VALUE`` pairs.

    Args:
      inputs: values of ``--input``.
      description: of the predictor that is asked.
      without: modalities that are dropped wherever they stand.

    Raises:
      UserError: what cannot be read, in one line that names file, row and modality; a modality
        the node was not trained with, or a sample without any reading.
    """
    pairs = [text.partition("=") for text in inputs]
    if all(equals and name in description.modalities for name, equals, _ in pairs) and pairs:
        found = [{name: _given(value, description.modalities[name]) for name, _, value in pairs}]
        where, folder = ["--input"], Path()
    elif len(inputs) == 1:
        path = Path(inputs[0]).expanduser()
        found, folder = _file(path, description), path.parent
        where = [f"{path}, row {i} (from 0)" for i in range(len(found))]
    else:
        raise UserError("--input: give one file, or NAME=VALUE for each modality of one sample "
                        f"({', '.join(description.owned)})")
    if not found:
        raise UserError(f"{inputs[0]} has no rows")
    rows, truth = [], []
    for values, place in zip(found, where, strict=True):
        known = values.pop(TRUTH, None)
        truth.append(None if known is None or known == "" else str(known))
        rows.append(_row({name: value for name, value in values.items() if name not in without},
                         description, place, folder))
    return Readings(rows, truth)


def _row(values: Mapping[str, Any], description: Description, where: str, folder: Path) -> Row:
    """Checked readings of one sample."""
    row = {}
    for name, value in values.items():
        if name not in description.modalities:
            near = difflib.get_close_matches(name, description.modalities, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UserError(f"{where}: '{name}' is no modality of this run; {hint}it has "
                            f"{', '.join(description.modalities)}")
        modality = description.modalities[name]
        reading = _reading(value, modality, f"{where}, {name}", folder)
        if reading is None:
            continue
        if not modality.owned:
            raise UserError(f"{where}: {description.node} was trained without {name}; leave it out "
                            f"(--without={name}); it reads {', '.join(description.owned)}")
        row[name] = reading
    if not row:
        raise UserError(f"{where}: there is no reading of {', '.join(description.owned)}; give at "
                        "least one")
    return {name: row[name] for name in description.modalities if name in row}


def _reading(value: Any, modality: Modality, where: str, folder: Path) -> np.ndarray | None:
    """One reading as float32 of the modality's shape; None where it is missing."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if modality.kind == TEXT and _is_text(value):
        text = joined(value)
        return hashed_ngrams([text], width=modality.shape[0])[0] if text else None
    if modality.kind == IMAGE and isinstance(value, str):
        return _image(folder / value, modality, where)
    try:
        if isinstance(value, str):
            value = [float(part) for part in value.split(",")]
        array = np.asarray(value, np.float32)
    except (ValueError, TypeError):
        raise UserError(f"{where}: cannot read {str(value)[:40]!r} as numbers of shape "
                        f"{_shape(modality.shape)}") from None
    if array.size and np.isnan(array).all():
        return None
    if modality.kind == SEQUENCE and array.ndim == 2 and array.shape[1] == modality.shape[1]:
        missing = modality.shape[0] - len(array)
        array = np.pad(array, ((max(missing, 0), 0), (0, 0)))
    if array.shape == () and modality.shape == (1,):
        array = array[None]
    if array.shape != modality.shape:
        raise UserError(f"{where}: has shape {_shape(array.shape)}, this model reads "
                        f"{_shape(modality.shape)}")
    if not np.isfinite(array).all():
        raise UserError(f"{where}: holds NaN or infinity; leave a missing reading out whole")
    return array


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or (
        isinstance(value, list) and bool(value) and all(isinstance(line, str) for line in value))


def _shape(shape: Sequence[int]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


def _image(path: Path, modality: Modality, where: str) -> np.ndarray:
    """A picture as the dataset's reader makes it, float32 ``[Y, X, C]`` of 0–255."""
    try:
        from PIL import Image
    except ImportError:
        raise UserError(f"{where}: reading image files needs Pillow (pip install pillow); or give "
                        f"numbers of shape {_shape(modality.shape)}") from None
    height, width, channels = modality.shape
    how = Image.Resampling[modality.shrink.upper()]
    try:
        with Image.open(path) as image:
            deep = channels == 1 and image.mode.startswith("I")  # 16 bits, full scale 65535
            if image.mode.startswith(("I", "F")) and not deep:
                raise UserError(f"{where}: {path} has more than 8 bits a pixel; save it with 8")
            picture = (Image.fromarray(np.asarray(image).astype(np.float32)) if deep
                       else image.convert("L" if channels == 1 else "RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{where}: {path} cannot be read as an image ({error})") from None
    if picture.size != (width, height):
        picture = picture.resize((width, height), how)
    pixels = np.asarray(picture).astype(np.float32)
    return (np.rint(pixels * (255 / 65535)) if deep else pixels).reshape(modality.shape)


def _given(text: str, modality: Modality) -> Any:
    """The value of ``NAME=VALUE``: numbers with commas, words, an image file or an .npy file."""
    if text.lower().endswith(".npy"):
        return _load(Path(text).expanduser())
    if modality.kind == IMAGE:
        return str(Path(text).expanduser())
    return text


def _load(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read ({str(error).splitlines()[0]})") from None


def _file(path: Path, description: Description) -> list[dict[str, Any]]:
    """One dict of raw values per sample."""
    readers = {".npz": _npz, ".json": _json, ".jsonl": _json, ".csv": _csv}
    if path.suffix.lower() in IMAGES:
        images = [name for name, m in description.modalities.items() if m.kind == IMAGE and m.owned]
        hint = f"--input={images[0]}={path}" if images else "this node reads no images"
        raise UserError(f"--input={path} does not say which modality it is; {hint}")
    if path.suffix.lower() not in readers:
        raise UserError(f"--input: cannot read '{path}'; give a .npz, .json or .csv file, or "
                        f"NAME=VALUE with {', '.join(description.owned)}")
    return readers[path.suffix.lower()](path, description)


def _npz(path: Path, description: Description) -> list[dict[str, Any]]:
    stored = _load(path)
    try:
        with stored:
            arrays = {name: stored[name] for name in stored.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read ({str(error).splitlines()[0]})") from None
    for name, array in arrays.items():  # one sample may come without a leading axis
        modality = description.modalities.get(name)
        if modality is not None and array.shape == modality.shape:
            arrays[name] = array[None]
    lengths = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise UserError(f"{path}: arrays have different numbers of rows ("
                        + ", ".join(f"{name} {n}" for name, n in lengths.items()) + ")")
    rows = next(iter(lengths.values()))
    return [{name: array[i] for name, array in arrays.items()} for i in range(rows)]


def _json(path: Path, description: Description) -> list[dict[str, Any]]:
    del description
    try:
        text = path.read_text("utf-8")
        try:
            records = json.loads(text)
        except ValueError:
            records = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); give an object, a list of objects, or "
                        "one object a line") from None
    records = [records] if isinstance(records, dict) else records
    if not isinstance(records, list) or not all(isinstance(r, dict) for r in records):
        raise UserError(f"{path}: give an object per sample, e.g. "
                        '{"NAME": [numbers]}, or a list of them')
    return [dict(record) for record in records]


def _csv(path: Path, description: Description) -> list[dict[str, Any]]:
    """Columns ``NAME.0``, ``NAME.1``, … or the dataset's own names for vectors; ``NAME`` for a
    single number, words or an image file."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.reader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({error})") from None
    if not lines:
        raise UserError(f"{path} is empty; its first line names the columns")
    header, *body = lines
    groups = _columns(path, header, description)
    rows = []
    for number, line in enumerate(body):
        if len(line) != len(header):
            raise UserError(f"{path}, row {number} (from 0): has {len(line)} cells, the header "
                            f"{len(header)}")
        row: dict[str, Any] = {}
        for name, places in groups.items():
            cells = [line[place].strip() for place in places]
            if len(cells) == 1 or not any(cells):
                row[name] = cells[0] if any(cells) else None
            else:
                row[name] = cells
        rows.append(row)
    return rows


def _columns(path: Path, header: list[str], description: Description) -> dict[str, list[int]]:
    """Places of every modality's cells in a line."""
    place = {name.strip(): i for i, name in enumerate(header)}
    groups: dict[str, list[int]] = {}
    for name, modality in description.modalities.items():
        vector = len(modality.shape) == 1
        numbered = [f"{name}.{i}" for i in range(modality.shape[0])] if vector else []
        for names in ([name], numbered, list(modality.columns)):
            if names and any(column in place for column in names):
                lacking = [column for column in names if column not in place]
                if lacking:
                    raise UserError(f"{path}: lacks column '{lacking[0]}' of {name}")
                groups[name] = [place.pop(column) for column in names]
                break
    if TRUTH in place:
        groups[TRUTH] = [place.pop(TRUTH)]
    for unknown in place:
        raise UserError(f"{path}: column '{unknown}' belongs to no modality; columns are NAME or "
                        f"NAME.0, NAME.1, … of {', '.join(description.modalities)}")
    return groups
