"""The charts of a comparison: effects, both distributions, percentiles with their bars, and every run in its order.

The baseline is blue and drawn whole, the new side orange and dashed. Where stored numbers stand for runs whose rows are
elsewhere, what only rows tell is left out, and the page says why.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import msgspec

from tokenswarm.measure.sketch import Sketch
from tokenswarm.reports.cells import LATENCY_NAMES
from tokenswarm.reports.html.figure import PERCENTILE_NAMES, Drawing, Figure, left_out
from tokenswarm.reports.html.requests import cdf
from tokenswarm.reports.html.samples import Sampled
from tokenswarm.reports.html.svg import (
    Axis,
    Text,
    dot,
    end_labels,
    frame,
    line,
    linear,
    logarithmic,
    number,
    percent,
    plot_height,
    reach,
    seconds,
    stairs,
    whisker,
)
from tokenswarm.reports.numbers import of_limit, of_metric
from tokenswarm.result.comparison import Comparison, Finding, Open, Run

LETTERS, STYLES = ("A", "B"), ("side-a", "side-b")
WORD_STYLES = {"better": "word-better", "same": "word-same", "worse": "word-worse", "can't tell": "word-cant"}
APART_PX = 5.0  # of the two sides' marks at one percentile

SHOWN = ("ttft_s", "itl_s", "tpot_s", "e2e_s")  # latencies whose percentiles are drawn
ROW_NAMES = {"ttft_s": "TTFT", "itl_mean_s": "Mean ITL of a request", "tpot_s": "TPOT", "e2e_s": "E2E"}
OTHER_NAMES = {"output_tokens_per_s": "tokens/s", "requests_per_s": "requests/s", "ok_ratio": "ok"}


class Pair(msgspec.Struct, frozen=True):
    """What is drawn: the comparison, its runs, and the rows of those whose folders are at hand. Baseline first."""

    found: Comparison
    runs: tuple[Sequence[Run], Sequence[Run]]
    rows: tuple[Sequence[Sampled], Sequence[Sampled]]

    @property
    def names(self) -> tuple[str, str]:
        return self.found.a.name, self.found.b.name


def short(metric: str) -> str:
    """`ttft_s.p50` as TTFT p50."""
    name, _, which = metric.partition(".")
    if metric in OTHER_NAMES:
        return OTHER_NAMES[metric]
    return f"{LATENCY_NAMES.get(name, name)} {PERCENTILE_NAMES.get(which, which)}".strip()


def change(value: float) -> str:
    """A tick or label of a change, a share: +12%, −3.5%, 0."""
    text = f"{abs(value) * 100:.3g}%"
    return "0" if value == 0 else f"{'−' if value < 0 else '+'}{text}"


def effects(pair: Pair) -> Figure:
    """The change of each metric with its interval, over the margin within which a change is none."""
    name, title = "effects", "Change of each metric"
    told = [(f, f.ratio, _ends(f)) for f in pair.found.findings if f.ratio is not None]
    if not told:
        return left_out(name, title, "no metric has a value in every run")

    def draw(width: float, height: float) -> Drawing:
        height = max(height, 74.0 + 19 * len(told))
        ends = [end for f, ratio, open_ in told for end in (ratio, *open_, 1 + f.margin, 1 / (1 + f.margin))]
        x = linear("B / A − 1", max(ends) - 1, width * 0.6, change, min(ends) - 1, 70)
        ticks = tuple((float(index), short(f.metric)) for index, (f, *_) in enumerate(told))
        f = frame(width, height, x, Axis("", len(told) - 0.4, -0.6, ticks))
        marks = [f'<path class="zero" d="M{f.px(0):.1f} {f.top}V{f.bottom}"/>']
        for index, (one, ratio, open_) in enumerate(told):
            left, right, at = f.px(1 / (1 + one.margin) - 1), f.px(one.margin), f.py(index)
            marks.append(
                f'<rect class="within" x="{left:.1f}" y="{at - 8:.1f}" width="{right - left:.1f}" height="16"/>'
            )
            style, label = WORD_STYLES[one.word], f"{short(one.metric)}: {change(ratio - 1)}"
            if open_:
                marks.append(reach(f, index, open_[0] - 1, open_[1] - 1, style))
                label += f", {change(open_[0] - 1)} to {change(open_[1] - 1)}"
            marks.append(dot(f, ratio - 1, index, f"{label}: {one.word}", style))
        return f, marks

    caption = (
        "The new side against the baseline, as measured between runs. Grey: the margin, within which a change is none. "
        "Left is less: better for a latency, worse for a throughput or a share that succeeds."
    )
    if not all(open_ for *_, open_ in told):
        caption += " No bar: one run a side has no interval."
    return Figure(name=name, title=title, caption=caption, draw=draw, wide=True)


def _ends(finding: Finding) -> tuple[float, float] | tuple[()]:
    return () if finding.low is None or finding.high is None else (finding.low, finding.high)


def distributions(pair: Pair) -> list[Figure]:
    """The share of requests within a time: each run faint, its side together."""
    return [_distribution(pair, field, title) for field, title in ROW_NAMES.items()]


def _distribution(pair: Pair, field: str, title: str) -> Figure:
    name = f"cdf-{field.removesuffix('_s').replace('_', '-')}"
    sides = [[one.sketches[field] for one in side if one.sketches[field].n > 1] for side in pair.rows]
    if not all(sides):
        reasons = [one.reason for side in pair.rows for one in side if one.reason]
        stored = next((n for n, side in zip(pair.names, pair.rows, strict=True) if not side), "")
        why = f"the requests of {stored} are not at hand, only its stored numbers" if stored else ""
        return left_out(name, f"{title}: share of requests within", why or next(iter(reasons), "no request has it"))
    drawn = [(style, [cdf(s) for s in side], cdf(_merged(side))) for style, side in zip(STYLES, sides, strict=True)]

    def draw(width: float, height: float) -> Drawing:
        values = [at for _, _, points in drawn for at, _ in points]
        x = logarithmic(f"{title}, logarithmic", values, width * 0.8, seconds, 56)
        f = frame(width, height, x, linear("requests", 1.0, plot_height(height), percent))
        singles = [stairs(f, one, f"curve single {style}") for style, runs, _ in drawn for one in runs if len(runs) > 1]
        return f, [*singles, *(stairs(f, points, f"curve {style}") for style, _, points in drawn)]

    parted = [one for side in pair.rows for one in side if not one.whole]
    caption = "Thick: all requests of a side together. Faint: each run, whose spread is what a difference is held to."
    if parted:
        caption += f" Of large runs, about {parted[0].rows} evenly spaced requests are drawn."
    lacking = [one.reason for side in pair.rows for one in side if one.reason]
    if lacking:
        caption += f" Not all of it is here: {'; '.join(lacking)}."
    return Figure(name=name, title=f"{title}: share of requests within", caption=caption, draw=draw)


def _merged(sketches: Sequence[Sketch]) -> Sketch:
    whole = Sketch()
    for sketch in sketches:
        whole.merge(sketch)
    return whole


def percentiles(pair: Pair) -> list[Figure]:
    """Each percentile of both sides, with a bar over all that its runs and the instrument leave open."""
    return [_percentiles(pair, field, LATENCY_NAMES[field]) for field in SHOWN]


def _percentiles(pair: Pair, field: str, title: str) -> Figure:
    name = f"percentiles-{field.removesuffix('_s')}"
    spans = [_spans(runs, field) for runs in pair.runs]
    shown = [which for which in ("p50", "p90", "p95", "p99", "p999") if all(which in side for side in spans)]
    if not shown:
        return left_out(name, f"{title}: percentiles", "no percentile of it has enough samples on both sides")

    def draw(width: float, height: float) -> Drawing:
        ends = [end for side in spans for which in shown for end in side[which][1:] if end is not None]
        y = logarithmic(f"{title}, logarithmic", ends, plot_height(height), seconds)
        ticks = tuple((float(index), PERCENTILE_NAMES[which]) for index, which in enumerate(shown))
        f = frame(width, height, Axis("percentile", -0.5, len(shown) - 0.5, ticks), y, LETTERS)
        marks, labels = [], []
        for side, (style, by_name, named) in enumerate(zip(STYLES, spans, pair.names, strict=True)):
            aside = APART_PX * (2 * side - 1)
            for index, which in enumerate(shown):
                value, low, high = by_name[which]
                told = f"{named}: {title} {PERCENTILE_NAMES[which]} {seconds(value)}"
                if high is not None:
                    marks.append(whisker(f, index, low, high, style, aside))
                    told += f", from {seconds(low)} to {seconds(high)}"
                marks.append(dot(f, index, value, told, style, 3.6, aside))
            labels.append((len(shown) - 1.0, by_name[shown[-1]][0], LETTERS[side], style))
        return f, [*marks, end_labels(f, labels)]

    caption = (
        "Dots: the median of the runs. Bars: from the least to the largest run, with what the instrument leaves open."
    )
    return Figure(name=name, title=f"{title}: percentiles of both sides", caption=caption, draw=draw)


def _spans(runs: Sequence[Run], field: str) -> dict[str, Open]:
    """By percentile that every run has: (median of the runs, the lowest end of a bar, the highest)."""
    told = [run.percentiles.get(field, {}) for run in runs]
    found: dict[str, Open] = {}
    for which in PERCENTILE_NAMES:
        if not told or not all(which in one for one in told):
            continue
        values = sorted(one[which][0] for one in told)
        highs = [one[which][2] for one in told]
        middle = (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2
        high = None if None in highs else max(high for high in highs if high is not None)
        found[which] = (middle, min(one[which][1] for one in told), high)
    return found


def runs(pair: Pair) -> list[Figure]:
    """The number of each run, in the order in which they were made: what drifted on the machine shows here."""
    return [_runs(pair, finding) for finding in pair.found.findings]


def _runs(pair: Pair, finding: Finding) -> Figure:
    name, title = f"runs-{finding.metric.replace('_', '-').replace('.', '-')}", f"{short(finding.metric)} of each run"
    points = in_order(pair, finding)
    values = [value for *_, value, _ in points]
    if not values:
        return left_out(name, title, "no run has it")

    def draw(width: float, height: float) -> Drawing:
        ends = [e for *_, value, bar in points for e in (value, *([bar[1], bar[2]] if bar else [])) if e is not None]
        y = spanning(finding.metric, ends, plot_height(height))
        last = max(place for place, *_ in points)
        step = max(1, math.ceil(last / (width / 45)))
        ticks = tuple((float(n), str(n)) for n in range(1, last + 1, step))
        f = frame(width, height, Axis("run, in the order they were made", 0.4, last + 0.6, ticks), y)
        marks = []
        for side, style in enumerate(STYLES):
            own = [(float(place), value) for place, of, _, value, _ in points if of == side]
            marks.append(line(f, own, f"single {style}"))
        for place, side, run_id, value, bar in points:
            if bar and bar[2] is not None:
                marks.append(whisker(f, place, bar[1], bar[2], STYLES[side]))
            told = f"{pair.names[side]}, {run_id}: {of_metric(finding.metric, value)}"
            marks.append(dot(f, place, value, told, STYLES[side]))
        return f, marks

    return Figure(name=name, title=title, caption="Bars: what the instrument leaves open.", draw=draw)


def in_order(pair: Pair, finding: Finding) -> list[tuple[int, int, str, float, Open | None]]:
    """(place from 1, side, run id, value, bar) of each run that has a value; by time where every run tells it."""
    everything = [(side, run, i) for side, runs_ in enumerate(pair.runs) for i, run in enumerate(runs_)]
    if all(run.started for _, run, _ in everything):
        everything.sort(key=lambda one: (one[1].started, one[1].run_id))
    found = []
    for place, (side, run, i) in enumerate(everything, 1):
        value = (finding.a, finding.b)[side][i]
        field, _, which = finding.metric.partition(".")
        bar = run.percentiles.get(field, {}).get(which)
        if value is not None:
            same = bar is not None and math.isclose(
                bar[0], value, rel_tol=1e-9
            )  # of a sweep it is not: a mean has none
            found.append((place, side, run.run_id, value, bar if same else None))
    return found


def spanning(metric: str, ends: Sequence[float], pixels: float) -> Axis:
    """A linear axis around a metric's values: it need not begin at 0, as runs differ by little. A share ends at 1."""
    share = metric.endswith("_ratio")
    room = (max(ends) - min(ends)) * 0.15 or max(ends) * 0.05
    low, high = max(0.0, min(ends) - room), max(ends) + room
    if share:
        high = min(high, max(1.0, *ends))
    text: Text = partial(of_limit, metric) if share else number if metric.endswith("_per_s") else seconds
    return linear(short(metric), high, pixels, text, low)
