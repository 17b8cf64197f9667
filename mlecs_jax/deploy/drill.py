"""``python -m mlecs_jax.deploy drill``: what goes wrong, what is done about it, what it costs.

Every row of the table is a whole run in one process (:class:`~.memory.MemoryTransport`: every
message through its bytes, the network's faults told by functions). Poisoners send what looks like
an update; the rows with them differ in how the cloud aggregates.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mlecs_jax import cli
from mlecs_jax import config as configs
from mlecs_jax.deploy import systems, wire
from mlecs_jax.errors import UserError

USAGE = """usage: python -m mlecs_jax.deploy drill --config=NAME[:VARIANT] [--config.KEY=VALUE …]
         --out=DIR [--only=ROW,ROW,…] [--poisoned=SHARE] [--poison=FACTOR]

  --config    e.g. ur_fall:smoke --config.partition.num_clients=10
  --out       folder of the runs and of drill.json; the same command goes on
  --only      some rows of the table; without it all
  --poisoned  share of the devices that poison (default: 0.2)
  --poison    how far they turn their updates round (default: 5)"""

HUNG_S, DEADLINE_S = 1e6, 60.0  # on the drill's own clock
Values = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Row:
    """A run of the drill.

    Attributes:
      name: on the command line and in the table.
      what: happens in it.
      lie: of :mod:`mlecs_jax.deploy.faults`, told by one device.
      poisoned: the poisoners poison.
      aggregation: overrides of the configuration's group.
      network: ``dies`` or ``hangs``, the last device; ``cloud``, the cloud is killed.
    """

    name: str
    what: str
    lie: str = ""
    poisoned: bool = False
    aggregation: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    network: str = ""


def rows(liars: int) -> list[Row]:
    """The table's rows.

    Args:
      liars: how many devices poison; what the rules are told to stand up to.
    """
    poison = [("mean", {}), ("median", {"rule": "median"}),
              ("trimmed", {"rule": "trimmed_mean", "trim": 0.2}),
              ("krum", {"rule": "krum", "liars": liars, "selected": 1}),
              ("multikrum", {"rule": "krum", "liars": liars, "selected": 4}),
              ("clip", {"clip": 1.0})]
    robust_only = [Row(f"clean-{name}", f"nobody lies, {name}", aggregation=options)
                   for name, options in poison[1:3]]
    return [
        Row("clean", "nothing"),
        Row("killed", "a device is killed in round 2 and does not come back", network="dies"),
        Row("hung", "a device hangs from round 2 on", network="hangs"),
        Row("cloud", "the cloud is killed in round 2 and started again", network="cloud"),
        Row("nan", "a device sends NaN", lie="sends_nan"),
        Row("shape", "a device sends a wrong shape", lie="sends_wrong_shape"),
        Row("replay", "a device sends its first upload again and again", lie="replays"),
        Row("claim", "a device claims a thousand modalities", lie="claims_too_many"),
        *(Row(f"poison-{name}", f"poisoners, {name}", poisoned=True, aggregation=options)
          for name, options in poison), *robust_only]


def main(argv: list[str]) -> int:
    """Runs the drill and prints its table; returns the exit code."""
    values, options = cli.parse(argv, USAGE, {"out": "", "only": "", "poisoned": "0.2",
                                              "poison": "5"}, (cli.ML_ECS,))
    if not options["out"]:
        raise UserError("no folder given; use --out=DIR")
    try:
        share, factor = float(options["poisoned"]), float(options["poison"])
    except ValueError:
        raise UserError("--poisoned and --poison are numbers, e.g. 0.2 and 5") from None
    if not 0 < share < 0.5 or factor <= 0:
        raise UserError(f"--poisoned={share} and --poison={factor}; give a share below one half "
                        "and a positive factor")
    out = Path(options["out"])
    drill = Drill(values, out, share, factor)
    known = {row.name: row for row in rows(drill.poisoners)}
    chosen = list(filter(None, options["only"].split(","))) or list(known)
    if unknown := set(chosen) - set(known):
        raise UserError(f"--only: no row '{min(unknown)}'; there are {', '.join(known)}")
    found = [drill.run(known[name]) for name in chosen]
    (out / "drill.json").write_text(json.dumps(found, indent=2) + "\n")
    Console(highlight=False, width=150).print(table(found))
    return 0


class Drill:
    """Runs rows of the table over one dealt dataset."""

    def __init__(self, values: Values, out: Path, share: float, factor: float):
        from mlecs_jax import experiment

        experiment.use_compilation_cache()
        self.config = configs.parse(values)
        self._values, self._out, self._factor = values, out, factor
        self._dealt = systems.of(values).deal(values, True)
        self._names = tuple(f"d{j}" for j in range(len(self._dealt.save) - 1))
        self.poisoners = max(1, round(share * len(self._names)))
        if len(self._names) < 2:
            raise UserError("the drill needs two devices or more; raise partition.num_clients")
        for name, save in zip((wire.CLOUD, *self._names), self._dealt.save, strict=True):
            save(out / "kits" / name)

    def run(self, row: Row) -> dict[str, Any]:
        """One row's run, or what it left when it was run before."""
        from mlecs_jax.deploy.memory import MemoryTransport

        folder = self._out / row.name
        done = folder / "row.json"
        if done.exists():
            return json.loads(done.read_text())
        shutil.rmtree(folder, ignore_errors=True)
        session = self._session(row)
        with self._devices(row, session, folder) as edges:
            transport = MemoryTransport(edges, delay=self._delay(row))
            summary = self._trained(row, session, transport, folder)
        told, metric = summary["deployment"], summary["primary_metric"]
        result = {
            "row": row.name, "what": row.what, "rounds": summary["rounds"],
            "lost_rounds": self.config.train.rounds - summary["rounds"],
            "uploads": sum(told["uploads"].values()),
            "missed": told["missed"], "refused": told["refused"], "dropped": told["dropped"],
            "sessions": told["sessions"], "metric": metric,
            "devices": summary["client"][f"avg_{metric}"], "server": summary["server"][metric]}
        done.write_text(json.dumps(result, indent=2) + "\n")
        return result

    def _session(self, row: Row) -> Any:
        from mlecs_jax.deploy import session

        aggregation = {**(self._values.get("aggregation") or {}), **row.aggregation}
        return session.create(
            {**self._values, "aggregation": aggregation}, self._names, self._dealt.train_rows,
            session.Limits(deadline_s=DEADLINE_S, first_deadline_s=DEADLINE_S, misses=2,
                           wait_s=30.0), self._dealt.language)

    @contextlib.contextmanager
    def _devices(self, row: Row, session: Any, folder: Path) -> Iterator[dict[str, Any]]:
        """Devices, some of them made to fail; their folders are let go at the end."""
        from mlecs_jax.deploy import faults
        from mlecs_jax.deploy.edge import EdgeApp

        honest = {name: EdgeApp(session, name, self._out / "kits" / name, folder / name)
                  for name in self._names}
        edges: dict[str, Any] = dict(honest)
        last = self._names[-1]
        if row.poisoned:
            for name in self._names[-self.poisoners:]:
                edges[name] = faults.Faulty(honest[name], faults.flips(self._factor))
        elif row.lie:
            edges[last] = faults.Faulty(honest[last], getattr(faults, row.lie))
        elif row.network == "dies":
            edges[last] = faults.Dying(honest[last], "round", 1)
        try:
            yield edges
        finally:
            for app in honest.values():
                app.close()

    def _delay(self, row: Row) -> Callable[[str, Any], float]:
        def delay(name: str, message: Any) -> float:
            hangs = row.network == "hangs" and name == self._names[-1]
            return HUNG_S if hangs and message.header.round >= 1 else 1.0

        return delay

    def _trained(self, row: Row, session: Any, transport: Any, folder: Path) -> dict[str, Any]:
        """The run's summary; where the cloud is killed, of the one that took over."""
        from mlecs_jax.deploy.cloud import CloudApp

        class Killed(Exception):
            pass

        def cloud() -> CloudApp:
            return CloudApp(session, transport, folder / "run", self._out / "kits" / "cloud")

        if row.network == "cloud":
            delay = transport.delay

            def dying(name: str, message: Any) -> float:
                if (message.header.kind, message.header.round) == ("evaluate", 1):
                    raise Killed  # devices have trained a round that the cloud has not saved
                return delay(name, message)

            transport.delay = dying
            with contextlib.suppress(Killed):
                cloud().run()
            transport.delay = delay
        return cloud().run()


def table(found: list[dict[str, Any]]) -> Table:
    """The drill as people read it; scores beside the clean run's where there is one."""
    from mlecs_jax.progress import LONG  # imports jax

    clean = next((row for row in found if row["row"] == "clean"), None)
    metric = LONG.get(found[0]["metric"], found[0]["metric"]) if found else ""
    result = Table(title=f"fault drill: test {metric} after the last round")
    for column in ("what happens", "rounds", "uploads", "refused", "missed", "devices", "server"):
        result.add_column(column, justify="left" if column in ("what happens", "refused",
                                                               "missed") else "right")

    def score(row: dict[str, Any], key: str) -> str:
        beside = f" ({row[key] - clean[key]:+.3f})" if clean and row is not clean else ""
        return f"{row[key]:.3f}{beside}"

    for row in found:
        counts = [", ".join(f"{reason} × {n}" for reason, n in row[key].items()) or "–"
                  for key in ("refused", "missed")]
        result.add_row(row["what"], str(row["rounds"]), str(row["uploads"]), *counts,
                       score(row, "devices"), score(row, "server"))
    return result
