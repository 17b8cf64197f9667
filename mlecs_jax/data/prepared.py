"""Datasets derived from raw files: made once, never half made, and known to be current."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from mlecs_jax.errors import UserError

_SOURCE = "source.json"


def fingerprint(folder: Path, files: Iterable[Path], **options: object) -> str:
    """Identifies the raw files a dataset is made from, and how.

    Args:
      folder: where the files lie; only names relative to it count.
      files: the files that are read; their names, sizes and modification times count.
      options: anything else the result depends on; JSON values.

    Returns:
      A SHA-256 in hexadecimal.
    """
    stats = [(str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns)
             for path in files]
    return hashlib.sha256(json.dumps([sorted(stats), sorted(options.items())]).encode()).hexdigest()


def is_prepared(folder: Path, expected: str | None = None) -> bool:
    """Whether ``folder`` holds a complete dataset, made from the files ``expected`` identifies
    (None: from any)."""
    try:
        made_from = json.loads((folder / _SOURCE).read_text())["fingerprint"]
    except (FileNotFoundError, NotADirectoryError):
        return False
    return expected is None or made_from == expected


def prepare_once(folder: Path, identity: str, write: Callable[[Path], Path]) -> bool:
    """Makes the dataset at ``folder`` unless it is there and current.

    The dataset is written in a temporary folder and renamed when whole, so a killed preparation
    leaves nothing that looks finished. Of several processes one prepares and the others wait.

    Args:
      folder: final place of the dataset.
      identity: :func:`fingerprint` of the raw files.
      write: writes under the empty folder it is given and returns the dataset's folder therein.

    Returns:
      True if it was made now, False if it was there already.

    Raises:
      UserError: the folder cannot be made.
    """
    if is_prepared(folder, identity):
        return False
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder.parent} ({error.strerror}); set MLECS_CACHE_DIR "
                        "to a folder that can be written") from error
    with _locked(folder.parent / f".{folder.name}.lock"):
        if is_prepared(folder, identity):
            return False
        prefix = f".{folder.name}.unfinished-"
        for stale in folder.parent.glob(prefix + "*"):  # ours alone while we hold the lock
            shutil.rmtree(stale)
        staging = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
        try:
            made = write(staging)
            (made / _SOURCE).write_text(json.dumps({"fingerprint": identity}))
            if folder.exists():
                os.replace(folder, staging / "replaced")
            os.replace(made, folder)
        finally:
            shutil.rmtree(staging)
    return True


@contextlib.contextmanager
def progress_bar(title: str, total: int) -> Iterator[Callable[[str], None]]:
    """A progress bar on standard error; the function it yields advances it by one step and shows
    what is being worked on."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
               TimeRemainingColumn(), TextColumn("{task.fields[item]}"))
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=total, item="")
        yield lambda item: progress.update(task, advance=1, item=item)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
