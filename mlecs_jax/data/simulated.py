"""A seeded stand-in for UR-Fall: same schema, same class shares, no download.

Three sensors watch one posture and each is blind to one distinction, at random moments and
independently of the others, so that only all three together tell the classes apart:

========= ===================================== ==========================================
modality  tells                                 confuses
========= ===================================== ==========================================
``acce``  moving (temporary pose) from static   not lying / lying, while the sensor slips
``rgb``   upright from the rest                 temporary / lying, seen along the body axis
``depth`` lying from the rest                   not lying / temporary, cut by the view's edge
========= ===================================== ==========================================

Every sensor also has moments in which it says next to nothing (a motionless pose, the lights
off, holes in the depth map), which is what keeps any two of them below all three.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from mlecs_jax.data.samples import Samples
from mlecs_jax.errors import UserError

CLASS_NAMES = ("not lying", "temporary pose", "lying")
UPRIGHT, TEMPORARY, LYING = 0, 1, 2

WINDOW = 32
"""Readings in one accelerometer window: about one second at the camera's 30 frames a second."""

_FALL_SHARE = 3 / 7  # UR-Fall: 30 falls, 40 daily activities
_MISSING_SHARE, _MISSING_RUN = 0.02, 5  # share of frames, frames per gap of the radio link


@dataclasses.dataclass(frozen=True)
class _Story:
    """What happens in the room, before any sensor sees it.

    Attributes:
      posture: int8 ``[S, F]``, the class of every frame of every sequence.
      is_fall: bool ``[S]``, whether the sequence is a fall or a daily activity.
    """

    posture: np.ndarray
    is_fall: np.ndarray


def ur_fall(*, seed: int, num_sequences: int = 70, frames_per_sequence: int = 165,
            acce: str = "sample", rgb_size: int = 32, depth: str = "features") -> Samples:
    """Simulated UR-Fall, ``n = num_sequences * frames_per_sequence`` samples.

    Args:
      seed: the only source of randomness; the same arguments give the same arrays. Each modality
        draws from a stream of its own, so an option of one leaves the others as they were.
      num_sequences: recordings; about 3 of 7 are falls (stratum 1), the rest daily activity (0).
      frames_per_sequence: labelled frames of each recording, at 30 frames a second.
      acce: ``sample``, one reading ``[n, 3]``, or ``window``, the :data:`WINDOW` readings that end
        at the frame ``[n, 32, 3]``, the first reading repeated before a sequence begins.
      rgb_size: side of the square frames, pixels.
      depth: ``features``, the eight shape features; the simulation has no depth images.

    Returns:
      Samples named ``ur_fall`` with source ``simulated``: ``acce`` float32, g; ``rgb`` uint8
      ``[n, rgb_size, rgb_size, 3]``; ``depth`` float32 ``[n, 8]`` (height/width and major/minor
      ratio, box occupancy, largest spread in X or Z in mm, height/body height, height in mm,
      centroid above the floor in mm, share of points in the lowest 40 cm). About 2 % of the
      ``acce`` readings are missing. One group per sequence.

    Raises:
      UserError: an option out of range.
    """
    _check_options(num_sequences, frames_per_sequence, acce, rgb_size, depth)
    streams = [np.random.default_rng([seed, stream]) for stream in range(5)]
    story = _tell_story(streams[0], num_sequences, frames_per_sequence)
    n = story.posture.size

    present = np.ones((n, 3), dtype=bool)
    present[:, 0] = ~_episodes(streams[1], story.posture.shape, _MISSING_SHARE,
                               _MISSING_RUN).reshape(n)
    acceleration = _accelerometer(streams[2], story.posture)
    if acce == "window":
        acceleration = _trailing_windows(acceleration)
    acceleration = acceleration.reshape(n, *acceleration.shape[2:])
    acceleration[~present[:, 0]] = 0

    return Samples(
        name="ur_fall",
        source="simulated",
        inputs={
            "acce": acceleration,
            "rgb": _camera(streams[3], story.posture, rgb_size),
            "depth": _depth_features(streams[4], story.posture),
        },
        present=present,
        labels=story.posture.reshape(n).astype(np.int32),
        class_names=CLASS_NAMES,
        groups=np.repeat(np.arange(num_sequences, dtype=np.int32), frames_per_sequence),
        strata=np.repeat(story.is_fall.astype(np.int32), frames_per_sequence),
    )


def _check_options(num_sequences: int, frames_per_sequence: int, acce: str, rgb_size: int,
                   depth: str) -> None:
    if num_sequences < 2:
        raise UserError(f"simulated ur_fall: num_sequences is {num_sequences}; give at least 2, "
                        "one fall and one daily activity")
    if frames_per_sequence < 10:
        raise UserError(f"simulated ur_fall: frames_per_sequence is {frames_per_sequence}; give "
                        "at least 10, or no sequence has room for a fall")
    if acce not in ("sample", "window"):
        raise UserError(f"simulated ur_fall: acce is '{acce}'; choose 'sample' or 'window'")
    if rgb_size < 8:
        raise UserError(f"simulated ur_fall: rgb_size is {rgb_size}; give at least 8 pixels")
    if depth != "features":
        raise UserError(f"simulated ur_fall: depth is '{depth}'; the simulation has only "
                        "'features', depth images come with the real data")


