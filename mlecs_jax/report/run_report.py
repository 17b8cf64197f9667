"""One self-contained page for one run: `write_report(workdir) -> workdir/report.html`."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from mlecs_jax.errors import UserError
from mlecs_jax.report.blocks import section
from mlecs_jax.report.captions import captions_section
from mlecs_jax.report.confusion import confusion_section
from mlecs_jax.report.curves import communication_section, learning_section, loss_section
from mlecs_jax.report.devices import modality_section, table_section
from mlecs_jax.report.headline import banner, header, page_title, tiles
from mlecs_jax.report.markup import Markup, tag
from mlecs_jax.report.run_files import RunFiles, read_run
from mlecs_jax.report.style import SCRIPT, STYLE

_PANELS = (
    ("learning", "Learning", learning_section),
    ("modalities", "Modalities", modality_section),
    ("confusion", "Confusion", confusion_section),
    ("captions", "Captions", captions_section),
    ("losses", "Losses", loss_section),
    ("communication", "Communication", communication_section),
    ("devices", "Every device", table_section),
)


def write_report(workdir: Path) -> Path:
    """Writes ``report.html`` into a run's folder from what the run has written so far.

    Reads ``config.json``, ``metrics.jsonl`` and, once the run has ended, ``summary.json``. Panels
    whose figures the run does not have are left out. The page needs no network and no script. It
    takes the place of an older one only once it is complete.

    Args:
      workdir: the folder of a run, finished or under way.

    Returns:
      The page's path.

    Raises:
      UserError: no such folder, no or broken files, no complete round yet, or no right to write.
    """
    page = render(read_run(Path(workdir)))
    path = Path(workdir) / "report.html"
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        unfinished.write_text(page, "utf-8")
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise UserError(f"cannot write '{path}' ({error.strerror}); make room or change "
                        "its permissions") from None
    return path


def render(run: RunFiles) -> str:
    """The whole page as HTML."""
    sections = [(anchor, name, drawn) for anchor, name, panel in _PANELS if (drawn := panel(run))]
    sections.append(("setup", "Set-up", _setup_section(run)))
    links = tag("nav", *(tag("a", name, href=f"#{anchor}") for anchor, name, _ in sections),
                aria_label="Parts of this page")
    body = tag("body", banner(run), tag("main", header(run), tiles(run), links,
                                        *(drawn for _, _, drawn in sections), _footer(run)),
               tag("script", Markup(SCRIPT)))
    head = tag(
        "head", tag("meta", charset="utf-8"),
        # Nothing may be loaded and no other script may run, whatever a file smuggled in.
        tag("meta", http_equiv="Content-Security-Policy",
            content=f"default-src 'none'; style-src 'unsafe-inline'; script-src '{_digest()}'"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", page_title(run)), tag("style", Markup(STYLE)))
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _digest() -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()


def _setup_section(run: RunFiles) -> Markup:
    """Versions and the whole configuration, folded away."""
    versions = run.summary.get("versions")
    listing = None
    if isinstance(versions, dict) and versions:
        listing = tag("dl", *(tag("div", tag("dt", name), tag("dd", value))
                              for name, value in versions.items()), class_="facts")
    rows = [tag("tr", tag("th", path, scope="row"), tag("td", value))
            for path, value in _flat(run.config)]
    table = tag("div", tag("table", tag("tbody", *rows), class_="config"), class_="scroll")
    return section("setup", "Set-up", listing,
                   tag("details", tag("summary", f"The whole configuration, {len(rows)} values"),
                       table))


def _flat(tree: object, path: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names as the command line takes them, with values as JSON."""
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from _flat(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, tree if isinstance(tree, str) else json.dumps(tree, ensure_ascii=False)


def _footer(run: RunFiles) -> Markup:
    files = ("config.json, metrics.jsonl and summary.json" if run.finished
             else "config.json and metrics.jsonl")
    return tag("footer", tag("p", f"Made from {files} in ", tag("code", run.name),
                             ". To make this page again: ",
                             tag("code", "python -m mlecs_jax.report WORKDIR")))
