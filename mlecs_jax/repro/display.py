"""What a sweep shows on the terminal: one bar for all runs with the time left, a line a worker."""

from __future__ import annotations

import time

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from mlecs_jax.report.axes import counted, duration
from mlecs_jax.repro.engine import Outcome
from mlecs_jax.repro.job import Job


class SweepDisplay:
    """Live on a terminal; in a log file a line for each run that ends. A context manager."""

    def __init__(self, console: Console | None = None):
        self._console = console or Console(highlight=False)
        self._bar = Progress(TextColumn("{task.completed:.0f}/{task.total:.0f} runs"),
                             BarColumn(bar_width=32), TextColumn("{task.description}"),
                             auto_refresh=False, console=self._console)
        self._lines: dict[int, str] = {}
        self._shares: dict[int, float] = {}  # of the run each worker is at, once it has told it
        self._total = self._cached = self._ended = self._failed = 0
        self._before = 0.0  # runs' worth of rounds that resumed runs had before this command
        self._live = Live(get_renderable=self._render, console=self._console, transient=True,
                          refresh_per_second=2, auto_refresh=self._console.is_terminal)

    def __enter__(self) -> SweepDisplay:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def plan(self, total: int, cached: int) -> None:
        self._begun = time.monotonic()
        self._total, self._cached = total, cached
        self._task = self._bar.add_task("", total=total, completed=cached)
        self._console.print(f"{counted(total, 'run')}, {cached} done before")

    def begin(self, slot: int, job: Job) -> None:
        self._lines[slot] = job.name

    def round(self, slot: int, complete: int, total: int) -> None:
        if slot not in self._shares:
            self._before += complete / total
        self._shares[slot] = complete / total

    def end(self, slot: int, outcome: Outcome) -> None:
        self._ended += 1
        self._failed += bool(outcome.failure)
        del self._lines[slot]
        self._shares.pop(slot, None)
        self._bar.update(self._task, advance=1)
        if outcome.failure:
            self._console.print(failed_line(outcome), soft_wrap=True)
        elif not self._console.is_terminal:
            self._console.print(
                f"{self._cached + self._ended}/{self._total} {outcome.job.name}: "
                f"{outcome.seconds:.0f} s, {self.left()}", soft_wrap=True, markup=False)

    def left(self) -> str:
        """How long the rest takes if it goes on as it did since this command began."""
        done = self._ended + sum(self._shares.values())
        ours = done - self._before
        if ours <= 0:
            return "…"
        rest = self._total - self._cached - done
        seconds = rest * (time.monotonic() - self._begun) / ours
        return f"{duration(seconds)} left"

    def _render(self) -> Group:
        if not self._total:
            return Group(Text("loading data …"))
        failed = f", {self._failed} failed" if self._failed else ""
        self._bar.update(self._task, description=self.left() + failed)
        workers = [Text(f"  {slot}: {line} ({self._shares.get(slot, 0.0):.0%})", no_wrap=True)
                   for slot, line in sorted(self._lines.items())]
        return Group(self._bar, *workers)


def failed_line(outcome: Outcome) -> str:
    """Which run failed and why, in rich's markup."""
    return f"[red]failed[/red] {escape(outcome.job.name)}: {escape(str(outcome.failure))}"
