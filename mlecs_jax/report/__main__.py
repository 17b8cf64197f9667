"""``python -m mlecs_jax.report FOLDER``: makes the report.html of a run or a sweep again."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mlecs_jax.errors import exit_code
from mlecs_jax.report.run_report import write_report
from mlecs_jax.report.sweep_files import SWEEP
from mlecs_jax.report.sweep_report import write_sweep_report


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 where the folder cannot be reported on."""
    parser = argparse.ArgumentParser(prog="python -m mlecs_jax.report", description=__doc__)
    parser.add_argument("workdir", type=Path, help="folder of a run (its --workdir) or of a sweep")

    def make() -> None:
        folder = parser.parse_args(arguments).workdir
        print((write_sweep_report if (folder / SWEEP).exists() else write_report)(folder))

    return exit_code(make)


if __name__ == "__main__":
    sys.exit(main())
