"""The cloud of Mega-CE² over a network: edges speak first, and the cloud waits for no one.

The functions are the simulation's (:mod:`mlecs_jax.methods.mega_ce2`). What a schedule says there,
the network says here: versions come in the order in which models arrive. Pushed in a simulation's
order, they are the simulation's versions.

An edge does one thing after the other, says what came of it, and hears what is next:

========= =========================================== ======================================
kind      an edge that was told this                  says, when it has done it
========= =========================================== ======================================
begin     has nothing to do now, asks in a while      its training segments, in all and by end
evaluate  scores a version on its held-out segments   counts and sums (:mod:`.mega_scores`)
push      trains the newest version with its ends     its model and its number of segments
finish    tunes its adapter beside the best version   the same, of both models; its history
over      ends                                        nothing
========= =========================================== ======================================

The cloud's answer holds the model to do it with, unless the edge has it already: the header's
``round`` is in an edge's message the version that it has (-1: none), in the answer the version to
work with. The answer's ``serial`` is how many models the cloud has taken from this edge, so that an
edge needs no memory of its own.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mlecs_jax import aggregate, channel
from mlecs_jax.deploy import admission, mega_scores, protocol
from mlecs_jax.deploy.mega_store import Books, EdgeNotes, Store, Version
from mlecs_jax.deploy.wire import CLOUD, Kind, Message, WireError
from mlecs_jax.methods import mega_ce2

Params = Any
OPEN = 4  # versions per edge that wait for scores; an edge that is away holds up no more
PLACES = tuple(f"{model}/{split}" for model in ("global", "personal")
               for split in mega_scores.SPLITS)
"""Tallies in an edge's last word."""


