"""Records of JSON files of any size: a list of objects, or one object after the other."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from mlecs_jax.errors import UserError

CHUNK = 1 << 20  # characters read at a time
LONGEST = 1 << 26  # characters of a record; what is longer is no record


def records(path: Path) -> Iterator[dict[str, Any]]:
    """Objects of a JSON list, or of a file with one JSON object a line, one at a time.

    Raises:
      UserError: the file cannot be read, or holds something else.
    """
    try:
        with open(path, encoding="utf-8") as file:
            for record in _values(file):
                if not isinstance(record, dict):
                    raise UserError(f"annotations {path} hold something else than objects; give a "
                                    "JSON list of records")
                yield record
    except (OSError, ValueError) as error:
        raise UserError(f"annotations {path} cannot be read ({error}); give a JSON list, or one "
                        "JSON object a line") from None


def _values(file: TextIO) -> Iterator[Any]:
    decoder, text = json.JSONDecoder(), file.read(CHUNK).lstrip()
    listed = text.startswith("[")
    gap, at = re.compile(r"[\s,]*" if listed else r"\s*"), int(listed)
    while True:
        blank = gap.match(text, at)
        at = blank.end() if blank else at
        if listed and text[at:at + 1] == "]":
            if (text[at + 1:] + file.read(CHUNK)).strip():
                raise ValueError("there is text behind the list")
            return
        try:
            value, end = decoder.raw_decode(text, at)
        except json.JSONDecodeError:  # wrong, or not all of it is read yet
            more = file.read(CHUNK) if len(text) - at < LONGEST else ""
            if not more:
                if at == len(text) and not listed:
                    return
                raise
            text, at = text[at:] + more, 0
            continue
        yield value
        at = end
