"""``python -m mlecs_jax.run --config=mosi``: a run of Mega-CE² from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from mlecs_jax.distributed import ALONE, Group
from mlecs_jax.experiment import use_compilation_cache
from mlecs_jax.mega import experiment
from mlecs_jax.mega.config import MegaConfig
from mlecs_jax.methods.mega_ce2 import MegaMethod


def main(config: MegaConfig, folder: Path, group: Group = ALONE) -> None:
    """Runs or resumes the experiment in a folder and says how it goes.

    Raises:
      UserError: bad data or options.
      Stopped: it was asked to end.
    """
    console = Console(highlight=False, quiet=not group.leads)
    use_compilation_cache()

    def start(method: MegaMethod, complete: int) -> None:
        edges, last = config.partition.edges, method.arrivals[-1]
        console.print(f"Mega-CE² on {config.data.name}, {config.method.mode}: {edges} edges of "
                      f"{config.partition.ends} ends, {last.version} versions in {last.time:.0f} "
                      f"simulated seconds{f', {complete} done' if complete else ''} → {folder}")

    def version(record: dict[str, Any]) -> None:
        error = f"  val MAE {record['eval']['val']['mae']:.3f}" if "eval" in record else ""
        who = ", ".join(map(str, record["edges"]))
        console.print(f"version {record['round'] + 1}/{record['rounds']}  "
                      f"{record['time']:8.1f} s  edge {who}{error}")

    summary = experiment.run(config, folder, on_start=start, on_version=version,
                             group=group)
    for line in conclusion(summary):
        console.print(line)


def conclusion(summary: dict[str, Any]) -> list[str]:
    """What a run came to, in lines for people."""
    lines = []
    for words, part in (("global", "server"), ("personalised", "client")):
        scores = summary[part]
        lines.append(f"{words:>12}: test MAE {scores['mae']:.3f}, Acc2 non0 "
                     f"{_percent(scores['acc2_non0'])}, Acc7 {_percent(scores['acc7'])} "
                     f"({summary['data_source']} data)")
    return lines + ([f"note: {summary['caution']}"] if summary["caution"] else [])


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"
