"""CMU-MOSEI: opinion segments of 3,293 videos, sentiment in [-3, 3].

A. Zadeh et al., "Multimodal Language Analysis in the Wild: CMU-MOSEI Dataset and Interpretable
Dynamic Fusion Graph", ACL 2018. Forms: users' pickle files
(:mod:`mlecs_jax.data.mult_pickles`), or ``video``, one vector per video and modality.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from mlecs_jax.data import paths, sentiment_files
from mlecs_jax.data.sentiment import SentimentData, number_videos
from mlecs_jax.errors import UserError

SUMMARY = "CMU-MOSEI: segments with text, audio and vision (Zadeh et al., 2018)"
BASE_URL = ""
VIDEO_FILE = "mosei/mosei_video_level.npz"
CAUTION = ("one vector and one mean label per video, 916 of 3,293 videos: figures do not compare "
           "with segment-level MOSEI")
_SILENT = 7  # an audio column that is -inf in most rows


def load(form: str = "auto", window: int | None = None) -> SentimentData:
    """MOSEI.

    Args:
      form: ``mult``, ``mult_noalign``, ``mmsa_aligned``, ``mmsa_unaligned`` (prepared files),
        ``video``, or ``auto``: the first of these that is there.
      window: None, or 1 for ``video``: a video has one vector and no neighbours. Prepared files
        have sequences of their own.

    Raises:
      UserError: the form is unknown or not there, or a window that it cannot have.
    """
    if form == "auto":
        form = next(iter(sentiment_files.prepared_forms("mosei")), "video")
    if form != "video":
        return sentiment_files.load_prepared("mosei", form, window)
    if window not in (None, 1):
        raise UserError(f"data.window is {window}; MOSEI's video-level vectors have no neighbours, "
                        "use 1")
    return video_level()


def video_level() -> SentimentData:
    """One step per video; text 768 (BERT), audio 39 (COVAREP), vision 35 (OpenFace) wide.

    The label is the mean of the video's segment labels. Left out: an audio column that is -inf in
    most rows, and rows whose video is not certain.
    """
    columns = sentiment_files.read_archive(
        paths.data_dir() / VIDEO_FILE,
        ("video_id", "id_uncertain", "std_split", "text_bert_cls", "audio_covarep_mean40",
         "visual_openface_mean35", "sentiment_mean7"))
    certain = ~columns.pop("id_uncertain")
    columns = {name: column[certain] for name, column in columns.items()}

    def steps(column: str) -> np.ndarray:
        return columns[column].astype(np.float32)[:, None, :]

    return SentimentData(
        name="mosei", source="real", form="video", text=steps("text_bert_cls"),
        audio=np.delete(steps("audio_covarep_mean40"), _SILENT, axis=-1),
        vision=steps("visual_openface_mean35"),
        labels=columns["sentiment_mean7"].astype(np.float32),
        videos=number_videos(columns["video_id"]),
        canonical=columns["std_split"].astype(np.int8), caution=CAUTION)


def is_available() -> bool:
    """Whether any form can be loaded."""
    return bool(sentiment_files.prepared_forms("mosei")
                or (paths.data_dir() / VIDEO_FILE).is_file())


def prepare(source: Path | None = None) -> bool:
    """Converts pickle files of MOSEI; see :func:`mlecs_jax.data.sentiment_files.prepare`."""
    return sentiment_files.prepare("mosei", source)


def download(folder: Path, base_url: str = BASE_URL) -> int:
    """MOSEI's own server gives raw sequences, not these files.

    Raises:
      UserError: always.
    """
    del folder, base_url
    raise UserError("MOSEI's prepared files have no public download; ask for "
                    "mosei_senti_data.pkl or MMSA's aligned_50.pkl and give their folder as "
                    "--source")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MOSEI's preparation has no options of its own."""
    del parser
