"""Confusion matrices as tables: real numbers that read aloud, print and copy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mlecs_jax.report.axes import score
from mlecs_jax.report.blocks import scroller, section, words
from mlecs_jax.report.curves import primary_metric
from mlecs_jax.report.markup import Markup, tag
from mlecs_jax.report.run_files import RunFiles, dig, number

FEW = 12  # up to this many devices all matrices are shown
_MOST = 64  # up to this many they are at hand, folded away


def confusion_section(run: RunFiles) -> Markup | None:
    """The server's matrix, the devices' sum, and devices one by one: all, or the extremes."""
    metric = primary_metric(run)
    devices = [(client.get("client", i), number(client.get(metric)), matrix)
               for i, client in enumerate(run.clients)
               if (matrix := matrix_of(client.get("confusion"))) is not None]
    names = dig(run.summary, "class_names")
    names = [str(n) for n in names] if isinstance(names, list) else []
    shown: list[Markup] = []
    server = matrix_of(dig(run.summary, "server", "confusion"))
    if server is not None:
        shown.append(_table("Server", number(dig(run.summary, "server", metric)), server, names))
    if len(devices) > 1 and len({m.shape for _, _, m in devices}) == 1:
        total = np.sum([m for _, _, m in devices], axis=0)
        shown.append(_table(f"All {len(devices)} devices together", None, total, names))
    if not shown and not devices:
        return None

    folded = None
    if len(devices) <= FEW:
        shown += [_table(f"Device {c}", f1, m, names) for c, f1, m in devices]
        lead = ""
    else:
        ranked = sorted(devices, key=lambda d: -1.0 if d[1] is None else d[1])
        extremes = {"Worst": ranked[:2], "Best": ranked[-2:]}
        shown += [_table(f"{kind}: device {c}", f1, m, names)
                  for kind, found in extremes.items() for c, f1, m in found]
        if len(devices) <= _MOST:
            lead = " Below: the two worst and two best devices, then all of them."
            folded = tag("details", tag("summary", f"All {len(devices)} devices"),
                         _side_by_side([_table(f"Device {c}", f1, m, names)
                                        for c, f1, m in devices], names))
        else:
            lead = (f" Shown are the two worst and two best of {len(devices)} devices; "
                    "summary.json holds the others.")
    return section(
        "confusion", "Confusion matrices", _side_by_side(shown, names), folded,
        lead=f"Test samples of the final round. Rows: true class; columns: answer; last column: "
        f"answers that name no class. Shade: share of the row ({words(metric)} beside the name)."
        + lead)


def summed_matrix(found: Sequence[Any]) -> np.ndarray | None:
    """The sum of matrices as files hold them; None where there is none, or sizes differ."""
    known = [matrix for value in found if (matrix := matrix_of(value)) is not None]
    if not known or len({m.shape for m in known}) > 1:
        return None
    return np.sum(known, axis=0)


def matrices(found: Sequence[tuple[str, np.ndarray]], names: list[str]) -> Markup:
    """Titled matrices side by side."""
    return _side_by_side([_table(title, None, matrix, names) for title, matrix in found], names)


def _side_by_side(tables: list[Markup], names: list[str]) -> Markup:
    """As many per row as fit; the width a table needs grows with its classes and their names."""
    label = min(140, 14 + 8 * max(map(len, names), default=7))
    columns = sum(min(84, max(54, 6 + 8 * max(map(len, n.split()), default=1))) for n in names)
    return tag("div", *tables, class_="matrices", style=f"--width:{label + columns + 90}px")


def matrix_of(value: Any) -> np.ndarray | None:
    """``[C, C + 1]`` counts, the last column of answers that name no class, or ``[C, C]`` where
    there can be none; None where the file holds neither."""
    if not isinstance(value, list) or not value or not all(isinstance(r, list) for r in value):
        return None
    width = len(value[0])
    if width not in (len(value), len(value) + 1) or any(len(row) != width for row in value):
        return None
    known = [[number(v) for v in row] for row in value]
    if any(v is None for row in known for v in row):
        return None
    return np.asarray(known, np.float64)


def _table(title: str, f1: float | None, matrix: np.ndarray, names: list[str]) -> Markup:
    size = len(matrix)
    names = names if len(names) == size else [f"class {i}" for i in range(size)]
    sums = matrix.sum(axis=1)
    rows = []
    for i, row in enumerate(matrix):
        cells = []
        for j, count in enumerate(row):
            share = count / sums[i] if sums[i] else 0.0
            kind = "right" if i == j else "wrong lost" if j == size else "wrong"
            # Text on a well filled cell changes to the colour that is legible on it: in dark
            # mode from half on (`strong`), in light mode only near full (`full`).
            kind += " full strong" if share > 0.78 else " strong" if share > 0.55 else ""
            cells.append(tag("td", f"{count:,.0f}", style=f"--s:{share:.3f}",
                             class_=kind,
                             title=f"true {names[i]}, answered "
                             f"{'nothing known' if j == size else names[j]}: {count:,.0f} "
                             f"({share:.1%} of the row)"))
        rows.append(tag("tr", tag("th", tag("span", names[i]), scope="row", title=names[i]),
                        *cells))
    head = tag("tr", tag("td"),
               *(tag("th", tag("span", n), scope="col", title=n) for n in names),
               tag("th", tag("span", "unpar\u00adsable"), scope="col", class_="lost",
                   title="answers that name no class") if matrix.shape[1] > size else None)
    table = tag("table", tag("thead", head), tag("tbody", *rows), class_="confusion")
    beside = tag("small", score(f1)) if f1 is not None else None
    return tag("figure", tag("figcaption", tag("h3", title, beside)),
               scroller(f"Confusion matrix: {title}", table))
