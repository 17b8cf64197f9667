"""Seeded stand-ins for MOSI and MOSEI: three unaligned streams about one opinion.

A segment holds a few sentiment words. Each has a polarity, spoken in a tone that keeps or turns it
and with a face that strengthens or weakens it::

    label ∝ Σ_k polarity_k (text) · tone_k (audio) · intensity_k (vision) + the video's mood

so that text alone gives part of the label, and reading tone and face *at the word's time* gives the
rest. Streams run at different rates; the tone starts a little after its word.
"""

from __future__ import annotations

import numpy as np

from mlecs_jax.data.sentiment import TEST, TRAIN, VALID, SentimentData
from mlecs_jax.errors import UserError

STEPS = {"text": 12, "audio": 24, "vision": 20}
WIDTHS = {"mosi": {"text": 300, "audio": 5, "vision": 20},
          "mosei": {"text": 300, "audio": 74, "vision": 35}}
GRAIN = {"mosi": 0.2, "mosei": 1 / 3}
"""Steps between possible labels: means of five and of three annotators."""

_CUES = 3
_VOCABULARY = 400


def simulate(name: str, *, seed: int = 0, segments: int = 600) -> SentimentData:
    """A simulated dataset in the shape of ``mosi`` or ``mosei``.

    Args:
      seed: the only source of randomness.
      segments: n; about 20 come from each video. Videos are dealt 70/10/20 to the canonical parts.

    Raises:
      UserError: an unknown name, or fewer than 100 segments.
    """
    if name not in WIDTHS:
        raise UserError(f"no simulated '{name}'; use {' or '.join(WIDTHS)}")
    if segments < 100:
        raise UserError(f"data.simulated_segments is {segments}; give 100 or more")
    rng = np.random.default_rng([seed, list(WIDTHS).index(name)])
    videos = np.sort(rng.integers(0, max(10, segments // 20), segments)).astype(np.int32)
    mood = rng.normal(0, 0.4, videos.max() + 1)[videos]
    polarity = rng.normal(0, 1, (segments, _CUES))
    tone = np.where(rng.random(polarity.shape) < 0.25, -0.8, 1.0)
    intensity = rng.uniform(0.4, 1.6, polarity.shape)
    opinion = 1.1 * (polarity * tone * intensity).sum(axis=1) + mood
    labels = np.clip(np.rint(opinion / GRAIN[name]) * GRAIN[name], -3, 3).astype(np.float32)

    length = rng.uniform(0.6, 1.0, segments)  # share of the steps that is not padding
    when = np.sort(rng.uniform(0.05, 0.85, polarity.shape), axis=1)
    widths = WIDTHS[name]
    streams = {"text": _text(rng, polarity, when, length, widths["text"])}
    for modality, cue, lag in (("audio", tone, 0.06), ("vision", intensity - 1, 0.02)):
        streams[modality] = _signal(rng, cue, when + lag, length, STEPS[modality],
                                    widths[modality])
    order = np.random.default_rng([seed, 7]).permutation(videos.max() + 1)
    rank = np.argsort(order)[videos] / (videos.max() + 1)
    canonical = np.select([rank < 0.7, rank < 0.8], [TRAIN, VALID], TEST).astype(np.int8)
    return SentimentData(name=name, source="simulated", form="simulated",
                         text=streams["text"], audio=streams["audio"],
                         vision=streams["vision"], labels=labels, videos=videos,
                         canonical=canonical)


def _places(when: np.ndarray, length: np.ndarray, steps: int) -> np.ndarray:
    """Step numbers of moments in [0, 1) of sequences that end at the last step."""
    start = steps - np.rint(length * steps)[:, None]
    return np.minimum((start + when * (steps - start)).astype(int), steps - 1)


def _padding(length: np.ndarray, steps: int) -> np.ndarray:
    """Bool ``[n, T, 1]``, True at real steps."""
    return (np.arange(steps)[None, :] >= steps - np.rint(length * steps)[:, None])[..., None]


def _text(rng: np.random.Generator, polarity: np.ndarray, when: np.ndarray, length: np.ndarray,
          width: int) -> np.ndarray:
    """Float32 ``[n, T, d]``: word vectors; sentiment words lie along one direction besides."""
    n, steps = len(polarity), STEPS["text"]
    words = rng.normal(0, 1, (_VOCABULARY, width))
    direction = rng.normal(0, 1, width)
    x = words[rng.integers(0, _VOCABULARY, (n, steps))]
    rows = np.arange(n)[:, None]
    np.add.at(x, (rows, _places(when, length, steps)), polarity[..., None] * direction)
    return (x * _padding(length, steps)).astype(np.float32)


def _signal(rng: np.random.Generator, cue: np.ndarray, when: np.ndarray, length: np.ndarray,
            steps: int, width: int) -> np.ndarray:
    """Float32 ``[n, T, d]``: a slow background of each segment, and the cue for about two steps."""
    n = len(cue)
    direction = rng.normal(0, 1, width) * np.sqrt(8 / width)
    x = rng.normal(0, 0.7, (n, 1, width)) + rng.normal(0, 0.5, (n, steps, width))
    rows = np.arange(n)[:, None]
    at = _places(np.minimum(when, 0.99), length, steps)
    for offset, share in ((0, 1.0), (1, 0.6)):
        np.add.at(x, (rows, np.minimum(at + offset, steps - 1)),
                  share * cue[..., None] * direction)
    return (x * _padding(length, steps)).astype(np.float32)
