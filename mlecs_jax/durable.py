"""Files that survive a power loss whole: the old one or the new one, in the order of writing."""

from __future__ import annotations

import os
from pathlib import Path


def replace(temporary: Path, path: Path) -> None:
    """Puts a file that has been written in the place of another, both in one folder.

    When it returns, contents and name are on disk: without the first a name could stand for a torn
    file, without the second what is written next could name a file that is not there.
    """
    _sync(temporary)
    os.replace(temporary, path)
    _sync(path.parent)


def write(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text, "utf-8")
    replace(temporary, path)


def _sync(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
