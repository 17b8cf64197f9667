"""ML-ECS on a user's own data: ``--config=table --config.data.manifest=FILE``."""

from ml_collections import ConfigDict

from mlecs_jax.configs import ur_fall


def get_config(variant: str = "cpu") -> ConfigDict:
    """UR-Fall's settings on the manifest's samples; devices as its device column names them."""
    config = ur_fall.get_config(variant)
    config.data.name = "table"
    config.partition.num_clients = -1  # as many as the data's device column names
    config.partition.rho = 1.0  # a device has what its rows have; lower takes some away at random
    return config
