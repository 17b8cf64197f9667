"""Generated captions beside their references: `samples.jsonl` to read."""

from __future__ import annotations

from typing import Any

from mlecs_jax.report.axes import score
from mlecs_jax.report.blocks import scroller, section, words
from mlecs_jax.report.markup import Markup, join, tag
from mlecs_jax.report.run_files import RunFiles, dig, number

METRIC = "rougeLsum"
_LONGEST = 600  # characters of an input shown


def captions_section(run: RunFiles, whose: Markup | None = None) -> Markup | None:
    """One row per sample: who wrote it, what it should say, what it says.

    Args:
      whose: said first, where the page is not of this run alone.
    """
    if not run.samples:
        return None
    head = tag("tr", tag("th", "node", scope="col"), tag("th", "had", scope="col"),
               tag("th", "reference", scope="col"), tag("th", "generated", scope="col"),
               tag("th", words(METRIC), scope="col", class_="n"))
    table = tag("table", tag("thead", head), tag("tbody", *map(_row, run.samples)),
                class_="devices captions")
    kept = " Of the server: devices keep theirs." if dig(run.summary, "deployment") else ""
    return section(
        "captions", "Captions to read", scroller("Table of generated captions", table),
        lead=join([whose,
                   f"{len(run.samples)} test samples drawn at random, not chosen by score, "
                   "captioned after the last round. “Had” are the modalities that the node owned "
                   f"and the sample has.{kept}"]))


def _row(sample: dict[str, Any]) -> Markup:
    held = sample.get("modalities")
    held = [str(m) for m in held] if isinstance(held, list) else []
    inputs = sample.get("inputs")
    told = tag("details", tag("summary", "the sample in words"),
               tag("p", inputs[:_LONGEST] + ("…" if len(inputs) > _LONGEST else ""),
                   class_="note")) if isinstance(inputs, str) and inputs else None
    return tag("tr", tag("th", sample.get("node", "–"), scope="row"),
               tag("td", *(tag("span", m, class_="chip") for m in held or ["nothing"])),
               tag("td", sample.get("reference", "–"), told),
               tag("td", sample.get("generated") or "(nothing)"),
               tag("td", score(number(sample.get(METRIC))), class_="n"))
