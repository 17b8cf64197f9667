"""VAST-27M: clips with captions of what is seen and heard, subtitles and an omni-modal caption.

S. Chen et al., "VAST: A Vision-Audio-Subtitle-Text Omni-Modality Foundation Model and Dataset",
NeurIPS 2023. The annotation file is a JSON list (or one JSON object a line) of records::

    {"clip_id": "Wtll1g9i0M8.15", "url": "https://…", "vision_cap": ["…", …],
     "audio_cap": ["…", …], "subtitle": "…", "vast_cap": "…"}

Inputs are vision, audio and subtitle; the target is ``vast_cap``. Where the user has feature
vectors of the clips these are the inputs; otherwise the captions of a modality stand for it.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlecs_jax.data.featurise import Featuriser
from mlecs_jax.data.hashed_ngrams import joined
from mlecs_jax.data.samples import Samples
from mlecs_jax.errors import UserError

MODALITIES = ("vision", "audio", "subtitle")
FEATURE_FILES = (".npz", ".safetensors")


@dataclasses.dataclass(frozen=True)
class Clip:
    """One captioned clip.

    Attributes:
      clip: its identifier; features are keyed by it.
      video: clips of one video are never split between training and scoring.
      corpus: where it comes from.
      texts: what each of :data:`MODALITIES` says, in words; empty where there is nothing.
      caption: the target.
    """

    clip: str
    video: str
    corpus: str
    texts: tuple[str, str, str]
    caption: str


def read_annotations(path: Path) -> list[Clip]:
    """Clips of a VAST-27M annotation file; records without a caption are left out.

    Raises:
      UserError: the file cannot be read or a record lacks a field.
    """
    clips = []
    for number, record in enumerate(read_records(path)):
        try:
            texts = (joined(record["vision_cap"]), joined(record["audio_cap"]),
                     str(record["subtitle"] or "").strip())
            clip, caption = str(record["clip_id"]), str(record["vast_cap"]).strip()
        except (KeyError, TypeError) as error:
            raise UserError(f"{path}: record {number} lacks {error}; a VAST-27M record has "
                            "clip_id, vision_cap, audio_cap, subtitle and vast_cap") from None
        if caption:
            video = str(record.get("url") or clip.rpartition(".")[0] or clip)
            clips.append(hidden(Clip(clip, video, "vast", texts, caption)))
    if not clips:
        raise UserError(f"{path} holds no captioned clip; give a VAST-27M annotation file")
    return clips


def read_records(path: Path) -> list[dict[str, Any]]:
    """Objects of a JSON list, or of a file with one JSON object a line.

    Raises:
      UserError: the file cannot be read, or holds something else.
    """
    try:
        text = path.read_text("utf-8")
        records = (json.loads(text) if text.lstrip().startswith("[")
                   else [json.loads(line) for line in text.splitlines() if line.strip()])
    except (OSError, ValueError) as error:
        raise UserError(f"annotations {path} cannot be read ({error}); give a JSON list, or one "
                        "JSON object a line") from None
    if not all(isinstance(record, dict) for record in records):
        raise UserError(f"annotations {path} hold something else than objects; give a JSON list "
                        "of records")
    return records


def load(annotations: Path, features: Path | None, featurise: Featuriser) -> Samples:
    """A user's VAST-27M clips as samples.

    Args:
      annotations: the JSON file.
      features: folder with ``vision``, ``audio`` and ``subtitle`` vectors, each as ``NAME.npz`` or
        ``NAME.safetensors`` with one array per clip id, or as a folder ``NAME/CLIP_ID.npy``. A
        clip that is not among them lacks the modality. Without a file of their own, subtitles,
        which are text, go through ``featurise``; vision and audio are left out. None: all three
        are the annotations' texts through ``featurise``.

    Raises:
      UserError: unreadable files, features of no clip, or arrays of differing shapes.
    """
    clips = read_annotations(annotations)
    if features is None:
        return samples_of(clips, "vast", featurise)
    if not features.is_dir():
        raise UserError(f"captions.features: {features} is not a folder; it holds one file or "
                        "folder per modality")
    ids = [clip.clip for clip in clips]
    found = {name: vectors for name in MODALITIES
             if (vectors := _read_vectors(features, name, ids)) is not None}
    if not found:
        raise UserError(f"captions.features: {features} holds no vectors; expected e.g. "
                        "vision.npz with one array per clip id")
    if "subtitle" not in found:
        found["subtitle"] = featurise_texts([clip.texts[-1] for clip in clips], featurise)
    return _assembled(clips, "vast", {name: vectors for name, (vectors, _) in found.items()},
                      np.stack([there for _, there in found.values()], axis=1))


def samples_of(
    clips: Sequence[Clip], name: str, featurise: Featuriser, source: Any = "real"
) -> Samples:
    """Samples of clips whose three modalities are texts."""
    pairs = [featurise_texts([clip.texts[i] for clip in clips], featurise)
             for i in range(len(MODALITIES))]
    return _assembled(clips, name, dict(zip(MODALITIES, (x for x, _ in pairs), strict=True)),
                      np.stack([there for _, there in pairs], axis=1), source)


def featurise_texts(
    texts: Sequence[str], featurise: Featuriser
) -> tuple[np.ndarray, np.ndarray]:
    """Vectors ``[n, width]``, zeros where there is no text, and bool ``[n]``: there is one."""
    there = np.array([bool(text.strip()) for text in texts])
    vectors = featurise(texts)
    vectors[~there] = 0
    return vectors, there


def _assembled(
    clips: Sequence[Clip], name: str, inputs: Mapping[str, np.ndarray], present: np.ndarray,
    source: Any = "real",
) -> Samples:
    corpora = list(dict.fromkeys(clip.corpus for clip in clips))
    videos = {video: i for i, video in enumerate(dict.fromkeys(
        (clip.corpus, clip.video) for clip in clips))}
    return Samples(
        name=name, source=source, inputs=inputs, present=present, labels=None, class_names=(),
        groups=np.array([videos[clip.corpus, clip.video] for clip in clips], np.int32),
        strata=np.array([corpora.index(clip.corpus) for clip in clips], np.int32),
        texts=tuple(clip.caption for clip in clips),
        context=tuple("\n".join(filter(None, clip.texts)) for clip in clips))


def hidden(clip: Clip) -> Clip:
    """The clip without input texts that contain its caption."""
    vision, audio, subtitle = (
        "" if reveals(text, clip.caption) else text.strip() for text in clip.texts)
    return dataclasses.replace(clip, texts=(vision, audio, subtitle), caption=clip.caption.strip())


def reveals(text: str, caption: str) -> bool:
    """Whether the caption's words stand in the text, in order and next to each other."""
    return f" {_plain(caption)} " in f" {_plain(text)} "


