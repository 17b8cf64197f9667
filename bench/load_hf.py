"""Seconds and peak host memory of loading a checkpoint of GPT-2's shapes, random weights.

    python bench/load_hf.py [--model gpt2-large] [--shard-bytes N] [--json F] [--directory D]

Writes the float32 parameters (of gpt2-large 774 million, 3.1 GB) into D, or a temporary folder,
unless they are there, in one file or in several of at most N bytes, and loads them in a fresh
process. Memory is the peak resident size beyond that of the imports, to the size of the largest
file: whole, and without the loaded parameters, which on a CPU are in the host's memory too and on
an accelerator are not.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path

VOCABULARY = 50_257
CHILD = """
import json, sys, time
from pathlib import Path
import jax
from mlecs_jax.models import hf
jax.block_until_ready(jax.numpy.ones(3) + 1)
def peak():  # of this program alone: getrusage's would begin with that of the parent
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
before, begun, cpu = peak(), time.perf_counter(), time.process_time()
model, params = hf.load(sys.argv[1])
jax.block_until_ready(params)
print(json.dumps({"seconds": time.perf_counter() - begun, "cpu": time.process_time() - cpu,
                  "peak": peak() - before,
                  "parameters": sum(x.size for x in jax.tree.leaves(params))}))
"""


def write(directory: Path, name: str, shard_bytes: int) -> None:
    """A directory of a named shape."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from mlecs_jax.models import hf, zoo
    from mlecs_jax.models.decoder import Decoder

    # The checkpoint's rows; the shape here has GPT-J's.
    config = dataclasses.replace(zoo.decoder_config(name, VOCABULARY), vocab_size=VOCABULARY)
    shapes = jax.eval_shape(lambda: Decoder(config).init(
        jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))["params"]
    rng = np.random.default_rng(0)
    hf.save(directory, config, jax.tree.map(
        lambda x: rng.standard_normal(x.shape, np.float32) * np.float32(0.02), shapes),
        shard_bytes=shard_bytes)


def measure(directory: Path) -> dict[str, float]:
    """Loads in a fresh process: seconds, processor seconds, peak bytes, and their ratios."""
    out = subprocess.run([sys.executable, "-c", CHILD, str(directory)], check=True,
                         capture_output=True, text=True)
    row = json.loads(out.stdout.splitlines()[-1])
    sizes = [path.stat().st_size for path in directory.glob("*.safetensors")]
    beside = row["peak"] - 4 * row["parameters"]
    return row | {"files": len(sizes), "largest_file": max(sizes),
                  "peak_to_largest_file": row["peak"] / max(sizes),
                  "beside_parameters_to_largest_file": beside / max(sizes)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--model", default="gpt2-large", help="gpt2 or gpt2-large")
    parser.add_argument("--shard-bytes", type=int, default=5 * 10**9)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        directory = options.directory or Path(temporary)
        if not (directory / "config.json").exists():
            write(directory, options.model, options.shard_bytes)
        row = measure(directory)
    print(json.dumps(row, indent=1))
    if options.json:
        from timing import machine

        options.json.write_text(json.dumps({"machine": machine(), "rows": [row]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
