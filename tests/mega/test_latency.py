"""Both accountings by hand; packet sizes at the published shapes; one measurement, small."""

import numpy as np
import pytest

from mlecs_jax.errors import UserError
from mlecs_jax.mega import latency, links
from mlecs_jax.mega.latency import Measured
from mlecs_jax.mega.links import Link, Links


def test_both_accountings_add_up():
    """Generation 1 ms, reception 2 ms, inference 4 ms; 100 kB at 10 MB/s; 7.5 MB at 5 MB/s."""
    kind = Links(Link(up=1e7, down=1e6, rtt=0.003), Link(up=5e6, down=1e6, rtt=0.040))
    found = Measured(*(np.full(5, s) for s in (0.001, 0.002, 0.004)), feature_bytes=100_000,
                     score_bytes=50)
    got = {row["metric"]: row["value"] for row in latency.account(found, kind)}
    first = 1 + 2 + (10 + 3) + 0.05
    assert got["edge first response p50"] == pytest.approx(first)
    assert got["edge full response p95"] == pytest.approx(first + 4)
    assert got["edge first response, compute p50"] == pytest.approx(3)
    paper = 1500 + 40 + 0.05 + 2 + 4
    assert got["cloud only, paper accounting p50"] == pytest.approx(paper)
    assert got["cloud only, full p50"] == pytest.approx(paper + 1)
    assert got["edge first response below cloud only"] == pytest.approx(
        100 * (1 - first / paper))
    assert got["edge full response below cloud only"] == pytest.approx(
        100 * (1 - (first + 4) / (paper + 1)))


def test_packets_at_the_published_shapes():
    rows = {(row["shapes"], row["codec"]): row for row in latency.packet_rows()}
    for shapes, values in (("mosi aligned", 50 * 325), ("mosei aligned", 50 * 409)):
        plain = rows[shapes, "float32"]
        assert 4 * values < plain["bytes"] < 4 * values + 450 <= 97_000
        assert plain["largest_error"] == 0
        assert rows[shapes, "int8+zlib"]["bytes"] <= 30_000
    assert all(row["largest_error"] <= row["error_bound"] for row in rows.values())
    assert rows["mosi unaligned", "int8"]["error_bound"] < 0.03


def test_presets_are_known():
    with pytest.raises(UserError, match="use smoke, cpu, paper"):
        latency.rows("huge")


@pytest.mark.slow
def test_a_reading_is_measured_end_to_end():
    rows = latency.rows("smoke")
    edge = {(row["links"], row["metric"]): row["value"] for row in rows
            if row["artefact"] == "latency"}
    for name in links.PRESETS:
        assert 0 < edge[name, "edge first response p50"] <= edge[name, "edge full response p50"]
        assert edge[name, "edge first response p50"] < edge[name, "cloud only, full p50"]
    # The slow link makes the device compress, to what it carries before the deadline or the least
    # there is; both others carry float32.
    assert edge["realistic", "feature packets"] == edge["paper", "feature packets"] > 65_000
    assert edge["slow", "feature packets"] < 20_000
