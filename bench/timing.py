"""Timing for the microbenchmarks: interleaved, so that a busy machine is unkind to all alike."""

import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax


def measure(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each call: min, median, spread (quartile range), and least processor time.

    The calls take turns. On a shared machine trust ratios of `cpu`, the processor time of the
    whole process, over those of the wall clock.
    """
    wall: dict[str, list[float]] = {name: [] for name in calls}
    cpu: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        jax.block_until_ready(call())
    for _ in range(repeats):
        for name, call in calls.items():
            start, start_cpu = time.perf_counter(), time.process_time()
            jax.block_until_ready(call())
            wall[name].append(1e3 * (time.perf_counter() - start))
            cpu[name].append(1e3 * (time.process_time() - start_cpu))
    out = {}
    for name, times in wall.items():
        low, _, high = statistics.quantiles(times, n=4) if len(times) > 1 else (times[0],) * 3
        out[name] = {
            "min": min(times),
            "median": statistics.median(times),
            "spread": high - low,
            "cpu": min(cpu[name]),
        }
    return out


def temp_mib(function: Any, *args: Any) -> float:
    """Temporary memory of a jitted function at these arguments, by the compiler's account."""
    return function.lower(*args).compile().memory_analysis().temp_size_in_bytes / 2**20


def machine() -> dict[str, str]:
    return {
        "device": jax.devices()[0].device_kind,
        "processor": platform.processor() or platform.machine(),
        "cores": str(__import__("os").cpu_count()),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Rows of equal keys as aligned text."""
    keys = list(rows[0])
    cells = [[f"{r[k]:.2f}" if isinstance(r[k], float) else str(r[k]) for k in keys] for r in rows]
    widths = [max(len(k), *(len(c[i]) for c in cells)) for i, k in enumerate(keys)]
    lines = [keys, *cells]
    return "\n".join("  ".join(x.rjust(w) for x, w in zip(c, widths, strict=True)) for c in lines)


def save(path: Path | None, rows: list[dict[str, Any]]) -> None:
    if path:
        path.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
