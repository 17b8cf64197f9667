"""A made-up sweep in the form the sweep command writes it: run folders and ``sweep.json``."""

import dataclasses
import json
from pathlib import Path

from made_up_runs import made_up_run, write_run

from mlecs_jax.repro.artefacts.regime import heat_maps
from mlecs_jax.repro.comparison import compare_all
from mlecs_jax.repro.results import Results, Run

METHODS = ("ml_ecs", "ml_ecs_plus", "standalone", "co_plms", "localpub", "private_only")


def write_sweep(base: Path, *, source: str = "real", seeds: int = 3, failed: bool = False) -> Path:
    """Runs of six methods at two ρ, and the sweep's own folder, which is returned."""
    runs, entries = [], []
    for seed in range(seeds):
        for rho in (0.5, 0.8):
            for i, method in enumerate(METHODS):
                made = made_up_run(3, 6, source=source, seed=100 * seed + i)
                made["config"]["method"]["name"] = made["summary"]["method"] = method
                if method in ("localpub", "private_only"):
                    for way in ("uplink", "downlink"):
                        made["summary"]["communication"][f"{way}_bytes_per_round"] = 0
                labels = {"dataset": "ur_fall", "method": method, "variant": "", "split": "frame",
                          "rho": rho, "num_clients": 3, "labelled": 0, "public_labels": True,
                          "server_labelled": 1.0,
                          "uplink": "none", "seed": seed}
                folder = write_run(base / "runs" / f"{method}-{rho}-{seed}", made)
                score = made["summary"]["client"]["avg_f1"]
                runs.append(Run(labels, {("final", "client.avg_f1"): score,
                                         ("final", "server.f1"): score},
                                folder, source, "d", "c"))
                entries.append({"labels": labels, "run": f"../runs/{folder.name}", "failure": "",
                                "cached": False, "seconds": 50.0})
    if failed:
        entries.append({"labels": entries[0]["labels"] | {"method": "fedmllm"}, "cached": False,
                        "run": "../runs/gone", "failure": "a <value> is bad", "seconds": 1.0})
    results = Results(tuple(runs))
    found = compare_all(results, "rho")
    found = dataclasses.replace(found, tables=(*heat_maps(results), *found.tables))
    folder = base / "mlecs-table1"
    folder.mkdir(parents=True)
    (folder / "sweep.json").write_text(json.dumps(dataclasses.asdict(found) | {
        "system": "mlecs", "artefact": "table1", "title": "Table 1: every method",
        "preset": "cpu", "data": "real", "seeds": seeds,
        "command": "python -m mlecs_jax.repro mlecs table1", "processes": 2,
        "written": "2026-01-01T00:00:00+00:00", "seconds": 3600.0, "runs": entries}))
    return folder
