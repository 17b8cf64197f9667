"""From a data configuration to samples: real where they are, simulated where asked or needed."""

from __future__ import annotations

from mlecs_jax.config import DataConfig
from mlecs_jax.data.samples import Samples
from mlecs_jax.errors import UserError


def load(config: DataConfig) -> Samples:
    """The dataset a configuration names.

    ``source=auto`` takes real data where they are prepared or can be prepared without asking, and
    simulated data otherwise; ``Samples.source`` says which, and every output file repeats it.

    Raises:
      UserError: real data are asked for and absent, or an option does not fit the dataset.
    """
    from mlecs_jax.data import simulated, ur_fall  # the builder's library takes seconds to import

    if config.name == "table":
        from mlecs_jax.data import table

        if not config.manifest:
            raise UserError("data.manifest is empty; give --config.data.manifest=FILE, the "
                            "manifest of your own data (docs/your_own_data.md)")
        if config.source == "simulated":
            raise UserError("data.source=simulated does not go with your own table; use auto")
        return table.load(config.manifest)
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
