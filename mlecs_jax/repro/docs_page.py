"""The Markdown page of results: one part per artefact, data set, kind of data and ``--name``.

A part stands between two comments and is replaced as a whole, so that sweeps of several artefacts
share a page and nothing on it is written by hand. Its name is its anchor, so that links to it hold
whatever stands before it. Parts stand in the order of the artefacts' table, whichever sweep came
last, and the page begins with a list of them. Beside the page, a CSV file per part holds one row
per run and setting (a run may stand for several): its figures, its data, the version of the code
and the folder it came from.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path

from mlecs_jax import durable
from mlecs_jax.errors import UserError
from mlecs_jax.report.axes import counted, duration
from mlecs_jax.report.blocks import proper
from mlecs_jax.repro import render
from mlecs_jax.repro.earlier import SECONDS
from mlecs_jax.repro.options import Options
from mlecs_jax.repro.results import Results, Run, versions
from mlecs_jax.repro.systems import SYSTEMS
from mlecs_jax.repro.tables import Findings

HEAD = """# Results

Written by `python -m mlecs_jax.repro … --write-docs=FILE` from the runs of each sweep; no figure
here is entered by hand, and no run, round or variant was chosen on test data ([how settings came
about](algorithm.md)). Mean ± standard deviation over seeds; differences are paired by seed with a
95 % confidence interval (Student's t). What the methods and controls are:
[baselines](baselines.md); how to make these again: [repro](repro.md).
"""
NAMES = {"mlecs": "ML-ECS", "mega": "Mega-CE²"}
CONTENTS = "contents"  # the part that lists the others
_PART = re.compile(r"<!-- (\S+) -->\n.*?<!-- end of \1 -->", re.DOTALL)
_ANCHOR = re.compile(r'<a id="(.+)"></a>\n\n## (.+)')


def write_docs(path: Path, options: Options, title: str, findings: Findings, results: Results,
               missing: int = 0) -> None:
    """Puts an artefact's findings into the page, in the place of its older ones of the same name.

    Args:
      missing: how many planned runs are not there.

    Raises:
      UserError: the page cannot be written.
    """
    name = options.part + ("-simulated" if "simulated" in results.sources else "")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        page = path.read_text("utf-8") if path.exists() else HEAD
        table = path.parent / path.stem / f"{name}.csv"
        table.parent.mkdir(exist_ok=True)
        _write_runs(table, results)
        text = f'<a id="{name}"></a>\n\n' + _part(
            options, title, findings, results, table.relative_to(path.parent), missing)
        durable.write(path, arranged(replaced(page, name, text)))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; give --write-docs another "
                        "file") from None


def replaced(page: str, name: str, text: str) -> str:
    """The page with the part of that name replaced, or added at its end."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    part = f"{begin}\n{text.rstrip()}\n{end}"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if pattern.search(page):
        return pattern.sub(lambda _: part, page)
    return f"{page.rstrip()}\n\n{part}\n"


def arranged(page: str) -> str:
    """The page with its parts in order, and a list of them before the first."""
    if f"<!-- {CONTENTS} -->" not in page:
        first = page.index("<!-- ")
        page = f"{page[:first]}<!-- {CONTENTS} -->\n<!-- end of {CONTENTS} -->\n\n{page[first:]}"
    parts = {part[1]: part[0] for part in _PART.finditer(page) if part[1] != CONTENTS}
    ordered = iter(sorted(parts, key=_place))
    page = _PART.sub(
        lambda part: part[0] if part[1] == CONTENTS else parts[next(ordered)], page)
    listed = "\n".join(f"- [{title}](#{name})" for name, title in _ANCHOR.findall(page))
    return replaced(page, CONTENTS, listed)


def _place(name: str) -> tuple[int, str]:
    """Where a part belongs: its artefact's place in the table, its data set and ``--name``."""
    known = [f"{system}-{artefact}" for system, found in SYSTEMS.items() for artefact in found]
    artefact = "-".join(re.split("[-.]", name)[:2])
    return known.index(artefact) if artefact in known else len(known), name


def heading(options: Options, title: str) -> str:
    """System, data sets, artefact and ``--name``: no two parts of a page have the same."""
    data = ", ".join(map(proper, options.datasets))
    return " · ".join(filter(None, (NAMES.get(options.system, options.system), data, title,
                                    options.name)))


def _part(options: Options, title: str, findings: Findings, results: Results, table: Path,
          missing: int) -> str:
    lines = [f"## {heading(options, title)}", ""]
    if missing:
        lines += [f"**{render.missing_text(missing)}.**", ""]
    if "simulated" in results.sources:
        lines += ["**Simulated data**: these figures show that the program runs, and are no "
                  "evidence about any real task.", ""]
    lines += [f"`{options.command}`", "",
              f"{_runs_text(results)}; one row per run and setting: "
              f"[{table.as_posix()}]({table.as_posix()}). {versions_text(results)}",
              "", render.markdown(findings)]
    return "\n".join(lines)


def _runs_text(results: Results) -> str:
    """How many runs, how long they took, and how many were not made in this folder."""
    runs = {run.folder: run for run in results.runs}.values()
    timed = [run.seconds for run in runs if run.seconds is not None]
    text = counted(len(runs), "run")
    if timed:
        text += f", {duration(sum(timed))} of worker time in all"
        if len(timed) < len(runs):
            text += f" but for {len(runs) - len(timed)} of which it is not known"
    rows = sum(run.earlier for run in runs)
    of_them = "all" if rows == len(runs) else f"{rows} of them"
    return text + (f", {of_them} rows of an earlier sweep" if rows else "")


def versions_text(results: Results) -> str:
    """Of how many versions of its own sources the runs of each method are."""
    codes = versions(results)
    mixed = [f"{proper(method)} {len(found)}" for method, found in codes.items() if len(found) > 1]
    if not mixed:
        return "The runs of each method are of one version of its sources."
    return f"Versions of their sources that the runs of a method are of: {', '.join(mixed)}" + (
        "." if len(mixed) == len(codes) else "; of every other method one.")


def _write_runs(path: Path, results: Results) -> None:
    """One row per run and setting, a column per label and figure."""
    labels = list(dict.fromkeys(name for run in results.runs for name in run.labels))
    figures = list(dict.fromkeys(key for run in results.runs for key in run.values))
    columns = [*labels, *(f"{selection}.{metric}" for selection, metric in figures),
               "data_source", "data_sha256", "code", SECONDS, "run"]
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(_row(run, labels, figures) for run in results.runs)


def _row(run: Run, labels: Sequence[str], figures: Sequence[tuple[str, str]]) -> list[object]:
    values = [f"{run.values[key]:.6g}" if key in run.values else "" for key in figures]
    return [*(run.labels.get(name, "") for name in labels), *values, run.data_source,
            run.data[:16], run.code, "" if run.seconds is None else f"{run.seconds:.1f}",
            run.folder.name]
