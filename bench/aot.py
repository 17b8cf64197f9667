"""Compiles every kernel ahead of time for an accelerator, on a machine that has none.

    python bench/aot.py --target h200
    python bench/aot.py --target v5e --ops gram_volume --json bench/results/aot_v5e.json

It shows that the code lowers, fits on-chip memory, and how much device memory it needs; nothing is
executed. The set-up is that of docs/plan.md; the kernels alone need no more than its jax packages.

Without the plugin it says so and exits with 3.
"""

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mlecs_jax.plan import targets

TARGETS = ("h200", "v5e", "v5p", "v6e")
MISSING_PLUGIN = 3


def prepare(target: str, dump: str) -> None:
    """Environment that must stand before jax is imported."""
    targets.prepare()
    if target == "h200":
        os.environ["XLA_FLAGS"] = f"--xla_dump_to={dump} --xla_dump_hlo_as_text=false"


def device(target: str) -> Any:
    """A device of the target, to compile for; NoCompiler without the plugin."""
    return targets.devices(targets.parse(target))[0]


class Program(NamedTuple):
    """One thing to compile: a function of arrays, by their shapes and dtypes."""

    op: str
    implementation: str
    shape: str
    dtype: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]

    @property
    def name(self) -> str:
        return f"{self.op} {self.implementation} {self.shape} {self.dtype}"


def gram_volume_programs(target: str) -> Iterator[Program]:
    import jax
    import jax.numpy as jnp

    from mlecs_jax.kernels.gram_volume import (
        arg_specs,
        pairs,
        pallas_gpu,
        pallas_tpu,
        schur,
        solve,
        xla_tiled,
    )

    pallas = pallas_gpu if target == "h200" else pallas_tpu
    for spec in arg_specs.AOT_SPECS:
        # Compile time does not depend on the batch, and a large one matters in bfloat16 only.
        for dtype in (jnp.bfloat16, jnp.float32)[: 2 if spec.batch <= 16384 else 1]:
            precision = (
                jax.lax.Precision.DEFAULT if dtype == jnp.bfloat16 else jax.lax.Precision.HIGHEST
            )
            settings = pairs.Settings(0.1, False, jnp.dtype(dtype), precision)
            tile = pallas.default_tile(spec.k, spec.d)
            assert tile is not None, f"{pallas.__name__} has no tile for {spec}"
            solvers = [pallas.solver(tile)]
            if target == "h200" or spec.batch == 32768:  # minutes each for a TPU
                solvers.append(xla_tiled.tiled((2048, 2048)))
            for solver in solvers:

                def loss(a: Any, m: Any, mask: Any, tau: Any, solver=solver, own=settings) -> Any:
                    a, m = schur.widen(a, jnp.float32), schur.widen(m, jnp.float32)
                    return solve.solve(solver, own, a, m, mask, tau, None)

                shapes = (
                    jax.ShapeDtypeStruct((spec.batch, spec.d), dtype),
                    jax.ShapeDtypeStruct((spec.batch, spec.k, spec.d), dtype),
                    jax.ShapeDtypeStruct((spec.batch, spec.k), jnp.bool_),
                    jax.ShapeDtypeStruct((), jnp.float32),
                )
                yield Program(
                    "gram_volume",
                    solver.name,
                    spec.name,
                    jnp.dtype(dtype).name,
                    jax.value_and_grad(loss, argnums=(0, 1, 3)),
                    shapes,
                )


