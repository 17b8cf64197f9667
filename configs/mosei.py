"""Mega-CE² on MOSEI. Variants: ``mosei`` (= ``:cpu``), ``mosei:smoke``, ``mosei:paper``."""

from ml_collections import ConfigDict

from mlecs_jax.configs import mosi


def get_config(variant: str = "cpu") -> ConfigDict:
    """MOSI's configuration on the other dataset; what differs stands here."""
    config = mosi.get_config(variant)
    config.data.name = "mosei"
    config.train.clip = 1.0  # (MulT, MOSEI)
    if variant != "paper":
        config.data.split = "canonical"  # no label has touched its features
    if variant == "cpu":
        config.data.simulated_segments = 2400  # MOSEI is the larger one
    return config
