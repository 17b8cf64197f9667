"""Where data live: raw files as the user has them, and what the project derives from them."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """Folder for everything that can be made again: prepared datasets, compiled programs.

    ``$MLECS_CACHE_DIR``, else ``~/.cache/mlecs-jax``.
    """
    return Path(os.environ.get("MLECS_CACHE_DIR", "~/.cache/mlecs-jax")).expanduser()


def data_dir() -> Path:
    """Folder of raw datasets, one sub-folder each; may be read-only.

    ``$MLECS_DATA_DIR``, else ``data`` under :func:`cache_dir`.
    """
    configured = os.environ.get("MLECS_DATA_DIR")
    return Path(configured).expanduser() if configured else cache_dir() / "data"


def prepared_dir() -> Path:
    """Folder of datasets prepared from raw files by ``python -m mlecs_jax.data.prepare``."""
    return cache_dir() / "prepared"
