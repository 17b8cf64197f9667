"""Mega-CE² on MOSEI. Variants: ``mosei`` (= ``:cpu``), ``mosei:smoke``, ``mosei:paper``."""

from ml_collections import ConfigDict

from mlecs_jax.configs import mosi


def get_config(variant: str = "cpu") -> ConfigDict:
    """MOSI's settings on MOSEI, where the published table has other values with those."""
    config = mosi.get_config(variant)
    config.data.name = "mosei"
    config.data.window = 0  # the dataset's, 1: a video has one vector and no neighbours
    config.train.clip = 1.0  # (MulT, MOSEI)
    if variant == "cpu":
        config.data.simulated_segments = 2400
    if variant == "paper":
        config.data.simulated_segments = 22856
        config.train.rounds = 20
    return config
