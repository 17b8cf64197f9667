"""``python -m mlecs_jax.run --config=ur_fall``: one experiment from the command line."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlecs_jax import cli
from mlecs_jax.cli import MEGA
from mlecs_jax.errors import exit_code

if TYPE_CHECKING:
    from mlecs_jax.distributed import Group

USAGE = """usage: python -m mlecs_jax.run --config=NAME[:VARIANT] [--config.KEY=VALUE …]
                               [--workdir=DIR] [--distributed] [--grace=S]
                               [--coordinator=HOST:PORT --processes=N --process=I]

  NAME       a shipped config (ur_fall, vast, table; mosi, mosei for Mega-CE²) or a Python file
             with get_config()
  VARIANT    smoke | cpu (default) | paper
  KEY        any config value, e.g. --config.partition.rho=0.5 --config.data.split=sequence
  --workdir  folder of the run; the same command again resumes it
             (default: runs/DATASET-METHOD-<hash of the config>)
  --distributed  this process is one of several (docs/distributed.md); a TPU pod, SLURM and Open
             MPI say by themselves how many and which, elsewhere give the three options below
  --coordinator, --processes, --process  where process 0 is reached, how many there are, and which
             this one is, from 0
  --grace    seconds from SIGTERM to the end of the round, which is saved; after them the run ends
             at once (default: 20)"""

OPTIONS = {"workdir": "", "distributed": "", "coordinator": "", "processes": "", "process": "",
           "grace": ""}


def main(argv: list[str]) -> int:
    """Runs or resumes the experiment; returns the exit code."""
    values, options = cli.parse(["--distributed=yes" if a == "--distributed" else a for a in argv],
                                USAGE, OPTIONS)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's cache chatter is not the user's
    from mlecs_jax import distributed

    launch, grace = distributed.launch(options), distributed.grace(options)
    config = _parse(values)
    workdir = Path(options["workdir"] or default_workdir(config))
    if launch is not None:
        config = distributed.spread(config)
    with distributed.joined(launch, grace) as group:
        try:
            _run(config, workdir, group)
        except distributed.Stopped as stopped:
            if group.leads:
                print(f"{stopped}, which is saved; the same command resumes", file=sys.stderr)
    return 0


def _parse(values: Mapping[str, Any]) -> Any:
    """The checked configuration, of ML-ECS and its relatives or of Mega-CE²."""
    if values["method"]["name"] == MEGA:
        from mlecs_jax.mega import config as configs
    else:
        from mlecs_jax import config as configs

    return configs.parse(values)


def _run(config: Any, workdir: Path, group: Group) -> None:
    if config.method.name == MEGA:
        from mlecs_jax.mega import run as mega

        mega.main(config, workdir, group)
        return
    from mlecs_jax import experiment  # imports jax: after the flags are known to be right
    from mlecs_jax.progress import Progress

    experiment.use_compilation_cache()
    with Progress(workdir, silent=not group.leads) as progress:
        summary = experiment.run(config, workdir, on_start=progress.start,
                                 on_round=progress.round, group=group)
    progress.finish(summary)


def default_workdir(config) -> str:
    """A folder named after what is run, so that the same command finds it again."""
    text = json.dumps(dataclasses.asdict(config), sort_keys=True)
    return (f"runs/{config.data.name}-{config.method.name}-"
            f"{hashlib.sha256(text.encode()).hexdigest()[:8]}")


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv),
                       "the same command resumes from the last complete round"))
