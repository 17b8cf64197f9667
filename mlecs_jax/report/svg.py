"""Charts as inline SVG: lines with bands, bars, rows of dots, heat maps.

All charts that carry axes are drawn 360 units wide and shown at about that many pixels on a phone
and on a desk alike, so that their text is equally large everywhere. Colours are left to CSS classes
(`style.py`), which know about light, dark and print. What the pointer reads out stands in the
chart as ``<title>`` elements, so it also works without the page's script.
"""

from __future__ import annotations

import dataclasses
import statistics
import textwrap
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

from mlecs_jax.report.axes import Axis, Number, figure, round_axis
from mlecs_jax.report.markup import Markup, join, tag

WIDTH, HEIGHT = 360, 216
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 22, 36
_LINE = 13  # from one line of a row's name to the next
Values = Sequence[float | None]


@dataclasses.dataclass(frozen=True)
class Line:
    """One value per position; None breaks the line. ``style``: CSS classes. ``xs``: positions of
    its own, where they are not the chart's."""

    values: Values
    style: str
    xs: Sequence[Number] | None = None


@dataclasses.dataclass(frozen=True)
class Band:
    """The area between two lines, one pair of values per round."""

    low: Values
    high: Values
    style: str


def line_chart(
    layers: Sequence[Line | Band],
    at: Sequence[Number],
    y_axis: Axis,
    *,
    label: str,
    y_label: str,
    read_outs: Sequence[str],
    x_label: str = "rounds done",
    x_axis: Axis | None = None,
) -> Markup:
    """Lines and bands over rounds, or whatever ``x_label`` says, drawn in the order given.

    Args:
      layers: each with one value per entry of ``at``, unless it has positions of its own.
      at: the x positions, rising.
      y_axis: must cover all values.
      label: what a screen reader says of the chart.
      y_label: what the y axis shows, with its unit.
      read_outs: for every position, what the pointer reads there.
      x_axis: of whole rounds, if none is given.
    """
    x_axis = x_axis or round_axis([int(x) for x in at])
    xs = [_x(x_axis, x) for x in at]
    drawn = []
    for layer in layers:
        if isinstance(layer, Band):
            drawn.append(_band(xs, layer, y_axis))
        else:
            own = xs if layer.xs is None else [_x(x_axis, x) for x in layer.xs]
            drawn.append(_line(own, layer, y_axis))
    return _frame(x_axis, y_axis, label, y_label, x_label,
                  [*drawn, _pointer_columns(xs, read_outs)])


def bar_chart(
    values: Values,
    rounds: list[int],
    y_axis: Axis,
    *,
    label: str,
    y_label: str,
    read_outs: Sequence[str],
    style: str,
    x_label: str = "rounds done",
) -> Markup:
    """One bar per round from 0; arguments as for `line_chart`."""
    low, high = min(rounds), max(rounds)
    inner = round_axis(rounds)
    x_axis = Axis(low - 0.6, high + 0.6, inner.ticks)
    xs = [_x(x_axis, r) for r in rounds]
    width = min(28.0, 0.72 * (WIDTH - _LEFT - _RIGHT) / (high - low + 1.2))
    floor = _y(y_axis, 0.0)
    bars = [
        tag("rect", x=x - width / 2, y=_y(y_axis, v), width=width, height=floor - _y(y_axis, v),
            class_=f"bar {style}")
        for x, v in zip(xs, values, strict=True) if v is not None
    ]
    return _frame(x_axis, y_axis, label, y_label, x_label,
                  [*bars, _pointer_columns(xs, read_outs)])


@dataclasses.dataclass(frozen=True)
class DotRow:
    """A named row of marks: dots (one per device) or one diamond (``mark='diamond'``)."""

    name: str
    values: Sequence[float]
    style: str
    titles: Sequence[str]
    mark: str = "dot"


def dot_rows(
    rows: Sequence[DotRow], x_axis: Axis, *, label: str, x_label: str, means: bool = True
) -> Markup:
    """Rows of marks over one axis; a row of several dots also shows their mean as a bar, unless
    ``means`` is off."""
    frame = _RowFrame([row.name for row in rows], x_axis, x_label, left=122, height=26)
    at, parts = frame.at, frame.parts
    for row, y in zip(rows, frame.middles, strict=True):
        parts.append(tag("line", x1=frame.left, x2=frame.right, y1=y, y2=y, class_="grid"))
        for value, title in zip(row.values, row.titles, strict=True):
            parts.append(_mark(row.mark, at(value), y, row.style, title, len(row.values)))
        if means and len(row.values) > 1:
            mean = statistics.fmean(row.values)
            parts.append(tag("line", x1=at(mean), x2=at(mean), y1=y - 9, y2=y + 9,
                             class_=f"mean {row.style}"))
    return _svg(WIDTH, frame.bottom + 38, label, parts)


