"""The charts of the single requests: how latencies are distributed, and what happened over the time of the run."""

from __future__ import annotations

from collections.abc import Sequence

from tokenswarm.measure.sketch import Sketch, Tally
from tokenswarm.measure.statistics import enough
from tokenswarm.reports.html.figure import PERCENTILE_NAMES, Data, Drawing, Figure, left_out, load_name, load_of
from tokenswarm.reports.html.requests import ROLLING_BINS, cdf
from tokenswarm.reports.html.svg import (
    Frame,
    clipped,
    cloud,
    cross,
    end_labels,
    frame,
    hovers,
    line,
    linear,
    logarithmic,
    number,
    percent,
    plot_height,
    seconds,
    shade,
    span_labels,
    stairs,
    steps,
    time,
)
from tokenswarm.reports.numbers import duration, quantity
from tokenswarm.result.summary import PERCENTILES

_LEFT_PX, _ENDS = 56.0, ("p99",)  # the same margins for all charts over time, so that their axes line up
HOVERS_MAX = 200
ROLLING_OVER = 3  # a rolling percentile looks at so many neighbouring bins

_CDFS = (
    ("ttft_s", "TTFT", "Sent to first token. A step far to the right: some requests queued."),
    ("itl_mean_s", "Mean ITL of a request", "Mean gap between tokens of each request, after the first token."),
    ("tpot_s", "TPOT", "Decode time for each output token: the speed at which an answer streams."),
    ("e2e_s", "E2E", "Sent to last byte. It grows with the length of the answer, too."),
)  # fmt: skip


def distributions(data: Data) -> list[Figure]:
    """A cumulative distribution for each latency, a line a stage."""
    return [_distribution(data, field, short, caption) for field, short, caption in _CDFS]


def _distribution(data: Data, field: str, short: str, caption: str) -> Figure:
    name, title = f"cdf-{field.removesuffix('_s').replace('_', '-')}", f"{short}: share of requests within"
    curves: list[tuple[str, list[tuple[float, float]]]] = []
    for number_, rows in sorted(data.rows.stages.items()):
        tally = rows.tallies[field]
        if tally.n > 1:
            curves.append((data.colour(number_), cdf(tally.sketch())))
    if not curves:
        return left_out(
            name, title, data.rows.reason or "fewer than two successful requests of the steady windows have it"
        )

    def draw(width: float, height: float) -> Drawing:
        x = logarithmic(
            f"{short}, logarithmic", [at for _, points in curves for at, _ in points], width * 0.8, seconds, 56
        )
        y = linear("requests", 1.0, plot_height(height), percent)
        f = frame(width, height, x, y)
        return f, [stairs(f, points, f"curve {colour}") for colour, points in curves]

    return Figure(name=name, title=title, caption=caption, draw=draw)


def times(data: Data) -> list[Figure]:
    """Requests in flight, output tokens/s and TTFT over the run."""
    rows = data.rows
    in_flight, tokens = rows.in_flight.means(), rows.tokens.means()
    figures = []
    if not any(in_flight):
        figures.append(left_out("time-in-flight", "Requests in flight", rows.reason or "no request was sent"))
    else:
        what = f"Mean of each {seconds(rows.bin_s)}. Shaded: the steady windows; between them users change and settle."
        if rows.failures.n:
            shown = len(rows.failures.items)
            some = f", {shown} of {rows.failures.n} shown" if rows.failures.n > shown else ""
            what += f" Crosses: failed requests, when they ended{some}."
        figures.append(_over_time(data, "time-in-flight", "Requests in flight", "requests", in_flight, "flight", what))
    if not any(tokens):
        reason = rows.reason or "no request succeeded"
        figures.append(left_out("time-tokens", "Output tokens per second", reason))
    else:
        what = (
            "Of successful requests. A row holds the times of its first and last token, and the others are spread "
            "evenly between; the tables count each where it arrived."
        )
        title = "Output tokens per second"
        figures.append(_over_time(data, "time-tokens", title, "tokens/s", tokens, "tokens", what))
    figures.append(_ttft_over_time(data))
    return figures


