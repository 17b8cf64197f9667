"""Who takes part in the present session: asked, answered, late, refused, out, back."""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mlecs_jax.deploy import admission
from mlecs_jax.deploy.admission import Expected
from mlecs_jax.deploy.session import Session
from mlecs_jax.deploy.transport import Failure, Transport
from mlecs_jax.deploy.wire import CLOUD, Header, Kind, Message, WireError
from mlecs_jax.errors import UserError

OnEvent = Callable[[str, dict[str, Any]], None]
POLL_S = 0.2  # seconds between looks at who is there


@dataclasses.dataclass
class Roll:
    """What happened in one round; a part of its metrics record.

    Attributes:
      session: which session of the run it was, from 1.
      members: devices of the session.
      answered: those whose upload counted.
      missed: why a device's upload was not there, by name.
      refused: why a message was not taken, by name and kind.
      dropped: devices that left the session after this round.
    """

    session: int
    members: list[str]
    answered: list[str] = dataclasses.field(default_factory=list)
    missed: dict[str, str] = dataclasses.field(default_factory=dict)
    refused: dict[str, str] = dataclasses.field(default_factory=dict)
    dropped: list[str] = dataclasses.field(default_factory=list)


class Crew:
    """The devices behind a transport, session by session.

    A session is a set of members that changes only by losing some. A device that comes back, or
    comes for the first time, makes the next session begin after the present round; all then start
    from the last complete round.

    Attributes:
      session: what was provisioned; between rounds it may get more devices.

    Args:
      num_modalities: M, the most that a device may claim.
      count: sessions of the run before.
    """

    def __init__(
        self, session: Session, transport: Transport, num_modalities: int, count: int,
        on_event: OnEvent,
    ):
        self.session, self._transport, self._on_event = session, transport, on_event
        self._num_modalities, self._count = num_modalities, count
        self._id, self._serial, self._first = "", 0, True
        self._misses: dict[str, int] = {}
        self._behind: set[str] = set()
        self._out: dict[str, bool] = {}  # dropped devices, and whether they were seen to be away
        self.facts: dict[str, dict[str, int]] = {}
        self.roll, self._round = Roll(0, []), -1

    @property
    def members(self) -> list[str]:
        """Devices of the present session, in the order of their numbers."""
        return [name for name in self.session.roster if name in self._misses]

    def ready(self, rounds: int, broadcast: Mapping[str, np.ndarray], check: Expected) -> None:
        """Opens the next session if there is none, somebody came (back), or too few are left.

        Args:
          rounds: complete ones; where the session starts.
          broadcast: what devices have to know then.
          check: of what they say.

        Raises:
          UserError: fewer devices than ``limits.min_devices`` come in ``limits.wait_s`` seconds.
        """
        if rounds != self._round:
            self.roll, self._round = Roll(self._count, []), rounds
        arrived = self._arrived()
        enough = len(self.members) >= self.session.limits.min_devices
        if not (self._id and enough) or arrived:
            self._begin(rounds, broadcast, check)
        self.roll.session, self.roll.members = self._count, self.members

    def catch_up(self, rounds: int, broadcast: Mapping[str, np.ndarray], check: Expected) -> None:
        """Tells devices that missed the last broadcast; who misses this too misses the round."""
        behind = [name for name in self.members if name in self._behind]
        if behind:
            self.ask("begin", rounds, broadcast, check, behind)

    def ask(
        self, kind: Kind, r: int, arrays: Mapping[str, np.ndarray], check: Expected,
        targets: list[str] | None = None,
    ) -> dict[str, Message]:
        """Sends a message and gathers the answers that may be used, by name in roster order.

        Args:
          targets: whom; None all members.
        """
        targets = self.members if targets is None else targets
        self._serial += 1
        header = Header(kind, self._id, r, CLOUD, 0, self._serial)
        limits = self.session.limits
        there = set(self._transport.names())
        asked = [name for name in targets if name in there]
        answers, failures = self._transport.exchange(
            asked, Message(header, arrays),
            limits.first_deadline_s if self._first else limits.deadline_s, check.limit_bytes)
        failures |= {name: Failure("gone", "not connected, or still busy")
                     for name in targets if name not in there}
        taken = {}
        for name, answer in answers.items():
            try:
                admission.check_answer(header, name, answer, self._num_modalities)
                check(answer)
                taken[name] = answer
            except WireError as error:
                failures[name] = Failure("refused", str(error))
        for name, failure in failures.items():
            self._note(kind, r, name, failure)
        self._keep_book(kind, targets, taken)
        self._first &= kind != "evaluate"  # the last of a round whose programs have to compile
        return {name: taken[name] for name in self.session.roster if name in taken}

    def after_round(self, r: int, answered: Mapping[str, Message]) -> None:
        """Closes the books of a round: who missed it, and who is out of the session for that."""
        self.roll.answered = list(answered)
        for name in self.members:
            self._misses[name] = 0 if name in answered else self._misses[name] + 1
            if self._misses[name] >= self.session.limits.misses:
                del self._misses[name]
                self._out[name] = name not in self._transport.names()
                self.roll.dropped.append(name)
                self._on_event("fault", {"device": name, "round": r, "what": "dropped"})

    def finish(self, rounds: int) -> None:
        """Tells everyone that it is over; nobody has to answer."""
        if self.members:
            self.ask("finish", rounds, {}, Expected({}))

    def _begin(self, rounds: int, broadcast: Mapping[str, np.ndarray], check: Expected) -> None:
        limits, given_up = self.session.limits, time.monotonic() + self.session.limits.wait_s
        while True:
            there = set(self._transport.names())
            come = [name for name in self.session.roster if name in there]
            if len(come) >= limits.min_devices:
                self._count += 1
                # A number alone could come again where a cloud is killed before its first round.
                self._id = f"{self.session.id(self._count)}-{secrets.token_hex(4)}"
                self._serial, self._first = 0, True
                self._misses, self._behind, self._out = dict.fromkeys(come, 0), set(), {}
                said = self.ask("begin", rounds, broadcast, check, come)
                self._out = {name: False for name in come if name not in said}
                self._misses = dict.fromkeys(said, 0)
                self.facts |= {name: {path: int(value) for path, value in answer.arrays.items()}
                               for name, answer in said.items()}
                if len(said) >= limits.min_devices:
                    self._on_event("session", {"count": self._count, "members": list(said),
                                               "round": rounds})
                    for name in said:
                        if (trained := self.facts[name]["rounds"]) < rounds:
                            self._on_event("device", {"device": name,
                                                      "what": behind(trained, rounds)})
                    return
            if time.monotonic() > given_up:
                raise UserError(
                    f"{len(come)} of {len(self.session.roster)} devices are there and "
                    f"{limits.min_devices} must answer; start them, then the same command goes on "
                    f"from round {rounds}")
            time.sleep(POLL_S)

    def _arrived(self) -> list[str]:
        """Devices that are there and no members: new ones, and dropped ones that were away."""
        there = set(self._transport.names())
        for name in self._out:
            self._out[name] |= name not in there
        return [name for name in self.session.roster
                if name in there and name not in self._misses and self._out.get(name, True)]

    def _keep_book(self, kind: Kind, targets: list[str], taken: Mapping[str, Message]) -> None:
        """Who knows the last broadcast."""
        if kind in ("begin", "evaluate"):
            self._behind = (self._behind - set(taken)) | (set(targets) - set(taken))

    def _note(self, kind: Kind, r: int, name: str, failure: Failure) -> None:
        line = f"{failure.reason}: {failure.detail}"
        if failure.reason == "refused":
            self.roll.refused[f"{name} {kind}"] = failure.detail
        if kind in ("round", "begin"):
            self.roll.missed[name] = line
        self._on_event("fault", {"device": name, "round": r, "what": f"{kind}: {line}"})


def behind(trained: int, rounds: int) -> str:
    """What to say of a device whose encoders have not seen the rounds that the session has."""
    if not trained:
        return (f"its encoders are untrained and the session is at round {rounds}: a new device, "
                "or one whose state folder was lost")
    return f"last trained in round {trained} of {rounds}"
