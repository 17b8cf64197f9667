"""Tables for the terminal and for Markdown; the HTML page is :mod:`mlecs_jax.report`'s."""

from __future__ import annotations

from rich import table as rich_table
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.text import Text

from mlecs_jax.repro.tables import TEXTS, Cell, Findings

_TONES = {"up": "green", "down": "red", "quiet": "dim"}
_MARKS = {"up": " ▲", "down": " ▼"}


def print_findings(findings: Findings, console: Console) -> None:
    """All tables and sentences on the terminal, without those that hold texts."""
    for table in (table for table in findings.tables if table.kind != TEXTS):
        shown = rich_table.Table(title=escape(table.title), title_justify="left",
                                 caption=escape(table.note), caption_justify="left")
        for i, column in enumerate(table.columns):
            # On a narrow terminal a figure breaks between mean and spread; names stay whole.
            shown.add_column(escape(column), justify="left" if i < table.names else "right",
                             no_wrap=i < table.names or not console.is_terminal)
        before: tuple[str, ...] = ()
        for row in table.rows:
            named = tuple(cell.text for cell in row[:table.names])
            if before and named[0] != before[0] and table.names > 1:
                shown.add_section()
            shown.add_row(*(_rich(cell, blank=i == 0 and named[:1] == before[:1]
                                  and table.names > 1) for i, cell in enumerate(row)))
            before = named
        wide = Measurement.get(console, console.options.update(max_width=1000), shown).maximum
        narrow = console.width
        if not console.is_terminal:  # a file has room, whatever width rich assumes for it
            console.width = max(narrow, wide)
        console.print(shown)
        console.width = narrow
    for sentence in findings.sentences:
        console.print(f"• {sentence}", soft_wrap=True, markup=False)


def missing_text(missing: int) -> str:
    """That tables are made of a part of the planned runs."""
    return (f"INCOMPLETE: {missing} of the planned runs {'are' if missing != 1 else 'is'} not "
            "there yet, and the tables are of the others")


def markdown(findings: Findings, level: int = 3) -> str:
    """All sentences, then all tables, as GitHub's Markdown."""
    parts = ["\n".join(f"- {sentence}" for sentence in findings.sentences)]
    for table in findings.tables:
        lines = [f"{'#' * level} {table.title}", "",
                 "| " + " | ".join(table.columns) + " |",
                 "|" + "|".join("---" if i < table.names else "---:"
                                for i in range(len(table.columns))) + "|"]
        lines += ["| " + " | ".join(_markdown(cell) for cell in row) + " |" for row in table.rows]
        if table.note:
            lines += ["", table.note]
        parts.append("\n".join(lines))
    return "\n\n".join(part for part in parts if part) + "\n"


def _rich(cell: Cell, *, blank: bool) -> Text:
    style = " ".join(filter(None, ["bold" if cell.strong else "", _TONES.get(cell.tone, "")]))
    return Text("" if blank else cell.text + _MARKS.get(cell.tone, ""), style)


def _markdown(cell: Cell) -> str:
    text = (cell.text + _MARKS.get(cell.tone, "")).replace("|", "\\|")
    if not cell.text:
        return ""
    return f"**{text}**" if cell.strong else f"*{text}*" if cell.tone == "quiet" else text
