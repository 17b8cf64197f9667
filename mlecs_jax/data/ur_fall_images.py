"""The pictures among UR-Fall's official files: side-by-side videos and PNG archives."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image

from mlecs_jax.errors import UserError

VIDEO_HEIGHT = 240
VIDEO_WIDTHS = (640, 320)
"""640: depth on the left half, RGB on the right, as published. 320: the RGB half alone."""
PNG_SIZE = (640, 480)


def has_pictures(folder: Path, name: str) -> bool:
    """Whether ``folder`` holds a video or an RGB archive of sequence ``name``."""
    return _video(folder, name).exists() or _pngs(folder, name, "rgb") is not None


def read_pictures(
    folder: Path, name: str, frames: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frames of one sequence, scaled down to ``size`` x ``size`` by averaging over areas.

    PNG archives are the originals and come before the video where both are there.

    Args:
      folder: folder of the official files.
      name: sequence name.
      frames: int ``[n]`` frame numbers from 1.
      size: height and width of the result; the 4:3 picture is squeezed, not cropped.

    Returns:
      ``rgb`` uint8 ``[n, size, size, 3]``; ``depth`` uint8 ``[n, size, size, 1]``, 255 being the
      sensor's full scale (6 m for falls, 7 m for daily activities) and 0 no reading, zeros where
      absent; ``has_depth`` bool ``[n]``.

    Raises:
      UserError: no pictures, an unreadable or truncated file, fewer frames than labelled, or a
        picture of another size than published.
    """
    n = len(frames)
    depth = np.zeros((n, size, size, 1), np.uint8)
    has_depth = np.zeros(n, bool)
    video = _video(folder, name)
    rgb_pngs, depth_pngs = _pngs(folder, name, "rgb"), _pngs(folder, name, "d")
    if rgb_pngs is None and not video.exists():
        raise UserError(f"{video} is missing, and so is {name}-cam0-rgb.zip; one of them is needed")

    if rgb_pngs is None or (depth_pngs is None and video.exists()):
        rgb, video_depth = _read_video(video, frames, size)
        if video_depth is not None:
            depth, has_depth = video_depth, np.ones(n, bool)
    else:
        rgb = np.zeros((n, size, size, 3), np.uint8)
    if rgb_pngs is not None:
        for i, frame in enumerate(frames):
            if int(frame) not in rgb_pngs:
                raise UserError(f"{folder / name}-cam0-rgb has no picture of frame {frame}, which "
                                "is labelled; get the archive again")
            rgb[i] = _rgb(rgb_pngs[int(frame)], size)
    if depth_pngs is not None:
        for i, frame in enumerate(frames):
            has_depth[i] = int(frame) in depth_pngs
            if has_depth[i]:
                depth[i] = _depth16(depth_pngs[int(frame)], size)
    return rgb, depth, has_depth


def _video(folder: Path, name: str) -> Path:
    return folder / f"{name}-cam0.mp4"


def _read_video(
    path: Path, frames: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """``rgb [n, S, S, 3]`` and, from the published width, ``depth [n, S, S, 1]``."""
    place = {int(frame): i for i, frame in enumerate(frames)}
    last = max(place)
    rgb = np.zeros((len(frames), size, size, 3), np.uint8)
    depth = None
    seen = 0
    for seen, picture in enumerate(_decode(path), start=1):
        if seen in place:
            half = picture.width - 320
            rgb[place[seen]] = _shrink(picture.crop((half, 0, half + 320, VIDEO_HEIGHT)), size)
            if half:
                if depth is None:
                    depth = np.zeros((len(frames), size, size, 1), np.uint8)
                left = picture.crop((0, 0, half, VIDEO_HEIGHT)).convert("L")
                depth[place[seen]] = _shrink(left, size)[..., None]
        if seen == last:
            break
    if seen < last:
        raise UserError(f"{path} has {seen} frames but frame {last} is labelled; the file is "
                        "truncated or of another recording, get it again")
    return rgb, depth


def _decode(path: Path) -> Iterator[Image.Image]:
    """Decodes a video, checking the size of its frames."""
    # One reformatter per video: a new one per frame costs ten times the conversion itself.
    reformatter = VideoReformatter()
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            width, height = stream.codec_context.width, stream.codec_context.height
            if height != VIDEO_HEIGHT or width not in VIDEO_WIDTHS:
                raise UserError(f"{path} has frames of {width}x{height}, not 640x240 (depth and "
                                "RGB) or 320x240 (RGB); use the official camera-0 video")
            stream.thread_type = "AUTO"
            for frame in container.decode(stream):
                yield Image.fromarray(reformatter.reformat(frame, format="rgb24").to_ndarray())
    except (av.FFmpegError, IndexError) as error:
        raise UserError(f"{path} cannot be decoded ({error}); the file is torn or not a video, "
                        "get it again") from error


def _pngs(folder: Path, name: str, kind: str) -> dict[int, Callable[[], Image.Image]] | None:
    """Pictures by frame number, from the archive ``<name>-cam0-<kind>.zip`` or the folder it
    unpacks to; None where there is neither."""
    stem = f"{name}-cam0-{kind}"
    pattern = re.compile(rf"{re.escape(stem)}-(\d+)\.png")
    archive = folder / f"{stem}.zip"
    if (folder / stem).is_dir():
        found = {int(match[1]): _from_file(path) for path in (folder / stem).rglob("*.png")
                 if (match := pattern.fullmatch(path.name))}
    elif archive.exists():
        try:
            with zipfile.ZipFile(archive) as opened:
                members = opened.namelist()
        except (zipfile.BadZipFile, OSError) as error:
            raise UserError(f"{archive} cannot be read ({error}); get it again") from error
        found = {int(match[1]): _from_zip(archive, member) for member in members
                 if (match := pattern.fullmatch(Path(member).name))}
    else:
        return None
    if not found:
        raise UserError(f"{folder / stem} holds no {stem}-NNN.png; get the archive again")
    return found


def _from_file(path: Path) -> Callable[[], Image.Image]:
    return lambda: _open(path.read_bytes(), str(path))


def _from_zip(archive: Path, member: str) -> Callable[[], Image.Image]:
    def read() -> Image.Image:
        try:
            with zipfile.ZipFile(archive) as opened:
                data = opened.read(member)
        except (zipfile.BadZipFile, OSError) as error:
            raise UserError(f"{archive}: {member} cannot be read ({error}); get the archive "
                            "again") from error
        return _open(data, f"{archive}: {member}")
    return read


def _open(data: bytes, what: str) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except (OSError, SyntaxError) as error:  # Pillow reports a broken PNG chunk as SyntaxError
        raise UserError(f"{what} is not a whole PNG ({error}); get the archive again") from error
    if image.size != PNG_SIZE:
        raise UserError(f"{what} is {image.width}x{image.height}, not 640x480; use the official "
                        "camera-0 archive")
    return image


def _rgb(read: Callable[[], Image.Image], size: int) -> np.ndarray:
    return _shrink(read().convert("RGB"), size)


def _depth16(read: Callable[[], Image.Image], size: int) -> np.ndarray:
    image = read()
    if not image.mode.startswith("I"):
        raise UserError(f"a depth picture has mode {image.mode}, not 16-bit grey; use the official "
                        "camera-0 depth archive")
    full = Image.fromarray(np.asarray(image).astype(np.float32))
    return np.rint(_shrink(full, size) * (255 / 65535)).astype(np.uint8)[..., None]


def _shrink(image: Image.Image, size: int) -> np.ndarray:
    return np.asarray(image.resize((size, size), Image.Resampling.BOX))
