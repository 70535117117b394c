"""Charts as SVG text, drawn for a width in pixels: axes with round ticks, lines, points, areas, labels that fit.

Every mark takes data coordinates and gives a string of SVG. Colours are classes (`style.css`), so that one drawing
serves light and dark. Points carry their exact values as `data-x`, `data-y`, and a <title> that browsers show as a
tooltip: there is no script. All text is escaped here.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Sequence

import msgspec

from tokenswarm.reports.numbers import harmless, of_limit

FONT_PX = 12
_LETTER_PX, _WIDE_PX = 7.7, 11.7  # a digit and a % of DejaVu Sans at 12 px, the widest font of the style sheet
_TOP, _BOTTOM, _EDGE = 34, 40, 8

_MANTISSAS: tuple[tuple[tuple[float, ...], int], ...] = (
    ((1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9), 1),
    ((1, 1.5, 2, 3, 4, 5, 7), 1),
    ((1, 2, 5), 1),
    ((1, 3), 1),
    ((1,), 1),
    ((1,), 2),
    ((1,), 3),
)
"""Ticks of a decade and every how many decades, finest first."""

_TIME_STEPS = (
    0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200,
    *(days * 86_400.0 for days in (1, 2, 5, 10, 20, 50, 100)),
)  # fmt: skip

Point = tuple[float, float]
Text = Callable[[float], str]


def escape(text: object, length_max: int = 400) -> str:
    """Foreign text as text of HTML, XML and quoted attributes: one line, no control characters, bounded."""
    return html.escape(harmless(str(text), length_max))


def seconds(value: float) -> str:
    """A tick or label of a time axis: 20ms, 1.5s."""
    return of_limit("_s", value)


def number(value: float) -> str:
    """A tick or label of a count or rate: 0, 0.0025, 250, 1.5k."""
    return f"{value:g}" if abs(value) < 1 else of_limit("_per_s", value)


def percent(value: float) -> str:
    """A tick of a share: 0%, 50%."""
    return f"{value * 100:.0f}%"


class Axis(msgspec.Struct, frozen=True):
    """From `low` to `high`, with (value, label) ticks."""

    label: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    log: bool = False

    def at(self, value: float) -> float:
        """0 at `low`, 1 at `high`; clipped a little beyond, so that no coordinate is huge."""
        if self.log:
            share = math.log(max(value, self.low * 1e-3) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return min(max(share, -0.5), 1.5)


def linear(label: str, high: float, pixels: float, text: Text, low: float = 0.0, every_px: float = 48) -> Axis:
    """From `low` to a round number at or above `high`, a tick about each `every_px`."""
    span = max(high - low, 1e-9)
    step = _round_step(span / max(1.0, pixels / every_px))
    first, last = math.floor(low / step + 1e-9), math.ceil((low + span) / step - 1e-9)
    values = [round(index * step, 12) for index in range(first, last + 1)]
    return Axis(label, values[0], values[-1], tuple((value, text(value)) for value in values))


def time(label: str, end_s: float, pixels: float, every_px: float = 90) -> Axis:
    """Seconds from 0 to exactly `end_s`, ticks at round seconds, minutes, hours or days."""
    step = next((step for step in _TIME_STEPS if end_s / step <= pixels / every_px), 2.0 ** math.ceil(math.log2(end_s)))
    ticks = [index * step for index in range(int(end_s / step * (1 + 1e-9)) + 1)]
    return Axis(label, 0.0, end_s, tuple((tick, clock(tick)) for tick in ticks))


def clock(value: float) -> str:
    """A time since the start: 0, 30 s, 5 min, 1.5 h, 2 d."""
    for length, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if value >= length and value % (length / 2) == 0:
            return f"{value / length:g} {unit}"
    return "0" if value == 0 else f"{value:g} s"


def logarithmic(label: str, values: Iterable[float], pixels: float, text: Text, every_px: float = 44) -> Axis:
    """Around the positive `values`, ticks at 1, 2, 5 (or more, or fewer) of each decade as there is room."""
    positive = [value for value in values if value > 0]
    low, high = (min(positive) / 1.12, max(positive) * 1.12) if positive else (0.5, 2.0)
    low = max(low, high * 1e-9)  # beyond nine decades there is damage, not data
    decades = math.log10(high / low)
    room = max(1.0, pixels / every_px)
    for mantissas, stride in _MANTISSAS:
        if decades * len(mantissas) / stride <= room:
            break
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    ticks = [m * 10.0**e for e in range(first, last + 1) if e % stride == 0 for m in mantissas]
    inside = [tick for tick in ticks if low <= tick <= high]
    return Axis(label, low, high, tuple((tick, text(tick)) for tick in inside), log=True)


def at_values(label: str, values: Iterable[float], text: Text, *, log: bool) -> Axis:
    """A tick at each value, as for the stages of a sweep; labels that would overlap are left out when drawn."""
    ordered = sorted(set(values))
    low, high = (ordered[0] / 1.35, ordered[-1] * 1.35) if log else (0.0, ordered[-1] * 1.08 or 1.0)
    return Axis(label, low, high, tuple((value, text(value)) for value in ordered), log=log)


def _round_step(rough: float) -> float:
    scale = 10.0 ** math.floor(math.log10(rough))
    return next(scale * mantissa for mantissa in (1, 2, 2.5, 5, 10) if rough <= scale * mantissa * (1 + 1e-9))


class Frame(msgspec.Struct, frozen=True):
    """The plot area inside an SVG of width × height, in pixels."""

    width: float
    height: float
    left: float
    right: float  # x of the right edge of the plot area
    x: Axis
    y: Axis

    @property
    def top(self) -> float:
        return _TOP

    @property
    def bottom(self) -> float:
        return self.height - _BOTTOM

    def px(self, value: float) -> float:
        return self.left + (self.right - self.left) * self.x.at(value)

    def py(self, value: float) -> float:
        return self.bottom - (self.bottom - self.top) * self.y.at(value)


def plot_height(height: float) -> float:
    """Pixels that are left for a y axis."""
    return height - _TOP - _BOTTOM


def frame(width: float, height: float, x: Axis, y: Axis, ends: Sequence[str] = (), left_min: float = 0.0) -> Frame:
    """Margins as wide as the tick labels and the labels at the ends of lines (`ends`) need."""
    left = max(left_min, *(text_px(text) + 8 for _, text in y.ticks), 8)
    last = max((text_px(text) / 2 for _, text in x.ticks[-1:]), default=0.0)
    right = width - max(_EDGE + 4, last, *(text_px(text) + 14 for text in ends), 0)
    return Frame(width, height, left, right, x, y)


def text_px(text: str) -> float:
    """At most about how wide a text is."""
    return sum(_WIDE_PX if letter in "%mMW+−" else _LETTER_PX for letter in text)


def svg(f: Frame, marks: Iterable[str], label: str, variant: str) -> str:
    """The whole chart. `marks` in drawing order; what lies outside the plot area is clipped in `clipped`."""
    head = (
        f'<svg class="chart {variant}" viewBox="0 0 {_n(f.width)} {_n(f.height)}" role="img" '
        f'aria-label="{escape(label)}" xmlns="http://www.w3.org/2000/svg">'
    )
    return "".join([head, _axes(f), *marks, "</svg>"])


def clipped(f: Frame, *marks: str) -> str:
    """The marks, cut at the plot area: a nested viewport needs no id, so nothing can clash."""
    x, y, width, height = f.left, f.top, f.right - f.left, f.bottom - f.top
    box = " ".join(_n(value) for value in (x, y, width, height))
    return (
        f'<svg x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" height="{_n(height)}" viewBox="{box}">{"".join(marks)}</svg>'
    )


def _axes(f: Frame) -> str:
    parts = []
    for value, text in f.y.ticks:
        y = f.py(value)
        parts.append(f'<path class="grid" d="M{_n(f.left)} {_n(y)}H{_n(f.right)}"/>')
        parts.append(_text(f.left - 6, y + 4, text, "tick end"))
    free_from = -math.inf
    for value, text in f.x.ticks:
        x, half = f.px(value), text_px(text) / 2
        parts.append(f'<path class="axis" d="M{_n(x)} {_n(f.bottom)}v4"/>')
        if x - half >= free_from:
            parts.append(_text(x, f.bottom + 17, text, "tick mid"))
            free_from = x + half + 6
    parts.append(f'<path class="axis" d="M{_n(f.left)} {_n(f.bottom)}H{_n(f.right)}"/>')
    parts.append(_text(0, 13, f.y.label, "name"))
    parts.append(_text(f.right, f.height - 5, f.x.label, "name end"))
    return "".join(parts)


def line(f: Frame, points: Sequence[Point], style: str) -> str:
    """A polyline; `style` are classes."""
    return f'<path class="line {style}" d="{_path(f, points)}"/>' if len(points) > 1 else ""


def band(f: Frame, points: Sequence[tuple[float, float, float]], style: str) -> str:
    """Between the low and the high ends at each x: (x, low, high)."""
    low = _path(f, [(x, low) for x, low, _ in points])
    high = _path(f, [(x, high) for x, _, high in reversed(points)])
    return f'<path class="band {style}" d="{low}{high.replace("M", "L", 1)}Z"/>' if len(points) > 1 else ""


def stairs(f: Frame, points: Sequence[Point], style: str) -> str:
    """A line that stays level up to each x and jumps there to its y: an empirical distribution."""
    out = [f"M{_n(f.px(points[0][0]))} {_n(f.py(points[0][1]))}"]
    out += [f"H{_n(f.px(x))}V{_n(f.py(y))}" for x, y in points[1:]]
    return f'<path class="line {style}" d="{"".join(out)}"/>'


def steps(f: Frame, values: Sequence[float], width: float, style: str) -> str:
    """An area of one step a bin: values[i] holds from i × width to (i + 1) × width."""
    if not values:
        return ""
    base, out, last = f.bottom, [f"M{_n(f.px(0))} {_n(f.bottom)}"], None
    for index, value in enumerate(values):
        if value != last:
            out.append(f"V{_n(f.py(value))}")
            last = value
        out.append(f"H{_n(f.px(min((index + 1) * width, f.x.high)))}")
    out.append(f"V{_n(base)}Z")
    return f'<path class="area {style}" d="{"".join(out)}"/>'


def hovers(f: Frame, values: Sequence[float], width: float, text: Text) -> str:
    """Invisible columns that show the value of a bin as a tooltip."""
    out = []
    for index, value in enumerate(values):
        left, right = f.px(index * width), f.px(min((index + 1) * width, f.x.high))
        title = f"{index * width:g} s: {text(value)}"
        out.append(
            f'<rect class="hover" x="{_n(left)}" y="{_n(f.top)}" width="{_n(right - left)}" '
            f'height="{_n(f.bottom - f.top)}" data-x="{index * width!r}" data-y="{value!r}">'
            f"<title>{escape(title)}</title></rect>"
        )
    return "".join(out)


def dot(f: Frame, x: float, y: float, title: str, style: str, radius: float = 4.5, shift_px: float = 0.0) -> str:
    """A point with its exact values and a tooltip; `shift_px` moves it aside from others at the same x."""
    return (
        f'<circle class="dot {style}" cx="{_n(f.px(x) + shift_px)}" cy="{_n(f.py(y))}" r="{radius}" data-x="{x!r}" '
        f'data-y="{y!r}"><title>{escape(title)}</title></circle>'
    )


def whisker(f: Frame, x: float, low: float, high: float, style: str, shift_px: float = 0.0) -> str:
    """An upright bar from `low` to `high` at x, with a cap at each end; it ends with the plot area."""
    at, bottom, top = f.px(x) + shift_px, min(f.py(low), f.bottom), max(f.py(high), f.top)
    return (
        f'<path class="whisker {style}" d="M{_n(at)} {_n(bottom)}V{_n(top)}M{_n(at - 3)} {_n(bottom)}h6'
        f'M{_n(at - 3)} {_n(top)}h6" data-low="{low!r}" data-high="{high!r}"/>'
    )


def reach(f: Frame, y: float, low: float, high: float, style: str) -> str:
    """A lying bar from `low` to `high` at y, with a cap at each end."""
    at, left, right = f.py(y), f.px(low), f.px(high)
    return (
        f'<path class="whisker {style}" d="M{_n(left)} {_n(at)}H{_n(right)}M{_n(left)} {_n(at - 4)}v8'
        f'M{_n(right)} {_n(at - 4)}v8" data-low="{low!r}" data-high="{high!r}"/>'
    )


def mark(f: Frame, x: float, text: str, style: str = "note") -> str:
    """A dotted vertical line with a label at its head, on the side that has room."""
    at, wide = f.px(x), text_px(text)
    right = at + wide + 6 > f.right
    label = _text(at - 4 if right else at + 4, f.top - 5, text, f"{style} end" if right else style)
    return f'<path class="knee" d="M{_n(at)} {_n(f.top)}V{_n(f.bottom)}"/>{label}'


def cloud(f: Frame, points: Iterable[Point], style: str, jitter_px: float = 0.0) -> str:
    """Many faint points in one path. `jitter_px` spreads those of one x, by a fixed sequence (golden ratio)."""
    out = []
    for index, (x, y) in enumerate(points):
        shift = ((index * 0.618034) % 1.0 - 0.5) * 2 * jitter_px
        out.append(f"M{_n(f.px(x) + shift)} {_n(f.py(y))}h0")
    return f'<path class="cloud {style}" d="{"".join(out)}"/>' if out else ""


def cross(f: Frame, x: float, y_px: float, title: str) -> str:
    """A failure at a time."""
    return (
        f'<path class="cross" d="M{_n(f.px(x) - 3)} {_n(y_px - 3)}l6 6m0 -6l-6 6" data-x="{x!r}">'
        f"<title>{escape(title)}</title></path>"
    )


def shade(f: Frame, start: float, end: float, style: str) -> str:
    """A span of the x axis."""
    left, right = f.px(start), f.px(end)
    return (
        f'<rect class="shade {style}" x="{_n(left)}" y="{_n(f.top)}" width="{_n(max(right - left, 0))}" '
        f'height="{_n(f.bottom - f.top)}"/>'
    )


def upright(f: Frame, x: float, text: str) -> str:
    """A dotted vertical line with a label at its foot, on the side that has room."""
    at, wide = f.px(x), text_px(text)
    if at - wide - 6 > f.left:
        label = _text(at - 6, f.bottom - 8, text, "note end")
    else:
        label = _text(at + 6, f.bottom - 8, text, "note")
    return f'<path class="knee" d="M{_n(at)} {_n(f.top)}V{_n(f.bottom)}"/>{label}'


def level(f: Frame, y: float, end: float, text: str) -> str:
    """A dotted horizontal line up to x = `end`, where the labels of lines begin, with its own label at the left."""
    at = f.py(y)
    label = _text(f.left + 6, at - 5, text, "note faint")
    return f'<path class="knee" d="M{_n(f.left)} {_n(at)}H{_n(f.px(end))}"/>{label}'


def span_labels(f: Frame, spans: Sequence[tuple[float, float, Sequence[str], str]]) -> str:
    """A text above each span (start, end, texts, style): the first text with which all fit, else what fits."""
    choices = range(min((len(texts) for _, _, texts, _ in spans), default=0))

    def fits(start: float, end: float, text: str) -> bool:
        return text_px(text) <= f.px(end) - f.px(start)

    choice = next((i for i in choices if all(fits(a, b, texts[i]) for a, b, texts, _ in spans)), -1)
    return "".join(
        _text((f.px(start) + f.px(end)) / 2, f.top - 4, texts[choice], f"mid stage {style}")
        for start, end, texts, style in spans
        if fits(start, end, texts[choice])
    )


def end_labels(f: Frame, ends: Sequence[tuple[float, float, str, str]]) -> str:
    """Labels (x, y, text, style) right of the ends of lines, moved apart where they would overlap."""
    gap = FONT_PX + 2.0
    places = sorted((f.py(y), f.px(x), text, style) for x, y, text, style in ends)
    heights: list[float] = []
    for y, *_ in places:
        heights.append(max(y, heights[-1] + gap) if heights else max(y, f.top + 4))
    excess = heights[-1] - f.bottom if heights else 0.0
    for index in range(len(heights) - 1, -1, -1):
        if excess <= 0:
            break
        ceiling = f.bottom if index == len(heights) - 1 else heights[index + 1] - gap
        heights[index] = min(heights[index], ceiling)
    return "".join(
        _text(x + 9, y + 4, text, f"note {style}") for (_, x, text, style), y in zip(places, heights, strict=True)
    )


def _text(x: float, y: float, text: str, style: str) -> str:
    return f'<text class="{style}" x="{_n(x)}" y="{_n(y)}">{escape(text)}</text>'


def _path(f: Frame, points: Sequence[Point]) -> str:
    return "M" + "L".join(f"{_n(f.px(x))} {_n(f.py(y))}" for x, y in points)


def _n(value: float) -> str:
    """A coordinate: a tenth of a pixel is enough."""
    return f"{value:.1f}".removesuffix(".0")
