"""Answers from the states they read, against all states of the backbone: forward and LoRA step.

    python bench/answer_states.py [--repeats 20] [--json F]

The backbones of `ur_fall:cpu` and GPT-2 small, 16 soft tokens before 6 of the instruction, answers
of 2 tokens. Both sides are the same decoder with the same weights in one process, in turns; nothing
is timed unless their states agree. `speedup` is the time of all states to that of the last ones.
"""

import os

os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[0]})  # before any pool of threads starts
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import argparse  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from timing import measure, save, table  # noqa: E402

from mlecs_jax import lora  # noqa: E402
from mlecs_jax.models import initial, zoo  # noqa: E402
from mlecs_jax.models.decoder import Decoder  # noqa: E402

SOFT, TOKENS, ANSWER = 16, 7, 2  # the answer's first token is the last that is read
SAME = 1e-4


def sides(name: str, rows: int, train: bool) -> dict[str, Callable[[], Any]]:
    """Both sides of a case: hidden states, or the gradient of a weighted sum of them."""
    decoder = Decoder(zoo.decoder_config(name, 257))
    params = initial.draw(lambda key: decoder.init(key, jnp.zeros((1, 1), jnp.int32)),
                          jax.random.key(0), embedding_std=decoder.config.embedding_std)
    adapters = lora.init(jax.random.key(1), params, decoder.config.lora_targets, 8)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 257, (rows, TOKENS)), jnp.int32)
    prefix = jax.random.normal(jax.random.key(2), (rows, SOFT, decoder.config.width))

    def states(last: int | None, adapters: Any, prefix: Any) -> Any:
        found = decoder.apply({"params": params, "lora": adapters}, tokens, prefix=prefix,
                              last=last, method="hidden")
        return found[:, -ANSWER:]

    wanted = jax.random.normal(jax.random.key(3), (rows, ANSWER, decoder.config.width))

    def step(last: int | None, adapters: Any, prefix: Any) -> Any:
        return jax.grad(lambda *of: jnp.sum(states(last, *of) * wanted), argnums=(0, 1))(
            adapters, prefix)

    calls = {side: jax.jit(lambda *of, last=last: (step if train else states)(last, *of))
             for side, last in (("all", None), ("last", ANSWER))}
    every, last = (call(adapters, prefix) for call in calls.values())
    gap = max(float(np.abs(a - b).max() / (np.abs(a).max() + 1e-9)) for a, b in zip(
        jax.tree.leaves(every), jax.tree.leaves(last), strict=True))
    if not gap <= SAME:
        raise SystemExit(f"{name}: the two sides differ by {gap:.1e}")
    return {side: lambda call=call: call(adapters, prefix) for side, call in calls.items()}


CASES = {f"{name}, {'step of 16' if train else 'forward of 128'}": (name, rows, train)
         for name in ("gpt2-2x64", "gptj-3x128", "gpt2-12x768")
         for rows, train in ((128, False), (16, True))}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for case, (name, count, train) in CASES.items():
        times = measure(sides(name, count, train), options.repeats)
        rows.append({"case": case, **{f"{side}_{kind}_ms": times[side][kind] for side in times
                                      for kind in ("min", "cpu")},
                     "speedup": times["all"]["min"] / times["last"]["min"],
                     "speedup_cpu": times["all"]["cpu"] / times["last"]["cpu"]})
        print(table(rows[-1:]), flush=True)
    save(options.json, rows)


if __name__ == "__main__":
    main()
