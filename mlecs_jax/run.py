"""``python -m mlecs_jax.run --config=ur_fall``: one experiment from the command line."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
from pathlib import Path

from mlecs_jax import cli
from mlecs_jax.errors import UserError

USAGE = """usage: python -m mlecs_jax.run --config=NAME[:VARIANT] [--config.KEY=VALUE …]
                               [--workdir=DIR]

  NAME       a shipped config (ur_fall, vast, table; mosi, mosei for Mega-CE²) or a Python file
             with get_config()
  VARIANT    smoke | cpu (default) | paper
  KEY        any config value, e.g. --config.partition.rho=0.5 --config.data.split=sequence
  --workdir  folder of the run; the same command again resumes it
             (default: runs/DATASET-METHOD-<hash of the config>)"""


def main(argv: list[str]) -> int:
    """Runs or resumes the experiment; returns the exit code."""
    values, options = cli.parse(argv, USAGE, {"workdir": ""})
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's cache chatter is not the user's

    if values["method"]["name"] == "mega_ce2":
        from mlecs_jax.mega import run as mega

        return mega.main(values, options["workdir"], default_workdir)

    from mlecs_jax import config as configs
    from mlecs_jax import experiment  # imports jax: after the flags are known to be right
    from mlecs_jax.progress import Progress

    config = configs.parse(values)
    workdir = Path(options["workdir"] or default_workdir(config))
    experiment.use_compilation_cache()
    with Progress(workdir) as progress:
        summary = experiment.run(config, workdir, on_start=progress.start,
                                 on_round=progress.round)
    progress.finish(summary)
    return 0


def default_workdir(config) -> str:
    """A folder named after what is run, so that the same command finds it again."""
    text = json.dumps(dataclasses.asdict(config), sort_keys=True)
    return (f"runs/{config.data.name}-{config.method.name}-"
            f"{hashlib.sha256(text.encode()).hexdigest()[:8]}")


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; the same command resumes from the last complete round", file=sys.stderr)
        sys.exit(130)
