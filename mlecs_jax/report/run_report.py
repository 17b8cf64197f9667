"""One self-contained page for one run: `write_report(workdir) -> workdir/report.html`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from mlecs_jax.report.blocks import section
from mlecs_jax.report.captions import captions_section
from mlecs_jax.report.confusion import confusion_section
from mlecs_jax.report.curves import communication_section, learning_section, loss_section
from mlecs_jax.report.deployment import deployment_section
from mlecs_jax.report.devices import modality_section, table_section
from mlecs_jax.report.headline import banner, header, page_title, tiles
from mlecs_jax.report.markup import Markup, tag
from mlecs_jax.report.page import page, replace
from mlecs_jax.report.run_files import RunFiles, read_run
from mlecs_jax.report.sentiment import (
    scores_section,
    sentiment_confusion_section,
    sentiment_learning_section,
)
from mlecs_jax.report.tiers import edges_section, sent_section

_PANELS = (  # a run has those of its kind
    ("scores", "Scores", scores_section),
    ("learning", "Learning", learning_section),
    ("learning", "Learning", sentiment_learning_section),
    ("edges", "Edges", edges_section),
    ("modalities", "Modalities", modality_section),
    ("confusion", "Confusion", confusion_section),
    ("confusion", "Confusion", sentiment_confusion_section),
    ("captions", "Captions", captions_section),
    ("losses", "Losses", loss_section),
    ("communication", "Communication", communication_section),
    ("communication", "Communication", sent_section),
    ("devices", "Every device", table_section),
    ("deployment", "Deployment", deployment_section),
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
    return replace(Path(workdir) / "report.html", render(read_run(Path(workdir))))


def render(run: RunFiles) -> str:
    """The whole page as HTML."""
    sections = [(anchor, name, drawn) for anchor, name, panel in _PANELS if (drawn := panel(run))]
    sections.append(("setup", "Set-up", _setup_section(run)))
    return page(page_title(run), banner(run), tag("div", header(run), tiles(run)), sections,
                _footer(run))


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
    return tag("footer", tag("p", f"Every figure is from {files} in ", tag("code", run.name),
                             ". To make this page again: ",
                             tag("code", "python -m mlecs_jax.report WORKDIR")))
