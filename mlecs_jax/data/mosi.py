"""CMU-MOSI: 2,199 opinion segments of 93 videos, sentiment in [-3, 3].

A. Zadeh et al., "MOSI: Multimodal Corpus of Sentiment Intensity and Subjectivity Analysis in
Online Opinion Videos", 2016. Forms: users' pickle files (:mod:`mlecs_jax.data.mult_pickles`), or
``utterance``, one published vector per utterance and modality (S. Poria et al., ACL 2017).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from mlecs_jax.data import paths, sentiment_files
from mlecs_jax.data.sentiment import (
    TEST,
    TRAIN,
    SentimentData,
    context_windows,
    hold_out_videos,
    number_videos,
)
from mlecs_jax.errors import UserError

SUMMARY = "CMU-MOSI: 2,199 segments with text, audio and vision (Zadeh et al., 2016)"
BASE_URL = ""
UTTERANCE_FILE = "mosi/mosi_utterance.npz"
CAUTION = ("text and video vectors were learnt with labels of 62 videos, the canonical "
           "training and validation ones")
WINDOW = 8  # utterances of a sequence
VALIDATION_SHARE = 1 / 6  # of the training videos, near the standard folds' 10 of 62


def load(form: str = "auto", window: int | None = None) -> SentimentData:
    """MOSI.

    Args:
      form: ``mult``, ``mult_noalign``, ``mmsa_aligned``, ``mmsa_unaligned`` (prepared files),
        ``utterance``, or ``auto``: the first of these that is there.
      window: of ``utterance``: steps of a sequence, the utterance itself last after those before
        it in its video; None: :data:`WINDOW`. Prepared files have sequences of their own.

    Raises:
      UserError: the form is unknown or not there, or has no window.
    """
    if form == "auto":
        form = next(iter(sentiment_files.prepared_forms("mosi")), "utterance")
    if form == "utterance":
        return utterances(WINDOW if window is None else window)
    return sentiment_files.load_prepared("mosi", form, window)


def utterances(window: int) -> SentimentData:
    """One vector per utterance, in context windows; text 100, audio 73, vision 100 wide.

    The canonical split is the one the vectors were published with (62 training, 31 test videos),
    since they are learnt on its training part; every sixth training video is validation, which
    the vectors have therefore seen: the split ``heldout`` has others.
    """
    columns = sentiment_files.read_archive(
        paths.data_dir() / UTTERANCE_FILE,
        ("video_id", "clip", "text", "audio", "video", "sentiment", "split_bclstm"))
    order = np.lexsort((columns["clip"], columns["video_id"]))
    columns = {name: column[order] for name, column in columns.items()}
    videos = number_videos(columns["video_id"])
    published = np.where(columns["split_bclstm"] == 0, TRAIN, TEST).astype(np.int8)
    return SentimentData(
        name="mosi", source="real", form="utterance",
        text=context_windows(columns["text"], videos, window),
        audio=context_windows(columns["audio"], videos, window),
        vision=context_windows(columns["video"], videos, window),
        labels=columns["sentiment"].astype(np.float32), videos=videos,
        canonical=hold_out_videos(published, videos, VALIDATION_SHARE), caution=CAUTION,
        supervised=True)


def is_available() -> bool:
    """Whether any form can be loaded."""
    return bool(sentiment_files.prepared_forms("mosi")
                or (paths.data_dir() / UTTERANCE_FILE).is_file())


def prepare(source: Path | None = None) -> bool:
    """Converts pickle files of MOSI; see :func:`mlecs_jax.data.sentiment_files.prepare`."""
    return sentiment_files.prepare("mosi", source)


def download(folder: Path, base_url: str = BASE_URL) -> int:
    """There is no public address to fetch MOSI from.

    Raises:
      UserError: always.
    """
    del folder, base_url
    raise UserError("MOSI has no public download; ask its authors for mosi_data.pkl or MMSA's "
                    "aligned_50.pkl and give their folder as --source")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MOSI's preparation has no options of its own."""
    del parser
