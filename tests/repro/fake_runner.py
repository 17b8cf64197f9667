"""A runner whose jobs end as they are told to, to test the engine without training."""

import json
import os
import time
from pathlib import Path

from mlecs_jax.errors import UserError
from mlecs_jax.repro.job import Provenance


def provenance(values):
    if values["ends"] == "no data":
        raise UserError("there are no data")
    return Provenance({"source": "simulated", "samples": 1, "sha256": "d" * 8},
                      os.environ.get("FAKE_CODE", "c0de0000"))


def run(values, folder: Path, extras, on_round):
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "begun", "a") as file:
        file.write(f"{os.getpid()}\n")
    (folder / "environment.json").write_text(json.dumps(dict(os.environ)))
    on_round(0, 2)
    if values["ends"] == "user error":
        raise UserError("a value is bad")
    if values["ends"] == "brackets":
        raise ValueError("no such place [/edge/0] in [batch, width]")
    if values["ends"] == "bug":
        raise ZeroDivisionError("a bug")
    if values["ends"] == "dies":
        os._exit(9)
    if values["ends"] == "waits":
        for _ in range(600):
            time.sleep(0.1)
            on_round(1, 2)
    on_round(2, 2)
    for extra in extras:
        (folder / f"{extra}.json").write_text(json.dumps({"client": {"avg_f1": 0.25}}))
    (folder / "summary.json").write_text(json.dumps(
        {"client": {"avg_f1": values["score"], "per_client": [{"f1": 1.0}]},
         "server": {"f1": 0.5, "confusion": [[1]]},
         "best_val": {"round": 1, "client": {"avg_f1": values["score"] - 0.125}},
         "rounds": 2}))
