"""Finds the fastest implementation and tile of the volume loss on the device at hand.

    python bench/tune.py [--batch 16384 --k 3 --d 512 --dtype bf16] [--write]

Times forward+backward of tiled XLA and of the platform's Pallas kernels at several tiles, prints
the table, and with `--write` puts the winner into `kernels/gram_volume/tuning.py`, which dispatch
reads. An entry is written only where Pallas beats XLA by more than 5 %.
"""

import argparse
import pprint
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from gram_volume import DTYPES, draw
from timing import measure, table

from mlecs_jax.kernels.gram_volume import (
    pairs,
    pallas_gpu,
    pallas_tpu,
    schur,
    solve,
    tuning,
    xla_tiled,
)

TILES = {
    "gpu": ((64, 32), (64, 64), (128, 32), (128, 64), (128, 128)),
    "tpu": ((256, 128), (256, 256), (512, 128), (512, 256), (1024, 256), (512, 512)),
}
HEADER = (Path(tuning.__file__).read_text()).split("TUNED:")[0]


def candidates(backend: str) -> list[pairs.Solver]:
    own = [xla_tiled.tiled((t, t)) for t in (1024, 2048, 4096)]
    module = {"gpu": pallas_gpu, "tpu": pallas_tpu}[backend]
    return own + [module.solver(tile) for tile in TILES[backend]]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, default=16384)
    parser.add_argument("--k", type=int, default=3)
    parser.add_argument("--d", type=int, default=512)
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    backend = jax.default_backend()
    if backend not in TILES:
        print(f"nothing to tune on a {backend}: dispatch uses XLA there")
        return 3
    dtype = DTYPES[options.dtype]
    highest = jax.lax.Precision.HIGHEST if dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    settings = pairs.Settings(0.0, False, jnp.dtype(dtype), highest)
    anchors, others, mask = (jnp.asarray(x) for x in draw(options.batch, options.k, options.d))
    args = anchors.astype(dtype), others.astype(dtype), mask, jnp.float32(0.07)

    calls: dict[str, Any] = {}
    for solver in candidates(backend):

        def loss(a: Any, m: Any, mask: Any, tau: Any, solver: pairs.Solver = solver) -> Any:
            a, m = schur.widen(a, jnp.float32), schur.widen(m, jnp.float32)
            return solve.solve(solver, settings, a, m, mask, tau, None)

        step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 3)))
        try:
            jax.block_until_ready(step(*args))
        except Exception as error:  # a tile that does not fit the chip is a result
            print(f"{solver.name}: {str(error).splitlines()[0][:160]}")
            continue
        calls[solver.name] = lambda f=step: f(*args)
    times = measure(calls, options.repeats)
    print(table([{"solver": name} | time for name, time in times.items()]))
    plain = min(t["median"] for name, t in times.items() if name.startswith("xla"))
    pallas = {name: t["median"] for name, t in times.items() if name.startswith("pallas")}
    best = min(pallas, key=lambda name: pallas[name], default=None)
    if best is None or pallas[best] > 0.95 * plain:
        print("XLA stays the default here")
        return 0
    name = f"pallas_{backend}"
    tile = [int(x) for x in best.removeprefix(name).split("x")]
    table_ = tuning.TUNED | {jax.devices()[0].device_kind: {"implementation": name, "tile": tile}}
    print(f"{best} is the fastest: {plain / pallas[best]:.2f} times XLA's speed")
    if options.write:
        text = pprint.pformat(table_, width=90)
        Path(tuning.__file__).write_text(
            f"{HEADER}TUNED: dict[str, dict[str, str | list[int]]] = {text}\n"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
