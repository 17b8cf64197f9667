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
import hashlib
import heapq
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlecs_jax.data import clip_features
from mlecs_jax.data.featurise import Featuriser
from mlecs_jax.data.hashed_ngrams import joined
from mlecs_jax.data.records import records
from mlecs_jax.data.samples import Samples
from mlecs_jax.errors import UserError

MODALITIES = ("vision", "audio", "subtitle")
_FIELDS = ("clip_id", "vision_cap", "audio_cap", "subtitle", "vast_cap")


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


def read_annotations(path: Path) -> Iterator[Clip]:
    """Clips of a VAST-27M annotation file, one at a time; records without a caption are left out.

    Raises:
      UserError: the file cannot be read, or a record lacks a field or has null in the place of
        text.
    """
    for number, record in enumerate(records(path)):
        clip = _clip(record, f"{path}: record {number}")
        if clip.caption:
            yield hidden(clip)


def _clip(record: Mapping[str, Any], where: str) -> Clip:
    missing = [name for name in _FIELDS if name not in record]
    if missing:
        raise UserError(f"{where} lacks '{missing[0]}'; a VAST-27M record has "
                        f"{', '.join(_FIELDS[:-1])} and {_FIELDS[-1]}")
    seen, heard = (_sentences(record[name], f"{where}: {name}")
                   for name in ("vision_cap", "audio_cap"))
    said, caption = (_text(record[name] or "", f"{where}: {name}")
                     for name in ("subtitle", "vast_cap"))
    name = _text(record["clip_id"], f"{where}: clip_id")
    video = str(record.get("url") or name.rpartition(".")[0] or name)
    return Clip(name, video, "vast", (seen, heard, said), caption)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where} is {_short(value)}; give a text")
    return value.strip()


def _sentences(value: Any, where: str) -> str:
    """Captions of a modality, a text or a list of texts, as one text."""
    lines = [value] if isinstance(value, str) else value
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise UserError(f"{where} is {_short(value)}; give a list of texts, [] where there is "
                        "none")
    return joined(lines)


def _short(value: Any) -> str:
    return "null" if value is None else repr(value)[:40]


def drawn(clips: Iterable[Clip], count: int) -> list[Clip]:
    """At most ``count`` clips (0: all), video by video in the order of a hash of the videos' names:
    a draw that is the same on every machine, and holds no more clips than it gives."""
    if not count:
        return list(clips)

    def place(numbered: tuple[int, Clip]) -> tuple[bytes, int]:
        number, clip = numbered
        return hashlib.sha256(clip.video.encode()).digest(), number

    chosen = heapq.nsmallest(count, enumerate(clips), key=place)
    return [clip for _, clip in sorted(chosen, key=lambda numbered: numbered[0])]


def load(
    annotations: Path, features: Path | None, featurise: Featuriser, count: int = 0
) -> Samples:
    """A user's VAST-27M clips as samples.

    Args:
      annotations: the JSON file.
      features: folder with ``vision``, ``audio`` and ``subtitle`` vectors, each as ``NAME.npz`` or
        ``NAME.safetensors`` with one array per clip id, or as a folder ``NAME/CLIP_ID.npy``. A
        clip that is not among them lacks the modality, and one that is in none of the files is left
        out. Without a file of their own, subtitles, which are text, go through ``featurise``;
        vision and audio are left out. None: all three are the annotations' texts through
        ``featurise``.
      count: how many clips at most, drawn by :func:`drawn`; 0 takes all.

    Raises:
      UserError: unreadable files, no clip, features of no clip, or arrays of differing shapes.
    """
    if features is None:
        clips = drawn(read_annotations(annotations), count)
        _check_any(clips, annotations)
        return samples_of(clips, "vast", featurise)
    if not features.is_dir():
        raise UserError(f"captions.features: {features} is not a folder; it holds one file or "
                        "folder per modality")
    known = {name: found for name in MODALITIES
             if (found := clip_features.names(features, name)) is not None}
    if not known:
        raise UserError(f"captions.features: {features} holds no vectors; expected e.g. "
                        "vision.npz with one array per clip id")
    clips = _with_features(annotations, known, count)
    inputs = {name: clip_features.read(features, name, [clip.clip for clip in clips])
              for name in known}
    if "subtitle" not in inputs:
        inputs["subtitle"] = featurise_texts([clip.texts[-1] for clip in clips], featurise)
    return _assembled(clips, "vast", {name: vectors for name, (vectors, _) in inputs.items()},
                      np.stack([there for _, there in inputs.values()], axis=1))


def _with_features(
    annotations: Path, known: Mapping[str, frozenset[str]], count: int
) -> list[Clip]:
    """The drawn ones of the clips that have a vector in some file; says how many have none."""
    some, met = frozenset().union(*known.values()), Counter()

    def has(clip: Clip) -> bool:
        met[found := clip.clip in some] += 1
        return found

    clips = drawn(filter(has, read_annotations(annotations)), count)
    if not met[True] and met[False]:
        raise UserError(f"captions.features: {', '.join(known)} has none of the {met[False]} "
                        "clips; its keys must be the annotations' clip_id")
    _check_any(clips, annotations)
    if met[False]:
        print(f"captions.features: {met[False]:,} of {met.total():,} clips have no vector of "
              f"{', '.join(known)} and are left out", file=sys.stderr, flush=True)
    return clips


def _check_any(clips: Sequence[Clip], annotations: Path) -> None:
    if not clips:
        raise UserError(f"{annotations} holds no captioned clip; give a VAST-27M annotation file")


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
