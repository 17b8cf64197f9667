"""Figures printed in the ML-ECS paper, where they are known; nothing else stands beside ours.

UR-Fall: the ML-ECS row of Table 1, macro-F1 on random frames. VAST: ROUGE-LSum of Tables 1 and 2,
three decimals of the authors' released logs, except where the paper prints another number (N=3
average, N=10 worst), which then holds. BERTScores are left out: ours use another encoder.
"""

from __future__ import annotations

Key = tuple[str, str, float, int]  # dataset, method, rho, number of devices

_NAMES = ("client.avg_{0}", "client.best_{0}", "client.worst_{0}", "server.{0}")
_UR_FALL = {0.5: (0.754, 0.791, 0.698, 0.918), 0.7: (0.786, 0.813, 0.734, 0.928),
            0.8: (0.801, 0.824, 0.771, 0.931)}
_VAST = {3: (0.262, 0.264, 0.251, 0.311), 5: (0.261, 0.264, 0.253, 0.308),
         10: (0.256, 0.261, 0.247, 0.310), 20: (0.254, 0.259, 0.240, 0.311)}


def _row(metric: str, figures: tuple[float, ...]) -> dict[str, float]:
    return {name.format(metric): value for name, value in zip(_NAMES, figures, strict=True)}


# The splits that the paper's figures may stand beside. VAST's is not said; its clips are drawn at
# random, and so are our videos.
SPLITS = {"ur_fall": ("frame",), "vast": ("frame", "sequence")}
PRINTED: dict[Key, dict[str, float]] = {
    **{("ur_fall", "ml_ecs", rho, 3): _row("f1", row) for rho, row in _UR_FALL.items()},
    **{("vast", "ml_ecs", 0.8, n): _row("rougeLsum", row) for n, row in _VAST.items()},
}


def printed(
    dataset: str, method: str, split: str, rho: float, num_clients: int
) -> dict[str, float]:
    """The paper's figures of a cell by metric; empty where none are known."""
    return PRINTED.get((dataset, method, rho, num_clients), {}) if split in SPLITS.get(
        dataset, ()) else {}
