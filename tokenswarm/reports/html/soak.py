"""A long run: its windows over time, what drifts, what grows, what restarted."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tokenswarm.reports.html.figure import Data, Drawing, Figure, left_out
from tokenswarm.reports.html.svg import (
    Axis,
    Frame,
    Text,
    band,
    clipped,
    end_labels,
    escape,
    frame,
    line,
    linear,
    number,
    plot_height,
    seconds,
    time,
    upright,
)
from tokenswarm.reports.html.tables import Cell, table
from tokenswarm.reports.numbers import duration, quantity, ratio
from tokenswarm.result.soak import Soak, WindowTold, name_of
from tokenswarm.result.summary import Summary

MIB = 1 << 20
RESTARTS_SHOWN = 20
MEMORY_LINES = 6
STYLES = ("p50", "tail", "second", "mean", "ideal", "main")
LEFT_PX = 56.0

_LATENCIES = (
    ("ttft_s", "TTFT", "what a user waits for the first token"),
    ("tpot_s", "TPOT", "decode time of an output token"),
    ("itl_s", "ITL", "gaps between tokens"),
    ("e2e_s", "E2E", "the whole answer"),
)

Curve = tuple[str, str, list[tuple[float, float]]]  # label, classes, (s since the start, value)


def figures(data: Data) -> list[Figure]:
    """Latencies with a band from p50 to p99, rates, failures and memory, a point a window."""
    soak = data.summary.soak
    if soak is None or len(soak.windows) < 2:
        return []
    found = [_latency(data, soak, *names) for names in _LATENCIES]
    tokens, requests = ([(_middle(w), rate) for w in soak.windows if (rate := of(w)) is not None] for of in _RATES)
    curves = [("tokens/s", "p50", tokens)]
    found.append(
        _lines(data, soak, "windows-tokens", "Output tokens per second, by window", curves, number, "tokens/s")
    )
    curves = [("requests/s", "p50", requests)]
    found.append(_lines(data, soak, "windows-requests", "Requests per second, by window", curves, number, "requests/s"))
    failed = [("failed", "tail", [(_middle(w), w.failed_ratio) for w in soak.windows if w.failed_ratio is not None])]
    if soak.failed_in_restarts or any(w.failed for w in soak.windows):
        title = "Share of requests that failed, without restarts"
        found.append(_lines(data, soak, "windows-failed", title, failed, ratio, "of the requests"))
    found.append(_lines(data, soak, "windows-memory", "Memory", _memory(soak), number, "MiB, resident or on a GPU"))
    return found


_RATES: tuple[Callable[[WindowTold], float | None], ...] = (
    lambda window: window.output_tokens_per_s,
    lambda window: window.requests_per_s,
)


def _middle(window: WindowTold) -> float:
    return (window.start_s + window.end_s) / 2


def _mib(value: float) -> str:
    return f"{value / MIB:.{0 if abs(value) >= 10 * MIB else 1}f} MiB"


def _memory(soak: Soak) -> list[Curve]:
    """The largest first; more than MEMORY_LINES can't be told apart."""
    sizes: dict[str, list[tuple[float, float]]] = {}
    for window in soak.windows:
        for what, size in window.memory_bytes.items():
            sizes.setdefault(what, []).append((_middle(window), size / MIB))
    largest = sorted(sizes, key=lambda what: -max(size for _, size in sizes[what]))[:MEMORY_LINES]
    return [(_short(what), style, sizes[what]) for what, style in zip(largest, STYLES, strict=False)]


def _short(what: str) -> str:
    """`engine` of `engine 10.0.0.7:8000`, `GPU 7f3a…`: what fits beside a line; the table has it all."""
    kind, _, which = what.partition(" ")
    return kind.rstrip(",") if kind.startswith("engine") else f"{kind} {which[:8]}".rstrip()


