"""Eight clients' LoRA over one frozen block: shared, one client after the other, and with copies.

    python bench/shared_lora.py [--repeats 9] [--json F]

Forward + backward of the four linear layers of a GPT-2 block, attention itself left out. `shared`
is the op of `mlecs_jax.kernels.shared_lora`; `loop` calls one compiled step a client; `copies`
gives each client a copy of the frozen weights, as vmapping over whole models does; `frozen alone`
leaves the adapters out: no way of applying them can be faster.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from timing import measure, save, table, temp_mib

from mlecs_jax.kernels import shared_lora
from mlecs_jax.kernels.shared_lora.arg_specs import BENCH_SPECS, ArgSpec


def block(adapters: Any, weights: Any, x: Any) -> Any:
    """c_attn, c_proj, c_fc and c_proj with an adapter each, for one client or for all; or none."""

    def linear(x: Any, layer: int) -> Any:
        if adapters is None:
            return jnp.tensordot(x, weights[layer], axes=1)
        return shared_lora.linear(x, weights[layer], *adapters[layer], scale=2.0)

    queries, keys, values = jnp.split(linear(x, 0), 3, axis=-1)
    x = x + linear(queries * keys * values, 1)
    x = x + linear(jax.nn.gelu(linear(x, 2)), 3)
    return (x**2).mean()


def compare(spec: ArgSpec, repeats: int) -> list[dict[str, Any]]:
    keys = iter(jax.random.split(jax.random.key(0), 13))

    def normal(*shape: int) -> jax.Array:
        return 0.02 * jax.random.normal(next(keys), shape)

    c, n, d, f, r = spec
    sizes = ((d, 3 * d), (d, d), (d, f), (f, d))
    adapters = [(normal(c, i, r), normal(c, r, o)) for i, o in sizes]
    weights, x = [normal(i, o) for i, o in sizes], normal(c, n, d)
    copied = jax.tree.map(lambda w: jnp.array(jnp.broadcast_to(w, (c, *w.shape))), weights)
    step = jax.jit(jax.value_and_grad(block, argnums=(0, 2)))
    alone = jax.jit(jax.value_and_grad(lambda weights, x: block(None, weights, x), argnums=1))
    with_copies = jax.jit(jax.vmap(jax.value_and_grad(block, argnums=(0, 2))))
    own = [(jax.tree.map(lambda y, i=i: y[i], adapters), x[i]) for i in range(c)]
    calls = {
        "shared": lambda: step(adapters, weights, x),
        "loop": lambda: [step(a, weights, y) for a, y in own],
        "copies": lambda: with_copies(adapters, copied, x),
        "frozen alone": lambda: alone(weights, x),
    }
    memory = {
        "shared": temp_mib(step, adapters, weights, x),
        "loop": temp_mib(step, own[0][0], weights, own[0][1]),
        "copies": temp_mib(with_copies, adapters, copied, x),
        "frozen alone": temp_mib(alone, weights, x),
    }
    times = measure(calls, repeats)
    base = sum(w.nbytes for w in weights) / 2**20
    return [
        {"shape": spec.name, "what": name}
        | time
        | {
            "shared_is_faster_wall": time["min"] / times["shared"]["min"],
            "shared_is_faster_cpu": time["cpu"] / times["shared"]["cpu"],
            "temp_mib": memory[name],
            "weights_mib": base * (c if name == "copies" else 1),
        }
        for name, time in times.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for spec in BENCH_SPECS:
        rows += compare(spec, options.repeats)
        print(table(rows[-4:]), flush=True)
    save(options.json, rows)


if __name__ == "__main__":
    main()