def _over_time(
    data: Data, name: str, title: str, unit: str, values: Sequence[float], style: str, caption: str
) -> Figure:
    def draw(width: float, height: float) -> Drawing:
        x = time("time since the start", data.rows.duration_s, width)
        y = linear(unit, max(values), plot_height(height), number)
        f = frame(width, height, x, y, _ENDS, _LEFT_PX)
        marks = [*_stages(data, f), steps(f, values, data.rows.bin_s, style), *_failures(data, f)]
        if len(values) <= HOVERS_MAX and width > 600:
            marks.append(hovers(f, values, data.rows.bin_s, lambda value: f"{quantity(value)} {unit}"))
        return f, [*marks, _stage_names(data, f)]

    return Figure(name=name, title=title, caption=caption, draw=draw, wide=True)


def _ttft_over_time(data: Data) -> Figure:
    name, title, rows = "time-ttft", "TTFT of each request", data.rows
    points = rows.ttft.items
    if not points:
        return left_out(name, title, rows.reason or "no successful request gave a first token")
    by_stage: dict[int, list[tuple[float, float]]] = {}
    for at, value, stage in points:
        by_stage.setdefault(stage, []).append((at, value))
    lines = _rolling(rows.rolling, rows.rolling_s)

    def draw(width: float, height: float) -> Drawing:
        x = time("time since the start (when it was sent)", rows.duration_s, width)
        y = logarithmic("TTFT, logarithmic", [value for _, value, _ in points], plot_height(height), seconds)
        f = frame(width, height, x, y, _ENDS, _LEFT_PX)
        clouds = [cloud(f, found, f"clear {data.colour(stage)}") for stage, found in sorted(by_stage.items())]
        drawn = [clipped(f, *(line(f, found, style) for _, style, found in lines))]
        ends = end_labels(f, [(*found[-1], label, style) for label, style, found in lines])
        return f, [*_stages(data, f), *clouds, *drawn, *_failures(data, f), _stage_names(data, f), ends]

    shown = f"A sample of {len(points)} of {rows.ttft.n} requests" if rows.ttft.n > len(points) else "Each request"
    caption = f"{shown}, coloured by stage."
    if lines:
        named = " and ".join(label for label, *_ in lines)
        caption += f" Lines: rolling {named}, where {duration(ROLLING_OVER * rows.rolling_s)} hold enough requests."
    return Figure(name=name, title=title, caption=caption, draw=draw, wide=True)


Rolling = tuple[str, str, list[tuple[float, float]]]  # label, classes, (time, value)


def _rolling(bins: Sequence[Tally], width_s: float) -> list[Rolling]:
    """The median, and the highest percentile that most windows with requests have enough samples for."""
    names = (("p50", "p50"), ("p99", "tail"), ("p95", "tail"), ("p90", "tail"))
    lines: dict[str, list[tuple[float, float]]] = {name: [] for name, _ in names}
    filled = 0
    for index in range(ROLLING_BINS):
        merged = Sketch()
        for near in bins[max(0, index - ROLLING_OVER // 2) : index + ROLLING_OVER // 2 + 1]:
            merged.merge(near.sketch())
        filled += merged.n > 0
        for name, value in zip(lines, merged.quantiles([PERCENTILES[name] for name in lines]), strict=True):
            if value and enough(PERCENTILES[name], merged.n):
                lines[name].append(((index + 0.5) * width_s, value))
    found: list[Rolling] = []
    for name, style in names:
        points = lines[name]
        if 2 * len(points) > filled and len(points) > 1 and not any(style == other for _, other, _ in found):
            found.append((PERCENTILE_NAMES[name], style, points))
    return found


def _stages(data: Data, f: Frame) -> list[str]:
    return [shade(f, start, end, style) for start, end, _, style in _windows(data)]


def _stage_names(data: Data, f: Frame) -> str:
    return span_labels(f, _windows(data))


def _windows(data: Data) -> list[tuple[float, float, tuple[str, str], str]]:
    """(start, end, names, colour) of each steady window, s since the start."""
    found = []
    for stage in data.stages:
        start, end, load = stage.steady_window.start_s, stage.steady_window.end_s, load_of(stage)
        if start is not None and end is not None:
            name = load_name(stage)
            found.append((start, end, (name, name if load is None else number(load)), data.colour(stage.stage)))
    return found


def _failures(data: Data, f: Frame) -> list[str]:
    return [cross(f, at, f.bottom - 7, f"{duration(at)}: {kind}") for at, kind in data.rows.failures.items]
