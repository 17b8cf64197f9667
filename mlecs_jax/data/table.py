"""A user's own data through one manifest: files in, `Samples` out.

A manifest is a JSON or TOML file beside the data; ``docs/your_own_data.md`` is its reference::

    {"name": "factory",
     "modalities": {"vibration": {"file": "vibration.npy"},
                    "temperature": {"file": "readings.parquet", "columns": ["bearing_c"],
                                    "missing": "nan"},
                    "camera": {"images": "camera", "pattern": "{id}.png", "size": 32}},
     "target": {"file": "readings.parquet", "column": "state", "kind": "label"},
     "group": {"file": "readings.parquet", "column": "shift"},
     "device": {"file": "readings.parquet", "column": "hall"}}
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlecs_jax.data.samples import BUILT_HERE, Samples
from mlecs_jax.data.table_files import (
    Entry,
    did_you_mean,
    read_images,
    read_manifest,
    read_numbers,
    read_values,
)

PUBLIC = "public"
"""In a device column: this row belongs to no device; an empty cell says the same."""

_COLUMN = ("column", "key")  # a table's column, an .npz file's array


def load(manifest_path: str | Path) -> Samples:
    """The samples that a manifest describes, source ``real``.

    Args:
      manifest_path: a ``.json`` or ``.toml`` file; the paths in it are relative to its folder.

    Returns:
      Samples with the manifest's modalities in its order: float32 ``[n, *shape]`` from arrays and
      table columns, uint8 ``[n, size, size, 3]`` from images. Groups, strata and devices are
      numbered 0, 1, ... in the sorted order of the values in their columns; without a group column
      every row is a group of its own.

    Raises:
      UserError: names the manifest's entry, the file and the row or column at fault.
    """
    manifest = read_manifest(Path(manifest_path))
    manifest.check_keys(("name", "modalities", "target"), ("id", "group", "stratum", "device"))
    if (name := manifest.text("name")) in BUILT_HERE:
        raise manifest.error(f"names the data '{name}', which are this program's own; give yours "
                             "another name")
    labels, class_names, texts = _target(manifest.child("target"))
    rows = len(labels) if labels is not None else len(texts or ())

    ids = _column(manifest, "id", rows, as_text=True) if "id" in manifest.keys else range(rows)
    inputs, present = _modalities(manifest.child("modalities"), ids)
    groups = (_numbered(manifest, "group", rows) if "group" in manifest.keys
              else np.arange(rows, dtype=np.int32))
    strata = (_strata(manifest, groups) if "stratum" in manifest.keys
              else np.zeros(rows, dtype=np.int32))
    return Samples(
        name=name,
        source="real",
        inputs=inputs,
        present=present,
        labels=labels,
        class_names=class_names,
        groups=groups,
        strata=strata,
        texts=texts,
        devices=_devices(manifest, rows) if "device" in manifest.keys else None,
    )


def _target(entry: Entry) -> tuple[np.ndarray | None, tuple[str, ...], tuple[str, ...] | None]:
    """Labels and class names, or texts."""
    entry.check_keys(("file", "kind"), (*_COLUMN, "classes"))
    kind = entry.text("kind")
    if kind not in ("label", "text"):
        raise entry.error(f"'kind' is '{kind}'{did_you_mean(kind, ('label', 'text'))}")
    if kind == "text" and "classes" in entry.keys:
        raise entry.error("'classes' is for kind 'label'; remove it")
    values = read_values(entry)
    if not values:
        raise entry.error(f"{entry.text('file')}: has no rows; give at least one per class")
    _refuse_empty(entry, values)
    if kind == "text":
        for row, value in enumerate(values):
            if not isinstance(value, str) or not value.strip():
                raise _bad_cell(entry, row, value, "a target text is needed")
        return None, (), tuple(values)
    labels, class_names = _labels(entry, values)
    return labels, class_names, None


def _labels(entry: Entry, values: list[Any]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Int32 ``[n]`` and one name per class.

    A value is a class by its name; where ``classes`` are given and the column holds only whole
    numbers, none of which is a name, it is a position in ``classes`` instead.
    """
    for row, value in enumerate(values):
        if not isinstance(value, (str, int)):  # bool is an int
            raise _bad_cell(entry, row, value, "a label is a text or a whole number")
    if "classes" in entry.keys:
        class_names = entry.names("classes")
    else:
        class_names = [str(value) for value in _sorted(values)]
    position = {name: index for index, name in enumerate(class_names)}
    if not any(str(value) in position for value in values):
        position = {str(index): index for index in range(len(class_names))}
    for row, value in enumerate(values):
        if str(value) not in position:
            raise _bad_cell(entry, row, value,
                            f"this is none of the classes {', '.join(class_names)}")
    labels = np.array([position[str(value)] for value in values], dtype=np.int32)
    if len(np.unique(labels)) < 2:
        raise entry.error(f"{entry.text('file')}: every row has the class "
                          f"'{class_names[labels[0]]}'; at least 2 classes are needed")
    return labels, tuple(class_names)


