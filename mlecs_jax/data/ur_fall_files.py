"""The tables among UR-Fall's official files: frame labels, accelerometer records, frame times.

Every function names the file, the line and the remedy when something is wrong with it.
"""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

import numpy as np

from mlecs_jax.errors import UserError

SEQUENCES = tuple(f"adl-{i:02d}" for i in range(1, 41)) + tuple(
    f"fall-{i:02d}" for i in range(1, 31))
"""All sequences; the position of a name is its group index everywhere."""

LABEL_FILES = {"fall": "urfall-cam0-falls.csv", "adl": "urfall-cam0-adls.csv"}
LABEL_ROWS = {"fall": 2_995, "adl": 8_549}
"""Rows of the published label files: a file with fewer is torn."""

DEPTH_FEATURES = ("HeightWidthRatio", "MajorMinorRatio", "BoundingBoxOccupancy", "MaxStdXZ",
                  "HHmaxRatio", "H", "D", "P40")
FRAMES_PER_SECOND = 30.0
WINDOW_STEPS = 32
WINDOW_MS = 1000.0

COVERAGE_MS = 50.0
"""A frame has an accelerometer reading if the record reaches to within this time of it: more than
the slowest sensor's step (28 ms), less than two frames."""

MIS_SYNCED = {
    "fall-10": "the record runs about 40 frames ahead of the video, so no frame's reading is known",
}
"""Sequences whose accelerometer is not aligned with the frames, though its times say so."""

_READ_FILE = re.compile(
    r"urfall-cam0-(falls|adls)\.csv|(fall|adl)-\d\d-(acc\.csv|data\.csv|cam0\.mp4|cam0-(rgb|d)\.zip)")
_PNG_FOLDER = re.compile(r"(fall|adl)-\d\d-cam0-(rgb|d)")


@dataclasses.dataclass(frozen=True)
class LabelledSequence:
    """The labelled frames of one sequence, in the order of the label file.

    Attributes:
      name: e.g. ``fall-01``.
      rows: int32 ``[n]``, position in the falls file followed by the daily-activity file.
      frames: int32 ``[n]``, frame numbers from 1.
      labels: int32 ``[n]``, 0 not lying, 1 temporary pose, 2 lying (in the file -1, 0, 1).
      depth_features: float32 ``[n, 8]``, see ``DEPTH_FEATURES``.
    """

    name: str
    rows: np.ndarray
    frames: np.ndarray
    labels: np.ndarray
    depth_features: np.ndarray


def source_files(folder: Path) -> list[Path]:
    """The files of ``folder`` that a preparation reads, sorted by name."""
    found = []
    for path in folder.iterdir():
        if _READ_FILE.fullmatch(path.name):
            found.append(path)
        elif path.is_dir() and _PNG_FOLDER.fullmatch(path.name):
            found += path.rglob("*.png")
    return sorted(found)


def read_labels(folder: Path, *, partial: bool = False) -> list[LabelledSequence]:
    """Reads both label files.

    Args:
      folder: folder of the official files.
      partial: accept files with fewer rows than the published ones.

    Returns:
      One entry per sequence, in order of first appearance, falls first.

    Raises:
      UserError: a file is missing, torn or malformed, or names an unknown sequence.
    """
    rows_of: dict[str, list[tuple[int, list[float]]]] = {}
    row = 0
    for kind, file_name in LABEL_FILES.items():
        path = folder / file_name
        lines = _read_lines(path)
        if not partial and len(lines) != LABEL_ROWS[kind]:
            raise UserError(
                f"{path} has {len(lines)} rows, the published file {LABEL_ROWS[kind]}; get it "
                "again, or allow a part of the dataset with --partial")
        for number, cells in lines:
            name = cells[0].strip()
            if name not in SEQUENCES or not name.startswith(kind):
                raise UserError(f"{path}, line {number}: unknown sequence '{name}'; expected "
                                f"{kind}-NN as in the published file")
            rows_of.setdefault(name, []).append((row, _label_row(path, number, cells)))
            row += 1
    return [_sequence(folder, name, rows) for name, rows in rows_of.items()]


