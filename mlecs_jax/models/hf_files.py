"""Safetensors of a Hugging Face directory, one file or several, read a tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from mlecs_jax.errors import UserError

CONFIG = "config.json"
WEIGHTS, INDEX, PICKLE = "model.safetensors", "model.safetensors.index.json", "pytorch_model*.bin"
Location = tuple[str, str]  # a file, and the tensor's name in it


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
      UserError: no such file, or something else in it.
    """
    try:
        values = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give the local directory of a "
                        "Hugging Face checkpoint (nothing is downloaded)") from None
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({error}); copy the checkpoint again") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no JSON object; copy the checkpoint again")
    return values


def read_tensors(
    directory: Path, locations: Mapping[str, Location], shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, np.ndarray]]:
    """Tensors by name, one at a time, file after file; all shapes are checked before.

    Args:
      locations, shapes: where each tensor is, and its expected shape, by any name.

    Raises:
      UserError: a damaged file, or a tensor of another shape.
    """
    files: dict[str, list[str]] = {}
    for name, (file, _) in locations.items():
        files.setdefault(file, []).append(name)
    for file, names in files.items():
        with open_tensors(directory / file) as opened:
            for name in names:
                found = tuple(opened.get_slice(locations[name][1]).get_shape())
                if found != shapes[name]:
                    raise UserError(f"{directory / file}: tensor '{name}' has shape {found}, "
                                    f"{CONFIG} asks for {shapes[name]}; they are not of one "
                                    "checkpoint")
    for file, names in files.items():
        with open_tensors(directory / file) as opened:
            for name in names:
                yield name, opened.get_tensor(locations[name][1])


def open_tensors(path: Path) -> Any:
    """An open safetensors file; tensors are read into memory of their own, the file not mapped.

    Raises:
      UserError: it is missing or damaged.
    """
    try:
        return safe_open(path, framework="np", backend="pread")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}); copy the checkpoint again") from None


def tensor_files(directory: Path) -> dict[str, str]:
    """The file of every tensor in a directory.

    Raises:
      UserError: there are no safetensors, or the index names a file or tensor that is not there.
    """
    if (directory / INDEX).exists():
        names = read_json(directory / INDEX).get("weight_map")
        if not isinstance(names, dict):
            raise UserError(f"{directory / INDEX} has no weight_map; copy the checkpoint again")
        for file in sorted(set(names.values())):
            with open_tensors(directory / file) as opened:
                gone = {n for n, f in names.items() if f == file} - set(opened.keys())
            if gone:
                raise UserError(f"{directory / file} lacks tensor '{min(gone)}' that {INDEX} says "
                                "is there; copy the checkpoint again")
        return names
    if not (directory / WEIGHTS).exists():
        pickles = sorted(directory.glob(PICKLE))
        raise UserError(
            f"{pickles[0]} is a pickle, which can run any code when opened; save the model as "
            "safetensors (save_pretrained(directory, safe_serialization=True))" if pickles else
            f"{directory} holds neither {WEIGHTS} nor {INDEX}; give the directory of a checkpoint")
    with open_tensors(directory / WEIGHTS) as opened:
        return dict.fromkeys(opened.keys(), WEIGHTS)
