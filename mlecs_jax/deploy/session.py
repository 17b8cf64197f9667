"""What a cloud and its devices agree on before anything is sent: ``session.json``.

Provisioning writes the same file into everyone's folder. It holds no data and no secrets: the
experiment's configuration, who takes part, and how long the cloud waits.
"""

from __future__ import annotations

import dataclasses
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlecs_jax import config as configs
from mlecs_jax.config import Config
from mlecs_jax.deploy import systems, wire
from mlecs_jax.errors import UserError

FILE = "session.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclasses.dataclass(frozen=True)
class Limits:
    """How patient the cloud is, and how much it takes.

    Attributes:
      deadline_s: seconds that devices have for an answer.
      first_deadline_s: the same in the first round of a session, when programs compile.
      misses: rounds missed in a row after which a device is out of the session.
      min_devices: answers without which a round is not made.
      wait_s: how long the cloud waits for that many devices before it gives up.
      limit_bytes: longest message that is looked at.
    """

    deadline_s: float = 300.0
    first_deadline_s: float = 900.0
    misses: int = 3
    min_devices: int = 1
    wait_s: float = 600.0
    limit_bytes: int = 1 << 28


@dataclasses.dataclass(frozen=True)
class Session:
    """A deployment.

    Attributes:
      run: its identity, drawn at provisioning.
      config: the experiment, as nested plain values.
      roster: names of the devices; a device's number is its place. Randomness is a function of the
        number, so a deployment of numbers 0 … N-1 computes what the simulation of N devices does.
      train_rows: training rows of the device that has most. Devices' rows are padded to it, as the
        simulation's are, so that batches agree.
      limits: see :class:`Limits`.
      added: how many of the roster, its last, came after provisioning. The configuration counts
        those before them.
      language: digests of what captions are read and written with, the same for all
        (:mod:`mlecs_jax.deploy.language`); empty where answers are classes.
    """

    run: str
    config: Mapping[str, Any]
    roster: tuple[str, ...]
    train_rows: int
    limits: Limits = Limits()
    added: int = 0
    language: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.roster:
            if not _NAME.fullmatch(name) or name == wire.CLOUD:
                raise UserError(f"'{name}' is no name for a device; use letters, digits, '.', '_' "
                                f"and '-', and not '{wire.CLOUD}'")
        if len(set(self.roster)) != len(self.roster) or not self.roster:
            raise UserError("a session needs at least one device, each with a name of its own")
        if self.train_rows < 1:
            raise UserError(f"train_rows is {self.train_rows}; give the longest device's number of "
                            "training rows")
        limits = self.limits
        for name in ("deadline_s", "first_deadline_s", "misses", "min_devices", "wait_s",
                     "limit_bytes"):
            if not getattr(limits, name) > 0:
                raise UserError(f"limits.{name} is {getattr(limits, name)}; give a positive number")
        if not 0 <= self.added < len(self.roster):
            raise UserError(f"{self.added} devices of {len(self.roster)} were added; provision "
                            "again")
        if limits.min_devices > len(self.roster):
            raise UserError(f"limits: {limits.min_devices} devices at least of "
                            f"{len(self.roster)}; give no more than there are")

    def number(self, name: str) -> int:
        """A device's number.

        Raises:
          UserError: it is not on the roster.
        """
        if name not in self.roster:
            raise UserError(f"'{name}' is no device of this session; it has "
                            f"{', '.join(self.roster)}")
        return self.roster.index(name)

    @property
    def founders(self) -> tuple[str, ...]:
        """Names of the devices of provisioning."""
        return self.roster[:len(self.roster) - self.added]

    def with_device(self, name: str) -> Session:
        """The same deployment and one more device.

        Raises:
          UserError: the name is taken, or none.
        """
        if name in self.roster:
            raise UserError(f"'{name}' is a device of this deployment already; use another name")
        return dataclasses.replace(self, roster=(*self.roster, name), added=self.added + 1)

    def id(self, count: int) -> str:
        """What messages of the ``count``-th session of this run carry (:class:`wire.Header`). A
        new one begins whenever the cloud starts or the devices that take part change."""
        return f"{self.run}.{count}"

    @property
    def experiment(self) -> Config:
        """The configuration of ML-ECS, typed and checked.

        Raises:
          UserError: see :func:`mlecs_jax.config.parse`.
        """
        return configs.parse(self.config)

    def save(self, folder: Path) -> Path:
        """Writes ``session.json`` into a folder."""
        path = folder / FILE
        path.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")
        return path


def create(
    config: Mapping[str, Any], roster: Sequence[str], train_rows: int, limits: Limits = Limits(),
    language: Mapping[str, str] | None = None,
) -> Session:
    """A new deployment with an identity of its own.

    Raises:
      UserError: bad names or limits, or a configuration of another number of devices.
    """
    session = Session(secrets.token_hex(8), config, tuple(roster), train_rows, limits,
                      language=language or {})
    key = systems.of(config).devices
    clients = config["partition"].get(key, len(roster))
    if clients not in (-1, len(roster)):
        raise UserError(f"partition.{key} is {clients} and {len(roster)} devices are named; "
                        "make them agree")
    return session


def load(folder: Path) -> Session:
    """The session of a folder.

    Raises:
      UserError: no such file, or it is damaged.
    """
    path = folder / FILE
    try:
        values = json.loads(path.read_text())
        return Session(run=values["run"], config=values["config"], roster=tuple(values["roster"]),
                       train_rows=values["train_rows"], limits=Limits(**values["limits"]),
                       added=values.get("added", 0), language=values.get("language", {}))
    except FileNotFoundError:
        raise UserError(f"there is no {FILE} in {folder}; copy it from what provision wrote for "
                        "this machine") from None
    except (ValueError, KeyError, TypeError, OSError):
        raise UserError(f"{path} is damaged; copy it again from what provision wrote") from None


def latest(present: Session, folder: Path) -> Session:
    """The session of a folder if it is the present one with devices added, else the present one:
    a file that is being copied, or that says something else, changes nothing."""
    try:
        found = load(folder)
    except UserError:
        return present
    grown = dataclasses.replace(found, roster=present.roster, added=present.added) == present
    return found if grown and found.roster[:len(present.roster)] == present.roster and (
        found.founders == present.founders) else present