def read_accelerometer(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads ``<name>-acc.csv``: time, total, Ax, Ay, Az.

    Returns:
      ``(t_ms float64 [k], xyz float32 [k, 3])`` in ms from the first frame and in g, sorted by
      time (one published file, adl-27, is not).

    Raises:
      UserError: the file is missing, empty, torn or holds something that is not a number.
    """
    path = folder / f"{name}-acc.csv"
    table = np.array([_numbers(path, number, cells, columns=5)
                      for number, cells in _read_lines(path)])
    table = table[np.argsort(table[:, 0], kind="stable")]
    return table[:, 0], table[:, 2:].astype(np.float32)


def frame_times(folder: Path, name: str, frames: np.ndarray) -> np.ndarray:
    """Times of frames in ms, float64 ``[n]``.

    From the sequence's synchronisation file ``<name>-data.csv`` (frame, ms, total acceleration)
    where there is one, else 30 frames per second from a common zero. The two differ by at most
    5.4 ms on fall-01.

    Raises:
      UserError: the synchronisation file is malformed or lacks one of the frames.
    """
    path = folder / f"{name}-data.csv"
    if not path.exists():
        return (frames - 1) * 1000.0 / FRAMES_PER_SECOND
    times = {}
    for number, cells in _read_lines(path):
        frame, t_ms, _ = _numbers(path, number, cells, columns=3)
        times[int(frame)] = t_ms
    missing = [int(f) for f in frames if int(f) not in times]
    if missing:
        raise UserError(f"{path} has no time for frame {missing[0]}, which is labelled; get the "
                        "file again, or remove it to assume 30 frames per second")
    return np.array([times[int(f)] for f in frames])


def align_accelerometer(
    name: str, frame_ms: np.ndarray, t_ms: np.ndarray, xyz: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Readings of the accelerometer at frames.

    Args:
      name: sequence name, for the table of known mis-synchronisations.
      frame_ms: ``[n]`` times of frames.
      t_ms: ``[k]`` increasing times of readings.
      xyz: ``[k, 3]`` readings, g.

    Returns:
      ``sample`` float32 ``[n, 3]``: the reading nearest in time. ``window`` float32
      ``[n, 32, 3]``: the last second, linearly interpolated at 32 times from ``t - 1000 ms`` to
      ``t`` inclusive, the first reading repeated before the record starts. It ends at ``t``
      (interpolation reaches at most one reading past it) because the labels of falls follow the
      acceleration peak, which a later window would reveal. ``valid`` bool ``[n]``: False where
      no reading belongs to the frame. Gaps within a record are bridged (adl-27 has one of 2 s).
    """
    # The earlier reading where two are equally near.
    nearest = np.abs(frame_ms[:, None] - t_ms).argmin(axis=1)
    valid = (frame_ms >= t_ms[0] - COVERAGE_MS) & (frame_ms <= t_ms[-1] + COVERAGE_MS)
    if name in MIS_SYNCED:
        valid[:] = False
    times = frame_ms[:, None] + np.linspace(-WINDOW_MS, 0.0, WINDOW_STEPS)
    window = np.stack([np.interp(times, t_ms, axis) for axis in xyz.T], axis=-1)
    return xyz[nearest], window.astype(np.float32), valid


def _sequence(
    folder: Path, name: str, rows: list[tuple[int, list[float]]]
) -> LabelledSequence:
    table = np.array([values for _, values in rows])
    frames = table[:, 0].astype(np.int32)
    unique, counts = np.unique(frames, return_counts=True)
    if len(unique) != len(frames):
        kind = name.split("-")[0]
        raise UserError(f"{folder / LABEL_FILES[kind]}: {name} frame {unique[counts > 1][0]} is "
                        "labelled twice; get the file again")
    return LabelledSequence(
        name=name,
        rows=np.array([row for row, _ in rows], dtype=np.int32),
        frames=frames,
        labels=table[:, 1].astype(np.int32) + 1,
        depth_features=table[:, 2:].astype(np.float32),
    )


def _label_row(path: Path, number: int, cells: list[str]) -> list[float]:
    """Frame, label, 8 features of one line."""
    values = _numbers(path, number, cells, columns=11, first=1)
    frame, label = values[:2]
    if frame < 1 or frame != int(frame):
        raise UserError(f"{path}, line {number}: frame '{cells[1]}' is not a whole number from 1")
    if label not in (-1, 0, 1):
        raise UserError(f"{path}, line {number}: label '{cells[2]}' is not -1, 0 or 1")
    return values


def _numbers(
    path: Path, number: int, cells: list[str], *, columns: int, first: int = 0
) -> list[float]:
    """The cells of one line from column ``first`` on as finite numbers."""
    if len(cells) != columns:
        raise UserError(f"{path}, line {number}: {len(cells)} columns instead of {columns}; the "
                        "file is torn or not the official one, get it again")
    values = []
    for column, cell in enumerate(cells[first:], start=first + 1):
        try:
            value = float(cell)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise UserError(f"{path}, line {number}, column {column}: '{cell}' is not a finite "
                            "number; get the file again")
        values.append(value)
    return values


def _read_lines(path: Path) -> list[tuple[int, list[str]]]:
    """``(line number, cells)`` of every line that is not blank; at least one."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path} is missing; it is one of the official UR-Fall files") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); get it again") from error
    lines = [(number, line.split(",")) for number, line in enumerate(text.splitlines(), start=1)
             if line.strip()]
    if not lines:
        raise UserError(f"{path} is empty; get it again")
    return lines
