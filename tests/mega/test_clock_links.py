"""The event clock against schedules worked out by hand; links against arithmetic."""

import numpy as np
import pytest

from mlecs_jax.errors import UserError
from mlecs_jax.mega import clock, links
from mlecs_jax.mega.clock import EventClock, Pace, Timing
from mlecs_jax.mega.links import MBIT, Link, Links

FREE = Links(Link(1e12, 1e12, 0.0), Link(1e12, 1e12, 0.0))


def timing(seconds, **options) -> Timing:
    return Timing(tuple(Pace((s,), FREE) for s in seconds), model_bytes=0, **options)


def test_a_link_costs_bandwidth_and_one_round_trip():
    link = Link(up=1000.0, down=4000.0, rtt=0.5)
    assert link.upload(2000) == 2.5 and link.download(2000) == 1.0
    assert link.bytes_within(2.5) == 2000 and link.bytes_within(0.1) == 0
    with pytest.raises(UserError, match="positive bandwidths"):
        Link(0.0, 1.0, 0.0)


def test_the_paper_preset_gives_the_papers_figures():
    """Table 3: 97 kB in 0.1 ms; 5–10 MB in 1.75 s."""
    paper = links.preset("paper")
    assert paper.end_edge.upload(97_000) == pytest.approx(1e-4)
    assert paper.edge_cloud.upload(7_500_000) == pytest.approx(1.75)
    assert links.preset("realistic").edge_cloud.up == 20 * MBIT
    with pytest.raises(UserError, match="use realistic, slow, paper"):
        links.preset("5g")


def test_events_come_in_order_and_ties_in_the_order_scheduled():
    events: EventClock[str] = EventClock()
    for delay, name in ((2.0, "c"), (1.0, "a"), (1.0, "b")):
        events.schedule(delay, name)
    seen = []
    for event in events:
        seen.append((events.now, event))
        if event == "a":
            events.schedule(0.5, "a2")
    assert seen == [(1.0, "a"), (1.0, "b"), (1.5, "a2"), (2.0, "c")]
    with pytest.raises(ValueError):
        events.schedule(-1.0, "d")


def test_an_asynchronous_schedule_by_hand():
    """Edges of 2, 3 and 8 s: arrivals at 2, 3, 4, 6, 6, 8, 8, with the versions they read."""
    arrivals = clock.asynchronous(timing([2.0, 3.0, 8.0]), 8.5)
    got = [(a.time, a.edges[0], a.reports[0].read, a.version) for a in arrivals]
    assert [(a.reports[0].cycle, a.reports[0].began) for a in arrivals[:4]] == [
        (0, 0), (0, 0), (1, 2), (1, 3)]
    assert [(t, e) for t, e, *_ in got[:3]] == [(2, 0), (3, 1), (4, 0)]
    # At t = 6 edge 1 began at 3 and edge 0 at 4: the one that was scheduled first comes first.
    assert got[3:5] == [(6, 1, 2, 4), (6, 0, 3, 5)]
    # Edge 2 reports once, from the initial model, after 5 versions; it was scheduled first.
    assert got[5:] == [(8, 2, 0, 6), (8, 0, 5, 7)]
    np.testing.assert_array_equal(clock.staleness(arrivals, 3), [
        [0, 0, 0], [1, 1, 1], [1, 2, 2], [2, 1, 3], [1, 2, 4], [2, 3, 5], [1, 4, 6]])


def test_a_synchronous_round_lasts_as_long_as_the_slowest_edge():
    arrivals = clock.synchronous(timing([2.0, 3.0, 8.0]), 3)
    assert [(a.time, a.edges, a.version) for a in arrivals] == [
        (8, (0, 1, 2), 1), (16, (0, 1, 2), 2), (24, (0, 1, 2), 3)]
    assert [(r.cycle, r.read, r.began) for r in arrivals[2].reports] == [(2, 2, 16.0)] * 3
    assert not clock.staleness(arrivals, 3).any()


def test_a_cycle_adds_both_links_in_both_directions_and_the_slowest_end():
    own = Links(Link(up=100.0, down=200.0, rtt=0.25), Link(up=50.0, down=1000.0, rtt=0.5))
    one = Timing((Pace((1.0, 4.0), own),), model_bytes=1000)
    assert one.cycle(0, 0) == pytest.approx(
        (10 + 0.25) + (5 + 0.25) + (20 + 0.5) + (1 + 0.5) + 4.0)


def test_jitter_is_reproducible_and_the_same_in_every_schedule():
    shaken = timing([1.0, 1.0, 4.0], jitter=0.3, seed=7)
    first = clock.asynchronous(shaken, 30.0)
    assert first == clock.asynchronous(timing([1.0, 1.0, 4.0], jitter=0.3, seed=7), 30.0)
    assert first != clock.asynchronous(timing([1.0, 1.0, 4.0], jitter=0.3, seed=8), 30.0)
    longest = max(shaken.cycle(edge, 0) for edge in range(3))
    assert clock.synchronous(shaken, 1)[0].time == pytest.approx(longest)
    assert min(a.time for a in first if a.edges == (2,)) == pytest.approx(shaken.cycle(2, 0))


def test_a_schedule_needs_edges_rounds_and_time():
    for wrong in (lambda: clock.synchronous(timing([]), 3),
                  lambda: clock.synchronous(timing([1.0]), 0)):
        with pytest.raises(UserError, match="1 or more of both"):
            wrong()
    with pytest.raises(UserError, match="no edge reports"):
        clock.asynchronous(timing([2.0]), 1.0)


def test_equal_edges_without_jitter_all_report_once_in_a_round():
    equal = timing([2.0, 2.0, 2.0])
    arrivals = clock.asynchronous(equal, clock.synchronous(equal, 1)[-1].time)
    assert [a.reports[0] for a in arrivals] == [clock.Report(e, 0, 0, 0.0) for e in range(3)]
