"""HTML and SVG that are escaped by construction.

Every child and attribute that is not `Markup` is text, and is escaped; only `tag` and `join` make
`Markup`. A page built from them shows what the files of a run hold and never executes it.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

_VOID = frozenset({"meta", "br", "hr", "col"})
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class Markup(str):
    """Text that is HTML already; everything else gets escaped."""

    __slots__ = ()


def escape(text: object) -> Markup:
    """Text as HTML: special characters escaped, those that no page should hold replaced.

    Control characters, characters that turn the direction of text, and lone surrogates (JSON can
    name them, UTF-8 cannot) become replacement marks.
    """
    if isinstance(text, Markup):
        return text
    whole = str(text).encode("utf-8", "replace").decode("utf-8")
    return Markup(html.escape(_CONTROL.sub("\ufffd", whole)))


def join(parts: Iterable[object]) -> Markup:
    """The parts one after another, escaped where they are not markup; None is left out."""
    return Markup("".join(escape(part) for part in parts if part is not None))


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """One element, e.g. ``tag("a", "<3", href="#x", class_="y")`` → ``<a … class="y">&lt;3</a>``.

    A trailing underscore is dropped from attribute names and others become hyphens; an attribute
    that is None or False is left out and one that is True has no value.
    """
    pieces = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        pieces.append(key if value is True else f'{key}="{escape(_compact(value))}"')
    opening = f"<{' '.join(pieces)}>"
    if name in _VOID:
        return Markup(opening)
    return Markup(f"{opening}{join(children)}</{name}>")


def _compact(value: object) -> object:
    """Coordinates with two decimals at most: the page holds thousands of them."""
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return value
