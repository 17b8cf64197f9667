"""The shell of every page: head, parts with their links, style sheet and script inside."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from mlecs_jax.errors import UserError
from mlecs_jax.report.markup import Markup, tag
from mlecs_jax.report.style import SCRIPT, STYLE


def page(
    title: str, banner: Markup | None, header: Markup,
    sections: Sequence[tuple[str, str, Markup]], footer: Markup,
) -> str:
    """A whole page as HTML.

    Args:
      sections: anchor, name in the list of links, and the part itself.
    """
    links = tag("nav", *(tag("a", name, href=f"#{anchor}") for anchor, name, _ in sections),
                aria_label="Parts of this page")
    body = tag("body", banner, tag("main", header, links, *(drawn for _, _, drawn in sections),
                                   footer),
               tag("script", Markup(SCRIPT)))
    head = tag(
        "head", tag("meta", charset="utf-8"),
        # Nothing may be loaded and no other script may run, whatever a file smuggled in.
        tag("meta", http_equiv="Content-Security-Policy",
            content=f"default-src 'none'; style-src 'unsafe-inline'; script-src '{_digest()}'"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title), tag("style", Markup(STYLE)))
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def replace(path: Path, text: str) -> Path:
    """Puts a page in the place of an older one, only once it is complete; returns its path.

    Raises:
      UserError: no right to write, or no room.
    """
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        unfinished.write_text(text, "utf-8")
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise UserError(f"cannot write '{path}' ({error.strerror}); make room or change "
                        "its permissions") from None
    return path


def _digest() -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
