"""Seconds per round per client and memory per client as the number of simulated devices grows.

    python bench/scale_clients.py [--clients 8,64,512] [--rounds 3] [--json FILE]

Every size runs in a process of its own, so that peak memory is its own. Devices are simulated
ones of the shipped small models; each has the same number of private samples at every size. The
server trains a single step per round, so that a round's time is the devices'.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

SAMPLES_PER_DEVICE = 64
STEPS = 3


def measure(clients: int, rounds: int) -> dict[str, float]:
    """One size, in this process."""
    import jax
    import numpy as np

    from mlecs_jax import assemble, config, lora, methods
    from mlecs_jax.configs import ur_fall
    from mlecs_jax.data import simulated
    from mlecs_jax.experiment import use_compilation_cache

    use_compilation_cache()
    values = ur_fall.get_config("smoke")
    values.data.source = "simulated"
    values.partition.num_clients = clients
    values.train.ccl_steps = values.train.amt_steps = STEPS
    values.train.server_steps = 1
    # A quarter is public; the rest is dealt to the devices, 64 samples each.
    values.data.simulated_sequences = max(8, -(-clients * SAMPLES_PER_DEVICE * 4 // 3 // 165))
    options = config.parse(values.to_dict())
    samples = simulated.ur_fall(seed=0, num_sequences=options.data.simulated_sequences)
    setting = assemble.from_samples(options, samples, jax.devices()[:1])
    method = methods.build(setting)
    key = jax.random.key(0)
    state = method.init(key)
    trainables = lora.count(state.devices) * 4 / clients
    own_rows = sum(x.nbytes for x in jax.tree.leaves((setting.federation.train,
                                                      setting.federation.held_out))) / clients
    state, _ = jax.block_until_ready(method.round(state, 0, key))  # compiles
    seconds = []
    for r in range(1, rounds + 1):
        begun = time.perf_counter()
        state, _ = jax.block_until_ready(method.round(state, r, key))
        seconds.append(time.perf_counter() - begun)
    return {"clients": clients, "seconds_per_round": statistics.median(seconds),
            "trainables_bytes": trainables, "data_bytes": own_rows,
            "live_bytes": float(np.sum([x.nbytes for x in jax.live_arrays()])),
            "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", default="8,64,512")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one, arguments.rounds)))
        return
    rows = []
    for clients in map(int, arguments.clients.split(",")):
        done = subprocess.run(
            [sys.executable, __file__, "--one", str(clients), "--rounds", str(arguments.rounds)],
            check=True, capture_output=True, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    small = rows[0]
    print(f"{'clients':>8} {'s/round':>9} {'ms/round/client':>16} {'ratio':>6} "
          f"{'live KiB/client':>16} {'own KiB/client':>15} {'peak MiB':>9}")
    for row in rows:
        own = row["trainables_bytes"] + row["data_bytes"]
        each = row["seconds_per_round"] / row["clients"]
        row["ratio_to_smallest"] = each / (small["seconds_per_round"] / small["clients"])
        grown = row["clients"] - small["clients"]
        row["live_growth_per_client"] = (
            (row["live_bytes"] - small["live_bytes"]) / grown if grown else float("nan"))
        row["own_bytes_per_client"] = own
        print(f"{row['clients']:8d} {row['seconds_per_round']:9.3f} {1e3 * each:16.2f} "
              f"{row['ratio_to_smallest']:6.2f} {row['live_growth_per_client'] / 1024:16.1f} "
              f"{own / 1024:15.1f} {row['peak_rss_bytes'] / 2**20:9.0f}")
    if arguments.json:
        machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        arguments.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
