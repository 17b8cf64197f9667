"""A seeded event clock: when edges report, without anyone waiting for it.

Training takes the time it takes here; what it would take in a deployment follows from each edge's
pace and links. Durations do not depend on what is learnt, so a whole schedule is known before
the first step: a table of arrivals that a run works through, in order, and can resume at any row.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

import numpy as np

from mlecs_jax.errors import UserError
from mlecs_jax.mega.links import Links

Event = TypeVar("Event")


class EventClock(Generic[Event]):
    """Events in the order of their times; equal times in the order they were scheduled."""

    def __init__(self) -> None:
        self.now = 0.0
        self._queue: list[tuple[float, int, Event]] = []
        self._scheduled = 0

    def schedule(self, delay: float, event: Event) -> None:
        """An event ``delay`` ≥ 0 seconds from now."""
        if not delay >= 0:
            raise ValueError(f"an event {delay} s from now")
        heapq.heappush(self._queue, (self.now + delay, self._scheduled, event))
        self._scheduled += 1

    def __iter__(self) -> Iterator[Event]:
        """Advances to each event in turn, those scheduled meanwhile included."""
        while self._queue:
            self.now, _, event = heapq.heappop(self._queue)
            yield event


@dataclasses.dataclass(frozen=True)
class Pace:
    """How fast an edge works.

    Attributes:
      training: seconds of local training of each of its ends; the edge waits for the slowest.
      links: of its ends to it, and of it to the cloud.
    """

    training: tuple[float, ...]
    links: Links


@dataclasses.dataclass(frozen=True)
class Arrival:
    """The cloud takes in models and makes a version.

    Attributes:
      time: simulated seconds since the start.
      edges: whose models arrive: one, or all of them after a barrier.
      read: the version each arriving model was trained from; the initial model is version 0.
      version: the version that is made.
    """

    time: float
    edges: tuple[int, ...]
    read: tuple[int, ...]
    version: int


@dataclasses.dataclass(frozen=True)
class Timing:
    """What a cycle of an edge takes: request, download, broadcast, training, uploads.

    Attributes:
      paces: of each edge.
      model_bytes: of the message that carries the model, in either direction.
      jitter: standard deviation of the logarithm of every training time; 0: none.
      seed: of the jitter, a function of (seed, edge, cycle) alone, so that every schedule over
        the same edges draws the same times.
    """

    paces: tuple[Pace, ...]
    model_bytes: int
    jitter: float = 0.0
    seed: int = 0

    def cycle(self, edge: int, number: int) -> float:
        """Seconds of an edge's cycle, from its request to the arrival of its model."""
        pace = self.paces[edge]
        rng = np.random.default_rng([self.seed, edge, number])
        training = np.asarray(pace.training) * np.exp(
            self.jitter * rng.standard_normal(len(pace.training)))
        links, size = pace.links, self.model_bytes
        return float(links.edge_cloud.download(size) + links.end_edge.download(size)
                     + training.max() + links.end_edge.upload(size)
                     + links.edge_cloud.upload(size))


def asynchronous(timing: Timing, versions: int) -> list[Arrival]:
    """Edges that report when they are ready, and begin again from the version just made.

    Args:
      versions: arrivals in all.
    """
    _check(timing, versions)
    clock: EventClock[tuple[int, int, int]] = EventClock()  # edge, its cycle, version read
    for edge in range(len(timing.paces)):
        clock.schedule(timing.cycle(edge, 0), (edge, 0, 0))
    arrivals = []
    for version, (edge, number, read) in enumerate(clock, start=1):
        arrivals.append(Arrival(clock.now, (edge,), (read,), version))
        if version == versions:
            break
        clock.schedule(timing.cycle(edge, number + 1), (edge, number + 1, version))
    return arrivals


def synchronous(timing: Timing, versions: int) -> list[Arrival]:
    """A barrier every round: all edges train from one version, the slowest sets the time."""
    _check(timing, versions)
    edges = tuple(range(len(timing.paces)))
    times = np.cumsum([max(timing.cycle(edge, number) for edge in edges)
                       for number in range(versions)])
    return [Arrival(float(time), edges, (number,) * len(edges), number + 1)
            for number, time in enumerate(times)]


def staleness(arrivals: Sequence[Arrival], num_edges: int) -> np.ndarray:
    """τ of each edge's last model when each version is made, int32 ``[versions, edges]``.

    τ = versions made since the one the model was trained from. The initial model, which stands for
    an edge that has not reported yet, counts as trained from version 0.
    """
    read = np.zeros(num_edges, np.int32)
    rows = []
    for arrival in arrivals:
        read[list(arrival.edges)] = arrival.read
        rows.append(arrival.version - 1 - read)
    return np.stack(rows).astype(np.int32)


def _check(timing: Timing, versions: int) -> None:
    if versions < 1 or not timing.paces:
        raise UserError(f"a schedule of {versions} versions over {len(timing.paces)} edges; give "
                        "1 or more of both")
