"""The pieces of report.html: bins, samples and distributions of rows, axes for every input, colours."""

from __future__ import annotations

import itertools
import math
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import sample_runs
from hypothesis import given
from hypothesis import strategies as st

from tokenswarm.measure.sketch import RELATIVE_ERROR, Sketch
from tokenswarm.measure.snapshot import Merged
from tokenswarm.reports.html import figure, run
from tokenswarm.reports.html.requests import Bins, ChartRow, Drawn, Sample, cdf
from tokenswarm.reports.html.svg import Axis, clock, frame, linear, logarithmic, number, seconds, text_px, time

SPANS = st.lists(
    st.tuples(st.floats(-5, 60), st.floats(0, 70), st.floats(0, 100)).map(lambda s: (s[0], s[0] + s[1], s[2])),
    max_size=20,
)


@given(SPANS, st.sampled_from([0.25, 1.0, 7.0]))
def test_bins_hold_the_integral(spans: list[tuple[float, float, float]], width: float) -> None:
    bins = Bins(width, 8)
    for start, end, rate in spans:
        bins.step([start], rate)
        bins.step([end], -rate)
    for i, mean in enumerate(bins.means()):
        covered = sum(r * max(0.0, min(end, (i + 1) * width) - max(start, i * width)) for start, end, r in spans)
        assert mean * width == pytest.approx(covered, rel=1e-9, abs=1e-7)


def test_a_distribution_is_that_of_the_values() -> None:
    draw = sample_runs.lognormal(0.1, 0.7)
    values = sorted(draw(i) for i in range(500))
    points = cdf(Sketch(values), points_max=1000)
    assert points[0] == (values[0], 0.0)
    assert points[-1] == (values[-1], 1.0)
    for value, share in points[1:]:
        low = sum(v <= value * (1 - 2 * RELATIVE_ERROR) for v in values) / 500
        high = sum(v <= value * (1 + 2 * RELATIVE_ERROR) for v in values) / 500
        assert low <= share <= high
    assert len(cdf(Sketch(values), points_max=20)) <= 21
    assert cdf(Sketch()) == []


def test_a_sample_is_bounded_and_fair() -> None:
    counts = [0] * 40
    for seed in range(400):
        sample: Sample[int] = Sample(10, seed)
        for i in range(0, 40, 1 + seed % 7):
            sample.offer(range(i, min(40, i + 1 + seed % 7)))
        assert len(set(sample.items)) == 10
        assert sample.n == 40
        for i in sample.items:
            counts[i] += 1
    assert all(60 <= count <= 140 for count in counts)  # 100 ± 4.6 standard deviations, and the seeds are fixed


@given(st.floats(-1e12, 1e12), st.floats(-1e12, 1e12), st.floats(1e-9, 1e9), st.integers(0, 10**12))
def test_no_row_breaks_the_page(first: float, last: float, duration_s: float, tokens: int) -> None:
    drawn = Drawn(duration_s)
    for stage in (0, 99):
        drawn.add([
            ChartRow(stage=stage, phase="steady", outcome="ok", intended_s=first, sent_s=first, first_s=last,
                     last_s=last, done_s=last, ttft_s=last, tpot_s=first, e2e_s=last, itl_mean_s=last,
                     output_tokens=tokens)
        ])  # fmt: skip
    assert all(math.isfinite(value) for value in (*drawn.tokens.means(), *drawn.in_flight.means()))
    data = figure.Data(sample_runs.summary(Merged(run_id="x")), drawn)
    for chart in itertools.chain(run.times(data), run.distributions(data)):
        if chart.draw is not None:
            ElementTree.fromstring(figure.render(chart))


@given(st.floats(1e-6, 1e9), st.integers(60, 1200))
def test_linear_ticks_are_round_few_and_cover(high: float, pixels: int) -> None:
    axis = linear("x", high, pixels, number)
    values = [value for value, _ in axis.ticks]
    assert axis.low == 0
    assert axis.high >= high * (1 - 1e-9)
    assert 2 <= len(values) <= pixels / 48 + 3
    step = values[1]
    assert round(step / 10 ** math.floor(math.log10(step) + 1e-9), 6) in (1, 2, 2.5, 5, 10)
    assert len({text for _, text in axis.ticks}) == len(values)


@given(st.floats(1e-6, 1e6), st.floats(1, 1e8), st.integers(100, 1200))
def test_logarithmic_ticks_lie_inside(low: float, factor: float, pixels: int) -> None:
    axis = logarithmic("x", [low, low * factor], pixels, seconds)
    assert axis.ticks == tuple(sorted(axis.ticks))
    assert all(axis.low <= value <= axis.high for value, _ in axis.ticks)
    assert 0 < axis.at(low) <= axis.at(low * factor) < 1


@given(st.floats(0.05, 1e8), st.integers(250, 1200))
def test_time_ticks_have_room(end_s: float, pixels: int) -> None:
    axis = time("t", end_s, pixels)
    f = frame(pixels, 250, axis, Axis("y", 0, 1, ()))
    edges = [(f.px(value) - text_px(text) / 2, f.px(value) + text_px(text) / 2) for value, text in axis.ticks]
    assert all(right < left for (_, right), (left, _) in itertools.pairwise(edges))
    assert len({text for _, text in axis.ticks}) == len(axis.ticks)


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.5, "0.5 s"), (90, "1.5 min"), (45, "45 s"), (5400, "1.5 h"), (172_800, "2 d")]
)
def test_times_since_the_start_read_well(value: float, text: str) -> None:
    assert clock(value) == text


STYLE = (Path(figure.__file__).parent / "style.css").read_text(encoding="utf-8")


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_colours_can_be_read(theme: int) -> None:
    """WCAG: 4.5:1 for text, 3:1 for marks; stages also differ in lightness alone, in order."""
    blocks = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
    colours = dict(re.findall(r"--([\w]+): (#[0-9a-f]{6});", blocks[theme]))
    card = luminance(colours["card"])

    def contrast(name: str) -> float:
        high, low = sorted((luminance(colours[name]), card), reverse=True)
        return (high + 0.05) / (low + 0.05)

    assert [
        name for name in ("ink", "soft", "p50", "tail", "bad", "good", "warn", "tokens") if contrast(name) < 4.5
    ] == []
    stages = [f"k{i}" for i in range(figure.COLOURS)]
    assert [name for name in stages if contrast(name) < 3] == []
    assert [luminance(colours[name]) for name in stages] == sorted(luminance(colours[name]) for name in stages)
