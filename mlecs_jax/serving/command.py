"""The command of a predictor: inputs to answers, as a table or one JSON object a line."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from mlecs_jax.errors import UserError
from mlecs_jax.serving import readings
from mlecs_jax.serving.predictor import Answer, Predictor, load


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help shows all options)")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of :func:`answer`."""
    parser.add_argument(
        "--input", action="append", required=True, metavar="FILE|NAME=VALUE",
        help="a .npz, .json or .csv file with a sample a row, or one sample by repeated "
             "NAME=VALUE (numbers with commas, words, an image or .npy file); modalities that are "
             "absent are left out")
    parser.add_argument("--without", action="append", default=[], metavar="NAMES",
                        help="modalities (with commas) that are not to be used")
    parser.add_argument("--json", action="store_true", help="one JSON object a sample")


def names(without: Sequence[str]) -> frozenset[str]:
    """Modalities of repeated ``--without=a,b``."""
    return frozenset(name for text in without for name in text.split(",") if name)


def answer(predictor: Predictor, arguments: argparse.Namespace) -> None:
    """Reads, predicts and prints.

    Raises:
      UserError: see :func:`readings.read`.
    """
    without = names(arguments.without)
    description = predictor.description.without(without)
    found = readings.read(arguments.input, description, without)
    answers = predictor.predict(found.rows)
    entries: list[Answer] = []
    for row, (reading, said, truth) in enumerate(
            zip(found.rows, answers, found.truth, strict=True)):
        entry = {"row": row, **said, "modalities": list(reading), "node": description.node,
                 "data_source": description.data_source}
        entries.append(entry if truth is None else entry | {"truth": truth})
    if arguments.json:
        for entry in entries:
            print(json.dumps(entry))
        return
    print(f"{description.node} of {description.method} on {description.dataset} "
          f"({description.data_source} data), after {description.rounds} rounds")
    if description.data_source == "simulated":
        print("SIMULATED DATA: it knows nothing of real ones")
    print(_table(entries))


def _table(entries: Sequence[Answer]) -> str:
    """Aligned columns."""
    rows = []
    for entry in entries:
        cells = {"row": str(entry["row"]), "given": " ".join(entry["modalities"])}
        if "caption" in entry:
            cells["caption"] = entry["caption"]
        elif "sentiment" in entry:
            cells["sentiment"] = f"{entry['sentiment']:+.3f}"
        else:
            cells["class"] = "– (no class)" if entry["class"] is None else entry["class"]
            cells |= {f"p({name})": f"{p:.3f}" for name, p in entry["probabilities"].items()}
        if "truth" in entry:
            cells["truth"] = entry["truth"]
        rows.append(cells)
    columns = list(dict.fromkeys(name for cells in rows for name in cells))
    lines = [columns, *([cells.get(name, "") for name in columns] for cells in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)
                               ).rstrip() for line in lines)


def node_number(flag: str, text: str) -> int | None:
    """The number of a device that a flag names; None for ``server``.

    Raises:
      UserError: it is neither.
    """
    if text == "server":
        return None
    if not text.isdecimal():
        raise UserError(f"{flag} is '{text}'; give a number from 0, or server")
    return int(text)


def run(main: Callable[[], Any]) -> int:
    """``main()`` with errors as one line; returns the exit code."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def main(path: str, argv: Sequence[str]) -> int:
    """``python FILE --input=…``: the command that an exported predictor is."""
    def do() -> None:
        parser = Parser(prog=f"python {path}", description="Answers of an exported node.")
        add_arguments(parser)
        arguments = parser.parse_args(argv)
        answer(load(path), arguments)

    return run(do)
