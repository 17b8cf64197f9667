"""Whether a language model has read the captions that it is scored on.

A model made by ``python -m mlecs_jax.pretrain`` lies beside hashes of the texts it was trained on.
A captioning run with that model as a backbone compares them with its own validation and test
captions: its split may be another than the one that the model was made for.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from mlecs_jax import backbones
from mlecs_jax.setting import Setting

FILE = "training_text.sha256"
DIGITS = 16  # of a hash: no two of a billion texts are likely to share one


def write(directory: Path, documents: Iterable[str]) -> None:
    """Puts the hashes of a model's training documents beside it."""
    (directory / FILE).write_text("".join(f"{h}\n" for h in sorted(set(map(_hash, documents)))))


def warnings(setting: Setting) -> list[str]:
    """A line for every backbone that has read held-out captions of this run which its own public
    training text does not tell; none where it is not known what a backbone has read."""
    directories = dict.fromkeys(backbones.hf_directories(setting.config).values())
    found = (_warning(setting, directory) for directory in directories)
    return [line for line in found if line]


def _warning(setting: Setting, directory: Path) -> str:
    path, samples = directory / FILE, setting.federation.samples
    if samples.texts is None or not path.is_file():
        return ""
    known = set(path.read_text().split())
    split = setting.federation.partition
    rows = {int(row) for share in (split.public, *split.devices)
            for row in (*share.val, *share.test)}
    public = {_hash(samples.texts[row]) for row in split.public.train}
    captions = [_hash(samples.texts[row]) for row in rows]
    known -= public
    count = sum(caption in known for caption in captions)
    if not count:
        return ""
    return (f"{directory} was trained on {count:,} of the {len(captions):,} captions that this run "
            "validates and tests on: its scores are not those of unseen captions. Train it on the "
            "public text of this very split: --config.data.experiment of lm_small with this run's "
            "config and options")


def _hash(text: str) -> str:
    """Of the words: case, blanks and punctuation make no other text."""
    return hashlib.sha256(" ".join(re.findall(r"\w+", text.lower())).encode()).hexdigest()[:DIGITS]