class MegaCloud:
    """Takes in one model at a time, and tells each edge what to do next.

    Everything is saved before it is answered, so that a cloud that is killed goes on from what
    edges have seen.

    Args:
      initial: w_g of version 0.
      exponent: a of the staleness discount (1 + τ)^(−a).
      roster: names of the edges; an edge's number is its place.
      session: what all messages carry (:class:`mlecs_jax.deploy.wire.Header`).
      versions: the run ends with this one.
      folder: state is kept there; the same folder goes on.
      ends: of every edge.
      train_rows: most segments that an end has; more are refused.
      every: versions between those that edges score; the last is always scored.
      epochs: of adapter tuning.
      on_closed: called in order with every version whose scores are complete.
    """

    def __init__(
        self, initial: Params, exponent: float, roster: Sequence[str], session: str, versions: int,
        folder: Path, *, ends: int, train_rows: int, every: int = 1, epochs: int = 0,
        on_closed: Callable[[Version], None] = lambda version: None,
    ):
        self._exponent, self.roster = exponent, tuple(roster)
        self._session, self._versions = session, versions
        self._every, self._on_closed, self._train_rows = every, on_closed, train_rows
        self.store = Store(folder, initial)
        count = jax.ShapeDtypeStruct((), np.int32)
        history = jax.ShapeDtypeStruct((epochs + 1,), np.float64)
        self._templates: dict[str, admission.Template] = {
            "begin": {"count": count, "ends": jax.ShapeDtypeStruct((ends,), np.int32)},
            "evaluate": mega_scores.template(*mega_scores.SPLITS),
            "push": protocol.shapes({"model": initial, "count": count}),
            "finish": {**mega_scores.template(*PLACES), "history": history}}
        self._resumed, self._seconds = time.monotonic(), self.books.seconds

    @property
    def limit_bytes(self) -> int:
        """The longest message that an edge has to say."""
        return max(admission.Expected(found).limit_bytes for found in self._templates.values())

    @property
    def books(self) -> Books:
        """What is known."""
        return self.store.books

    @property
    def model(self) -> Params:
        """w_g."""
        return self.store.model(self.books.version)

    @property
    def complete(self) -> bool:
        """Whether all versions are made."""
        return self.books.version >= self._versions

    @property
    def chosen(self) -> bool:
        """Whether all versions are scored too, so that the best is known."""
        return self.complete and not self.books.open

    @property
    def finished(self) -> list[str]:
        """Edges that have said their last word."""
        return [name for name in self.roster if name in self.books.edges
                and self.books.edges[name].answers is not None]

    def handle(self, name: str, message: Message) -> Message:
        """Answers an edge; the handler of :meth:`mlecs_jax.deploy.transport.Transport.on_push`.

        Raises:
          WireError: the message is refused, and counted. Nothing has changed.
        """
        try:
            self._check(name, message)
        except WireError as error:
            for counts, key in ((self.books.refused, error.reason), (self.books.refused_of, name)):
                counts[key] = counts.get(key, 0) + 1
            raise
        take = {"begin": self._begun, "evaluate": self._scored, "push": self._pushed,
                "finish": self._finished}
        take[message.header.kind](name, message)
        self._close_scored()
        answer = self._next(name, message)
        self._commit()
        return answer

    def close_open(self) -> None:
        """Closes versions that still wait for scores with those that there are."""
        while self.books.open:
            self._close(self.books.open[0])

    def _next(self, name: str, message: Message) -> Message:
        """What the edge is to do next, and the model for it."""
        kind, version = self._task(name)
        known = message.header.round
        needed = kind not in ("begin", "over") and version != known
        self.books.downloads += needed
        header = dataclasses.replace(
            message.header, kind=kind, sender=CLOUD, modalities=0, serial=self._serial(name),
            round=version if needed else known)
        return Message(header, channel.pack({"model": self.store.model(version)}) if needed else {})

    def _task(self, name: str) -> tuple[Kind, int]:
        books = self.books
        if books.edges[name].answers is not None:
            return "over", books.version
        for version in books.open:
            if version.due and name not in version.tallies:
                return "evaluate", version.number
        if not self.complete:
            return "push", books.version
        if books.open:
            return "begin", books.version
        assert books.best is not None  # the last version is always scored
        return "finish", books.best.number

    def _serial(self, name: str) -> int:
        return self.books.edges[name].serial

    def _begun(self, name: str, message: Message) -> None:
        notes = self.books.edges.setdefault(name, EdgeNotes(0))
        notes.count, notes.ends = int(message.arrays["count"]), message.arrays["ends"].tolist()

    def _pushed(self, name: str, message: Message) -> None:
        """The version that a model makes, Eq. 4."""
        if self.complete:
            return  # too late: it moves nothing
        books, edge = self.books, self.roster.index(name)
        books.edges[name].count = int(message.arrays["count"])
        received = channel.unpack(message.arrays)["model"]
        notes = [books.edges.get(who, EdgeNotes(0)) for who in self.roster]
        notes[edge].read = message.header.round
        notes[edge].serial = message.header.serial
        staleness = jnp.asarray([books.version - own.read for own in notes], jnp.int32)
        weights = aggregate.staleness_weights(
            jnp.asarray([own.count for own in notes], jnp.int32), staleness, self._exponent)
        last = jax.tree.map(lambda *x: jnp.stack(x), *map(self.store.last, self.roster))
        cloud, _ = mega_ce2.take_in(
            last, np.array([edge]), jax.tree.map(lambda x: x[None], received), weights)
        books.version += 1
        number = notes[edge].model = books.version
        self.store.add(number, jax.device_get(cloud), received)
        due = number % self._every == 0 or number == self._versions
        books.open.append(Version(number, edge, int(staleness[edge]), round(self._elapsed(), 4),
                                  due))

    def _scored(self, name: str, message: Message) -> None:
        for version in self.books.open:
            if version.number == message.header.round and version.due:
                version.tallies[name] = {
                    split: mega_scores.plain(mega_scores.at(message.arrays, split))
                    for split in mega_scores.SPLITS}

    def _finished(self, name: str, message: Message) -> None:
        answers: dict[str, Any] = {place: mega_scores.plain(mega_scores.at(message.arrays, place))
                                   for place in PLACES}
        self.books.edges[name].answers = answers | {"history": message.arrays["history"].tolist()}

    def _close_scored(self) -> None:
        """Closes versions that nobody has to score any more, in order."""
        books = self.books
        while books.open and (
                not books.open[0].due or set(books.edges) <= set(books.open[0].tallies)
                or len(books.open) > OPEN * len(self.roster)):
            self._close(books.open[0])

    def _close(self, version: Version) -> None:
        books = self.books
        if version.due and better(version, books.best):
            books.best = version
        self._on_closed(version)
        books.closed = version.number
        books.open.remove(version)
        self._commit()  # one at a time: a kill leaves at most one line that this does not confirm

    def _commit(self) -> None:
        self.books.seconds = self._elapsed()
        self.store.commit()

    def _elapsed(self) -> float:
        return self._seconds + time.monotonic() - self._resumed

    def _check(self, name: str, message: Message) -> None:
        header, books = message.header, self.books
        if name not in self.roster or header.sender != name:
            raise WireError("sender", f"'{name[:60]}' says it is '{header.sender[:60]}'")
        if header.session != self._session:
            raise WireError("session", f"of session {header.session[:60]}, this is {self._session}")
        if header.kind not in self._templates:
            raise WireError("kind", f"'{header.kind}' is nothing that an edge says")
        if header.kind != "begin" and name not in books.edges:
            raise WireError("kind", f"'{header.kind}' of an edge that has not begun")
        admission.check_arrays(message, self._templates[header.kind])
        if header.kind == "begin":
            count, ends = message.arrays["count"], message.arrays["ends"]
            if not ((1 <= ends) & (ends <= self._train_rows)).all() or count != ends.sum():
                raise WireError("range", f"{count} segments in all, {ends.tolist()} of its ends; "
                                         f"an end has 1 to {self._train_rows}")
        elif header.kind == "push":
            if message.arrays["count"] != books.edges[name].count:
                raise WireError("range", f"{message.arrays['count']} segments, "
                                         f"{books.edges[name].count} when it began")
            admission.check_length(
                {path: x for path, x in message.arrays.items() if path != "count"},
                channel.pack({"model": self.model}))
            notes = books.edges[name]
            if header.serial <= notes.serial:
                raise WireError("replay", f"push {header.serial} was taken in")
            if not notes.read <= header.round <= books.version:
                raise WireError("round", f"trained from version {header.round}, this is "
                                         f"{books.version}")
        elif header.kind == "evaluate":
            if not 1 <= header.round <= books.version:
                raise WireError("round", f"scores version {header.round} of {books.version}")
            for split in mega_scores.SPLITS:
                mega_scores.check(message, split)
        elif header.kind == "finish":
            if not self.chosen or books.best is None or header.round != books.best.number:
                raise WireError("round", f"has finished with version {header.round}, which is not "
                                         "the best one")
            for place in PLACES:
                mega_scores.check(message, place)
            history = message.arrays["history"]
            if not ((0 <= history) & (history <= mega_scores.LARGEST)).all():
                raise WireError("range", "'history' has errors that cannot be")


def better(new: Version, old: Version | None) -> bool:
    """Whether a version has the lower validation error, by the edges that scored both.

    Everyone who is there scores every version; who was away for one does not count in the
    comparison. Where nobody has scored both, the newer one is taken if anybody scored it.
    """
    if old is None:
        return True
    common = set(new.tallies) & set(old.tallies)
    if not common:
        return bool(new.tallies) or not old.tallies

    def error(version: Version) -> float:
        return mega_scores.mean_error(mega_scores.pooled(
            mega_scores.from_plain(version.tallies[name]["val"]) for name in sorted(common)))

    return error(new) < error(old)
