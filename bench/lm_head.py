"""Losses on the vocabulary head beside the same with logits written out.

    python bench/lm_head.py [--tokens 4096] [--repeats 3] [--trained-head] [--json F]

Forward + backward with respect to the hidden states (the head is usually frozen), and with
`--trained-head` with respect to the head too. Ratios are to the materialised form in the same run;
tokamax's cross-entropy stands beside where it is installed (on a CPU it writes logits out).
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from timing import measure, save, table, temp_mib

from mlecs_jax.kernels import lm_head
from mlecs_jax.kernels.lm_head.arg_specs import BENCH_SPECS, ArgSpec


def losses(spec: ArgSpec, trained: bool) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """name -> (function of implementation giving a jitted gradient, its arguments)."""
    keys = jax.random.split(jax.random.key(0), 5)
    n, v = spec.tokens, spec.vocabulary
    hidden = jax.random.normal(keys[0], (n, spec.d))
    head = 0.02 * jax.random.normal(keys[1], (v, spec.d))
    labels = jax.random.randint(keys[2], (n,), 0, v)
    teacher = jax.random.normal(keys[3], (n, spec.teacher_d))
    teacher_head = 0.02 * jax.random.normal(keys[4], (v, spec.teacher_d))
    wanted = (0, 1) if trained else (0,)

    def cross_entropy(implementation: str) -> Any:
        def loss(h: Any, w: Any, y: Any) -> Any:
            return lm_head.linear_cross_entropy(h, w, y, implementation=implementation).mean()

        return jax.jit(jax.value_and_grad(loss, argnums=wanted))

    def kl(pooling: Any) -> Any:
        def make(implementation: str) -> Any:
            def loss(h: Any, w: Any, th: Any, tw: Any) -> Any:
                return lm_head.linear_kl(
                    th, tw, h, w, pooling=pooling, implementation=implementation
                ).mean()

            return jax.jit(jax.value_and_grad(loss, argnums=wanted))

        return make

    models = (hidden, head, teacher, teacher_head)
    return {"cross_entropy": (cross_entropy, (hidden, head, labels))} | {
        f"kl_{pooling}": (kl(pooling), models) for pooling in ("topk_rest", "full", "adaptive_avg")
    }


def tokamax_cross_entropy() -> Any:
    """The same loss and gradient by tokamax; None where it is not installed."""
    try:
        import tokamax
    except ImportError:
        return None

    def loss(h: Any, w: Any, y: Any) -> Any:
        return tokamax.linear_softmax_cross_entropy_loss(h, y, w.T, reduction="mean")

    return jax.jit(jax.value_and_grad(loss, argnums=(0,)))


def compare(
    make: Any, args: tuple[Any, ...], repeats: int, tokamax: Any = None
) -> list[dict[str, Any]]:
    """One loss by every implementation there is, a row each."""
    run = {"reference": make("reference"), "xla": make("xla")}
    if tokamax is not None:
        run["tokamax"] = tokamax
    times = measure({i: (lambda f=f: f(*args)) for i, f in run.items()}, repeats)
    memory = {i: temp_mib(f, *args) for i, f in run.items()}
    (_, own), (_, true) = run["xla"](*args), run["reference"](*args)
    error = max(
        float(jnp.linalg.norm(x - y) / jnp.linalg.norm(y)) for x, y in zip(own, true, strict=True)
    )
    return [
        {"implementation": i}
        | times[i]
        | {
            "cpu_ratio": times[i]["cpu"] / times["reference"]["cpu"],
            "wall_ratio": times[i]["min"] / times["reference"]["min"],
            "temp_mib": memory[i],
            "temp_share": memory[i] / memory["reference"],
            "gradient_error": f"{error:.1e}" if i == "xla" else "",
        }
        for i in run
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, help="instead of the specs' 4,096")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--trained-head", action="store_true")
    parser.add_argument("--only", default="", help="losses whose name holds this")
    parser.add_argument("--d", type=int, help="only the spec of this width")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for spec in BENCH_SPECS:
        spec = spec._replace(tokens=options.tokens or spec.tokens)
        if options.d not in (None, spec.d):
            continue
        for name, (make, args) in losses(spec, options.trained_head).items():
            if options.only not in name:
                continue
            same = name == "cross_entropy" and not options.trained_head
            tokamax = tokamax_cross_entropy() if same else None
            own = compare(make, args, options.repeats, tokamax)
            rows += [{"loss": name, "shape": spec.name} | row for row in own]
            print(table(rows[-len(own) :]), flush=True)
    save(options.json, rows)


if __name__ == "__main__":
    main()
