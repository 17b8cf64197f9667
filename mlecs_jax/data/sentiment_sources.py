"""From names to sentiment data: real where they are, simulated where asked or needed."""

from __future__ import annotations

from mlecs_jax.data import mosei, mosi, sentiment_simulated
from mlecs_jax.data.sentiment import SentimentData
from mlecs_jax.errors import UserError

DATASETS = {"mosi": mosi, "mosei": mosei}


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

    ``source=auto`` takes real data where there are any or a form of them is named, and simulated
    data otherwise; ``SentimentData.source`` says which, and every output file repeats it.

    Args:
      name: ``mosi`` or ``mosei``.
      source: ``auto``, ``real`` or ``simulated``.
      form: which real files; see the dataset's ``load``.
      window: steps of a context window; None: the form's own.
      simulated_seed, simulated_segments: of simulated data.

    Raises:
      UserError: an unknown name or source, real data that are not there, or a form or window
        that would be ignored.
    """
    if name not in DATASETS:
        raise UserError(f"data.name is '{name}'; use {' or '.join(DATASETS)}")
    if source not in ("auto", "real", "simulated"):
        raise UserError(f"data.source is '{source}'; use auto, real or simulated")
    real = source == "real" or (source == "auto" and (
        form != "auto" or DATASETS[name].is_available()))
    if not real:
        for option, given in (("form", form != "auto"), ("window", window is not None)):
            if given:
                raise UserError(f"data.{option} is of real data and would be ignored by simulated "
                                "ones; leave it out")
        return sentiment_simulated.simulate(name, seed=simulated_seed,
                                            segments=simulated_segments)
    return DATASETS[name].load(form, window)
