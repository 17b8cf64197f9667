"""A made-up sweep in the form the sweep command writes it: run folders and ``sweep.json``."""

import dataclasses
import itertools
import json
from pathlib import Path

from made_up_runs import made_up_run, write_run

from mlecs_jax.repro.artefacts import regime
from mlecs_jax.repro.comparison import compare_all
from mlecs_jax.repro.results import Results, Run
from mlecs_jax.repro.tables import Findings

PUBLICS = ({"public_labels": False}, {"server_labelled": 0.1}, {})
METHODS = ("ml_ecs", "ml_ecs_plus", "standalone", "co_plms", "localpub", "private_only")
MANY_METHODS = (*METHODS, "localpub_mixed")


def write_sweep(base: Path, *, source: str = "real", seeds: int = 3, failed: bool = False) -> Path:
    """Runs of six methods at two ρ, and the sweep's own folder, which is returned."""
    runs, entries = [], []
    for seed in range(seeds):
        for rho in (0.5, 0.8):
            for i, method in enumerate(METHODS):
                folder = base / "runs" / f"{method}-{rho}-{seed}"
                score = _write(folder, method, source, 100 * seed + i)
                labels = labels_of(method, rho, seed)
                runs.append(_run(labels, score, folder, source))
                entries.append({"labels": labels, "run": f"../runs/{folder.name}", "failure": "",
                                "cached": False, "seconds": 50.0})
    if failed:
        entries.append({"labels": entries[0]["labels"] | {"method": "fedmllm"}, "cached": False,
                        "run": "../runs/gone", "failure": "a <value> is bad", "seconds": 1.0})
    results = Results(tuple(runs))
    found = compare_all(results, "rho")
    found = dataclasses.replace(found, tables=(*regime.heat_maps(results), *found.tables))
    return _written(base / "mlecs-table1", found, entries, {
        "artefact": "table1", "title": "Table 1: every method", "seeds": seeds,
        "command": "python -m mlecs_jax.repro mlecs table1"})


def write_wide_sweep(base: Path, *, name: str = "ten", columns: int = 12) -> Path:
    """A grid of as many settings; two seeds, of which the first was made, and the second stands in
    rows of an earlier sweep but for the first setting."""
    grid = list(itertools.product((25, 50, 200, 0), PUBLICS, (0.5, 0.8)))[:columns]
    runs, entries = [], []
    for place, (labelled, public, rho) in enumerate(grid):
        for (i, method), seed in itertools.product(enumerate(MANY_METHODS), (0, 1)):
            folder = base / "runs" / f"{method}-{place}-{seed}"
            labels = labels_of(method, rho, seed) | public | {"labelled": labelled}
            earlier = bool(seed and place)
            score = 0.5 + 0.01 * (i + place) if earlier else _write(
                folder, method, "real", 100 * place + 10 * seed + i)
            runs.append(_run(labels, score, folder, "real"))
            entries.append({"labels": labels, "run": f"../runs/{folder.name}", "failure": "",
                            "cached": True, "seconds": 0.0, "earlier": earlier,
                            "data_source": "real"})
    results = Results(tuple(runs))
    found = compare_all(results, *regime.AXES, name=lambda cell, where: regime.words(cell))
    found = dataclasses.replace(found, tables=(*regime.heat_maps(results), *found.tables))
    return _written(base / f"mlecs-regime.{name}", found, entries, {
        "artefact": "regime", "title": regime.TITLE, "seeds": 2, "name": name,
        "command": f"python -m mlecs_jax.repro mlecs regime --name={name}"})


def labels_of(method: str, rho: float, seed: int) -> dict[str, object]:
    return {"dataset": "ur_fall", "method": method, "variant": "", "split": "frame", "rho": rho,
            "num_clients": 3, "labelled": 0, "public_labels": True, "server_labelled": 1.0,
            "uplink": "none", "seed": seed}


def _write(folder: Path, method: str, source: str, seed: int) -> float:
    """A run's folder; returns its score."""
    made = made_up_run(3, 6, source=source, seed=seed)
    made["config"]["method"]["name"] = made["summary"]["method"] = method
    if method in ("localpub", "private_only"):
        for way in ("uplink", "downlink"):
            made["summary"]["communication"][f"{way}_bytes_per_round"] = 0
    write_run(folder, made)
    return made["summary"]["client"]["avg_f1"]


def _run(labels: dict[str, object], score: float, folder: Path, source: str) -> Run:
    return Run(labels, {("final", "client.avg_f1"): score, ("final", "server.f1"): score},
               folder, source, "d", "c")


def _written(folder: Path, found: Findings, entries: list[dict[str, object]],
             about: dict[str, object]) -> Path:
    folder.mkdir(parents=True)
    (folder / "sweep.json").write_text(json.dumps(dataclasses.asdict(found) | about | {
        "system": "mlecs", "preset": "cpu", "data": "real", "processes": 2,
        "written": "2026-01-01T00:00:00+00:00", "seconds": 3600.0, "runs": entries}))
    return folder
