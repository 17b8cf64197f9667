"""Markup, axes and the summaries behind the charts."""

import re

import pytest

from mlecs_jax.report.axes import (
    byte_text,
    duration,
    figure,
    linear_axis,
    loss_axis,
    round_axis,
    score,
)
from mlecs_jax.report.curves import Crowd
from mlecs_jax.report.markup import Markup, escape, join, tag
from mlecs_jax.report.svg import DotRow, Interval, Line, dot_rows, forest, in_lines, line_chart


def test_tag_escapes_what_is_not_markup():
    inner = tag("b", "<&>", title='"quoted"')
    assert inner == '<b title="&quot;quoted&quot;">&lt;&amp;&gt;</b>'
    assert tag("p", inner, None, 3, class_="x", hidden=True, lang=None) == (
        f'<p class="x" hidden>{inner}3</p>')
    assert tag("meta", charset="utf-8") == '<meta charset="utf-8">'
    assert tag("rect", x=1.5, y=2.0, stroke_width=1 / 3) == (
        '<rect x="1.5" y="2" stroke-width="0.33"></rect>')
    assert isinstance(join(["a<", Markup("<br>")]), Markup)
    assert escape("a\x00b\ud800\u202e") == "a\ufffdb?\ufffd"


@pytest.mark.parametrize("values", [
    [0.41, 0.87], [0.5], [0.0, 0.0], [1.0], [-3.0, 7.0], [1e-9, 2e-9], [1234.5, 99999.0], [],
    [None, 2.0],
])
def test_linear_axis_covers_its_values_with_few_round_ticks(values):
    axis = linear_axis(values)
    known = [v for v in values if v is not None]
    assert all(axis.low <= v <= axis.high for v in known) and axis.low < axis.high
    assert 2 <= len(axis.ticks) <= 8
    assert all(-1e-9 <= axis.at(t) <= 1 + 1e-9 for t in axis.ticks)


def test_scores_stay_inside_their_limits():
    axis = linear_axis([0.97, 1.0], limits=(0.0, 1.0))
    assert axis.high == 1.0 and axis.low <= 0.97
    assert linear_axis([0.0, 0.0], limits=(0.0, 1.0)).low == 0.0
    assert linear_axis([0.2, 1.4], limits=(0.0, 1.0)).high >= 1.4  # a score that is no share


def test_losses_over_two_decades_are_logarithmic():
    axis = loss_axis([0.004, 1.8])
    assert axis.log and axis.low == pytest.approx(1e-3) and axis.high == pytest.approx(10)
    assert axis.at(0.1) == pytest.approx(0.5)
    assert not loss_axis([0.1, 1.8]).log
    assert not loss_axis([0.0, 100.0]).log
    assert not loss_axis([None]).log


def test_round_axis():
    assert round_axis([1]).ticks == (1,)
    ticks = round_axis(list(range(1, 101))).ticks
    assert ticks == (1, 20, 40, 60, 80, 100)
    assert round_axis([1, 2, 3]).ticks == (1, 2, 3)


def test_figures_for_readers():
    assert (score(0.12345), score(None)) == ("0.123", "–")
    assert (figure(0.00123456), figure(12345.6), figure(None)) == ("0.00123", "12,346", "–")
    assert (byte_text(999), byte_text(98_304), byte_text(3_612_672)) == ("999 B", "98.3 kB",
                                                                         "3.61 MB")
    assert (duration(0.421), duration(245), duration(7800)) == ("0.421 s", "4 min 05 s",
                                                                "2 h 10 min")


def test_crowd_sums_up_devices():
    """Round 0: 0, 1, 2, 3 (quartiles .75 and 2.25). Round 1: one value. Round 2: none."""
    crowd = Crowd.of([[0.0, 1.0, 2.0, 3.0], [None, 5.0], []])
    assert crowd is not None
    assert crowd.mean == [1.5, 5.0, None]
    assert (crowd.low, crowd.high) == ([0.0, 5.0, None], [3.0, 5.0, None])
    assert (crowd.lower_quartile[0], crowd.upper_quartile[0]) == (0.75, 2.25)
    assert crowd.per_device[0] == [0.0, None, None]
    assert Crowd.of([[], [None]]) is None


def test_lines_break_at_gaps():
    chart = line_chart([Line([0.1, 0.2, None, 0.4], "dev")], [1, 2, 3, 4], linear_axis([0.0, 1.0]),
                       label="x", y_label="y", read_outs=["a", "b", "c", "d"])
    assert chart.count("<polyline") == 1 and chart.count("<circle") == 1
    assert chart.count('class="hit"') == 4
    assert "None" not in chart


def test_long_names_take_several_lines():
    assert in_lines("short", 10) == ["short"] and in_lines("", 10) == [""]
    assert in_lines("Local + public, mixed", 17) == ["Local + public,", "mixed"]
    assert in_lines("Co-PLMs (approximation)", 16) == ["Co-PLMs", "(approximation)"]
    assert in_lines("nowhere_to_break", 7) == ["nowhere", "_to_bre", "ak"]


def test_rows_of_charts_have_whole_names_and_room_for_them():
    """Two lines of a name push the rows below down by one line, and the chart is as much taller."""
    axis = linear_axis([0.0, 1.0])
    names = ("Local + public", "Local + public, mixed", "Co-PLMs (approximation)")
    drawn = [forest([Interval(name, 0.5, 0.4, 0.6, "") for name in names], axis, label="x",
                    x_label="y"),
             dot_rows([DotRow(name, [0.5], "dev", [""]) for name in names], axis, label="x",
                      x_label="y")]
    short = forest([Interval("a", 0.5, 0.4, 0.6, "")] * 3, axis, label="x", x_label="y")
    for chart in drawn:
        assert "…" not in chart
        lines = re.findall(r'y="([\d.]+)" class="row end">([^<]*)<', chart)
        assert [line for _, line in lines] == [
            "Local + public", "Local + public,", "mixed", "Co-PLMs", "(approximation)"]
        places = [float(y) for y, _ in lines]
        assert places == sorted(places) and min(
            b - a for a, b in zip(places, places[1:], strict=False)) >= 12
    tall, low = (int(re.search(r'viewBox="0 0 360 (\d+)"', chart)[1])
                 for chart in (drawn[0], short))
    assert tall == low + 2 * 13
