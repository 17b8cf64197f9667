"""Prepares datasets: ``python -m mlecs_jax.data.prepare DATASET --source=FOLDER|--download``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mlecs_jax.data import mosei, mosi, paths, ur_fall
from mlecs_jax.errors import exit_code

DATASETS = {"ur_fall": ur_fall, "mosi": mosi, "mosei": mosei}
"""Modules by dataset name. Each has ``SUMMARY``, ``BASE_URL``, ``add_arguments(parser)``,
``download(folder, base_url) -> files fetched`` and ``prepare(source, **arguments) -> made now``."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code: 0, or 2 after bad input."""
    return exit_code(lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> None:
    options = vars(_parser().parse_args(arguments))
    name = options.pop("dataset")
    module = DATASETS[name]
    source, wanted, url = (options.pop(key) for key in ("source", "download", "url"))
    source = source and source.expanduser()  # shells leave the ~ of --source=~/x alone
    if wanted:
        source = source or paths.data_dir() / name
        print(f"{module.download(source, url)} files downloaded to {source}")
    made = module.prepare(source, **options)
    print(f"prepared under {paths.prepared_dir()}" if made else
          f"already prepared from these files, under {paths.prepared_dir()}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m mlecs_jax.data.prepare",
                                     description=__doc__, allow_abbrev=False)
    datasets = parser.add_subparsers(dest="dataset", required=True, metavar="DATASET")
    for name, module in DATASETS.items():
        options = datasets.add_parser(name, help=module.SUMMARY, description=module.SUMMARY)
        options.add_argument("--source", type=Path, metavar="FOLDER",
                             help="folder of the raw files; with --download, where to put them")
        options.add_argument("--download", action="store_true",
                             help="fetch what is missing from the official site first")
        options.add_argument("--url", default=module.BASE_URL,
                             help="where to download from (default: %(default)s)")
        module.add_arguments(options)
    return parser


if __name__ == "__main__":
    sys.exit(main())
