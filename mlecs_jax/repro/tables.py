"""Tables as plain data, and the comparisons that fill them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

from mlecs_jax.repro.job import Label
from mlecs_jax.repro.results import FINAL, Results
from mlecs_jax.repro.statistics import Difference, common_means, paired_over, spread

Labels = Mapping[str, Label]
METRICS = {"f1": "macro-F1", "rougeLsum": "ROUGE-LSum"}
TEXTS = "texts"  # a kind of table


@dataclasses.dataclass(frozen=True)
class Cell:
    """One field of a table.

    Attributes:
      text: what stands there.
      group: labels of the runs it was made from; None where it is no measurement.
      strong: the best of its column.
      tone: ``up`` or ``down`` for a difference whose interval excludes 0, ``quiet`` for figures
        that are not ours.
      value, low, high: the figure and its interval, to be drawn; None where there is none.
    """

    text: str
    group: Mapping[str, Label] | None = None
    strong: bool = False
    tone: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None


@dataclasses.dataclass(frozen=True)
class Table:
    """A titled table.

    Attributes:
      names: how many cells at the head of a row name it; with two, rows of one first name belong
        together.
      kind: ``scores``, ``differences`` (also drawn, with their intervals), ``heat`` (shaded) or
        ``texts`` (for Markdown: too wide for a terminal, and HTML pages have a place of their own).
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    kind: str = "scores"
    names: int = 1


@dataclasses.dataclass(frozen=True)
class Findings:
    """What an artefact shows: tables, and sentences that were derived from the numbers."""

    tables: tuple[Table, ...]
    sentences: tuple[str, ...] = ()


def share(value: float | None, digits: int = 3) -> str:
    """A score without its leading zero, ``.821``; a dash where there is none."""
    if value is None:
        return "–"
    text = f"{value:.{digits}f}"
    return re.sub(r"^(-?)0\.", r"\1.", text).replace("-", "−")


def signed(value: float | None, digits: int = 3) -> str:
    if value is None:
        return "–"
    text = share(abs(value), digits)
    zero = not float(text.replace(",", "") or 0)
    return text if zero else ("−" if value < 0 else "+") + text


def mean_text(values: Mapping[int, float], seeds: int = 0) -> str:
    """``.821 ± .094``; with ``(n=2)`` where there are fewer values than ``seeds``."""
    found = spread(values)
    if found is None:
        return "–"
    text = share(found.mean) if found.sd is None else f"{share(found.mean)} ± {share(found.sd)}"
    return f"{text} (n={found.n})" if found.n < seeds else text


def difference_text(found: Difference | None) -> str:
    """``+.012 [−.004, +.028]``."""
    if found is None:
        return "–"
    if found.low is None:
        return f"{signed(found.mean)} (n=1)"
    return f"{signed(found.mean)} [{signed(found.low)}, {signed(found.high)}]"


def difference_cell(found: Difference | None, group: Mapping[str, Label] | None) -> Cell:
    tone = "" if found is None else "up" if found.above else "down" if found.below else ""
    if found is None:
        return Cell("–", group)
    return Cell(difference_text(found), group, tone=tone, value=found.mean, low=found.low,
                high=found.high)


def plain(value: int | float) -> str:
    """A number of a grid as people write it: ``.5``, ``.75``, ``10``."""
    return re.sub(r"^(-?)0\.", r"\1.", f"{value:g}")


def primary(results: Results, where: Labels) -> str:
    """The metric of the task of the runs with these labels: ``f1`` or ``rougeLsum``."""
    for name in METRICS:
        if any((FINAL, f"client.avg_{name}") in run.values for run in results.of(where)):
            return name
    return next(iter(METRICS))


def mark_best(
    rows: Sequence[Sequence[Cell]], values: Sequence[Sequence[Mapping[int, float]]],
    eligible: Sequence[bool],
) -> tuple[tuple[Cell, ...], ...]:
    """The rows with the highest mean of every column made strong, over the seeds that all eligible
    rows with figures in the column have.

    Args:
      values: per row and column after the name, our figures by seed.
      eligible: rows that may be best.
    """
    marked = [list(row) for row in rows]
    able = [i for i, may in enumerate(eligible) if may]
    for column in range(max(map(len, values), default=0)):
        means = common_means({i: values[i][column] for i in able})
        best = max(means.values(), default=0.0)
        for i, mean in means.items():
            if round(mean, 3) == round(best, 3):
                marked[i][column + 1] = dataclasses.replace(marked[i][column + 1], strong=True)
    return tuple(map(tuple, marked))


def pooled(results: Results, metric: str, cells: Sequence[Mapping[str, Label]],
           a: Mapping[str, Label], b: Mapping[str, Label]) -> Difference | None:
    """The paired difference a − b of a metric over several cells."""
    return paired_over([(results.at(metric, {**cell, **a}), results.at(metric, {**cell, **b}))
                        for cell in cells])
