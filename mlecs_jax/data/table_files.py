"""Reads the files that a manifest of :mod:`mlecs_jax.data.table` names; every error names them."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import tomllib
import zipfile
import zlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import csv, parquet

from mlecs_jax.errors import UserError

_TABLES = (".csv", ".parquet")
_ARRAYS = (".npy", ".npz")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One object of a manifest, and how to speak of it in an error.

    Attributes:
      manifest: the manifest's path; paths inside it are relative to its folder.
      where: the entry's place, ``modalities.vibration``; empty for the manifest itself.
      keys: what the object holds.
    """

    manifest: Path
    where: str
    keys: Mapping[str, Any]

    def error(self, message: str) -> UserError:
        """The error to raise for this entry."""
        place = f"{self.manifest}: {self.where}" if self.where else str(self.manifest)
        return UserError(f"{place}: {message}")

    def check_keys(self, required: Sequence[str], optional: Sequence[str] = ()) -> None:
        """Raises UserError for a key that is unknown or absent."""
        known = (*required, *optional)
        for key in self.keys:
            if key not in known:
                raise self.error(f"unknown key '{key}'{did_you_mean(key, known)}")
        for key in required:
            if key not in self.keys:
                raise self.error(f"key '{key}' is missing; add it")

    def text(self, key: str, default: str | None = None) -> str:
        """The value of ``key``, which must be a text that is not empty."""
        value = self.keys.get(key, default)
        if not isinstance(value, str) or not value:
            raise self.error(f"'{key}' must be a text in quotes, not {value!r}")
        return value

    def names(self, key: str) -> list[str]:
        """The value of ``key``, which must be a list of different texts."""
        value = self.keys[key]
        if (not isinstance(value, list) or not value
                or not all(isinstance(name, str) and name for name in value)):
            raise self.error(f"'{key}' must be a list of texts, not {value!r}")
        if len(set(value)) < len(value):
            raise self.error(f"'{key}' names the same thing twice: {value}")
        return value

    def child(self, key: str) -> Entry:
        """The object under ``key``."""
        where = f"{self.where}.{key}" if self.where else key
        value = self.keys[key]
        if not isinstance(value, dict):
            raise Entry(self.manifest, where, {}).error(f"must be an object, not {value!r}")
        return Entry(self.manifest, where, value)

    def path(self, key: str) -> Path:
        """The existing file or folder that ``key`` names."""
        path = self.manifest.parent / self.text(key)
        if not path.exists():
            raise self.error(f"'{key}': {path} does not exist")
        return path


def did_you_mean(word: str, known: Collection[str]) -> str:
    """An ending for "unknown ..." messages: the nearest known word, else all of them."""
    near = difflib.get_close_matches(word, list(known), n=1)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; choose from {', '.join(sorted(known))}"


def read_manifest(path: Path) -> Entry:
    """The manifest at ``path``, JSON or TOML by its suffix."""
    if not path.is_file():
        raise UserError(f"{path}: no such manifest; give the path of a .json or .toml file")
    if path.suffix not in (".json", ".toml"):
        raise UserError(f"{path}: a manifest is a .json or a .toml file")
    parse = json.loads if path.suffix == ".json" else tomllib.loads
    try:
        keys = parse(path.read_text(encoding="utf-8"))
    except ValueError as error:  # what both parsers raise, and what wrong UTF-8 raises
        raise UserError(f"{path}: not valid {path.suffix[1:].upper()}: {error}") from None
    if not isinstance(keys, dict):
        raise UserError(f"{path}: must hold an object with 'name', 'modalities' and 'target'")
    return Entry(path, "", keys)


def read_numbers(entry: Entry) -> np.ndarray:
    """``[n, *shape]`` from ``{file}``, ``{file, key}`` or ``{file, columns}``.

    uint8 ``[n, H, W, C]`` stays as it is; everything else becomes float32, ``[n]`` becomes
    ``[n, 1]``. NaN where a table has an empty cell.
    """
    path = entry.path("file")
    if path.suffix.lower() in _TABLES:
        if "columns" not in entry.keys:
            raise entry.error(f"{path.name}: say which columns: \"columns\": [\"...\"]")
        names = entry.names("columns")
        columns = _read_columns(entry, path, names)
        return np.stack([_to_float(entry, path, name, column)
                         for name, column in zip(names, columns, strict=True)], axis=1)
    values = _read_array(entry, path)
    if "columns" in entry.keys:
        raise entry.error(f"{path.name}: an array file has no 'columns'; remove the key")
    if values.dtype.kind not in "biuf":
        raise entry.error(f"{path.name}: holds {values.dtype}, not numbers")
    if values.dtype == np.uint8 and values.ndim == 4:
        return values
    with np.errstate(over="ignore"):  # what float32 cannot hold turns infinite and is named later
        values = values.astype(np.float32)
    return values[:, None] if values.ndim == 1 else values


def read_values(entry: Entry, *, as_text: bool = False) -> list[Any]:
    """One value per row from ``{file, column}``, ``{file}`` (.npy) or ``{file, key}`` (.npz).

    Args:
      entry: the entry with these keys.
      as_text: keep the cells of a CSV file as they are written, ``007`` as ``"007"``.

    Returns:
      Texts, whole numbers or booleans; None where a cell is empty or NaN. Other values, such as
      fractions or dates, are returned unchanged: the caller knows whether they make sense.
    """
    path = entry.path("file")
    if path.suffix.lower() in _TABLES:
        if "column" not in entry.keys:
            raise entry.error(f"{path.name}: say which column: \"column\": \"...\"")
        (column,) = _read_columns(entry, path, [entry.text("column")], as_text=as_text)
        values = column.to_pylist()
    else:
        if "column" in entry.keys:
            raise entry.error(f"{path.name}: an array file has no 'column'; use 'key' for .npz")
        array = _read_array(entry, path)
        if array.ndim != 1:
            raise entry.error(f"{path.name}: has shape {array.shape}; one value per row is needed")
        values = array.tolist()
    if values and isinstance(values[0], (list, dict)):
        raise entry.error(f"{path.name}: holds lists or records; one plain value per row is needed")
    return [_plain(value) for value in values]


