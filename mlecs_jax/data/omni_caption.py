"""Real caption annotations whose modalities are given as text: four corpora, three inputs.

========== ===================================== ======================= ========== ============
corpus     vision                                audio                   subtitle   target
========== ===================================== ======================= ========== ============
vast       five machine captions                 five machine captions   yes        omni caption
msrvtt     up to five captions by other people   machine caption         yes        one caption
audiocaps  machine description of key frames     machine description     –          caption
youcook2   –                                     –                       yes        caption
========== ===================================== ======================= ========== ============

No input is the target: an input text that contains the target's words in order is taken away, and
of MSR-VTT's twenty captions the target is never among the inputs. All clips of one video form one
group, which ``split=sequence`` never straddles.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from mlecs_jax.data.featurise import Featuriser
from mlecs_jax.data.records import records
from mlecs_jax.data.samples import Samples
from mlecs_jax.data.vast import Clip, drawn, hidden, read_annotations, reveals, samples_of
from mlecs_jax.errors import UserError

OTHER_CAPTIONS = 5
"""Captions by other people that stand for what a camera sees (MSR-VTT)."""


def _vast(folder: Path) -> Iterable[Clip]:
    return read_annotations(folder / "vast27m_sample120.json")


def _msrvtt(folder: Path) -> Iterable[Clip]:
    for record in records(folder / "msrvtt1k_omni.json"):
        target = record["desc"].strip()
        others = [caption for caption in dict.fromkeys(map(str.strip, record["all_desc"]))
                  if not reveals(caption, target) and not reveals(target, caption)]
        # The file lists them by alphabet: taking every k-th avoids five of one beginning.
        spread = others[::max(1, len(others) // OTHER_CAPTIONS)][:OTHER_CAPTIONS]
        yield Clip(record["video_id"], record["video_id"], "msrvtt",
                   (". ".join(spread), record["audio_caption"], record["subtitle"]), target)


def _audiocaps(folder: Path) -> Iterable[Clip]:
    for record in records(folder / "audiocaps_omni.json"):
        yield Clip(record["youtube_id"], record["youtube_id"], "audiocaps",
                   (record["visual_desc_molmo"], record["audio_desc_gama"], ""), record["caption"])


def _youcook2(folder: Path) -> Iterable[Clip]:
    for part in ("train", "test"):
        for record in records(folder / f"youcook2_{part}.json"):
            clip = record["video_id"]  # VIDEO_BEGIN_END
            yield Clip(clip, clip.rsplit("_", 2)[0], "youcook2", ("", "", record["subtitle"]),
                       record["desc"])


CORPORA: dict[str, tuple[tuple[str, ...], Callable[[Path], Iterable[Clip]]]] = {
    "vast": (("vast27m_sample120.json",), _vast),
    "msrvtt": (("msrvtt1k_omni.json",), _msrvtt),
    "audiocaps": (("audiocaps_omni.json",), _audiocaps),
    "youcook2": (("youcook2_train.json", "youcook2_test.json"), _youcook2),
}
"""Files of each corpus and their reader."""


def parse_corpora(text: str) -> dict[str, int]:
    """Corpora and how many clips of each at most (0: all), of ``'vast,youcook2:1000'``.

    Raises:
      UserError: no corpus, an unknown one, or no number behind the colon.
    """
    wanted = {}
    for entry in filter(None, map(str.strip, text.split(","))):
        name, colon, limit = entry.partition(":")
        if name not in CORPORA or (colon and not limit.isdecimal()):
            raise UserError(f"captions.corpora: cannot read '{entry}'; use {', '.join(CORPORA)}, "
                            "each alone or as NAME:CLIPS")
        wanted[name] = int(limit or 0)
    if not wanted:
        raise UserError(f"captions.corpora is empty; name at least one of {', '.join(CORPORA)}")
    return wanted


def missing(folder: Path, corpora: Iterable[str]) -> list[str]:
    """Names of the corpora's files that are not in the folder."""
    return [file for name in corpora for file in CORPORA[name][0] if not (folder / file).is_file()]


def load(
    folder: Path, corpora: Mapping[str, int], featurise: Featuriser, count: int = 0
) -> Samples:
    """The named corpora, one after the other; a stratum each.

    Args:
      folder: the annotation files.
      corpora: names out of :data:`CORPORA` and how many clips of each at most, whole videos in
        the order of a hash of their names; 0 takes all.
      count: how many clips of all corpora together at most, see :func:`vast.drawn`; 0 takes all.

    Raises:
      UserError: a file that is missing or of another format.
    """
    clips = [clip for name, limit in corpora.items()
             for clip in _limited(read_corpus(folder, name), limit)]
    return samples_of(drawn(clips, count), "omni_caption", featurise)


def read_corpus(folder: Path, name: str) -> list[Clip]:
    """All clips of a corpus that have a caption, without inputs that reveal it.

    Raises:
      UserError: a file that cannot be read, or a record of another format.
    """
    where = f"{folder}/{CORPORA[name][0][0]}"
    try:
        return [hidden(clip) for clip in CORPORA[name][1](folder) if clip.caption.strip()]
    except KeyError as error:
        raise UserError(f"{where}: a record lacks {error}; the format is described in "
                        "docs/captions.md") from None
    except (TypeError, AttributeError):
        raise UserError(f"{where}: a record has null or something else in the place of text; the "
                        "format is described in docs/captions.md") from None


def _limited(clips: list[Clip], limit: int) -> list[Clip]:
    if not 0 < limit < len(clips):
        return clips
    by_video: dict[str, list[Clip]] = {}
    for clip in clips:
        by_video.setdefault(clip.video, []).append(clip)
    taken: list[Clip] = []
    for video in sorted(by_video, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if len(taken) + len(by_video[video]) <= limit:
            taken += by_video[video]
    return taken
