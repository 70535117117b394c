"""trend.html: a history over time, with bars and the moments at which values changed for good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from statistics import median

import msgspec

from tokenswarm.reports.comparison import percent
from tokenswarm.reports.html import tables
from tokenswarm.reports.html.figure import Drawing, Figure, left_out
from tokenswarm.reports.html.page import charts, document, section
from tokenswarm.reports.html.pair import short, spanning
from tokenswarm.reports.html.svg import (
    Axis,
    cross,
    dot,
    escape,
    frame,
    line,
    mark,
    plot_height,
    whisker,
)
from tokenswarm.reports.numbers import MISSING, of_metric
from tokenswarm.result.history import Line

SERIES_MAX = 20
POINTS_MAX = 500  # of a series that are drawn: the latest
_DATE_STEPS_S = (60, 300, 900, 3600, 10_800, 43_200, 86_400, 172_800, 604_800, 1_209_600, 2_592_000, 31_536_000)


class Mark(msgspec.Struct, frozen=True):
    """From the point at `place` on the metric is `ratio` times what it was."""

    metric: str
    place: int
    ratio: float
    worse: bool


class Drawn(msgspec.Struct, frozen=True):
    """One thing that was measured again and again. `left_out`: runs that can't be believed; `gap_s`: a hole."""

    name: str
    points: Sequence[Line]
    left_out: Sequence[Line]
    marks: Sequence[Mark]
    gap_s: float


def render(
    title: str, drawn: Sequence[Drawn], metrics: Sequence[str], told: Sequence[Line], lost: Sequence[str]
) -> str:
    """The page. `told`: comparisons; `lost`: a sentence a line of the file that is left out."""
    shown = drawn[:SERIES_MAX]
    worse = sum(mark.worse for one in drawn for mark in one.marks)
    better = sum(not mark.worse for one in drawn for mark in one.marks)
    runs = sum(len(one.points) + len(one.left_out) for one in drawn)
    kinds = f"{len(drawn)} kind{'s' * (len(drawn) != 1)}"
    counted = f"{runs} runs of {kinds} · {worse} changes for the worse, {better} for the better"
    body = [
        f'<header class="verdict"><p class="brand">tokenswarm</p><h1>{escape(title)}</h1>'
        f"<p>{escape(counted)}</p></header>",
        *(_series(place, one, metrics) for place, one in enumerate(shown, 1)),
        section("comparisons", "Comparisons", _comparisons(told)),
        section("left-out", "Left out", _list(_left_out(drawn, lost))),
        section("definitions", "Definitions", _DEFINITIONS),
    ]
    return document(f"tokenswarm: trend of {title}", "".join(body))


_DEFINITIONS = (
    "<dl><dt>a change</dt><dd>four to ten runs from a moment on against up to ten before it: an exact rank-sum test at "
    "0.1 %, and beyond the margin (5 % median, 10 % tail, 2 % throughput)</dd><dt>bars</dt><dd>what the instrument "
    "leaves open</dd><dt>a hole in the line</dt><dd>no run for five times the usual distance, or one without the value"
    "</dd><dt>crosses</dt><dd>runs that are INVALID or were cut short</dd></dl>"
)


def _series(place: int, one: Drawn, metrics: Sequence[str]) -> str:
    figures = [_figure(f"s{place}", one, metric) for metric in metrics]
    drawn = charts(f"series-{place}", one.name, figures, "")
    changed = _list([f"{_day(first)}: {_changed(new)}" for first, new in setups(one.points)[-20:]])
    below = f"<h3>Set-up changed</h3>{changed}" if changed else ""
    return drawn + section(f"latest-{place}", f"Latest of {one.name}", _latest(one, metrics) + below)


def _changed(new: Mapping[str, str]) -> str:
    return ", ".join(f"{name} is {value}" for name, value in new.items())


def _figure(prefix: str, one: Drawn, metric: str) -> Figure:
    name, title = f"{prefix}-{metric.replace('_', '-').replace('.', '-')}", f"{short(metric)} over time"
    points = one.points[-POINTS_MAX:]
    first = len(one.points) - len(points)
    known = [(line_, value) for line_ in points if (value := line_.values.get(metric))]
    if not known:
        return left_out(name, title, "no run has it")
    marks = [mark_ for mark_ in one.marks if mark_.metric == metric and mark_.place >= first]

    def draw(width: float, height: float) -> Drawing:
        ends = [e for line_, value in known for e in (value, *(line_.bars.get(metric) or ())) if e is not None]
        y = spanning(metric, ends, plot_height(height))
        f = frame(width, height, dates([_s(line_) for line_ in points], width), y)
        drawn = [line(f, piece, "single side-a") for piece in pieces(points, metric, one.gap_s)]
        for line_, value in known:
            bar = line_.bars.get(metric)
            if bar and bar[1] is not None:
                drawn.append(whisker(f, _s(line_), bar[0], bar[1], "side-a"))
            label = f"{_day(line_)}, {line_.run_id}: {of_metric(metric, value)}"
            drawn.append(dot(f, _s(line_), value, label, "side-a", 3.6))
        inside = [line_ for line_ in one.left_out if f.x.low <= _s(line_) <= f.x.high]
        drawn += [cross(f, _s(bad), f.bottom - 7, f"{_day(bad)}, {bad.run_id}: {_why(bad)}") for bad in inside]
        shown = marks if width > 400 or len(marks) < 3 else marks[-2:]
        drawn += [
            mark(f, _s(one.points[m.place]), percent(m.ratio), "note tail" if m.worse else "note p50") for m in shown
        ]
        return f, drawn

    caption = f"{len(known)} runs" + (f", the latest of {len(one.points)}" if first else "") + "."
    if marks:
        caption += f" Changed for good: {'; '.join(_told(one, change) for change in marks)}."
    return Figure(name=name, title=title, caption=caption, draw=draw)