def read_images(entry: Entry, ids: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """One image per id from ``{images, pattern, size}``.

    Returns:
      uint8 ``[n, size, size, 3]``, stretched to the square, and bool ``[n]``, False (and a black
      image) where there is no file.
    """
    folder = entry.path("images")
    pattern = entry.text("pattern", "{id}.png")
    size = entry.keys.get("size", 32)
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise entry.error(f"'size' must be a number of pixels, not {size!r}")
    if not folder.is_dir():
        raise entry.error(f"'images': {folder} is not a folder")
    images = np.zeros((len(ids), size, size, 3), dtype=np.uint8)
    present = np.zeros(len(ids), dtype=bool)
    for row, name in enumerate(ids):
        path = folder / _fill(entry, pattern, row, name)
        present[row] = path.is_file()
        if present[row]:
            images[row] = _read_image(entry, path, row, size)
    return images, present


def _fill(entry: Entry, pattern: str, row: int, name: Any) -> str:
    if name is None:
        raise entry.error(f"row {row} (from 0) has no id; fill in its cell in the id column")
    for candidate in (name, int(name) if str(name).isdecimal() else name):
        try:  # '{id:05d}' wants a number, and a CSV's ids are texts
            filled = pattern.format(id=candidate)
        except (ValueError, KeyError, IndexError):
            continue
        if filled != pattern:
            return filled
    raise entry.error(f"'pattern': cannot put the id {name!r} of row {row} into '{pattern}'; "
                      "write it like {id}.png or {id:05d}.png")


def _read_image(entry: Entry, path: Path, row: int, size: int) -> np.ndarray:
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise entry.error(f"{path}, row {row} (from 0): has more than 8 bits a pixel; "
                                  "save it with 8, or give the frames as an .npy array")
            rgb = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise entry.error(f"{path}, row {row} (from 0): cannot be read as an image: "
                          f"{error}") from None
    if rgb.size != (size, size):
        rgb = rgb.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(rgb)


def _plain(value: Any) -> Any:
    """Whole floats (integers beside empty cells, as pandas writes them) as int, NaN as None."""
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return int(value) if value.is_integer() else value
    return value


def _read_array(entry: Entry, path: Path) -> np.ndarray:
    if path.suffix.lower() not in _ARRAYS:
        raise entry.error(f"{path.name}: cannot read '{path.suffix}' files; give "
                          f"{', '.join(_ARRAYS + _TABLES)}")
    if path.suffix.lower() == ".npy" and "key" in entry.keys:
        raise entry.error(f"{path.name}: an .npy file holds one array; remove 'key'")
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            array = loaded
        else:
            with loaded:
                array = loaded[_array_key(entry, path, loaded.files)]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise entry.error(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None
    if array.ndim == 0:
        raise entry.error(f"{path.name}: holds a single number; one row per sample is needed")
    return array


def _array_key(entry: Entry, path: Path, keys: list[str]) -> str:
    if "key" not in entry.keys and len(keys) == 1:
        return keys[0]
    if "key" not in entry.keys:
        raise entry.error(f"{path.name}: say which array: \"key\" is one of {', '.join(keys)}")
    key = entry.text("key")
    if key not in keys:
        raise entry.error(f"{path.name}: has no array '{key}'{did_you_mean(key, keys)}")
    return key


def _read_columns(entry: Entry, path: Path, names: list[str], *,
                  as_text: bool = False) -> list[pa.ChunkedArray]:
    if "key" in entry.keys:
        raise entry.error(f"{path.name}: 'key' is for .npz files; name table columns instead")
    try:
        if path.suffix.lower() == ".parquet":
            known = parquet.read_schema(path).names
        else:
            with csv.open_csv(path) as reader:
                known = reader.schema.names
        for name in names:
            if name not in known:
                raise entry.error(f"{path.name}: has no column '{name}'"
                                  f"{did_you_mean(name, known)}")
        if path.suffix.lower() == ".parquet":
            table = parquet.read_table(path, columns=names)
        else:
            types = dict.fromkeys(names, pa.string()) if as_text else None
            table = csv.read_csv(path, convert_options=csv.ConvertOptions(
                include_columns=names, column_types=types))
    except (pa.ArrowException, OSError) as error:
        raise entry.error(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None
    return [table.column(name) for name in names]


def _to_float(entry: Entry, path: Path, name: str, column: pa.ChunkedArray) -> np.ndarray:
    """Float32 ``[n]``; NaN for empty cells."""
    kind = column.type
    if pa.types.is_null(kind) or len(column) == 0:
        return np.full(len(column), np.nan, dtype=np.float32)
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
            or pa.types.is_decimal(kind)):
        row, value = _first_not_number(column)
        raise entry.error(f"{path.name}: column '{name}' is not numeric: row {row} (from 0) holds "
                          f"{value!r}; leave empty what is missing, or name another column")
    with np.errstate(over="ignore"):
        return np.array([np.nan if value is None else float(value)
                         for value in column.to_pylist()]).astype(np.float32)


def _first_not_number(column: pa.ChunkedArray) -> tuple[int, Any]:
    for row, value in enumerate(column.to_pylist()):
        try:
            float(value)
        except (TypeError, ValueError):
            if value not in (None, ""):
                return row, value
    return 0, column[0].as_py()
