"""``python -m mlecs_jax.data.example DIR``: a made-up user's folder with a manifest.

Machines are watched by a vibration sensor, two thermometers and a camera, but for hall B, which
has no camera, and hall C, which has no thermometers; the label is the state of the tool. Vibration
tells broken tools, heat tells sharp ones, the camera sees wear but is often dirty. Nothing in it is
measured: it shows the format, and lets one try ``--config=table`` before one's own data.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet

from mlecs_jax.errors import UserError, exit_code

STATES = ("ok", "worn", "broken")
ROWS_PER_SHIFT = 20
_HALLS = ("hall A", "hall B", "hall C", "public")  # shifts go round; the public ones are shared

MANIFEST = {
    "name": "factory",
    "modalities": {
        "vibration": {"file": "vibration.npy"},
        "temperature": {"file": "readings.parquet", "columns": ["bearing_c", "oil_c"],
                        "missing": "nan"},
        "camera": {"images": "camera", "pattern": "{id:04d}.png", "size": 32, "missing": "nan"},
    },
    "target": {"file": "readings.parquet", "column": "state", "kind": "label",
               "classes": list(STATES)},
    "id": {"file": "readings.parquet", "column": "part"},
    "group": {"file": "readings.parquet", "column": "shift"},
    "device": {"file": "readings.parquet", "column": "hall"},
}


def write(folder: Path, *, rows: int = 600, seed: int = 0) -> Path:
    """Writes the example and returns its manifest, ``factory.json``.

    ``vibration.npy`` float32 ``[rows, 64]`` in g; ``readings.parquet`` with the part's number, its
    shift, hall, state and two temperatures in degrees Celsius; and ``camera/NNNN.png``, 32 x 32
    pixels. Where there are such sensors, 2 % of their readings are missing. The same arguments
    write the same values; files of an earlier call are replaced.

    Raises:
      UserError: the folder cannot be written, or holds something that is not this example.
    """
    manifest = folder / "factory.json"
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir())
                                                    and not manifest.exists())):
        raise UserError(f"{folder} exists and is not an example folder; give a new folder")
    rng = np.random.default_rng(seed)
    shift = np.arange(rows) // ROWS_PER_SHIFT
    state = rng.choice(len(STATES), size=rows, p=(0.5, 0.3, 0.2))
    part = np.arange(rows) + 1
    hall = np.array(_HALLS)[shift % len(_HALLS)]
    try:
        (folder / "camera").mkdir(parents=True, exist_ok=True)
        for old in (folder / "camera").glob("*.png"):
            old.unlink()
        np.save(folder / "vibration.npy", _vibration(rng, state))
        parquet.write_table(pa.table({
            "part": part,
            "shift": [f"shift {number:02d}" for number in shift],
            "hall": hall,
            "state": [STATES[index] for index in state],
            **_temperatures(rng, state, hall != "hall C"),
        }), folder / "readings.parquet")
        for number, image, where in zip(part, _photographs(rng, state), hall, strict=True):
            if where != "hall B" and rng.random() >= 0.02:
                Image.fromarray(image).save(folder / "camera" / f"{number:04d}.png")
        manifest.write_text(json.dumps(MANIFEST, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder}: cannot write the example: {error}") from None
    return manifest


def _vibration(rng: np.random.Generator, state: np.ndarray) -> np.ndarray:
    """Float32 ``[n, 64]``, g: the spindle's hum; a broken tooth strikes once a turn."""
    n = len(state)
    time = np.arange(64)
    phase = rng.uniform(0, 2 * np.pi, (n, 1))
    turns = rng.uniform(3.5, 4.5, (n, 1)) * 2 * np.pi * time / 64
    hum = rng.uniform(0.8, 1.2, (n, 1)) * np.sin(turns + phase)
    strike = np.exp(-12 * (1 - np.cos(turns + phase))) * (state == 2)[:, None]
    return (hum + rng.uniform(0.8, 2.0, (n, 1)) * strike
            + rng.normal(0, 0.3, (n, 64))).astype(np.float32)


def _temperatures(
    rng: np.random.Generator, state: np.ndarray, measured: np.ndarray
) -> dict[str, pa.Array]:
    """Degrees Celsius: a tool that is not sharp runs hot, and heats the oil a little."""
    bearing = np.array([48.0, 58.0, 60.0])[state] + rng.normal(0, 3.5, len(state))
    oil = 30 + 0.3 * bearing + rng.normal(0, 1.5, len(state))
    empty = ~measured | (rng.random(len(state)) < 0.02)
    return {"bearing_c": pa.array(bearing.round(1), mask=empty),
            "oil_c": pa.array(oil.round(1), mask=empty)}


def _photographs(rng: np.random.Generator, state: np.ndarray) -> np.ndarray:
    """Uint8 ``[n, 32, 32, 3]``: a bright cutting edge with a dark wear mark, and dirt."""
    n = len(state)
    y, x = np.mgrid[:32, :32]
    images = np.full((n, 32, 32), 60.0)
    images[:, 10:22] = 170
    middle = rng.uniform(8, 24, (n, 1, 1))
    width = np.array([0.8, 4.0, 2.5])[state][:, None, None] * rng.uniform(0.7, 1.3, (n, 1, 1))
    images -= 110 * np.exp(-((x - middle) ** 2 + (y - 16.0) ** 2) / (2 * width**2))
    dirty = rng.random((n, 1, 1)) < 0.25
    images += rng.normal(0, 1, images.shape) * np.where(dirty, 60, 12)
    tint = np.array([1.0, 0.97, 0.9])
    return np.clip(images[..., None] * tint, 0, 255).astype(np.uint8)


def main(arguments: list[str]) -> int:
    """Writes the example into the one folder named; returns the exit code."""
    return exit_code(lambda: _main(arguments))


def _main(arguments: list[str]) -> None:
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise UserError("usage: python -m mlecs_jax.data.example DIR")
    manifest = write(Path(arguments[0]))
    print(f"Wrote a made-up factory to {manifest.parent}. Train on it with:\n"
          f"  python -m mlecs_jax.run --config=table --config.data.manifest={manifest}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
