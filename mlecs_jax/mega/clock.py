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
class Report:
    """A model on its way: what an edge does between two requests.

    Attributes:
      edge: whose.
      cycle: how many models the edge has sent before.
      read: the version it is trained from; the initial model is version 0.
      began: simulated seconds when the edge requested that version.
    """

    edge: int
    cycle: int
    read: int
    began: float


@dataclasses.dataclass(frozen=True)
class Arrival:
    """The cloud takes in models and makes a version.

    Attributes:
      time: simulated seconds since the start.
      reports: the models that arrive: one, or after a barrier one of every edge.
      version: the version that is made, from 1.
    """

    time: float
    reports: tuple[Report, ...]
    version: int

    @property
    def edges(self) -> tuple[int, ...]:
        return tuple(report.edge for report in self.reports)


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


def synchronous(timing: Timing, rounds: int) -> list[Arrival]:
    """A barrier every round: all edges train from one version, the slowest sets the time.

    Raises:
      UserError: no edges, or no rounds.
    """
    if rounds < 1 or not timing.paces:
        raise UserError(f"{rounds} rounds over {len(timing.paces)} edges; give 1 or more of both")
    edges = range(len(timing.paces))
    arrivals, now = [], 0.0
    for number in range(rounds):
        reports = tuple(Report(edge, number, number, now) for edge in edges)
        now += max(timing.cycle(edge, number) for edge in edges)
        arrivals.append(Arrival(now, reports, number + 1))
    return arrivals


def asynchronous(timing: Timing, horizon: float) -> list[Arrival]:
    """Edges report when they are ready, and begin again from the version just made.

    Args:
      horizon: simulated seconds; later arrivals are left out.

    Raises:
      UserError: nobody reports in that time.
    """
    clock: EventClock[Report] = EventClock()
    for edge in range(len(timing.paces)):
        clock.schedule(timing.cycle(edge, 0), Report(edge, 0, 0, 0.0))
    arrivals: list[Arrival] = []
    for report in clock:
        if clock.now > horizon * (1 + 1e-9):  # a sum of the same times in another order
            break
        version = len(arrivals) + 1
        arrivals.append(Arrival(clock.now, (report,), version))
        following = Report(report.edge, report.cycle + 1, version, clock.now)
        clock.schedule(timing.cycle(report.edge, following.cycle), following)
    if not arrivals:
        raise UserError(f"no edge reports within {horizon} simulated seconds; give more time")
    return arrivals


def staleness(arrivals: Sequence[Arrival], num_edges: int) -> np.ndarray:
    """τ of each edge's last model when each version is made, int32 ``[versions, edges]``.

    τ = versions made since the one the model was trained from. The initial model, which stands for
    an edge that has not reported yet, counts as trained from version 0.
    """
    read = np.zeros(num_edges, np.int32)
    rows = []
    for arrival in arrivals:
        read[list(arrival.edges)] = [report.read for report in arrival.reports]
        rows.append(arrival.version - 1 - read)
    return np.stack(rows).astype(np.int32)
