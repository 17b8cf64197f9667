"""The command's options: which artefact, on what, how often, where."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mlecs_jax import cli
from mlecs_jax import config as configs
from mlecs_jax.cli import MEGA
from mlecs_jax.errors import UserError
from mlecs_jax.repro.accelerators import default_processes
from mlecs_jax.repro.job import Job, Label, Values

Item = TypeVar("Item", str, int, float)
USAGE = """python -m mlecs_jax.repro SYSTEM ARTEFACT [options] [--config.KEY=VALUE …]

  python -m mlecs_jax.repro mlecs table1 --preset=cpu --seeds=5 --data=real --dataset=ur_fall"""
SEEDS = {"smoke": 2, "cpu": 5, "paper": 5}
DATASETS = {"mlecs": ("ur_fall",)}
"""Of a system where none is asked for; artefacts of other systems have their own."""
PUBLICS: Mapping[str, Mapping[str, Any]] = {
    "unlabelled": {"partition.public_labels": False},
    "partly": {"partition.public_labels": True, "partition.server_labelled": 0.1},
    "labelled": {"partition.public_labels": True}}
"""What the public data may be: labelled for the server alone, a tenth of them for all, or all."""
FILTERS = {"datasets": "--dataset", "methods": "--methods", "splits": "--splits", "rhos": "--rho",
           "devices": "--devices", "labelled": "--labelled", "publics": "--public"}
AXES = {"method.name": "--methods", "seed": "--seeds", "partition.seed": "--seeds",
        "data.split": "--splits", "partition.rho": "--rho", "partition.num_clients": "--devices",
        "partition.labelled": "--labelled", "partition.public_labels": "--public",
        "partition.server_labelled": "--public", "partition.mask_schedule": "another artefact",
        "channel.uplink": "another artefact", "data.source": "--data"}
"""What grids and the command set, and what to use in the place of an override of it."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What a sweep is asked for.

    Attributes:
      artefact, system: e.g. ``table1`` of ``mlecs``.
      preset: variant of the datasets' configs: ``smoke``, ``cpu`` or ``paper``.
      seeds: each is both the run's and the partition's.
      data: ``real``, ``simulated`` or ``auto``.
      datasets: names of shipped configs, or files with ``get_config()``; empty: the artefact's.
      methods, splits, rhos, devices, labelled, publics: the grid; None takes the artefact's own.
      name: sets a part of an artefact apart, in its folder and on the page; may be empty.
      workdir: runs and results; several artefacts may share it, and then share runs.
      rows: CSV files of earlier sweeps, whose runs count as done.
      processes: worker processes.
      any_code: finished runs made by other versions of the sources count as done.
      run: make the runs that are not there; else only show those that are.
      overrides: ``--config.KEY=VALUE`` of every run.
      write_docs: Markdown file to write the results into; None writes none.
    """

    system: str
    artefact: str
    preset: str
    seeds: tuple[int, ...]
    data: str
    datasets: tuple[str, ...]
    methods: tuple[str, ...] | None
    splits: tuple[str, ...] | None
    rhos: tuple[float, ...] | None
    devices: tuple[int, ...] | None
    labelled: tuple[int, ...] | None
    publics: tuple[str, ...] | None
    name: str
    workdir: Path
    rows: tuple[Path, ...]
    processes: int
    any_code: bool
    run: bool
    overrides: tuple[str, ...]
    write_docs: Path | None

    @property
    def folder(self) -> Path:
        """Where this artefact's results go."""
        return self.workdir / self.part

    @property
    def part(self) -> str:
        """The artefact, its data sets and ``--name``, in characters that files and anchors have; a
        data set that is a file goes by that file's name."""
        datasets = [re.sub(r"[^A-Za-z0-9_-]+", "_", Path(dataset).name.removesuffix(".py"))
                    for dataset in self.datasets]
        return "-".join([self.system, self.artefact, *datasets]) + (
            f".{self.name}" if self.name else "")

    @property
    def seeds_text(self) -> str:
        """What ``--seeds`` says for them: ``5``, ``10-14`` or ``3,7``."""
        first, last = self.seeds[0], self.seeds[-1]
        if self.seeds != tuple(range(first, last + 1)):
            return ",".join(map(str, self.seeds))
        return f"{first}-{last}" if first else str(last + 1)

    @property
    def command(self) -> str:
        """What to type for the same results; workers, folders and cache rules left out."""
        parts: dict[str, Sequence[object] | None] = {
            "preset": [self.preset], "seeds": [self.seeds_text], "data": [self.data],
            "dataset": self.datasets, "methods": self.methods, "splits": self.splits,
            "rho": self.rhos, "devices": self.devices, "labelled": self.labelled,
            "public": self.publics, "name": (self.name,) if self.name else None}
        return shlex.join(["python", "-m", "mlecs_jax.repro", self.system, self.artefact,
                           *(f"--{name}={','.join(map(str, values))}"
                             for name, values in parts.items() if values), *self.overrides])

    def base(self, dataset: str) -> Values:
        """The preset's configuration of a dataset with the overrides applied.

        Raises:
          UserError: an unknown dataset, key or value, or a dataset of the other system.
        """
        values = _base(dataset, self.preset, self.data, self.overrides)
        own = "mega" if values["method"]["name"] == MEGA else "mlecs"
        if own != self.system:
            raise UserError(f"--dataset={dataset} is for {own}; use it with python -m "
                            f"mlecs_jax.repro {own}")
        return values

    def values(self, dataset: str, changes: Mapping[str, Any]) -> Values:
        """The configuration of one run of the grid.

        Args:
          changes: what the grid sets, by dotted name, e.g. ``{'partition.rho': .5}``.

        Raises:
          UserError: the configuration has no such key, or an override is of what the grid sets:
            rows would be another's than their names say.
        """
        for name in ("data.source", *changes):
            if any(override.partition("=")[0] == f"--config.{name}"
                   for override in self.overrides):
                instead = f"use {AXES[name]}" if name in AXES else "leave it out"
                raise UserError(f"--config.{name} does nothing in {self.system} {self.artefact}, "
                                f"which sets it run by run; {instead}")
        return with_changes(self.base(dataset), changes)

    def job(self, dataset: str, method: str, seed: int, changes: dict[str, Any],
            variant: str = "", extras: tuple[str, ...] = ()) -> Job:
        """A job of the grid.

        Args:
          changes: further values, see :meth:`values`.
          variant: what sets the run apart from the method as it is, for people.
          extras: see :class:`Job`.

        Raises:
          UserError: as :meth:`values`, or a value that cannot be.
        """
        values = self.values(dataset, {"method.name": method, "seed": seed,
                                       "partition.seed": seed} | changes)
        configs.parse(values)  # a value that cannot be is told of before the first run
        partition = values["partition"]
        labels: dict[str, Label] = {
            "dataset": values["data"]["name"], "method": method, "variant": variant,
            "split": values["data"]["split"], "rho": partition["rho"],
            "num_clients": partition["num_clients"], "labelled": partition["labelled"],
            "public_labels": partition["public_labels"],
            "server_labelled": partition["server_labelled"],
            "mask_schedule": partition["mask_schedule"], "uplink": values["channel"]["uplink"],
            "seed": seed}
        return Job(labels, values, extras=extras)


