"""One self-contained page for a sweep: `write_sweep_report(folder) -> folder/report.html`."""

from __future__ import annotations

from pathlib import Path

from mlecs_jax.report.axes import counted
from mlecs_jax.report.blocks import section
from mlecs_jax.report.headline import BANNERS
from mlecs_jax.report.markup import Markup, join, tag
from mlecs_jax.report.page import page, replace
from mlecs_jax.report.sweep_charts import (
    ablation_section,
    availability_section,
    bytes_section,
    confusions_section,
    curves_section,
    samples_section,
)
from mlecs_jax.report.sweep_files import SweepFiles, distinct, read_sweep
from mlecs_jax.report.sweep_tables import (
    differences_section,
    findings_section,
    runs_section,
    tables_section,
)
from mlecs_jax.report.sweep_tiers import times_section

_PANELS = (
    ("findings", "Findings", findings_section),
    ("differences", "Differences", differences_section),
    ("tables", "Tables", tables_section),
    ("ablation", "Ablation", ablation_section),
    ("learning", "Learning", curves_section),
    ("times", "Over time", times_section),
    ("communication", "Communication", bytes_section),
    ("modalities", "Modalities", availability_section),
    ("confusion", "Confusion", confusions_section),
    ("captions", "Captions", samples_section),
    ("runs", "Runs", runs_section),
)
_BADGES = {"real": "Real data", "simulated": "Simulated data", "counted": "Counted",
           "none": "Unlabelled data"}


def write_sweep_report(folder: Path) -> Path:
    """Writes ``report.html`` into a sweep's folder from ``sweep.json`` and the runs' files.

    The page needs no network and no script; links lead to the runs' own pages beside it.

    Returns:
      The page's path.

    Raises:
      UserError: no such folder, a broken file, or no right to write.
    """
    return replace(Path(folder) / "report.html", render(read_sweep(Path(folder))))


def render(sweep: SweepFiles) -> str:
    """The whole page as HTML."""
    sections = [(anchor, name, drawn) for anchor, name, panel in _PANELS
                if (drawn := panel(sweep))]
    sections.append(("setup", "Set-up", _setup(sweep)))
    mark = {"real": "", "simulated": "SIMULATED: "}.get(sweep.data_source or "", "")
    return page(mark + " · ".join(_title(sweep)), _banner(sweep), _header(sweep), sections,
                tag("footer", tag("p", "Made from sweep.json and the files of the runs. To make "
                                  "this page again: ",
                                  tag("code", "python -m mlecs_jax.report FOLDER"))))


def _banner(sweep: SweepFiles) -> Markup | None:
    missing = sweep.content.get("missing") or 0
    if sweep.data_source == "simulated":
        title, explanation = BANNERS["simulated"]
    elif missing:
        title, explanation = "Incomplete", "Tables and charts are of the runs that are there."
    else:
        return None
    return tag("aside", tag("strong", title), " ", tag("span", explanation), class_="banner",
               role="note")


def _title(sweep: SweepFiles) -> list[str]:
    """The artefact, the data and the name, which tell one sweep from another."""
    return [str(sweep.content.get("title")),
            *filter(None, (", ".join(sweep.datasets), sweep.given_name))]


def _header(sweep: SweepFiles) -> Markup:
    kind = "counted" if sweep.counted else sweep.data_source or "none"
    failed, runs = len(sweep.failed), distinct(sweep.finished)
    missing = (sweep.content.get("missing") or 0) - failed
    rows = sum(run.earlier for run in runs)
    state = (counted(len(runs), "run")
             + (f", {rows} of them rows of an earlier sweep" if rows else "")
             + (f", {failed} failed" if failed else "")
             + (f", {missing} not there yet" if missing > 0 else ""))
    artefact, *which = _title(sweep)
    datasets = sweep.datasets
    facts = [("data set" if len(datasets) == 1 else "data sets", ", ".join(datasets)),
             ("name", sweep.given_name), ("preset", sweep.content.get("preset")),
             ("seeds", sweep.content.get("seeds")),
             ("written", str(sweep.content.get("written"))[:16].replace("T", " ") + " UTC")]
    return tag("header",
               tag("p", tag("span", _BADGES[kind], class_=f"badge {kind}"),
                   tag("span", state, class_="state"), class_="strip"),
               tag("h1", artefact, *(join([" ", tag("span", f"· {part}", class_="which")])
                                     for part in which)),
               tag("dl", *(tag("div", tag("dt", name), tag("dd", value),
                               class_="long" if len(str(value)) > 14 else None)
                           for name, value in facts if value), class_="facts"))


def _setup(sweep: SweepFiles) -> Markup:
    """How to run it again."""
    return section("setup", "Set-up", tag("p", tag("code", str(sweep.content.get("command")))))