def _tell_story(rng: np.random.Generator, sequences: int, frames: int) -> _Story:
    """Posture by a three-state Markov chain per sequence, one step per frame.

    A fall goes not lying -> temporary -> lying and stays there; it begins after the first and
    before the last fifth of the recording. Daily activity is mostly upright,
    with some bending, sitting down, lying down and getting up.
    """
    falls = max(1, round(_FALL_SHARE * sequences))
    is_fall = np.arange(sequences) < falls
    stay = 1.0 / frames  # rates below are expected events per recording
    fall = np.array([[0, 3.0, 0], [0, 0, 4.0], [0, 0, 0]]) * stay
    daily = np.array([[0, 0.8, 0], [4.5, 0, 2.5], [0, 2.0, 0]]) * stay
    leave = np.where(is_fall[:, None, None], fall, daily)  # [S, 3, 3], rates of leaving
    leave[:, range(3), range(3)] = 1 - leave.sum(axis=2)
    thresholds = leave.cumsum(axis=2)

    posture = np.empty((sequences, frames), dtype=np.int8)
    posture[:, 0] = np.where(~is_fall & (rng.random(sequences) < 0.1), LYING, UPRIGHT)
    dice = rng.random((sequences, frames))
    everyone = np.arange(sequences)
    for frame in range(1, frames):
        chances = thresholds[everyone, posture[:, frame - 1]]
        now = np.minimum((dice[:, frame, None] > chances).sum(axis=1), LYING)
        if frame < 0.2 * frames:
            now[is_fall] = UPRIGHT
        elif frame > 0.8 * frames:
            now[is_fall & (now == UPRIGHT)] = TEMPORARY  # whoever is still up falls now
        posture[:, frame] = now
    return _Story(posture=posture, is_fall=is_fall)


def _episodes(rng: np.random.Generator, shape: tuple[int, int], share: float,
              mean_frames: int) -> np.ndarray:
    """Bool ``[S, F]``: True in runs of about ``mean_frames`` frames that make up ``share``."""
    run = (rng.random(shape) < 1 / mean_frames).cumsum(axis=1)
    run -= run[:, :1]
    return np.take_along_axis(rng.random(shape), run, axis=1) < share


def _accelerometer(rng: np.random.Generator, posture: np.ndarray) -> np.ndarray:
    """Float32 ``[S, F, 3]``, g: gravity in the sensor's frame, plus motion.

    Motion takes the magnitude off 1 g (free fall below, impact above). Gravity tells upright
    (along y) from lying (in the x-z plane) until the sensor slips on its belt.
    """
    sequences, frames = posture.shape
    tilt = np.select([posture == UPRIGHT, posture == TEMPORARY], [0.1, 0.8], 1.45)
    tilt = tilt + rng.normal(0, 0.12, posture.shape)
    azimuth = rng.uniform(-np.pi, np.pi, (sequences, 1)) + rng.normal(0, 0.15, posture.shape)
    gravity = np.stack([np.sin(tilt) * np.cos(azimuth), np.cos(tilt),
                        np.sin(tilt) * np.sin(azimuth)], axis=-1)
    orientation = rng.normal(0, 0.12, (sequences, 1, 3))
    drift = rng.normal(0, 0.15, (sequences, 1, 3)) * np.linspace(0, 1, frames)[None, :, None]
    gravity = gravity + orientation + drift
    slipped = _episodes(rng, posture.shape, 0.5, 12)
    gravity = np.where(slipped[..., None], rng.normal(size=gravity.shape), gravity)
    gravity /= np.linalg.norm(gravity, axis=-1, keepdims=True)

    motionless = _episodes(rng, posture.shape, 0.06, 6)
    jolted = _episodes(rng, posture.shape, 0.01, 3)
    moving = np.where(posture == TEMPORARY, ~motionless, jolted)
    excess = rng.uniform(0.35, 1.0, posture.shape)
    falling = rng.random(posture.shape) < 0.5
    magnitude = np.where(moving, np.where(falling, 1 - 0.8 * excess, 1 + 1.5 * excess), 1.0)
    noise = rng.normal(0, 0.03, gravity.shape)
    return (gravity * magnitude[..., None] + noise).astype(np.float32)


def _trailing_windows(readings: np.ndarray) -> np.ndarray:
    """``[S, F, 3]`` -> ``[S, F, WINDOW, 3]``, each window ending at its own frame."""
    frames = readings.shape[1]
    back = np.arange(WINDOW)[None, :] - (WINDOW - 1) + np.arange(frames)[:, None]
    return readings[:, np.maximum(back, 0)]


