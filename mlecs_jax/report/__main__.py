"""``python -m mlecs_jax.report WORKDIR``: makes a run's report.html again from its files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mlecs_jax.errors import UserError
from mlecs_jax.report.run_report import write_report


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 where the folder cannot be reported on."""
    parser = argparse.ArgumentParser(prog="python -m mlecs_jax.report", description=__doc__)
    parser.add_argument("workdir", type=Path, help="folder of a run (its --workdir)")
    try:
        print(write_report(parser.parse_args(arguments).workdir))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