def lm_head_programs(target: str) -> Iterator[Program]:
    """Loss and gradient of the hidden states, logits written out beside chunks."""
    import jax
    import jax.numpy as jnp

    from mlecs_jax.kernels import lm_head
    from mlecs_jax.kernels.lm_head import (
        arg_specs,
        pallas_gpu,
        pallas_tpu,
        vocabulary,
    )
    from mlecs_jax.kernels.lm_head import (
        cross_entropy as chunked,
    )

    pallas = pallas_gpu if target == "h200" else pallas_tpu
    # Not the host's sizes: the host is a CPU, the target is not.
    vocabulary.CHUNK_BYTES = vocabulary.BLOCK_BYTES = vocabulary.BYTES_ELSEWHERE
    for spec in arg_specs.AOT_SPECS:

        def shape(*size: int, dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(size, dtype)

        hidden, head = shape(spec.tokens, spec.d), shape(spec.vocabulary, spec.d)
        labels = shape(spec.tokens, dtype=jnp.int32)
        teacher = shape(spec.tokens, spec.teacher_d), shape(spec.vocabulary, spec.teacher_d)
        tile = pallas.default_tile(spec.d)
        assert tile is not None, f"{pallas.__name__} has no tile for {spec}"
        size = vocabulary.chunk_size(spec.tokens, spec.vocabulary)
        by_kernel = chunked.Options(-1, 0.0, 0.0, None, size, pallas.kernel(tile))

        def fused(h: Any, w: Any, y: Any, own: chunked.Options = by_kernel) -> Any:
            return chunked.cross_entropy(own, vocabulary.Model(h, w, None), y).mean()

        yield Program(
            "lm_head.cross_entropy",
            f"{pallas.__name__.split('.')[-1]}{tile[0]}x{tile[1]}",
            spec.name,
            "bfloat16",
            jax.value_and_grad(fused),
            (hidden, head, labels),
        )
        if spec != arg_specs.AOT_SPECS[0]:  # minutes for a TPU, and the other width says the same
            continue
        for implementation in ("reference", "xla"):

            def cross_entropy(h: Any, w: Any, y: Any, how: str = implementation) -> Any:
                return lm_head.linear_cross_entropy(h, w, y, implementation=how).mean()

            def kl(h: Any, w: Any, th: Any, tw: Any, how: str = implementation) -> Any:
                return lm_head.linear_kl(th, tw, h, w, implementation=how).mean()

            for loss, arguments in ((cross_entropy, (labels,)), (kl, teacher)):
                yield Program(
                    f"lm_head.{loss.__name__}",
                    implementation,
                    spec.name,
                    "bfloat16",
                    jax.value_and_grad(loss),
                    (hidden, head, *arguments),
                )


def shared_lora_programs(target: str) -> Iterator[Program]:
    import jax
    import jax.numpy as jnp

    from mlecs_jax.kernels import shared_lora
    from mlecs_jax.kernels.shared_lora import arg_specs

    del target
    for spec in arg_specs.AOT_SPECS:

        def loss(adapters: Any, x: Any, weight: Any) -> Any:
            return (shared_lora.linear(x, weight, *adapters).astype(jnp.float32) ** 2).mean()

        c, n, d, f, r = spec
        sizes = ((c, d, r), (c, r, f)), (c, n, d), (d, f)
        shapes = jax.tree.map(
            lambda size: jax.ShapeDtypeStruct(size, jnp.bfloat16),
            sizes,
            is_leaf=lambda x: isinstance(x[0], int),
        )
        gradient = jax.value_and_grad(loss, argnums=(0, 1))
        yield Program("shared_lora", "xla", spec.name, "bfloat16", gradient, shapes)


OPS: dict[str, Callable[[str], Iterator[Program]]] = {
    "gram_volume": gram_volume_programs,
    "lm_head": lm_head_programs,
    "shared_lora": shared_lora_programs,
}


def device_code(dump: Path) -> dict[str, Any]:
    """What the dumped PTX holds: whether tensor cores are used, and local memory (spills)."""
    texts = [path.read_text(errors="ignore") for path in dump.glob("**/*.ptx")]
    joined = "\n".join(texts)
    return {
        "wgmma": joined.count("wgmma.mma_async"),
        "mma": len(re.findall(r"\bmma\.sync", joined)),
        "ptx_files": len(texts),
    }


def compile_one(program: Program, where: Any, target: str, dump: Path) -> dict[str, Any]:
    import jax

    for path in dump.glob("**/*.ptx"):
        path.unlink()
    sharding = jax.sharding.SingleDeviceSharding(where)
    arguments = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), program.arguments
    )
    row: dict[str, Any] = {
        "target": target,
        "op": program.op,
        "implementation": program.implementation,
        "shape": program.shape,
        "dtype": program.dtype,
    }
    start = time.perf_counter()
    try:
        memory = jax.jit(program.function).lower(*arguments).compile().memory_analysis()
    except Exception as error:  # a compiler's refusal is a result: it goes into the table
        return row | {"error": str(error).strip().splitlines()[0][:200]}
    assert memory is not None  # CPU, CUDA and TPU programs all have one
    row |= {
        "seconds": round(time.perf_counter() - start, 1),
        "arguments_mib": round(memory.argument_size_in_bytes / 2**20, 1),
        "temp_mib": round(memory.temp_size_in_bytes / 2**20, 1),
    }
    return row | device_code(dump) if target == "h200" else row


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--target", required=True, choices=TARGETS)
    parser.add_argument("--ops", default=",".join(OPS), help="comma-separated")
    parser.add_argument("--only", default="", help="op, implementation, shape or dtype to hold")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as dump:
        prepare(options.target, dump)
        try:
            where = device(options.target)
        except targets.NoCompiler as error:
            print(f"no compiler for {options.target} here ({error}): docs/plan.md has the set-up")
            return MISSING_PLUGIN
        rows = []
        for op in options.ops.split(","):
            for program in OPS[op](options.target):
                if options.only not in program.name:
                    continue
                rows.append(compile_one(program, where, options.target, Path(dump)))
                print(json.dumps(rows[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return int(any("error" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
