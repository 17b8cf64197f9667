"""The volume contrastive loss beside its naive forms and the floor of its matrix products.

    python bench/gram_volume.py [--k 3,2 --batch 512,1024,2048 --d 512 --dtype f32,bf16]
                                [--implementations xla_dense,xla_tiled] [--repeats 7]
                                [--naive-up-to 1024] [--torch] [--json F]

Forward and forward+backward. `floor` is the same run's time of the three products a Q^T, W Q and
W^T a of the same sizes, the least that forward+backward can cost; `naive_jnp` materialises every
Gram matrix and takes its determinant; `naive_torch` does the same in PyTorch, where installed.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from timing import measure, save, table, temp_mib

from mlecs_jax.kernels import gram_volume

DTYPES = {"f32": jnp.float32, "bf16": jnp.bfloat16}


def draw(batch: int, k: int, d: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r = np.random.default_rng(0)

    def unit(*shape: int) -> np.ndarray:
        x = r.normal(size=shape).astype(np.float32)
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    return unit(batch, d), unit(batch, k, d), np.ones((batch, k), bool)


def naive_torch(anchors: np.ndarray, others: np.ndarray) -> Callable[[], Any]:
    """Forward+backward of the stacked-Gram determinant loss in PyTorch; ImportError without it."""
    import torch

    torch.set_num_threads(__import__("os").cpu_count() or 1)
    vectors = [torch.tensor(anchors)] + [torch.tensor(x) for x in others.swapaxes(0, 1)]
    for x in vectors:
        x.requires_grad_()

    def volumes(first: Any, rest: list[Any]) -> Any:
        u, v = first.shape[0], rest[0].shape[0]
        size = 1 + len(rest)
        rows: list[list[Any]] = [[None] * size for _ in range(size)]
        rows[0][0] = (first * first).sum(1)[:, None].expand(u, v)
        for i, x in enumerate(rest):
            rows[0][i + 1] = rows[i + 1][0] = first @ x.T
            for j, y in enumerate(rest):
                rows[i + 1][j + 1] = (x * y).sum(1)[None].expand(u, v)
        gram = torch.stack([torch.stack(row, -1) for row in rows], -2)
        return torch.sqrt(torch.abs(torch.det(gram)))

    def run() -> Any:
        for x in vectors:
            x.grad = None
        target = torch.arange(anchors.shape[0])
        # As its users run it: once a direction.
        by_row = -volumes(vectors[0], vectors[1:]) / 0.07
        by_column = -volumes(vectors[0], vectors[1:]).T / 0.07
        ce = torch.nn.functional.cross_entropy
        loss = (ce(by_row, target) + ce(by_column, target)) / 2
        loss.backward()
        return np.asarray(loss.detach())

    return run


def cases(
    arrays: tuple[np.ndarray, ...], dtype: Any, options: argparse.Namespace
) -> tuple[dict[str, Callable[[], Any]], dict[str, float]]:
    """name -> call, and the temporary memory of those that XLA compiled, in MiB."""
    a, m, mask = jnp.asarray(arrays[0], dtype), jnp.asarray(arrays[1], dtype), arrays[2]
    batch, k, d = m.shape
    calls: dict[str, Callable[[], Any]] = {}
    memory: dict[str, float] = {}

    def floor(a: Any, q: Any, c: Any) -> Any:
        wide = {"preferred_element_type": jnp.float32}
        return jnp.dot(a, q.T, **wide), jnp.dot(c, q, **wide), jnp.dot(c.T, a, **wide)

    products, q = jax.jit(floor), m.reshape(batch * k, d)
    c = jnp.ones((batch, k * batch), dtype)
    calls["floor"] = lambda: products(a, q, c)

    names = [(name, name) for name in options.implementations.split(",")]
    if batch <= options.naive_up_to:
        names.append(("naive_jnp", "reference"))
    for name, implementation in names:

        def loss(a: Any, m: Any, tau: Any, implementation: str = implementation) -> Any:
            return gram_volume.volume_contrastive_loss(
                a, m, mask, temperature=tau, implementation=implementation
            )

        forward = jax.jit(loss)
        both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
        calls[name] = lambda f=both: f(a, m, 0.07)
        memory[name] = temp_mib(both, a, m, 0.07)
        if not name.startswith("naive"):
            calls[f"{name} forward"] = lambda f=forward: f(a, m, 0.07)
    if options.torch and dtype == jnp.float32:
        try:
            calls["naive_torch"] = naive_torch(arrays[0], arrays[1])
        except ImportError:
            print("naive_torch skipped: PyTorch is not installed")
    return calls, memory


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--k", default="3,2")
    parser.add_argument("--batch", default="512,1024,2048")
    parser.add_argument("--d", default="512")
    parser.add_argument("--dtype", default="f32")
    parser.add_argument("--implementations", default="xla_dense,xla_tiled")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--naive-up-to", type=int, default=0, help="largest batch of naive_jnp")
    parser.add_argument("--torch", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for name in options.dtype.split(","):
        for k in map(int, options.k.split(",")):
            for batch in map(int, options.batch.split(",")):
                for d in map(int, options.d.split(",")):
                    calls, memory = cases(draw(batch, k, d), DTYPES[name], options)
                    times = measure(calls, options.repeats)
                    least = times["floor"]
                    own = [
                        {"dtype": name, "k": k, "batch": batch, "d": d, "what": what}
                        | time
                        | {
                            "wall_to_floor": time["min"] / least["min"],
                            "cpu_to_floor": time["cpu"] / least["cpu"],
                            "temp_mib": memory.get(what, float("nan")),
                        }
                        for what, time in times.items()
                    ]
                    print(table(own), flush=True)
                    rows += own
    save(options.json, rows)


if __name__ == "__main__":
    main()
