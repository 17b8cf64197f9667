"""Mega-CE² over a network: edges speak first, and the cloud waits for no one.

The functions are the simulation's (:func:`mlecs_jax.methods.mega_ce2.edge_part` and
:func:`~mlecs_jax.methods.mega_ce2.take_in`). What a schedule says there, the network says here:
versions come in the order in which models arrive. Pushed in a simulation's order, they are the
simulation's versions.

====== ===================================== ==========================================
kind   an edge sends                         the cloud answers
====== ===================================== ==========================================
begin  its number of segments                the newest model, and how far the run is
push   its model and its number of segments  the same
====== ===================================== ==========================================

The header's ``round`` is the version that an edge trained from, in the answer the version sent.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mlecs_jax import aggregate, channel
from mlecs_jax.checkpoint import Checkpoints
from mlecs_jax.data.sentiment import SentimentData, Split
from mlecs_jax.deploy import admission, protocol
from mlecs_jax.deploy.wire import CLOUD, Header, Message, WireError
from mlecs_jax.mega.clock import Report
from mlecs_jax.mega.federation import MegaFederation, Padded
from mlecs_jax.mega.setting import MegaSetting
from mlecs_jax.methods import mega_ce2

Params = Any
PARTS = ("ends", "edges", "val", "test")


class MegaCloud:
    """The cloud: takes in one model at a time and answers with the version it makes.

    Every version is saved before it is answered, so that a cloud that is killed goes on from what
    edges have seen.

    Attributes:
      version: versions made.
      refused: how many messages, for which reason.

    Args:
      initial: w_g of version 0.
      exponent: a of the staleness discount (1 + τ)^(−a).
      roster: names of the edges; an edge's number is its place.
      session: what all messages carry (:class:`mlecs_jax.deploy.wire.Header`).
      versions: the run ends with this one.
      workdir: its ``checkpoints`` are kept there; the same folder goes on.
      share: of the run that is over at a version, in [0, 1]; sets the edges' learning rates.
    """

    def __init__(
        self, initial: Params, exponent: float, roster: Sequence[str], session: str, versions: int,
        workdir: Path, share: Callable[[int], float] | None = None,
    ):
        self._exponent, self._roster = exponent, tuple(roster)
        self._session, self._versions = session, versions
        self._share = share or (lambda version: version / versions)
        self._template = protocol.shapes({"model": initial, "count": np.int64(0)})
        self._checkpoints = Checkpoints(workdir / "checkpoints")
        one = jax.tree.map(jnp.asarray, initial)
        none = jnp.zeros(len(roster), jnp.int32)
        self.version, self._state = self._checkpoints.restore({
            "cloud": one, "last": jax.tree.map(lambda x: jnp.stack([x] * len(roster)), one),
            "read": none, "counts": none, "serials": none})
        self.refused: Counter[str] = Counter()

    @property
    def model(self) -> Params:
        """w_g."""
        return self._state["cloud"]

    @property
    def complete(self) -> bool:
        return self.version >= self._versions

    def handle(self, name: str, message: Message) -> Message:
        """Answers an edge; the handler of :meth:`mlecs_jax.deploy.transport.Transport.on_push`.

        Raises:
          WireError: the message is refused, and counted. Nothing has changed.
        """
        try:
            edge = self._check(name, message)
        except WireError as error:
            self.refused[error.reason] += 1
            raise
        count = jnp.int32(int(message.arrays["count"]))
        state = self._state | {"counts": self._state["counts"].at[edge].set(count)}
        taken_in = message.header.kind == "push" and not self.complete
        if taken_in:
            state = self._taken_in(state, edge, message)
            self.version += 1
        if taken_in or message.header.kind == "begin":
            self._checkpoints.save(self.version, state)
        self._state = state
        answer = {"model": self.model, "share": np.asarray(self._share(self.version), np.float64)}
        return Message(dataclasses.replace(
            message.header, sender=CLOUD, modalities=0, round=self.version), channel.pack(answer))

    def close(self) -> None:
        self._checkpoints.close()

    def _taken_in(self, state: dict[str, Any], edge: int, message: Message) -> dict[str, Any]:
        """The state with the version that a model makes, Eq. 4."""
        received = channel.unpack(message.arrays)["model"]
        read = state["read"].at[edge].set(message.header.round)
        weights = aggregate.staleness_weights(
            state["counts"], self.version - read, self._exponent)
        cloud, last = mega_ce2.take_in(
            state["last"], np.array([edge]), jax.tree.map(lambda x: x[None], received), weights)
        return state | {"cloud": cloud, "last": last, "read": read, "serials":
                        state["serials"].at[edge].set(message.header.serial)}

    def _check(self, name: str, message: Message) -> int:
        header = message.header
        if name not in self._roster or header.sender != name:
            raise WireError("sender", f"'{name[:60]}' says it is '{header.sender[:60]}'")
        if header.session != self._session:
            raise WireError("session", f"of session {header.session[:60]}, this is {self._session}")
        if header.kind not in ("begin", "push"):
            raise WireError("kind", f"'{header.kind}' is nothing that an edge says")
        edge = self._roster.index(name)
        template = self._template if header.kind == "push" else {"count": self._template["count"]}
        admission.check_arrays(message, template)
        if int(message.arrays["count"]) < 1:
            raise WireError("range", f"{int(message.arrays['count'])} segments")
        if header.kind == "push":
            if header.serial <= int(self._state["serials"][edge]):
                raise WireError("replay", f"push {header.serial} was taken in")
            if not int(self._state["read"][edge]) <= header.round <= self.version:
                raise WireError("round", f"trained from version {header.round}, this is "
                                         f"{self.version}")
        return edge


class MegaEdge:
    """An edge with its ends: requests a version, trains it, pushes what came of it.

    Args:
      setting: of this edge alone (:func:`of_edge`).
      number: of the edge.
      push: carries a message to the cloud and returns its answer
        (:class:`mlecs_jax.deploy.transport.Uplink`).
    """

    def __init__(
        self, setting: MegaSetting, number: int, name: str, session: str,
        push: Callable[[Message], Message],
    ):
        self._setting, self._number, self._push = setting, number, push
        self._name, self._session = name, session
        self._part = mega_ce2.edge_part(setting)
        self._key = jax.random.fold_in(jax.random.key(setting.config.seed), 1)
        self._count = np.asarray(int(self._part.counts[number]), np.int64)
        self._model: Params = None
        self._version, self._share, self.cycle = 0, 0.0, 0

    def begin(self, cycle: int = 0) -> None:
        """Tells the cloud that it is there and takes the newest version.

        Args:
          cycle: models it has pushed before, where it comes back.
        """
        self.cycle = cycle
        self._say("begin", {"count": self._count})

    def train(self) -> None:
        """One cycle: trains the version it has, pushes, and has the next."""
        report = Report(self._number, self.cycle, self._version, 0.0)
        stacked = jax.tree.map(lambda x: jnp.asarray(x)[None], self._model)
        models, _ = self._part.train(stacked, [report], [mega_ce2.learning_rate(
            self._setting.config, self._share)], self._key)
        own = jax.tree.map(lambda x: np.asarray(x)[0], models)
        self.cycle += 1
        self._say("push", {"model": own, "count": self._count})

    def _say(self, kind: Any, arrays: dict[str, Any]) -> None:
        modalities = len(self._setting.shape.modalities)
        answer = self._push(Message(
            Header(kind, self._session, self._version, self._name, modalities, self.cycle),
            channel.pack(arrays)))
        found = channel.unpack(answer.arrays)
        self._model, self._version = found["model"], answer.header.round
        self._share = float(found["share"])


def of_edge(setting: MegaSetting, edge: int) -> MegaSetting:
    """A setting that holds the segments of one edge alone; other nodes have none.

    Numbers of nodes and lengths of their rows stay, since randomness is a function of both.
    """
    whole, ends = setting.federation, setting.config.partition.ends
    mine = {"ends": slice(edge * ends, (edge + 1) * ends)} | dict.fromkeys(
        PARTS[1:], slice(edge, edge + 1))
    kept = np.unique(np.concatenate([
        getattr(whole, part).rows[own][getattr(whole, part).real[own]]
        for part, own in mine.items()]))
    place = np.full(len(whole.data), 0, np.int32)
    place[kept] = np.arange(len(kept))

    def cut(part: str) -> Padded:
        padded: Padded = getattr(whole, part)
        rows, real = np.zeros_like(padded.rows), np.zeros_like(padded.real)
        own = mine[part]
        real[own] = padded.real[own]
        rows[own] = np.where(real[own], place[padded.rows[own]], 0)
        return Padded(rows=rows, real=real)

    data: SentimentData = dataclasses.replace(whole.data, **{
        name: getattr(whole.data, name)[kept]
        for name in ("text", "audio", "vision", "labels", "videos", "canonical")})
    split = Split(*(place[np.intersect1d(getattr(whole.split, part), kept)]
                    for part in ("train", "val", "test")))
    dealt = MegaFederation(data=data, split=split, **{part: cut(part) for part in PARTS})
    return dataclasses.replace(setting, federation=dealt,
                               segments=setting.topology.to_edge(data.batch()))
