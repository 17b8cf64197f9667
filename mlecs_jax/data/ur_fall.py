"""UR-Fall: accelerometer, RGB and depth of 70 recorded falls and daily activities, per frame.

B. Kwolek and M. Kepski, "Human fall detection on embedded platform using depth maps and wireless
accelerometer", Computer Methods and Programs in Biomedicine 117(3), 2014. The data are offered for
non-commercial research and never shipped here: :func:`prepare` reads the official files.

Prepared, the dataset holds one example per sequence (read fast) with one row per labelled frame of
camera 0; :func:`load` concatenates them in the order of the label files.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import tensorflow_datasets as tfds

from mlecs_jax.data import paths, prepared, ur_fall_files, ur_fall_images
from mlecs_jax.data.download import Remote, download_files
from mlecs_jax.data.samples import Samples
from mlecs_jax.errors import UserError

SUMMARY = "UR-Fall: 11,544 frames with accelerometer, RGB and depth (Kwolek and Kepski, 2014)"
BASE_URL = "http://fenix.ur.edu.pl/~mkepski/ds/data/"
CLASS_NAMES = ("not lying", "temporary pose", "lying")
RGB_SIZES = (16, 32, 64, 128, 224)
"""Heights and widths that frames can be prepared at."""


@dataclasses.dataclass(kw_only=True)
class UrFallConfig(tfds.core.BuilderConfig):
    """How UR-Fall is prepared.

    Attributes:
      rgb_size: height and width of the RGB and depth pictures, pixels.
    """

    rgb_size: int


class UrFall(tfds.core.GeneratorBasedBuilder):
    """Builder of UR-Fall from its official files; one example per sequence."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    BUILDER_CONFIGS = [
        UrFallConfig(name=f"rgb{size}", description=f"Pictures of {size}x{size}.", rgb_size=size)
        for size in RGB_SIZES]
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Run `python -m mlecs_jax.data.prepare ur_fall --download`."

    # tfds finds this file through `importlib_resources`, which it does not install.
    code_path = tfds.core.Path(__file__)

    builder_config: UrFallConfig  # the base class has it, of the base's type
    sequences: list[ur_fall_files.LabelledSequence] = []
    on_sequence: Callable[[str], None] = staticmethod(lambda name: None)

    def _info(self) -> tfds.core.DatasetInfo:
        size = self.builder_config.rgb_size

        def column(shape: tuple[int, ...], dtype: Any) -> tfds.features.Tensor:
            return tfds.features.Tensor(shape=(None, *shape), dtype=dtype, encoding="zlib")

        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict({
                "sequence": tfds.features.Text(),
                "row": column((), np.int32),  # place in falls file + daily-activity file
                "frame": column((), np.int32),  # from 1
                "label": column((), np.int32),  # index into CLASS_NAMES
                "t_ms": column((), np.float32),
                "acce": column((3,), np.float32),  # g, reading nearest in time
                "acce_window": column((ur_fall_files.WINDOW_STEPS, 3), np.float32),  # g, last 1 s
                "acce_valid": column((), np.bool_),
                "depth8": column((8,), np.float32),  # ur_fall_files.DEPTH_FEATURES
                "rgb": column((size, size, 3), np.uint8),
                "has_depth_image": column((), np.bool_),
                "depth_image": column((size, size, 1), np.uint8),
            }),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        return {"train": self._generate_examples(Path(dl_manager.manual_dir))}

    def _generate_examples(self, folder: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        for key, sequence in enumerate(self.sequences):
            yield key, _example(folder, sequence, self.builder_config.rgb_size)
            self.on_sequence(sequence.name)


def is_available(rgb_size: int = 32) -> bool:
    """Whether :func:`load` can work without further files; does no work itself."""
    return prepared.is_prepared(_prepared_folder(rgb_size)) or _official_folder() is not None


def prepare(source: Path | None = None, *, rgb_size: int = 32, partial: bool = False) -> bool:
    """Prepares the dataset from a folder of official files, unless that is done already.

    Args:
      source: folder with ``urfall-cam0-{falls,adls}.csv``, and per sequence ``<seq>-acc.csv`` and
        ``<seq>-cam0.mp4`` or PNG archives, optionally ``<seq>-data.csv``. None: ``urfall/official``
        or ``ur_fall`` under :func:`paths.data_dir`.
      rgb_size: height and width of pictures, one of ``RGB_SIZES``.
      partial: take a part of the dataset: shorter label files, and only the sequences that have
        an accelerometer file or pictures.

    Returns:
      True if it was prepared now, False if it was prepared before from these same files.

    Raises:
      UserError: no folder, or a file that is missing, torn or not the official one.
    """
    target = _prepared_folder(rgb_size)
    folder = source or _official_folder()
    if folder is None:
        raise UserError(_how_to_get())
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; --source names the folder of official files")
    files = ur_fall_files.source_files(folder)
    identity = prepared.fingerprint(folder, files, partial=partial)

    def write(staging: Path) -> Path:
        tfds.disable_progress_bar()
        builder = UrFall(config=f"rgb{rgb_size}", data_dir=staging, file_format="array_record")
        builder.sequences = _sequences(folder, partial)
        with prepared.progress_bar("Preparing UR-Fall", len(builder.sequences)) as advance:
            builder.on_sequence = advance
            with contextlib.redirect_stdout(io.StringIO()):  # tfds prints the temporary folder
                builder.download_and_prepare(
                    download_dir=staging / "downloads",
                    download_config=tfds.download.DownloadConfig(manual_dir=folder))
        return Path(builder.data_dir)

    return prepared.prepare_once(target, identity, write)


def load(
    *,
    acce: str = "sample",
    rgb: str | Path = "frames",
    depth: str = "features",
    rgb_size: int = 32,
    folder: Path | None = None,
) -> Samples:
    """Loads UR-Fall, preparing it first where only the official files are there.

    Args:
      acce: ``sample``, the reading nearest in time ``[n, 3]``, or ``window``, the last second
        ``[n, 32, 3]``; g.
      rgb: ``frames``, pictures uint8 ``[n, rgb_size, rgb_size, 3]``, or a file of features made
        elsewhere: ``.npy`` ``[n, F]`` in the order of the label files (falls, then daily
        activities), or ``.npz`` with ``seq`` (names, or indices into ``SEQUENCES``), ``frame``
        and ``features [*, F]``.
      depth: ``features``, the 8 published shape features, or ``image``, uint8
        ``[n, rgb_size, rgb_size, 1]``, missing in sequences published here without it.
      rgb_size: one of ``RGB_SIZES``.
      folder: folder of official files; None: the prepared dataset, else the default folders.

    Returns:
      11,544 samples with inputs ``acce``, ``rgb``, ``depth`` in this order. 143 rows have no
      accelerometer reading. Groups are sequences (index into ``SEQUENCES``), strata 0 daily
      activity and 1 fall.

    Raises:
      UserError: no data, bad official files, or an argument that names nothing.
    """
    _check_choice("acce", acce, ("sample", "window"))
    _check_choice("depth", depth, ("features", "image"))
    target = _prepared_folder(rgb_size)
    if folder is not None or not prepared.is_prepared(target):
        prepare(folder, rgb_size=rgb_size)
    columns = read_columns(rgb_size)
    groups, n = columns["group"], len(columns["group"])

    acce_present = columns["acce_valid"]
    signal = columns["acce" if acce == "sample" else "acce_window"]
    signal[~acce_present] = 0.0
    if depth == "image":
        depth_values, depth_present = columns["depth_image"], columns["has_depth_image"]
        if not depth_present.any():
            raise UserError("ur_fall: none of the prepared videos holds depth pictures; prepare "
                            "from the 640x240 videos or the -cam0-d.zip archives, or use "
                            "depth=features")
    else:
        depth_values, depth_present = columns["depth8"], np.ones(n, bool)
    rgb_values = columns["rgb"] if rgb == "frames" else _read_features(
        Path(rgb), groups, columns["frame"])
    first_fall = ur_fall_files.SEQUENCES.index("fall-01")
    return Samples(
        name="ur_fall",
        source="real",
        inputs={"acce": signal, "rgb": rgb_values, "depth": depth_values},
        present=np.stack([acce_present, np.ones(n, bool), depth_present], axis=1),
        labels=columns["label"],
        class_names=CLASS_NAMES,
        groups=groups,
        strata=(groups >= first_fall).astype(np.int32),
    )


def read_columns(rgb_size: int = 32) -> dict[str, np.ndarray]:
    """All columns of the prepared dataset (:class:`UrFall` describes them) and ``group``, in the
    order of the label files.

    Raises:
      UserError: the prepared files are damaged.
    """
    folder = _prepared_folder(rgb_size)
    try:
        # One example holds a whole sequence, so a plain loop over 70 is all there is to read.
        builder = cast(Any, tfds.builder_from_directory(folder))  # a decorator hides the arguments
        examples = list(builder.as_data_source("train"))
    except (RuntimeError, ValueError) as error:  # of array_record, or of tfds for an empty record
        raise UserError(f"the prepared dataset {folder} is damaged "
                        f"({str(error).splitlines()[0]}); remove it and prepare again") from error
    names = [example.pop("sequence").decode() for example in examples]
    for name, example in zip(names, examples, strict=True):
        group = ur_fall_files.SEQUENCES.index(name)
        example["group"] = np.full(len(example["row"]), group, np.int32)
    order = np.argsort(np.concatenate([example["row"] for example in examples]))
    return {key: np.concatenate([example[key] for example in examples])[order]
            for key in examples[0]}


def download(folder: Path, base_url: str = BASE_URL) -> int:
    """Downloads the official files into ``folder``; what is there already is kept.

    Returns:
      The number of files fetched.

    Raises:
      UserError: the site cannot be reached or lacks a file, or a transfer broke off; running it
        again goes on from there.
    """
    remotes = [Remote(name) for name in ur_fall_files.LABEL_FILES.values()]
    for name in ur_fall_files.SEQUENCES:
        remotes += [Remote(f"{name}-acc.csv"), Remote(f"{name}-data.csv", optional=True),
                    Remote(f"{name}-cam0.mp4")]
    with prepared.progress_bar("Downloading UR-Fall", len(remotes)) as advance:
        return download_files(base_url, remotes, folder, advance)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of :func:`prepare` to the command line."""
    parser.add_argument("--rgb-size", type=int, default=32, metavar="PIXELS",
                        help=f"height and width of pictures, one of {RGB_SIZES} (default 32)")
    parser.add_argument("--partial", action="store_true",
                        help="take the sequences that are there instead of asking for all 70")


def _sequences(folder: Path, partial: bool) -> list[ur_fall_files.LabelledSequence]:
    sequences = ur_fall_files.read_labels(folder, partial=partial)
    if partial:
        sequences = [s for s in sequences if (folder / f"{s.name}-acc.csv").exists()
                     or ur_fall_images.has_pictures(folder, s.name)]
        if not sequences:
            raise UserError(f"{folder} holds neither accelerometer files nor pictures of any "
                            "labelled sequence; --source names the folder of official files")
    missing = [f"{s.name}-acc.csv" for s in sequences
               if not (folder / f"{s.name}-acc.csv").exists()]
    missing += [f"{s.name}-cam0.mp4" for s in sequences
                if not ur_fall_images.has_pictures(folder, s.name)]
    if missing:
        raise UserError(f"{folder} lacks {len(missing)} of the official files (first: "
                        f"{missing[0]}); add them (--partial leaves out sequences with no "
                        "file at all)")
    return sequences


def _example(
    folder: Path, sequence: ur_fall_files.LabelledSequence, size: int
) -> dict[str, Any]:
    frame_ms = ur_fall_files.frame_times(folder, sequence.name, sequence.frames)
    t_ms, xyz = ur_fall_files.read_accelerometer(folder, sequence.name)
    sample, window, valid = ur_fall_files.align_accelerometer(sequence.name, frame_ms, t_ms, xyz)
    rgb, depth, has_depth = ur_fall_images.read_pictures(
        folder, sequence.name, sequence.frames, size)
    return {
        "sequence": sequence.name, "row": sequence.rows, "frame": sequence.frames,
        "label": sequence.labels, "t_ms": frame_ms.astype(np.float32), "acce": sample,
        "acce_window": window, "acce_valid": valid, "depth8": sequence.depth_features, "rgb": rgb,
        "has_depth_image": has_depth, "depth_image": depth,
    }


def _read_features(path: Path, groups: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """Features of a file as float32 ``[n, F]``, matched to rows."""
    try:
        stored = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"rgb features {path} cannot be read ({error}); rgb is 'frames' or a .npy "
                        "or .npz file") from error
    if isinstance(stored, np.ndarray):
        features = stored
        if features.ndim != 2 or len(features) != len(groups):
            raise UserError(f"rgb features {path} have shape {features.shape}, not "
                            f"[{len(groups)}, F]; give one row per labelled frame")
        return features.astype(np.float32)
    with stored:
        return _match_features(path, dict(stored), groups, frames)


def _match_features(
    path: Path, stored: dict[str, np.ndarray], groups: np.ndarray, frames: np.ndarray
) -> np.ndarray:
    """Rows of ``features`` for each (sequence, frame)."""
    names = np.array(ur_fall_files.SEQUENCES)
    for key in ("seq", "frame", "features"):
        if key not in stored:
            raise UserError(f"rgb features {path} lack the array '{key}'; expected seq, frame and "
                            "features")
    seq, frame, features = stored["seq"], stored["frame"], stored["features"]
    if features.ndim != 2 or not seq.shape == frame.shape == features.shape[:1]:
        raise UserError(f"rgb features {path}: seq {seq.shape}, frame {frame.shape} and features "
                        f"{features.shape} disagree; expected [k], [k] and [k, F]")
    if seq.dtype.kind in "iu":
        if len(seq) and not 0 <= seq.min() <= seq.max() < len(names):
            raise UserError(f"rgb features {path}: seq runs from {seq.min()} to {seq.max()}; use "
                            f"sequence names, or indices 0 to {len(names) - 1}")
        seq = names[seq]
    place = {(str(s), int(f)): i for i, (s, f) in enumerate(zip(seq, frame, strict=True))}
    keys = [(str(s), int(f)) for s, f in zip(names[groups], frames, strict=True)]
    absent = [key for key in keys if key not in place]
    if absent:
        raise UserError(f"rgb features {path} lack {len(absent)} labelled frames (first: "
                        f"{absent[0][0]} frame {absent[0][1]}); extract them for every frame")
    return features[[place[key] for key in keys]].astype(np.float32)


def _prepared_folder(rgb_size: int) -> Path:
    _check_choice("rgb_size", rgb_size, RGB_SIZES)
    return paths.prepared_dir() / UrFall.name / f"rgb{rgb_size}" / str(UrFall.VERSION)


def _official_folder() -> Path | None:
    """The first default folder that holds the label files."""
    for place in ("urfall/official", "ur_fall"):
        folder = paths.data_dir() / place
        if all((folder / name).exists() for name in ur_fall_files.LABEL_FILES.values()):
            return folder
    return None


def _how_to_get() -> str:
    return ("UR-Fall is not prepared and its official files are not under "
            f"{paths.data_dir() / 'ur_fall'}; run `python -m mlecs_jax.data.prepare ur_fall "
            "--source=FOLDER` on your copy or `--download` to fetch it")


def _check_choice(what: str, value: Any, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        raise UserError(f"ur_fall: {what}={value!r} is unknown; use one of "
                        f"{', '.join(map(str, choices))}")
