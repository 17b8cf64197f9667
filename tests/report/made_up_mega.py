"""A made-up run folder of Mega-CE² in the form real runs write it."""

from typing import Any

import numpy as np

from mlecs_jax.metrics import sentiment as metrics

ENDS = 2


def made_up_mega(
    edges: int = 3, versions: int = 14, *, source: str = "real", mode: str = "async", seed: int = 0
) -> dict[str, Any]:
    """``{'config', 'metrics', 'summary'}``: labels and predictions drawn, scores computed."""
    rng = np.random.default_rng(seed)
    labels = rng.uniform(-3, 3, 40 * edges).astype(np.float32)
    owner = np.arange(len(labels)) % edges
    speeds = [0.25 if edge == edges - 1 else 1.0 for edge in range(edges)]
    read, reports, lines, time = [0] * edges, [0] * edges, [], 0.0
    for r in range(versions):
        time += 3.0 + rng.random()
        who = list(range(edges)) if mode == "sync" else [int(rng.integers(edges))]
        noise = 0.6 + 1.4 * np.exp(-(r + 1) / 4)
        lines.append({
            "round": r, "rounds": versions, "data_source": source, "time": round(time, 4),
            "edges": who, "staleness": [r - read[edge] for edge in who],
            "train": {"ends": {"mae": (noise + rng.random(ENDS * len(who)) / 9).tolist()}},
            "eval": {part: scores(labels, labels + rng.normal(0, noise, len(labels)))
                     for part in ("val", "test")},
            "seconds": 0.5, "evaluation_seconds": 0.1})
        for edge in who:
            read[edge], reports[edge] = r + 1, reports[edge] + 1
    answers = {"global": labels + rng.normal(0, 0.7, len(labels)),
               "personal": labels + rng.normal(0, 0.6, len(labels))}
    found = [{"edge": edge, "train_segments": 60 + edge, "end_segments": [30, 30 + edge],
              "val_segments": 9, "test_segments": 40, "speed": speeds[edge],
              "reports": reports[edge]} | {
                  kind: scores(labels[owner == edge], guess[owner == edge]) | {
                      "confusion": matrix(labels[owner == edge], guess[owner == edge])}
                  for kind, guess in answers.items()} for edge in range(edges)]
    return {"config": _config(edges, mode, source), "metrics": lines, "summary": {
        "method": "mega_ce2", "mode": mode, "data_source": source, "split": "canonical",
        "caution": "the vectors were learnt with training labels", "rounds": versions,
        "best_version": versions - 1, "server": scores(labels, answers["global"]),
        "client": scores(labels, answers["personal"]),
        "validation": {"server": scores(labels, answers["global"]),
                       "client": scores(labels, answers["personal"])},
        "edges": found, "class_names": list(metrics.CLASSES),
        "confusion": {kind: matrix(labels, guess) for kind, guess in answers.items()},
        "communication": {"uplink_bytes": 1_000_004, "downlink_bytes": 1_000_000,
                          "uploads": sum(reports), "downloads": sum(reports) + edges,
                          "adapter_bytes_sent": 0},
        "timing": {"train_seconds": 7.0, "personalise_seconds": 1.0,
                   "simulated_seconds": round(time, 4)},
        "extra": {"parameters": 250_000, "adapter_parameters": 5248},
        "personalisation_history": [0.72, 0.69, 0.68, 0.70]}}


def scores(true: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    return metrics.scores(true, predicted)


def matrix(true: np.ndarray, predicted: np.ndarray) -> list[list[int]]:
    return metrics.confusion(true, predicted).tolist()


def _config(edges: int, mode: str, source: str) -> dict[str, Any]:
    return {"seed": 0, "method": {"name": "mega_ce2", "mode": mode},
            "data": {"name": "mosi", "source": source, "split": "canonical"},
            "partition": {"edges": edges, "ends": ENDS, "alpha": 0.5, "seed": 0},
            "train": {"rounds": 15}, "clock": {"speeds": "1,1,0.25", "links": "realistic"}}
