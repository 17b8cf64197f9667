"""Seconds and peak host memory of loading a checkpoint of GPT-2-large's shape, random weights.

    python bench/load_hf.py [--json F] [--directory D]

Writes 774 million float32 parameters (3.1 GB) into D, or a temporary folder, unless they are
there, and loads them in a fresh process. Memory is the peak resident size beyond that of the
imports, to the size of the largest file; on a CPU it includes the loaded parameters.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

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


def write(directory: Path) -> None:
    """A directory of GPT-2-large's shape."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from mlecs_jax.models import hf, zoo
    from mlecs_jax.models.decoder import Decoder

    config = zoo.decoder_config("gpt2-large", 50257)
    shapes = jax.eval_shape(lambda: Decoder(config).init(
        jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))["params"]
    rng = np.random.default_rng(0)
    hf.save(directory, config, jax.tree.map(
        lambda x: rng.standard_normal(x.shape, np.float32) * np.float32(0.02), shapes))


def measure(directory: Path) -> dict[str, float]:
    """Loads in a fresh process: seconds, processor seconds, peak bytes, and their ratio."""
    out = subprocess.run([sys.executable, "-c", CHILD, str(directory)], check=True,
                         capture_output=True, text=True)
    row = json.loads(out.stdout.splitlines()[-1])
    largest = max(path.stat().st_size for path in directory.glob("*.safetensors"))
    return row | {"largest_file": largest, "peak_to_largest_file": row["peak"] / largest}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--directory", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        directory = options.directory or Path(temporary)
        if not (directory / "config.json").exists():
            write(directory)
        row = measure(directory)
    print(json.dumps(row, indent=1))
    if options.json:
        from timing import machine

        options.json.write_text(json.dumps({"machine": machine(), "rows": [row]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