@functools.cache
def _base(dataset: str, preset: str, data: str, overrides: tuple[str, ...]) -> Values:
    name, colon, variant = dataset.partition(":")
    if colon:
        raise UserError(f"--dataset={dataset} names a variant; use --dataset={name} "
                        f"--preset={variant or preset}")
    values, _ = cli.parse(
        ["repro", f"--config={dataset}:{preset}", f"--config.data.source={data}", *overrides],
        USAGE, {})
    return values


def only(options: Options, *allowed: str) -> Options:
    """The options, if all filters that are set mean something to the artefact.

    Args:
      allowed: fields of :data:`FILTERS`.

    Raises:
      UserError: a filter that would do nothing.
    """
    for field, flag in FILTERS.items():
        if field not in allowed and getattr(options, field):
            raise UserError(f"{flag} means nothing to {options.system} {options.artefact}; leave "
                            "it out")
    return options


def each(name: str, asked: Sequence[Any] | None) -> list[dict[str, Any]]:
    """The changes of a grid along an axis: one for every value that is asked for, or nothing to
    change once."""
    return [{name: value} for value in asked or ()] or [{}]


def one_rho(options: Options, usual: float) -> float:
    """The only ρ of an artefact whose tables have one.

    Raises:
      UserError: several are asked for.
    """
    first, *others = options.rhos or (usual,)
    if others:
        raise UserError(f"{options.system} {options.artefact} takes one ρ; give --rho one number, "
                        "and --name for a table beside that of another")
    return first


def with_changes(values: Values, changes: Mapping[str, Any]) -> Values:
    """A copy of nested values with others in some places, by dotted name.

    Raises:
      UserError: there is no such place.
    """
    result = copy.deepcopy(values)
    for name, value in changes.items():
        *groups, key = name.split(".")
        place = result
        for group in groups:
            place = place.get(group)
            if not isinstance(place, dict):
                break
        if not isinstance(place, dict) or key not in place:
            raise UserError(f"the configuration has no '{name}'")
        place[key] = value
    return result


