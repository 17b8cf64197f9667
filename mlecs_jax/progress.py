"""What a run shows on the terminal: a banner, one bar with losses and ETA, a closing table."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from rich import progress as rich_progress
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from mlecs_jax import scoring
from mlecs_jax.setting import Setting

SHORT = {"f1": "F1", "weighted_f1": "weighted F1", "rouge1": "R1", "rouge2": "R2", "rougeL": "RL",
         "rougeLsum": "RLSum"}
LONG = {"f1": "macro-F1", "rougeLsum": "ROUGE-LSum"}


class Progress:
    """Terminal output of :func:`mlecs_jax.experiment.run`; a context manager.

    Args:
      silent: says nothing, as all processes of a run but the first.
    """

    def __init__(self, workdir: Path, *, silent: bool = False):
        self._workdir = workdir
        self._console = Console(highlight=False, quiet=silent)
        self._bar = rich_progress.Progress(
            rich_progress.TextColumn("round {task.completed:.0f}/{task.total:.0f}"),
            rich_progress.BarColumn(bar_width=24),
            rich_progress.TimeElapsedColumn(),
            rich_progress.TextColumn("eta"),
            rich_progress.TimeRemainingColumn(),
            rich_progress.TextColumn("{task.description}"),
            console=self._console)

    def __enter__(self) -> Progress:
        self._console.print(f"[dim]workdir {self._workdir}; preparing data and models …[/dim]")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def start(self, setting: Setting, complete: int) -> None:
        """Says what runs, on which data, and from which round."""
        config, samples = setting.config, setting.federation.samples
        self._metric = scoring.primary_metric(samples)
        if samples.source == "simulated":
            self._console.print(Panel(
                "SIMULATED DATA: no figure of this run says anything about the real "
                f"{samples.name}.\nReal data: " + (
                    f"python -m mlecs_jax.data.prepare {samples.name} --source=DIR"
                    if samples.texts is None else
                    "MLECS_DATA_DIR or --config.captions.annotations (docs/captions.md)"),
                style="bold yellow"))
        self._console.print(
            f"{config.method.name} on {samples.name} ({samples.source}, {len(samples)} samples, "
            f"split by {config.data.split}), {setting.federation.num_clients} devices, "
            f"ρ={config.partition.rho:g}; devices: {config.model.slm}, cloud: {config.model.llm}")
        if complete:
            self._console.print(f"resuming after round {complete}")
        self._bar.start()
        self._task = self._bar.add_task("compiling …", total=config.train.rounds,
                                        completed=complete)

    def round(self, record: dict[str, Any]) -> None:
        """Moves the bar and shows the round's losses and validation scores."""
        val = record["eval"]["val"]
        parts = [f"{stage} {np.mean(list(terms.values())[0]):.3f}"
                 for stage, terms in record["train"].get("devices", {}).items()]
        metric = self._metric
        clients = val[scoring.PRIMARY]["clients"][metric]
        parts.append(f"val {SHORT.get(metric, metric)} clients {np.nanmean(clients):.3f}")
        if "server" in val:
            parts.append(f"server {val['server'][metric]:.3f}")
        self._bar.update(self._task, advance=1, description=" | ".join(parts))
        if not self._console.is_terminal:  # a log file gets lines instead of a bar
            self._console.print(f"round {record['round'] + 1}/{record['rounds']} "
                                f"{record['seconds']:.1f} s | " + " | ".join(parts))

    def finish(self, summary: dict[str, Any]) -> None:
        """The closing table."""
        client, traffic = summary["client"], summary["communication"]
        primary = summary["primary_metric"]
        metrics = [key for key, value in client["per_client"][0].items()
                   if isinstance(value, float)]
        table = Table(title=f"{summary['method']} on {summary['dataset']} "
                            f"({summary['data_source']}), test {LONG.get(primary, primary)}")
        for column in ("", "modalities", *(str(SHORT.get(key, key)) for key in metrics)):
            table.add_column(column, justify="left" if column in ("", "modalities") else "right")

        def row(name: str, modalities: str, scores: dict[str, Any]) -> None:
            table.add_row(name, modalities, *(f"{scores[key]:.3f}" for key in metrics))

        for device in client["per_client"][:20]:
            row(f"device {device['client']}", " ".join(device["modalities"]), device)
        if "server" in summary:
            row("server", " ".join(summary["modalities"]), summary["server"])
        self._console.print(table)
        avg, best, worst = (client[f"{key}_{primary}"] for key in ("avg", "best", "worst"))
        self._console.print(
            f"devices avg {avg:.3f}, best {best:.3f}, worst {worst:.3f} | per device and round "
            f"{traffic['uplink_bytes_per_round']:,} B up, "
            f"{traffic['downlink_bytes_per_round']:,} B down | "
            f"{summary['timing']['seconds_per_round']:.1f} s a round, "
            f"{summary['timing']['compile_s']:.0f} s compiling")
        if "privacy" in summary:
            self._console.print(summary["privacy"]["statement"])
        for name, value in summary.get("ceilings", {}).items():
            self._console.print(f"[dim]{name} alone, trained offline: {value:.3f}[/dim]")
        self._console.print(f"report: {self._workdir / 'report.html'}")
