"""What stands in the directories of models that a run reads, so that it is not resumed on others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from mlecs_jax.backbones import hf_directories
from mlecs_jax.config import Config
from mlecs_jax.errors import UserError

WHOLE = 1 << 22  # bytes; larger files are weights
SAMPLE, SAMPLES = 1 << 14, 64  # bytes, places: of weights, their beginning (the header) among them


def identity(config: Config) -> dict[str, str]:
    """A hash of every model directory that a configuration names, by the option's name.

    Configurations, tokenizers and other small files are read whole, weights in :data:`SAMPLES`
    places: a checkpoint that was trained on, or swapped, has another hash at the cost of a megabyte
    read; a copy of it elsewhere has the same.

    Raises:
      UserError: a file there that cannot be read.
    """
    directories = hf_directories(config)
    if config.captions is not None and config.captions.bertscore:
        directories["captions.bertscore"] = Path(config.captions.bertscore).expanduser()
    return {option: directory_hash(folder) for option, folder in directories.items()
            if folder.is_dir()}


def with_identity(found: Mapping[str, object], config: Config) -> dict[str, object]:
    """What a run depends on, with the models that it reads where there are any."""
    models = identity(config)
    return {**found, "models": models} if models else dict(found)


def directory_hash(folder: Path) -> str:
    """Hash of names, sizes and contents (of large files a sample) of a folder's files."""
    digest = hashlib.sha256()
    try:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            size = path.stat().st_size
            digest.update(f"{path.relative_to(folder).as_posix()} {size}\n".encode())
            with open(path, "rb") as file:
                if size <= WHOLE:
                    digest.update(file.read())
                    continue
                for i in range(SAMPLES):
                    file.seek(i * (size - SAMPLE) // (SAMPLES - 1))
                    digest.update(file.read(SAMPLE))
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror}); mend its files or name "
                        "another directory") from None
    return digest.hexdigest()