def parse(arguments: Sequence[str], known: dict[str, Sequence[str]]) -> Options:
    """Options of a command line without the program's name.

    Args:
      known: artefacts by system.

    Raises:
      UserError: an unknown system, artefact or value.
      SystemExit: after ``--help``, or where argparse finds a fault.
    """
    parser = _parser(known)
    found, overrides = parser.parse_known_args(arguments)
    strange = [a for a in overrides if not a.startswith("--config.")]
    if strange:
        raise UserError(f"unknown argument '{strange[0]}'; see --help")
    if found.system not in known:
        raise UserError(f"unknown system '{found.system}'; use {', '.join(known)}")
    if found.artefact not in known[found.system]:
        raise UserError(f"unknown artefact '{found.artefact}' of {found.system}; use "
                        f"{', '.join(known[found.system])}")
    seeds = _seeds(str(SEEDS[found.preset]) if found.seeds is None else found.seeds)
    processes = default_processes() if found.processes is None else found.processes
    if processes < 1:
        raise UserError(f"--processes is {processes}; give 1 or more")
    return Options(
        system=found.system, artefact=found.artefact, preset=found.preset, seeds=seeds,
        data=found.data,
        datasets=_list("--dataset", found.dataset) or DATASETS.get(found.system, ()),
        methods=_list("--methods", found.methods), splits=_list("--splits", found.splits),
        rhos=_list("--rho", found.rho, float), devices=_list("--devices", found.devices, int),
        labelled=_list("--labelled", found.labelled, int), publics=_publics(found.public),
        name=_tag(found.name), workdir=Path(found.workdir),
        rows=tuple(map(Path, _list("--rows", found.rows) or ())), processes=processes,
        any_code=found.code == "any", run=not found.no_run,
        overrides=tuple(overrides),
        write_docs=Path(found.write_docs) if found.write_docs else None)


def _parser(known: dict[str, Sequence[str]]) -> argparse.ArgumentParser:
    listing = "\n".join(f"  {system}: {', '.join(names)}" for system, names in known.items())
    parser = argparse.ArgumentParser(
        prog="python -m mlecs_jax.repro", usage=USAGE, allow_abbrev=False,
        description=f"Tables and figures of the papers, one command each.\n\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("system")
    add("artefact")
    add("--preset", choices=tuple(SEEDS), default="cpu",
        help="smoke: minutes, to see it work; cpu (default): hours on a laptop; paper: literal")
    add("--seeds", metavar="N|A-B|A,B", help="partitions and initialisations: how many, from 0 on, "
        f"or which (default: {SEEDS})")
    add("--data", choices=("real", "simulated", "auto"), default="auto")
    add("--dataset", help="of mlecs: ur_fall (default), vast; of mega convergence, "
        "ablation and adapters: mosi (default), mosei; or several with commas")
    add("--methods", help="some methods only, with commas")
    add("--splits", help="of mlecs: frame, sequence; of mega: heldout, canonical, "
        "video, segment; or several with commas")
    add("--rho", help="mlecs: some ρ only, with commas; table2 and comm: one")
    add("--devices", help="table2: some numbers of devices only, regime: others than "
        "the configuration's; with commas")
    add("--labelled", help="regime, ablation: some numbers of labelled samples per "
        "device only, with commas; 0: all")
    add("--public", help=f"regime, ablation: {', '.join(PUBLICS)} (a tenth, for all); "
        "default: all three, of ablation the configuration's")
    add("--name", default="", metavar="TAG", help="sets this part of an artefact apart: a folder "
        "of its own, and a part of its own on the page")
    add("--no-run", action="store_true", help="make the tables of the runs that are there, and "
        "say how many are not")
    add("--workdir", default="repro", help="runs and results (default: repro); made again from "
        "what is there, so the same command resumes")
    add("--rows", metavar="FILES", help="of mlecs: CSV files that --write-docs left beside its "
        "page; their runs are not made again, with commas")
    add("--processes", type=int,
        help="worker processes (default: one an accelerator, or one a core)")
    add("--code", choices=("same", "any"), default="same",
        help="any: finished runs made by other versions of the sources count as well")
    add("--write-docs", default="", metavar="FILE", help="Markdown page to put the results into")
    return parser


def _list(
    flag: str, text: str | None, kind: Callable[[str], Item] = str
) -> tuple[Item, ...] | None:
    """What stands between the commas; None where the flag was not given."""
    if text is None:
        return None
    what = "names" if kind is str else "numbers"
    try:
        found = tuple(kind(part.strip()) for part in text.split(",") if part.strip())
    except ValueError:
        found = ()
    if not found:
        raise UserError(f"{flag} is '{text}'; give {what} with commas between them")
    for item in found:
        if found.count(item) > 1:
            raise UserError(f"{flag} is '{text}', which has {item} twice; give it once")
    return found


def _seeds(text: str) -> tuple[int, ...]:
    """``5`` is the first five, ``10-14`` five others, ``3,7`` those two."""
    found = re.fullmatch(r"(\d+)(-(\d+))?", text)
    if not found:
        seeds = _list("--seeds", text, int) or ()
    elif found[2]:
        seeds = tuple(range(int(found[1]), int(found[3]) + 1))
    else:
        seeds = tuple(range(int(found[1])))
    if not seeds or min(seeds) < 0:
        raise UserError(f"--seeds is '{text}'; give how many (5), from which to which (10-14), or "
                        "which (3,7)")
    return seeds


def _publics(text: str | None) -> tuple[str, ...] | None:
    found = _list("--public", text)
    for name in found or ():
        if name not in PUBLICS:
            raise UserError(f"--public is '{text}'; use {', '.join(PUBLICS)}")
    return found


def _tag(text: str) -> str:
    if text and not re.fullmatch(r"[A-Za-z0-9]+([_-][A-Za-z0-9]+)*", text):
        raise UserError(f"--name is '{text}'; give letters and digits, with - or _ between them")
    return text
