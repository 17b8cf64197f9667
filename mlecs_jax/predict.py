"""``python -m mlecs_jax.predict --run=DIR --device=0 --input=FILE``: a trained node answers.

Of a run that was simulated its folder has all; of one that was deployed, each node answers by its
kit, on its own machine: ``--kit=DIR --input=FILE``.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mlecs_jax.errors import UserError
from mlecs_jax.serving import command
from mlecs_jax.serving.readings import TRUTH

if TYPE_CHECKING:
    from mlecs_jax.served import Served

DESCRIPTION = """What one node of a finished run says about new readings: classes, captions or, of
Mega-CE² runs, sentiments. Reads the run's configuration, data and newest checkpoint; of a node of a
deployment, which has a kit, what lies in there."""
COMMANDS = {
    "answer": "the answers to --input (the word may be left out)",
    "rows": "write readings that the node was scored on into an .npz that --input takes",
    "export": "write one file that answers without the run and the training code",
    "score": "what the run's nodes lose when modalities are taken away",
}
KEPT_ROWS = 8


def main(argv: Sequence[str]) -> int:
    """Returns the exit code: 0, or 2 after one line that says what is wrong."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's cache chatter is not the user's
    return command.run(lambda: _main(list(argv)))


def _main(argv: list[str]) -> None:
    parser = _parser()
    if argv and not argv[0].startswith("-") and argv[0] not in COMMANDS:
        near = difflib.get_close_matches(argv[0], COMMANDS, 1)
        hint = f"did you mean {near[0]}?" if near else f"use {', '.join(COMMANDS)}"
        raise UserError(f"unknown command '{argv[0]}'; {hint} (--help shows all options)")
    if argv[:1] not in ([name] for name in (*COMMANDS, "-h", "--help")):
        argv = ["answer", *argv]
    arguments = parser.parse_args(argv)
    _check_where(arguments)

    from mlecs_jax import experiment  # imports jax: after the options are known to be right

    experiment.use_compilation_cache()
    if arguments.command == "score":
        from mlecs_jax import missing

        missing.report(_folder(arguments.run), arguments.without, arguments.json)
        return
    node = _asked(arguments)
    if arguments.command == "answer":
        command.answer(node.predictor(), arguments)
    elif arguments.command == "rows":
        _write_rows(node, Path(arguments.out).expanduser(), arguments.count)
    else:
        _export(node, Path(arguments.out).expanduser(), arguments.packets)


def served(run: Path, device: int | None) -> Served:
    """A device (None: the server) of a run of either system.

    Raises:
      UserError: no such run or node, or data that are gone; a device of a deployed run, which has
        its model itself.
    """
    from mlecs_jax import restore
    from mlecs_jax import served as nodes

    values, _ = restore.configuration(run)
    if restore.DEPLOYMENT in values:
        from mlecs_jax.deploy import served as deployed

        return deployed.of_run(run, values, device)
    if values["method"]["name"] == restore.MEGA:
        from mlecs_jax.mega import served as mega

        return mega.node(run, device)
    return nodes.node(restore.restored(run, unanswered=True), device)


def _asked(arguments: argparse.Namespace) -> Served:
    if not arguments.kit:
        return served(_folder(arguments.run), command.node_number("--device", arguments.device))
    from mlecs_jax.deploy import served as deployed

    given = {name: _folder(value) for name in ("data", "state", "run")
             if (value := getattr(arguments, name))}
    return deployed.of_kit(_folder(arguments.kit), **given)


def _folder(text: str) -> Path:
    return Path(text).expanduser()


def _check_where(arguments: argparse.Namespace) -> None:
    """Raises UserError unless a node is named in one of the two ways."""
    given = vars(arguments)
    if given.get("kit"):
        if given["device"]:
            raise UserError("a kit is of one node; leave --device out, or give --run in place of "
                            "--kit")
        return
    for name in ("data", "state"):
        if given.get(name):
            raise UserError(f"--{name} goes with --kit; of a simulated run --run has all")
    lacking = [f"--{name}" for name in ("run", "device") if name in given and not given[name]]
    if lacking:
        raise UserError(f"the following arguments are required: {', '.join(lacking)}; or --kit, of "
                        "a node of a deployment (--help shows all options)")


def _parser() -> command.Parser:
    parser = command.Parser(prog="python -m mlecs_jax.predict", description=DESCRIPTION)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in COMMANDS.items():
        own = commands.add_parser(name, help=text, description=text)
        own.add_argument("--run", required=name == "score", metavar="DIR",
                         help="folder of the run")
        if name != "score":
            own.add_argument("--device", metavar="J|server",
                             help="number of the device (Mega-CE²: edge), or server")
            own.add_argument("--kit", metavar="DIR", help="of a deployed node: the folder that "
                             "deploy provision wrote for it, in place of --run and --device")
            own.add_argument("--data", metavar="DIR", help="with --kit: the node's share of the "
                             "data, where deploy was given one by --data")
            own.add_argument("--state", metavar="DIR", help="with --kit: where the device keeps "
                             "its state, where deploy edge was given one by --state")
        _own_arguments(name, own)
    return parser


def _own_arguments(name: str, parser: argparse.ArgumentParser) -> None:
    if name == "answer":
        command.add_arguments(parser)
    elif name == "score":
        parser.add_argument("--without", action="append", default=[], metavar="NAMES|K",
                            help="modalities (with commas), or how many of each sample at random; "
                                 "repeated for several cases; default: each one in turn")
        parser.add_argument("--json", action="store_true", help="one JSON object a case")
    else:
        parser.add_argument("--out", required=True, metavar="FILE", help="what is written")
    if name == "export":
        parser.add_argument("--packets", action="store_true", help="of Mega-CE²: a folder whose "
                            "predictor answers end devices' packets (docs/mega_ce2.md)")
    if name == "rows":
        parser.add_argument("--count", type=int, default=KEPT_ROWS, metavar="N",
                            help=f"how many test rows, evenly spaced; 0: all ({KEPT_ROWS})")


def _write_rows(node: Served, path: Path, count: int) -> None:
    """Readings and known answers; a reading that is missing is a row of NaN."""
    if path.suffix != ".npz":
        raise UserError(f"--out={path}: give a name that ends in .npz")
    if count < 0:
        raise UserError(f"--count is {count}; give a number of rows, or 0 for all")
    readable = [i for i, row in enumerate(node.rows) if row]
    step = max(1, len(readable) // count) if count else 1
    chosen = readable[::step][:count or None]
    arrays: dict[str, np.ndarray] = {TRUTH: np.array([node.truth[i] for i in chosen])}
    for name, modality in node.description.modalities.items():
        if modality.owned:
            arrays[name] = np.stack([node.rows[i].get(name, np.full(modality.shape, np.nan,
                                                                    np.float32)) for i in chosen])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, **arrays)  # pyright: ignore[reportArgumentType]
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
    print(f"{path}: {len(chosen)} of {len(node.rows)} test rows of {node.description.node} with "
          f"{', '.join(node.description.owned)}")


def _export(node: Served, path: Path, packets: bool) -> None:
    if packets:
        from mlecs_jax.mega import export as of_packets

        of_packets.export_node(path, node)
        print(f"{path}: {node.description.node} answers packets of "
              f"{', '.join(node.description.owned)}")
        return
    from mlecs_jax import export

    size = export.write(node, path)
    print(f"{path}: {node.description.node} reads any of {', '.join(node.description.owned)}; "
          f"{size:,} bytes\npython {path} --input=…")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
