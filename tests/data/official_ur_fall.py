"""Writes a small made-up folder in the format of UR-Fall's official files."""

import fractions
from pathlib import Path

import av
import numpy as np

FEATURES = "1.5,2.5,0.5,120.25,1.0,1900.0,1050.0,0.05"


def write_labels(path: Path, name: str, labels: list[int]) -> None:
    path.write_text("".join(f"{name},{frame},{label},{FEATURES}\n"
                            for frame, label in enumerate(labels, start=1)))


def write_accelerometer(path: Path, last_ms: int = 400) -> None:
    """Every 20 ms from -40: Ax = t/1000 g, Ay = 1, Az = -Ax."""
    path.write_text("".join(f"{t},1.0,{t / 1000},1.0,{-t / 1000}\n"
                            for t in range(-40, last_ms + 1, 20)))


def write_video(path: Path, frames: int, width: int, height: int = 240) -> None:
    """Plain frames; frame i (from 0) has RGB (40 + 20 i, 120, 200), depth (left half) 60 + 20 i."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.bit_rate = 2_000_000
        for i in range(frames):
            picture = np.empty((height, width, 3), np.uint8)
            picture[:] = (40 + 20 * i, 120, 200)
            picture[:, :width - 320] = 60 + 20 * i
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = i, fractions.Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_official(folder: Path) -> Path:
    """fall-01 (5 frames, 640 wide, with depth) and adl-01 (4 labelled frames of 6, 320 wide)."""
    folder.mkdir(parents=True)
    write_labels(folder / "urfall-cam0-falls.csv", "fall-01", [-1, -1, 0, 0, 1])
    write_labels(folder / "urfall-cam0-adls.csv", "adl-01", [-1, 0, 1, -1])
    for name, frames, width in (("fall-01", 5, 640), ("adl-01", 6, 320)):
        write_accelerometer(folder / f"{name}-acc.csv")
        write_video(folder / f"{name}-cam0.mp4", frames, width)
    return folder
