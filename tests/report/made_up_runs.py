"""Made-up run folders in the form real runs write them."""

import json
from pathlib import Path
from typing import Any

import numpy as np

MODALITIES = ["acce", "rgb", "depth"]
CLASSES = ["upright", "falling", "lying"]


def made_up_run(
    num_clients: int = 3, rounds: int = 12, *, source: str = "real", changing: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """``{'config', 'metrics', 'summary'}`` with plausible curves, every key of the contract."""
    rng = np.random.default_rng(seed)
    held = rng.random((num_clients, 3)) < 0.7
    held[~held.any(axis=1), 1] = True
    metrics = []
    for r in range(rounds):
        metrics.append(_round(r, rounds, source, held, changing, rng))
    config = {
        "config_name": "ur_fall:cpu", "seed": seed, "method": {"name": "ml_ecs"},
        "data": {"source": source, "split": "frame", "acce": "sample"},
        "partition": {"num_clients": num_clients, "rho": 0.7, "seed": 1, "mask_schedule": "static"},
        "model": {"slm": {"width": 64, "layers": 2}, "llm": {"width": 128, "layers": 4}},
        "lora": {"rank": 8}, "train": {"rounds": rounds, "learning_rate": 1e-3, "ratios": []},
    }
    return {"config": config, "metrics": metrics,
            "summary": _summary(config, metrics, held, source, rng)}


def write_run(folder: Path, run: dict[str, Any]) -> Path:
    """Writes the parts the run has; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(run["config"]))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(m) + "\n" for m in run["metrics"]))
    if run.get("summary"):
        (folder / "summary.json").write_text(json.dumps(run["summary"]))
    return folder


def _round(r, rounds, source, held, changing, rng) -> dict[str, Any]:
    num_clients = len(held)
    level = 0.82 - 0.45 * np.exp(-(r + 1) / 3.5)

    def clients(shift: float) -> dict[str, Any]:
        f1 = np.clip(level + shift + 0.03 * (held.sum(1) - 2) + rng.normal(0, 0.02, num_clients),
                     0, 1)
        return {"clients": {"f1": f1.tolist(), "weighted_f1": np.clip(f1 + 0.03, 0, 1).tolist(),
                            "accuracy": np.clip(f1 + 0.04, 0, 1).tolist()}}

    def split(shift: float) -> dict[str, Any]:
        f1 = float(np.clip(level + 0.1 + shift + rng.normal(0, 0.01), 0, 1))
        return {"after_amt": clients(shift), "after_broadcast": clients(shift - 0.04),
                "server": {"f1": f1, "weighted_f1": f1 + 0.01, "accuracy": f1 + 0.02}}

    def losses(start: float, decay: float) -> list[float]:
        return (start * np.exp(-r / decay) + 0.05 + rng.random(num_clients) * 0.05).tolist()

    present = rng.random(held.shape) < 0.7 if changing else held
    return {
        "round": r, "rounds": rounds, "data_source": source, "seconds": 2.5 + rng.random(),
        "learning_rate": 1e-3,
        "train": {"devices": {"ccl": {"lm": losses(2, 3), "volume": losses(1.2, 9)},
                              "amt": {"lm": losses(1.5, 2)}},
                  "server": {"se_ccl": {"llm_lm": 1.8 * np.exp(-r / 1.5) + 0.004,
                                        "slm_lm": 1.9 * np.exp(-r / 2) + 0.04,
                                        "volume": 1.1 - 0.02 * r, "kt_llm": 0.2 / (r + 1),
                                        "kt_slm": 0.25 / (r + 1)}}},
        "eval": {"val": split(0.01), "test": split(0.0)},
        "modalities": present.tolist(),
        "communication": {"uplink_bytes": 98_304,
                          "downlink_bytes": 1_204_224},
    }


def _summary(config, metrics, held, source, rng) -> dict[str, Any]:
    last = metrics[-1]["eval"]["test"]
    f1 = last["after_amt"]["clients"]["f1"]

    def confusion(n: int) -> list[list[int]]:
        matrix = np.zeros((3, 4), int)
        for i, size in enumerate((0.7, 0.1, 0.2)):
            chances = np.full(4, 0.06)
            chances[i] = 0.8
            chances[3] = 0.02
            matrix[i] = rng.multinomial(max(1, int(n * size)), chances / chances.sum())
        return matrix.tolist()

    def spread(values) -> dict[str, float]:
        return {"avg_f1": float(np.mean(values)), "best_f1": max(values), "worst_f1": min(values)}

    per_client = [
        {"client": c, "modalities": [m for m, has in zip(MODALITIES, row, strict=True) if has],
         "train_samples": 2600 + c, "test_samples": 289, "f1": f1[c],
         "weighted_f1": last["after_amt"]["clients"]["weighted_f1"][c],
         "accuracy": last["after_amt"]["clients"]["accuracy"][c], "unparsable": int(c % 3),
         "confusion": confusion(289)} for c, row in enumerate(held)]
    return {
        "method": "ml_ecs", "dataset": "ur_fall", "data_source": source, "split": "frame",
        "seed": 0, "partition_seed": 1, "rho": 0.7, "num_clients": len(held),
        "rounds": len(metrics), "modalities": MODALITIES, "class_names": CLASSES,
        "client": {**spread(f1), "avg_weighted_f1": float(np.mean(f1)) + 0.03,
                   "per_client": per_client,
                   "after_broadcast": spread(last["after_broadcast"]["clients"]["f1"])},
        "server": {**last["server"], "confusion": confusion(2900)},
        "best_val": {"round": len(metrics) - 2, "client": spread(f1), "server": {"f1": 0.913}},
        "ceilings": {"acce": 0.629, "depth": 0.89, "rgb": 0.961},
        "communication": {"uplink_bytes_per_round": 98_304,
                          "downlink_bytes_per_round": 1_204_224,
                          "share_of_parameters": 0.0213,
                          "uplink_share_of_parameters": 0.0051, "device_parameters": 1_153_827},
        "timing": {"compile_s": 21.4, "seconds_per_round": 2.97},
        "versions": {"mlecs-jax": "0.1.0", "jax": "0.10.2", "flax": "0.12.9", "python": "3.11.7",
                     "device": "cpu, 2 cores"},
    }
