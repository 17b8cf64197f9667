"""From names to sentiment data: real where they are, simulated where asked or needed."""

from __future__ import annotations

from mlecs_jax.data import mosei, mosi, sentiment_simulated
from mlecs_jax.data.sentiment import SentimentData
from mlecs_jax.errors import UserError

DATASETS = {"mosi": mosi, "mosei": mosei}
WINDOWS = {"mosi": 8, "mosei": 1}
"""Utterances in a sequence of the forms that hold one vector per utterance or video."""


def load(
    name: str,
    *,
    source: str = "auto",
    form: str = "auto",
    window: int | None = None,
    simulated_seed: int = 0,
    simulated_segments: int = 600,
) -> SentimentData:
    """The dataset of a name.

    ``source=auto`` takes real data where there are any, and simulated data otherwise;
    ``SentimentData.source`` says which, and every output file repeats it.

    Args:
      name: ``mosi`` or ``mosei``.
      source: ``auto``, ``real`` or ``simulated``.
      form: which real files; see the dataset's ``load``.
      window: steps of a context window; None: the dataset's default.
      simulated_seed, simulated_segments: of simulated data.

    Raises:
      UserError: an unknown name or source, or real data that are not there.
    """
    if name not in DATASETS:
        raise UserError(f"data.name is '{name}'; use {' or '.join(DATASETS)}")
    if source not in ("auto", "real", "simulated"):
        raise UserError(f"data.source is '{source}'; use auto, real or simulated")
    if source == "simulated" or (source == "auto" and not DATASETS[name].is_available()):
        return sentiment_simulated.simulate(name, seed=simulated_seed,
                                            segments=simulated_segments)
    return DATASETS[name].load(form, WINDOWS[name] if window is None else window)