def _plain(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def _read_vectors(
    folder: Path, name: str, clips: Sequence[str]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Float32 ``[n, *shape]`` and bool ``[n]`` of a modality; None where it has no file."""
    stored = _open_vectors(folder, name, clips)
    if stored is None:
        return None
    shapes = {vector.shape for vector in stored.values()}
    if clips and not stored:
        raise UserError(f"captions.features: {folder}/{name} has none of the {len(clips)} clips; "
                        "its keys must be the annotations' clip_id")
    if len(shapes) > 1:
        raise UserError(f"captions.features: {folder}/{name} has arrays of shapes "
                        f"{', '.join(map(str, sorted(shapes)[:3]))}; pool them to one shape")
    vectors = np.zeros((len(clips), *next(iter(shapes), (1,))), np.float32)
    for row, clip in enumerate(clips):
        if clip in stored:
            vectors[row] = stored[clip]
    return vectors, np.array([clip in stored for clip in clips], bool)


def _open_vectors(
    folder: Path, name: str, clips: Sequence[str]
) -> dict[str, np.ndarray] | None:
    """Arrays of the wanted clips by id."""
    wanted = set(clips)
    try:
        if (path := folder / f"{name}.npz").exists():
            with np.load(path, allow_pickle=False) as stored:
                return {key: stored[key] for key in stored.files if key in wanted}
        if (path := folder / f"{name}.safetensors").exists():
            from safetensors import safe_open

            with safe_open(path, framework="numpy") as stored:
                return {key: stored.get_tensor(key) for key in stored.keys()
                        if key in wanted}
        if (path := folder / name).is_dir():
            return {clip: np.load(path / f"{clip}.npy", allow_pickle=False) for clip in clips
                    if (path / f"{clip}.npy").exists()}
    except Exception as error:  # safetensors raises a type of its own for torn files
        raise UserError(f"captions.features: {path} cannot be read ({error})") from None
    return None