def _told(one: Drawn, change: Mark) -> str:
    at = one.points[change.place]
    return f"{percent(change.ratio)} from {_day(at)} on ({at.run_id})"


def pieces(points: Sequence[Line], metric: str, gap_s: float) -> list[list[tuple[float, float]]]:
    """The line's parts between holes: (s, value); a run without the value, or a long time without a run, is one."""
    found: list[list[tuple[float, float]]] = [[]]
    for one in points:
        value = one.values.get(metric)
        if value is None or (found[-1] and _s(one) - found[-1][-1][0] > gap_s):
            found.append([])
        if value is not None:
            found[-1].append((_s(one), value))
    return [piece for piece in found if piece]


def dates(times_s: Sequence[float], pixels: float, every_px: float = 95) -> Axis:
    """An axis of UTC dates, or times of a day where all lies within a day or two."""
    low, high = min(times_s), max(times_s)
    room = max((high - low) * 0.03, 30.0)
    low, high = low - room, high + room
    step = next((s for s in _DATE_STEPS_S if (high - low) / s <= max(1.0, pixels * 0.8 / every_px)), high - low)
    first = int(-(-low // step))
    ticks = [index * step for index in range(first, int(high // step) + 1)]
    shape = "%H:%M" if step < 43_200 else "%m-%d" if high - low < 300 * 86_400 else "%Y-%m"
    day = f"{datetime.fromtimestamp(low, UTC):%Y-%m-%d} to {datetime.fromtimestamp(high, UTC):%Y-%m-%d}, UTC"
    return Axis(day, low, high, tuple((tick, f"{datetime.fromtimestamp(tick, UTC):{shape}}") for tick in ticks))


def _latest(one: Drawn, metrics: Sequence[str]) -> str:
    cells: list[list[tables.Cell]] = []
    for row in latest(one.points, metrics):
        changes = [mark_ for mark_ in one.marks if mark_.metric == row[0]]
        cells.append([short(row[0]), *row[1:], _told(one, changes[-1]) if changes else MISSING])
    return tables.table(("metric", "runs", "latest", "usual", "against it", "last change"), cells, (0, 5))


def latest(points: Sequence[Line], metrics: Sequence[str]) -> list[list[str]]:
    """(metric, runs with it, latest, median of up to ten before, latest against that) of each metric that was seen."""
    found = []
    for metric in metrics:
        values = [value for one in points if (value := one.values.get(metric))]
        if not values:
            continue
        before = values[-11:-1]
        usual = median(before) if before else None
        against = percent(values[-1] / usual) if usual else MISSING
        found.append([metric, str(len(values)), of_metric(metric, values[-1]), of_metric(metric, usual), against])
    return found


def _comparisons(told: Sequence[Line]) -> str:
    cells: list[list[tables.Cell]] = []
    for one in reversed(told[-100:]):
        worst = [f"{short(f.metric)} {percent(f.ratio)}" for f in one.findings if f.word == one.word]
        sides = f"{len(one.b)} runs against {len(one.a)}"
        cells.append([_day(one), one.word, sides, ", ".join(worst) or MISSING, one.b[-1] if one.b else MISSING])
    return tables.table(("last run", "says", "sides", "in", "new, last"), cells, (0, 1, 2, 3, 4)) if cells else ""


def _left_out(drawn: Sequence[Drawn], lost: Sequence[str]) -> list[str]:
    runs = [f"{_day(bad)}, {bad.run_id}: {_why(bad)}" for one in drawn for bad in one.left_out]
    more = [f"{len(drawn) - SERIES_MAX} further kinds of runs are not drawn"] if len(drawn) > SERIES_MAX else []
    return [*more, *lost[:50], *runs[-50:]]


def _why(bad: Line) -> str:
    return f"{bad.status}, cut short" if bad.partial else bad.status


def _list(sentences: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(text, 1_000)}</li>" for text in sentences)
    return f"<ul>{items}</ul>" if items else ""


def _s(one: Line) -> float:
    return one.at.timestamp() if one.at is not None else 0.0


def _day(one: Line) -> str:
    return f"{one.at.astimezone(UTC):%Y-%m-%d %H:%M}" if one.at is not None else MISSING


def setups(points: Sequence[Line]) -> list[tuple[Line, Mapping[str, str]]]:
    """Where what runs were made with changed: (the first run with it, {what: its new value})."""
    found: list[tuple[Line, Mapping[str, str]]] = []
    for before, after in pairwise(points):
        new = {name: value for name, value in after.setup.items() if before.setup.get(name, value) != value}
        if new:
            found.append((after, new))
    return found