def _camera(rng: np.random.Generator, posture: np.ndarray, size: int) -> np.ndarray:
    """Uint8 ``[S * F, size, size, 3]``: one body, an ellipse standing on the floor of a room."""
    sequences, frames = posture.shape
    along_axis = _episodes(rng, posture.shape, 0.5, 4)  # a lying body seen from head or feet
    bent_forward = _episodes(rng, posture.shape, 0.04, 4)  # towards the camera: as tall as standing
    look = np.where((posture == LYING) & along_axis, TEMPORARY, posture)
    look = np.where((posture == TEMPORARY) & bent_forward, UPRIGHT, look)
    lights_off = _episodes(rng, posture.shape, 0.03, 6)
    images = np.empty((sequences, frames, size, size, 3), dtype=np.uint8)
    for sequence in range(sequences):  # one at a time: the float frames of all are 12 times as big
        images[sequence] = _film(rng, look[sequence], lights_off[sequence], size)
    return images.reshape(-1, size, size, 3)


def _film(rng: np.random.Generator, look: np.ndarray, lights_off: np.ndarray,
          size: int) -> np.ndarray:
    """Uint8 ``[F, size, size, 3]``: the frames of one sequence in a room of its own."""
    frames = len(look)
    grid = (np.arange(size, dtype=np.float32) + 0.5) / size
    y, x = grid[None, :, None], grid[None, None, :]

    room = _room(rng, size)
    body_size = rng.uniform(0.9, 1.1)
    half_height = np.array([0.30, 0.17, 0.08])[look] * body_size * rng.uniform(0.85, 1.15, frames)
    half_width = np.array([0.09, 0.15, 0.29])[look] * body_size * rng.uniform(0.85, 1.15, frames)
    walk = 0.5 + 0.12 * np.sin(rng.uniform(0, 6.28) + np.arange(frames) / rng.uniform(20, 60))
    centre_x = walk + rng.normal(0, 0.06, frames)
    centre_y = rng.uniform(0.84, 0.92) + rng.normal(0, 0.04, frames) - half_height

    def column(values: np.ndarray) -> np.ndarray:
        return values.astype(np.float32)[:, None, None]

    distance = (((y - column(centre_y)) / column(half_height)) ** 2
                + ((x - column(centre_x)) / column(half_width)) ** 2)
    body = np.clip((1.15 - distance) / 0.3, 0, 1)[..., None]  # soft edge
    clothes = np.array([205, 150, 120], dtype=np.float32) + rng.normal(0, 15, 3)
    frame = room + body * (clothes.astype(np.float32) - room)
    light = np.where(lights_off, 0.02, rng.normal(rng.uniform(0.85, 1.1), 0.04, frames))
    noise = rng.standard_normal((frames, size, size, 1), dtype=np.float32) * 6
    return np.clip(frame * column(light)[..., None] + 8 + noise, 0, 255).astype(np.uint8)


def _room(rng: np.random.Generator, size: int) -> np.ndarray:
    """Float32 ``[size, size, 3]``: a wall, a floor and a piece of furniture, all fairly dark."""
    wall, floor, furniture = rng.uniform(20, 70, (3, 3)).astype(np.float32)
    room = np.empty((size, size, 3), dtype=np.float32)
    room[:] = wall
    room[int(size * rng.uniform(0.6, 0.75)):] = floor
    top, left = (rng.uniform([0.2, 0.0], [0.5, 0.7]) * size).astype(int)
    room[top:top + size // 3, left:left + size // 4] = furniture
    return room


_SHAPES = {  # mean over not lying, temporary, lying; relative spread
    "height_width_ratio": ((2.40, 1.25, 0.60), 0.16),
    "major_minor_ratio": ((2.60, 1.60, 1.90), 0.20),
    "box_occupancy": ((0.55, 0.51, 0.58), 0.10),
    "max_std_xz": ((142.0, 194.0, 230.0), 0.18),
    "height_ratio": ((0.92, 0.60, 0.29), 0.09),
}


def _depth_features(rng: np.random.Generator, posture: np.ndarray) -> np.ndarray:
    """Float32 ``[S * F, 8]``, in the order of UR-Fall's CSV files (see :func:`ur_fall`)."""
    sequences = posture.shape[0]
    cut = _episodes(rng, posture.shape, 0.15, 6)  # near the camera: head and feet out of view
    straight = _episodes(rng, posture.shape, 0.12, 6)  # a bend at the hip, the back still long
    look = np.where((posture == UPRIGHT) & cut, TEMPORARY, posture)
    look = np.where((posture == TEMPORARY) & straight, UPRIGHT, look)
    holes = _episodes(rng, posture.shape, 0.04, 6)  # the shape is whatever the holes leave of it
    look = np.where(holes, rng.integers(0, 3, posture.shape), look)

    shapes = [np.array(mean)[look] * np.exp(rng.normal(0, spread, posture.shape))
              for mean, spread in _SHAPES.values()]
    ratio = shapes[-1]
    body_mm = rng.normal(1800, 90, (sequences, 1))
    height_mm = ratio * body_mm
    centroid_mm = height_mm * rng.normal(0.55, 0.03, posture.shape)
    low_points = 1 / (1 + np.exp(-(0.45 - ratio) * 9 - rng.normal(0, 0.5, posture.shape)))
    features = np.stack([*shapes, height_mm, centroid_mm, low_points], axis=-1)
    return features.reshape(-1, 8).astype(np.float32)