@dataclasses.dataclass(frozen=True)
class Interval:
    """A named row of a forest plot: a figure and the ends of its interval, where it has one."""

    name: str
    value: float
    low: float | None
    high: float | None
    title: str


def forest(rows: Sequence[Interval], x_axis: Axis, *, label: str, x_label: str) -> Markup:
    """Figures with their intervals, one row each, beside a line at 0."""
    frame = _RowFrame([row.name for row in rows], x_axis, x_label, left=132, height=24)
    at, parts = frame.at, frame.parts
    parts.append(tag("line", x1=at(0), x2=at(0), y1=frame.top, y2=frame.bottom, class_="axis"))
    for row, y in zip(rows, frame.middles, strict=True):
        style = "dev" if row.low is not None and row.low > 0 else (
            "srv" if row.high is not None and row.high < 0 else "ref")
        if row.low is not None and row.high is not None:
            parts.append(tag("line", x1=at(row.low), x2=at(row.high), y1=y, y2=y,
                             class_=f"line {style}"))
        parts.append(_mark("dot", at(row.value), y, style, row.title, 1))
    return _svg(WIDTH, frame.bottom + 38, label, parts)


class _RowFrame:
    """What stands around named rows over one axis: names, whole and in as many lines as they need
    (touch and paper have no pointer to ask for a rest), ticks and the axis' title.

    Attributes:
      parts: the frame, to which the rows' marks are added.
      middles: y of every row.
      left, right, top, bottom: of the area for marks.
    """

    top = 6
    right = WIDTH - 18  # half of the last tick's words stands beyond

    def __init__(self, names: Sequence[str], x_axis: Axis, x_label: str, *, left: int,
                 height: int):
        self.left, self._axis = left, x_axis
        labels = [in_lines(name, (left - 10) // 7) for name in names]
        heights = [height + _LINE * (len(lines) - 1) for lines in labels]
        ends = list(accumulate(heights, initial=self.top))
        self.bottom = ends[-1]
        self.middles = [(a + b) / 2 for a, b in zip(ends, ends[1:], strict=False)]
        self.parts: list[Markup] = []
        for tick in x_axis.ticks:
            x = self.at(tick)
            self.parts += [tag("line", x1=x, x2=x, y1=self.top, y2=self.bottom, class_="grid"),
                           _text(figure(tick), x, self.bottom + 16, "tick middle")]
        self.parts.append(_text(x_label, self.right, self.bottom + 31, "axis-title end"))
        for lines, middle in zip(labels, self.middles, strict=True):
            first = middle + 4 - _LINE * (len(lines) - 1) / 2
            self.parts += [_text(line, left - 10, first + _LINE * i, "row end")
                           for i, line in enumerate(lines)]

    def at(self, value: Number) -> float:
        """The x of a value."""
        return self.left + self._axis.at(value) * (self.right - self.left)


@dataclasses.dataclass(frozen=True)
class Point:
    """A named point of a scatter plot; ``x`` None stands for nothing at all, left of the axis."""

    name: str
    x: float | None
    y: float
    style: str
    title: str


def scatter(
    points: Sequence[Point], x_axis: Axis, y_axis: Axis, *, label: str, x_label: str, y_label: str,
    x_text: Callable[[Number], str],
) -> Markup:
    """Named points; those without an x stand on a line of their own at the left, marked 0."""
    left, right, bottom = _LEFT + 34, WIDTH - 20, HEIGHT - _BOTTOM  # half of "100 kB" is beyond
    none = _LEFT + 12

    def at(value: Number | None) -> Number:
        return none if value is None else left + x_axis.at(value) * (right - left)

    parts: list[Markup] = [_text(y_label, 2, 11, "axis-title")]
    for tick in y_axis.ticks:
        y = _y(y_axis, tick)
        parts.append(tag("line", x1=_LEFT, x2=right, y1=y, y2=y, class_="grid"))
        parts.append(_text(figure(tick), _LEFT - 7, y + 4, "tick end"))
    for tick in x_axis.ticks:
        parts.append(tag("line", x1=at(tick), x2=at(tick), y1=bottom, y2=bottom + 4,
                         class_="axis"))
        parts.append(_text(x_text(tick), at(tick), bottom + 16, "tick middle"))
    if any(point.x is None for point in points):
        parts.append(_text("0", none, bottom + 16, "tick middle"))
    parts.append(tag("line", x1=_LEFT, x2=right, y1=bottom, y2=bottom, class_="axis"))
    parts.append(_text(x_label, right, bottom + 31, "axis-title end"))
    for number, point in enumerate(points, 1):
        x, y = at(point.x), _y(y_axis, point.y)
        parts.append(_mark("dot", x, y, point.style, point.title, 1))
        parts.append(_text(str(number), x + 7, y - 4, "tick", title=point.title))
    return _svg(WIDTH, HEIGHT, label, parts)


def strip(values: Sequence[float], axis: Axis, *, label: str, style: str) -> Markup:
    """A small line of dots between two labelled ends, for a headline tile."""
    width, y, pad = 260, 14, 7

    def at(value: Number) -> float:
        return pad + axis.at(value) * (width - 2 * pad)

    mean = statistics.fmean(values)
    ends = [_text(figure(axis.low), pad, 36, "tick"),
            _text(figure(axis.high), width - pad, 36, "tick end")]
    dots = [_mark("dot", at(v), y, style, None, len(values)) for v in values]
    return _svg(width, 40, label, [
        tag("line", x1=pad, x2=width - pad, y1=y, y2=y, class_="axis"),
        *dots,
        tag("line", x1=at(mean), x2=at(mean), y1=y - 10, y2=y + 10, class_=f"mean {style}"),
        *ends,
    ])


def heat_map(
    rows: Sequence[Values],
    *,
    label: str,
    cell: tuple[int, int],
    first: int,
    tick_every: int,
    x_label: str,
    title: Callable[[int, int], str],
) -> Markup:
    """Shares in [0, 1] as filled cells at their true size (wider than the page: let it scroll).

    Args:
      rows: one list of shares per row, all of one length.
      label: what a screen reader says of the map.
      cell: width and height of a cell in pixels.
      first: number of the first column.
      tick_every: a column whose number is a multiple of this is labelled.
      x_label: what the columns are.
      title: what the pointer reads at (row, column).
    """
    width, height = cell
    gap = 2 if width >= 12 else 1
    columns = len(rows[0])
    parts: list[Markup] = []
    for i, row in enumerate(rows):
        for j, share in enumerate(row):
            # An absent modality keeps an outline: "none" must not look like "no such cell".
            parts.append(tag(
                "rect", tag("title", title(i, j)), x=j * width + gap / 2, y=i * height + gap / 2,
                width=width - gap, height=height - gap, rx=2 if gap == 2 else None,
                class_="cell" if share else "cell none",
                fill_opacity=0.25 + 0.75 * share if share and share < 1 else None,
            ))
    bottom = len(rows) * height
    for j in range(columns):
        if (first + j) % tick_every == 0:
            parts.append(_text(str(first + j), (j + 0.5) * width, bottom + 14, "tick middle"))
    parts.append(_text(x_label, 1, bottom + 30, "axis-title"))
    # Room for the last label, which is centred on a cell that may be narrower than it.
    full = max(columns * width + 14, 90)
    return _svg(full, bottom + 34, label, parts, true_size=True)


def swatch(style: str, kind: str = "line") -> Markup:
    """The legend's sample of a line, a band or a dot."""
    if kind == "band":
        inner = tag("rect", x=1, y=1, width=20, height=8, class_=f"band {style}")
    elif kind == "dot":
        inner = tag("circle", cx=11, cy=5, r=4, class_=f"dot {style}")
    elif kind == "cell":
        inner = tag("rect", x=6, y=0.5, width=9, height=9, class_=f"cell {style}")
    elif kind == "diamond":
        inner = _mark("diamond", 11, 5, style, None, 1)
    else:
        inner = tag("line", x1=1, x2=21, y1=5, y2=5, class_=f"line {style}")
    return tag("svg", inner, viewBox="0 0 22 10", class_="swatch", aria_hidden="true")


def in_lines(name: str, length: int) -> list[str]:
    """The whole name in lines of at most ``length`` characters, broken at spaces where it can."""
    return textwrap.wrap(name, length, break_on_hyphens=False) or [""]


def _x(axis: Axis, value: Number) -> float:
    return _LEFT + axis.at(value) * (WIDTH - _LEFT - _RIGHT)


def _y(axis: Axis, value: Number) -> float:
    return HEIGHT - _BOTTOM - axis.at(value) * (HEIGHT - _TOP - _BOTTOM)


def _frame(
    x_axis: Axis, y_axis: Axis, label: str, y_label: str, x_label: str, drawn: Sequence[Markup]
) -> Markup:
    left, right, bottom = _LEFT, WIDTH - _RIGHT, HEIGHT - _BOTTOM
    parts: list[Markup] = [_text(y_label, 2, 11, "axis-title")]
    for tick in y_axis.ticks:
        y = _y(y_axis, tick)
        parts.append(tag("line", x1=left, x2=right, y1=y, y2=y, class_="grid"))
        parts.append(_text(figure(tick), left - 7, y + 4, "tick end"))
    for tick in x_axis.ticks:
        x = _x(x_axis, tick)
        parts.append(tag("line", x1=x, x2=x, y1=bottom, y2=bottom + 4, class_="axis"))
        parts.append(_text(figure(tick), x, bottom + 16, "tick middle"))
    parts.append(tag("line", x1=left, x2=right, y1=bottom, y2=bottom, class_="axis"))
    parts.append(_text(x_label, right, bottom + 31, "axis-title end"))
    # A group, not an image: what is in an image, as the columns' titles, is not read aloud.
    return _svg(WIDTH, HEIGHT, label, [*parts, *drawn], role="group")


def _pointer_columns(xs: Sequence[float], read_outs: Sequence[str]) -> Markup:
    """Invisible columns that answer the pointer with the figures of the nearest round."""
    edges = [_LEFT, *((a + b) / 2 for a, b in zip(xs, xs[1:], strict=False)), WIDTH - _RIGHT]
    height = HEIGHT - _TOP - _BOTTOM
    return join(
        tag("g", tag("title", words),
            tag("rect", x=start, y=_TOP, width=max(end - start, 0.1), height=height),
            tag("line", x1=x, x2=x, y1=_TOP, y2=_TOP + height), class_="hit")
        for x, start, end, words in zip(xs, edges[:-1], edges[1:], read_outs, strict=True)
    )


def _line(xs: Sequence[float], line: Line, axis: Axis) -> Markup:
    parts = []
    for run in _runs(line.values):
        points = [(xs[i], _y(axis, value)) for i in run
                  if (value := line.values[i]) is not None]
        if len(points) == 1:
            (x, y), = points
            parts.append(tag("circle", cx=x, cy=y, r=3.5, class_=f"dot {line.style}"))
        else:
            parts.append(tag("polyline", points=_points(points), class_=f"line {line.style}"))
    return join(parts)


def _band(xs: Sequence[float], band: Band, axis: Axis) -> Markup:
    parts = []
    known = [None if a is None or b is None else a
             for a, b in zip(band.low, band.high, strict=True)]
    for run in _runs(known):
        there = [(xs[i], _y(axis, v)) for i in run if (v := band.low[i]) is not None]
        back = [(xs[i], _y(axis, v)) for i in reversed(run) if (v := band.high[i]) is not None]
        if len(run) == 1:  # one round has no area: a whisker
            parts.append(tag("line", x1=there[0][0], x2=back[0][0], y1=there[0][1], y2=back[0][1],
                             class_=f"whisker {band.style}"))
        else:
            parts.append(tag("polygon", points=_points(there + back), class_=f"band {band.style}"))
    return join(parts)


def _runs(values: Values) -> Iterator[list[int]]:
    """Indices of the stretches without a gap."""
    run: list[int] = []
    for i, value in enumerate(values):
        if value is not None:
            run.append(i)
        elif run:
            yield run
            run = []
    if run:
        yield run


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _mark(kind: str, x: Number, y: Number, style: str, title: str | None, count: int) -> Markup:
    inner = tag("title", title) if title else None
    if kind == "diamond":
        return tag("path", inner, d=f"M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6 -6z", class_=f"dot {style}")
    return tag("circle", inner, cx=x, cy=y, r=4.5, class_=f"dot {style}",
               fill_opacity=0.9 if count <= 6 else 0.45 if count <= 40 else 0.22)


def _text(words: str, x: Number, y: Number, style: str, title: str | None = None) -> Markup:
    inner = tag("title", title) if title and title != words else None
    return tag("text", inner, words, x=x, y=y, class_=style)


def _svg(
    width: Number, height: Number, label: str, parts: Sequence[Markup], *, true_size: bool = False,
    role: str = "img",
) -> Markup:
    # Print narrows a wide map to the page but keeps its height, beside which its labels stand.
    size = {"width": width, "height": height, "preserveAspectRatio": "none",
            "style": f"--height:{height:g}px"} if true_size else {}
    return tag("svg", *parts, viewBox=f"0 0 {width:g} {height:g}", role=role, aria_label=label,
               **size)
