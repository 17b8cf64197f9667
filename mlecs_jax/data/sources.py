"""From a data configuration to samples: real where they are, simulated where asked or needed."""

from __future__ import annotations

import sys
from pathlib import Path

from mlecs_jax.config import CaptionsConfig, DataConfig
from mlecs_jax.data import paths
from mlecs_jax.data.samples import Samples
from mlecs_jax.errors import UserError


def load(config: DataConfig, captions: CaptionsConfig | None = None) -> Samples:
    """The dataset a configuration names.

    ``source=auto`` takes real data where they are prepared or can be prepared without asking, and
    simulated data otherwise; ``Samples.source`` says which, and every output file repeats it.

    Raises:
      UserError: real data are asked for and absent, or an option does not fit the dataset.
    """
    if config.name == "vast":
        if captions is None:
            raise UserError("data.name=vast is a captioning task: its config has a group captions; "
                            "begin with --config=vast")
        return _captions(config, captions)
    if config.name == "table":
        from mlecs_jax.data import table

        if not config.manifest:
            raise UserError("data.manifest is empty; give --config.data.manifest=FILE, the "
                            "manifest of your own data (docs/your_own_data.md)")
        if config.source == "simulated":
            raise UserError("data.source=simulated does not go with your own table; use auto")
        return table.load(config.manifest)
    if captions is not None:
        raise UserError(f"data.name={config.name} has no captions; use data.name=vast, or a table "
                        "with a text target")

    from mlecs_jax.data import simulated, ur_fall  # the builder's library takes seconds to import

    if config.source == "simulated" or (config.source == "auto" and not ur_fall.is_available(
            config.rgb_size)):
        if config.rgb != "frames":
            raise UserError(f"data.rgb={config.rgb} names features of real frames; simulated data "
                            "have rgb=frames")
        return simulated.ur_fall(
            seed=config.simulated_seed, num_sequences=config.simulated_sequences,
            acce=config.acce, rgb_size=config.rgb_size, depth=config.depth)
    return ur_fall.load(acce=config.acce, rgb=config.rgb, rgb_size=config.rgb_size,
                        depth=config.depth)


def _captions(config: DataConfig, captions: CaptionsConfig) -> Samples:
    """Clips of the user's annotations, else of the corpora, else simulated ones."""
    from mlecs_jax.data import captions_simulated, omni_caption, vast
    from mlecs_jax.data.featurise import featuriser

    featurise = featuriser(captions.featuriser, captions.feature_width)
    folder = paths.data_dir() / "omni_caption"
    corpora = omni_caption.parse_corpora(captions.corpora)
    count = captions.clips or 0
    if config.source != "simulated" and captions.annotations:
        features = Path(captions.features).expanduser() if captions.features else None
        return vast.load(Path(captions.annotations).expanduser(), features, featurise, count)
    if captions.features:
        raise UserError("captions.features needs captions.annotations, the clips they belong to")
    missing = omni_caption.missing(folder, corpora)
    if missing and config.source == "real":
        raise UserError(f"{folder} lacks {', '.join(missing)} of captions.corpora="
                        f"{captions.corpora} (docs/captions.md); set MLECS_DATA_DIR, or "
                        "--config.captions.annotations to a VAST-27M annotation file")
    if config.source == "simulated" or missing:
        if config.source == "auto" and folder.is_dir():  # someone has put data there
            print(f"{folder} lacks {', '.join(missing)}: captions are simulated; leave the corpus "
                  "out of captions.corpora to use the others", file=sys.stderr, flush=True)
        return captions_simulated.load(seed=config.simulated_seed,
                                       num_clips=captions.simulated_clips, featurise=featurise)
    return omni_caption.load(folder, corpora, featurise, count)
