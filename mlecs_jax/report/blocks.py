"""Building blocks every panel is made of: sections, figures with legends, names for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from mlecs_jax.report.markup import Markup, tag
from mlecs_jax.report.svg import swatch

# The contract's names in the words of the papers; a name that is not here is shown as it is.
_WORDS = {
    "accuracy": "accuracy", "after_amt": "after AMT", "after_broadcast": "after broadcast",
    "amt": "AMT", "ccl": "CCL", "clients": "devices", "devices": "devices", "f1": "macro-F1",
    "rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L", "rougeLsum": "ROUGE-LSum",
    "kt_llm": "knowledge transfer to the LLM", "kt_slm": "knowledge transfer to the SLM",
    "llm_lm": "LLM, language modelling", "lm": "language modelling", "se_ccl": "SE-CCL",
    "server": "server", "slm_lm": "SLM, language modelling", "volume": "volume (contrastive)",
    "weighted_f1": "weighted F1",
}
_NAMES = {
    "centralized": "Centralized", "co_plms": "Co-PLMs (approximation)",
    "constant": "Constant: median of training labels", "edges_alone": "Edges alone, MulT",
    "ef_lstm": "EF-LSTM", "fedavg_lf_lstm": "LF-LSTM, FedAvg",
    "fedavg_lora": "FedAvg-LoRA", "fedilora": "FediLoRA", "fedmllm": "FedMLLM",
    "lf_lstm": "LF-LSTM", "localpub": "Local + public",
    "localpub_mixed": "Local + public, mixed",
    "majority": "Constant: the more frequent sign", "mctn": "MCTN",
    "mega_ce2": "Mega-CE²", "ml_ecs": "ML-ECS", "ml_ecs_plus": "ML-ECS+",
    "mosei": "CMU-MOSEI", "mosi": "CMU-MOSI", "mult": "MulT, centralised",
    "multi_fedavg": "Multi-FedAvg",
    "omni_caption": "Omni-captions",
    "private_only": "Private only", "raven": "RAVEN", "standalone": "Standalone",
    "ur_fall": "UR-Fall", "v2em_lite": "V2EM-lite (re-targeted)", "vast": "VAST",
}
LegendEntry = tuple[str, str, str]  # style, kind of swatch, words


def words(name: str) -> str:
    """A key of the run's files as a reader would say it."""
    if name.startswith("bertscore_"):
        return f"BERTScore ({name.removeprefix('bertscore_')})"
    return _WORDS.get(name, name.replace("_", " "))


def proper(name: str) -> str:
    """A method's or data set's name as papers write it; one that is not known stays as it is."""
    return _NAMES.get(name, name)


def capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def section(anchor: str, title: str, *body: object, lead: object = None) -> Markup:
    """A numbered-by-nothing, linkable part of the page."""
    return tag("section", tag("h2", title), tag("p", lead, class_="lead") if lead else None,
               *body, id=anchor)


def panel(
    title: str,
    drawing: Markup,
    *,
    legend: Sequence[LegendEntry] = (),
    read_out: str | None = None,
    note: object = None,
    shape: Literal["wide", "beside"] | None = None,
) -> Markup:
    """A titled figure.

    Args:
      title: what it shows.
      drawing: the chart.
      legend: its keys.
      read_out: what stands below until the pointer asks for more.
      note: how to read it.
      shape: ``wide`` stands on a row of its own, ``beside`` has its note at its side.
    """
    keys = tag("ul", *(tag("li", swatch(style, kind), label) for style, kind, label in legend),
               class_="legend") if legend else None
    below = tag("p", read_out, class_="readout") if read_out else None
    return tag("figure", tag("figcaption", tag("h3", title), keys), drawing, below,
               tag("p", note, class_="note") if note else None, class_=shape)


def tile(title: str, main: str, unit: str, lines: Sequence[str | None], style: str = "",
         drawing: Markup | None = None) -> Markup:
    """One figure at a glance, with its unit and what belongs to it in small lines."""
    return tag("div", tag("h2", title), tag("p", tag("b", main), " ", tag("span", unit)), drawing,
               *(tag("p", line, class_="small") for line in lines if line),
               class_=f"tile {style}".strip())


def grid(*panels: Markup | None) -> Markup:
    return tag("div", *panels, class_="grid-of-panels")


def scroller(label: str, content: Markup, *, tall: bool = False) -> Markup:
    """A box that scrolls on its own, reachable by keyboard: the page never scrolls sideways."""
    return tag("div", content, class_="scroll tall" if tall else "scroll", tabindex="0",
               role="region", aria_label=label)