def _latency(data: Data, soak: Soak, field: str, short: str, about: str) -> Figure:
    name, title = f"windows-{field.removesuffix('_s')}", f"{short}, by window"
    middles = [(_middle(w), w.latency[field].p50) for w in soak.windows if field in w.latency]
    p50 = [(at, value) for at, value in middles if value is not None]
    both = [
        (_middle(w), w.latency[field].p50, w.latency[field].p99)
        for w in soak.windows
        if field in w.latency and w.latency[field].p50 is not None and w.latency[field].p99 is not None
    ]
    if len(p50) < 2:
        return left_out(name, title, "fewer than two windows have enough requests for a median")
    inside = [(at, low, high) for at, low, high in both if low is not None and high is not None]
    tops = [high for *_, high in inside]

    def draw(width: float, height: float) -> Drawing:
        y = linear(short, max([value for _, value in p50] + tops), plot_height(height), seconds)
        f = _frame(data, y, width, height, ["p50", "p99"])
        marks = [band(f, inside, "p50"), line(f, p50, "p50"), line(f, [(at, top) for at, _, top in inside], "tail")]
        ends = [(*p50[-1], "p50", "p50"), *([(inside[-1][0], inside[-1][2], "p99", "tail")] if inside else [])]
        return f, [*_restarts(soak, f), clipped(f, *marks), end_labels(f, ends)]

    told = f" {_said(soak, field)}"
    tail = "The band reaches from p50 to p99" if inside else "Windows hold too few requests for a p99"
    caption = f"{short}: {about}. A point a window of {duration(soak.window_s)}. {tail}.{told}"
    return Figure(name=name, title=title, caption=caption, draw=draw)


def _lines(data: Data, soak: Soak, name: str, title: str, curves: Sequence[Curve], text: Text, unit: str) -> Figure:
    curves = [curve for curve in curves if len(curve[2]) > 1]
    if not curves:
        return left_out(name, title, "no two windows have it")
    top = max(value for _, _, points in curves for _, value in points)

    def draw(width: float, height: float) -> Drawing:
        f = _frame(data, linear(unit, top, plot_height(height), text), width, height, [label for label, *_ in curves])
        marks = [line(f, points, style) for _, style, points in curves]
        ends = [(*points[-1], label, style) for label, style, points in curves]
        return f, [*_restarts(soak, f), clipped(f, *marks), end_labels(f, ends)]

    return Figure(name=name, title=title, caption=f"A point a window of {duration(soak.window_s)}.", draw=draw)


def _frame(data: Data, y: Axis, width: float, height: float, ends: Sequence[str]) -> Frame:
    return frame(width, height, time("time since the start", data.rows.duration_s, width), y, ends, LEFT_PX)


def _restarts(soak: Soak, f: Frame) -> list[str]:
    return [upright(f, one.back_s, "restart") for one in soak.restarts[:RESTARTS_SHOWN]]


def _said(soak: Soak, field: str) -> str:
    """What the test says of this latency."""
    own = [one for one in soak.drift if one.metric.startswith(f"{field}.")]
    drifts = [f"{one.metric.partition('.')[2]} by {one.change:+.1%}" for one in own if one.drifts]
    if not own:
        return "Not tested for a drift: too few windows have it, or the load was not meant to be even."
    return f"It drifts: {', '.join(drifts)} from begin to end." if drifts else "No drift is found."


def tables(summary: Summary) -> str:
    """What was tested, what memory did, restarts; "" of a run without windows."""
    soak = summary.soak
    if soak is None:
        return ""
    tests: list[list[Cell]] = [
        [
            name_of(one.metric) + soak.where(one),
            "drifts" if one.drifts else "no",
            ratio(one.middle) if one.metric == "failed_ratio" else _value(one.metric, one.middle),
            f"{one.change:+.2%}",
            f"{one.p:.2g}",
            str(one.windows),
            f"{one.rho:.2f}",
        ]
        for one in soak.drift
    ]
    sizes: list[list[Cell]] = [
        [
            one.what + soak.where(one),
            "grows" if one.grows else "no",
            _mib(one.middle),
            _mib(one.change),
            f"{_mib(one.per_hour)}/h",
            f"{one.p:.2g}",
        ]
        for one in soak.memory
    ]
    came: list[list[Cell]] = [
        [
            one.url,
            duration(one.gone_s),
            duration(one.back_s - one.gone_s),
            str(one.failed),
            ", ".join(f"{n} {name}" for name, n in one.by_outcome.items()) or "none",
        ]
        for one in soak.restarts
    ]
    parts = [f'<p class="absent">{escape(soak.note)}</p>' if soak.note else ""]
    if tests:
        head = ("of a window", "drifts?", "median", ("change", "begin to end"), "p", "windows", ("ρ", "of neighbours"))
        parts.append(f"<h3>Drift</h3>{table(head, tests, (0, 1))}")
    if sizes:
        parts.append(f"<h3>Memory</h3>{table(('', 'grows?', 'median', 'change', 'rate', 'p'), sizes, (0, 1))}")
    if came:
        parts.append(f"<h3>Restarts</h3>{table(('engine', 'gone at', 'for', 'failed', 'as'), came, (0, 4))}")
    return "".join(parts)


def _value(metric: str, value: float) -> str:
    return f"{quantity(value)}/s" if metric.endswith("_per_s") else duration(value)