def _modalities(entry: Entry, ids: Sequence[Any]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """``{modality: [n, *shape]}`` and which readings are there, bool ``[n, M]``."""
    if not entry.keys:
        raise entry.error("is empty; name at least one modality")
    inputs, present = {}, []
    for name in entry.keys:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
            raise entry.error(f"'{name}' cannot name a modality; use letters, digits and '_', "
                              "a letter first")
        modality = entry.child(name)
        inputs[name], there = _readings(modality, ids)
        present.append(there)
        if not there.any():
            raise modality.error("every reading is missing; leave the modality out")
    stacked = np.stack(present, axis=1)
    bare = ~stacked.any(axis=1)
    if bare.any():
        raise entry.error(f"row {int(bare.argmax())} (from 0) has no reading of any modality, "
                          f"like {bare.sum()} rows in all; remove such rows")
    return inputs, stacked


def _readings(entry: Entry, ids: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """One modality ``[n, *shape]``, zeros where missing, and bool ``[n]``: not missing."""
    if "images" in entry.keys:
        entry.check_keys(("images",), ("pattern", "size", "missing"))
    else:
        entry.check_keys(("file",), ("key", "columns", "missing"))
    if entry.keys.get("missing", "nan") != "nan":
        raise entry.error(f"'missing' is {entry.keys['missing']!r}; the one choice is \"nan\"")
    may_miss = "missing" in entry.keys

    if "images" in entry.keys:
        images, there = read_images(entry, ids)
        if not may_miss and not there.all():
            row = int((~there).argmax())
            raise entry.error(
                f"{entry.text('images')}: no image for row {row} (from 0), id {ids[row]!r}, and "
                f"{(~there).sum()} rows in all; add them, or set \"missing\": \"nan\"")
        return images, there

    file = entry.text("file")
    values = read_numbers(entry)
    _check_rows(entry, len(values), len(ids))
    per_row = values.reshape(len(values), -1)
    if per_row.shape[1] == 0:
        raise entry.error(f"{file}: has shape {values.shape}: no numbers in a row")
    infinite = np.isinf(per_row).any(axis=1)
    if infinite.any():
        raise entry.error(f"{file}: row {int(infinite.argmax())} (from 0) holds infinity, or a "
                          "number beyond float32; mend it")
    nan = np.isnan(per_row)
    wrong = nan.any(axis=1) & ~(nan.all(axis=1) & may_miss)
    if wrong.any():
        row = int(wrong.argmax())
        place = f"column '{entry.keys['columns'][nan[row].argmax()]}'" if (
            "columns" in entry.keys) else f"value {nan[row].argmax()}"
        cure = ("a missing reading has NaN in the whole row; fill in this one" if may_miss else
                "mend it, or set \"missing\": \"nan\" where whole rows are NaN")
        raise entry.error(f"{file}: row {row} (from 0), {place} is empty or NaN; {cure}")
    there = np.asarray(~nan.any(axis=1))
    values[~there] = 0
    return values, there


def _column(manifest: Entry, key: str, rows: int, *, as_text: bool = False) -> list[Any]:
    """The column of ids, groups, strata or devices, one plain value or None per row."""
    entry = manifest.child(key)
    entry.check_keys(("file",), _COLUMN)
    values = read_values(entry, as_text=as_text)
    _check_rows(entry, len(values), rows)
    return values


def _numbered(manifest: Entry, key: str, rows: int) -> np.ndarray:
    """Int32 ``[n]``: values of a column without empty cells, numbered in sorted order."""
    values = _column(manifest, key, rows)
    _refuse_empty(manifest.child(key), values)
    number = {value: index for index, value in enumerate(_sorted(values))}
    return np.array([number[value] for value in values], dtype=np.int32)


def _strata(manifest: Entry, groups: np.ndarray) -> np.ndarray:
    strata = _numbered(manifest, "stratum", len(groups))
    _, first = np.unique(groups, return_index=True)
    mixed = strata != strata[first][groups]
    if mixed.any():
        raise manifest.child("stratum").error(
            f"row {int(mixed.argmax())} (from 0) has another stratum than the first row of its "
            "group; a group lies in one stratum")
    return strata


def _devices(manifest: Entry, rows: int) -> np.ndarray:
    """Int32 ``[n]``, -1 for public rows."""
    values = [None if value in ("", PUBLIC) else value
              for value in _column(manifest, "device", rows)]
    owners = _sorted([value for value in values if value is not None])
    if not owners:
        raise manifest.child("device").error("no row names a device; leave the entry out to have "
                                             "the rows dealt to devices at random")
    number = {value: index for index, value in enumerate(owners)} | {None: -1}
    return np.array([number[value] for value in values], dtype=np.int32)


def _check_rows(entry: Entry, found: int, expected: int) -> None:
    if found != expected:
        raise entry.error(f"{entry.text('file')}: has {found} rows but the target has {expected}; "
                          "row i of every file must be sample i")


def _refuse_empty(entry: Entry, values: list[Any]) -> None:
    for row, value in enumerate(values):
        if value is None or value == "":
            raise _bad_cell(entry, row, value, "fill it in or remove the row from every file")


def _bad_cell(entry: Entry, row: int, value: Any, why: str) -> Exception:
    place = next((f", {key} '{entry.keys[key]}'" for key in _COLUMN if key in entry.keys), "")
    held = "is empty" if value is None or value == "" else f"holds {value!r}"
    return entry.error(f"{entry.text('file')}: row {row} (from 0){place} {held}; {why}")


def _sorted(values: Sequence[Any]) -> list[Any]:
    """Distinct values in order, numbers before texts."""
    return sorted(set(values), key=lambda value: (isinstance(value, str), value))
