"""The charts of a sweep: throughput over users and batch, latency over users, latency over throughput.

Points are the stages of summary.json. A percentile that a stage has too few samples for is not drawn there, and the
caption says so; the faint points behind are single requests, which need no sample size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tokenswarm.reports.html import lines, reported
from tokenswarm.reports.html.figure import (
    PERCENTILE_NAMES,
    Data,
    Draw,
    Drawing,
    Figure,
    best_percentile,
    left_out,
    load_name,
    load_of,
)
from tokenswarm.reports.html.lines import Series, load_axis, reason
from tokenswarm.reports.html.svg import (
    Axis,
    Frame,
    Point,
    band,
    clipped,
    cloud,
    dot,
    end_labels,
    frame,
    line,
    linear,
    logarithmic,
    number,
    plot_height,
    seconds,
    upright,
)
from tokenswarm.reports.numbers import duration, quantity
from tokenswarm.result.stat import Stat
from tokenswarm.result.summary import Stage

KNEE_RATIO = 0.9
"""The knee: the fewest users with so much of the best throughput. The dashboards use the same rule."""

STILL_GROWS = 0.8
"""Throughput gained by the last stage / load added, in shares: from here on more would go on to give more."""
QUEUED_MIN = 0.5  # requests waiting in the engine, mean: below it the queue was empty for most of the time


def figures(data: Data) -> list[Figure]:
    """The charts of the sweep, or why they are left out."""
    return [
        _throughput_over_load(data),
        _throughput_over_batch(data),
        _latency_over_load(data, "ttft_s", "ttft_s", "TTFT", "time to first token"),
        _latency_over_load(data, "itl_s", "itl_mean_s", "ITL", "gaps between tokens"),
        _latency_over_throughput(data),
        _speed_over_batch(data),
    ]


def knee(stages: Sequence[Stage]) -> Stage | None:
    """The stage with the fewest users among those with 90 % of the best throughput; None without a sweep."""
    known = [(load, stage) for stage in stages if (load := load_of(stage)) is not None and tokens_per_s(stage)]
    if len(known) < 2:
        return None
    enough = KNEE_RATIO * max(tokens_per_s(stage) for _, stage in known)
    return min((item for item in known if tokens_per_s(item[1]) >= enough), key=lambda item: item[0])[1]


def at_the_end(stages: Sequence[Stage]) -> tuple[str, str]:
    """(few words, a sentence) of a sweep whose knee is its last stage: saturated, not yet, or no claim at all."""
    before, last = sorted(stages, key=lambda stage: load_of(stage) or 0.0)[-2:]
    block = reported.engine(last)
    waiting = None if block is None else block.waiting.mean
    if waiting is not None and waiting > QUEUED_MIN:
        queue = f"{waiting:.3g} requests waited in the engine"
        return f"the last stage; {queue}", f" It is the last stage, and {queue}: more users would wait longer."
    gained = tokens_per_s(last) / tokens_per_s(before) - 1 if tokens_per_s(before) else 0.0
    added = (load_of(last) or 0.0) / (load_of(before) or 1.0) - 1
    if added > 0 and gained >= STILL_GROWS * added:
        return (
            "the last stage: not saturated yet",
            " It is the last stage: the sweep ended before the server was saturated.",
        )
    return "the last stage", " It is the last stage: whether more users would give more, this sweep does not say."


def tokens_per_s(stage: Stage) -> float:
    return stage.throughput.output_tokens_per_s or 0.0


def _throughput_over_load(data: Data) -> Figure:
    title, name = "Throughput over concurrency", "throughput-over-concurrency"
    known = sorted(((load, s) for s in data.stages if (load := load_of(s)) and tokens_per_s(s)), key=lambda p: p[0])
    if why := reason(data, len(known)):
        return left_out(name, title, why)
    loads = [load for load, _ in known]
    ideal = tokens_per_s(known[0][1]) / loads[0]

    def draw(width: float, height: float) -> Drawing:
        x = load_axis(data, loads)
        return _throughput(data, known, ideal, x, width, height, log=x.log)

    return Figure(name=name, title=title, caption=_throughput_caption(data, known[0][1]), draw=draw)


def _throughput_over_batch(data: Data) -> Figure:
    """Against the client's view of the batch: every run has it."""
    title, name = "Throughput over requests in flight", "throughput-over-batch"
    known = _over_batch(data.stages, {stage.stage: stage.batch_mean or 0.0 for stage in data.stages})
    if why := reason(data, len(known)):
        return left_out(name, title, why)
    caption = (
        "The same against the batch as the client sees it: the mean number of requests in flight in the steady window "
        "(batch_mean), those that the server queues included. Points that stop moving right although users grow: the "
        "client or a queue in front is the limit."
    )
    return Figure(name=name, title=title, caption=caption, draw=_batch_drawing(data, known, "requests in flight, mean"))


def throughput_over_engine_batch(data: Data) -> Figure:
    """Against what the engine says it runs."""
    title, name = "Throughput over the engine's batch", "throughput-over-engine-batch"
    given = [stage for stage in data.stages if tokens_per_s(stage)]
    batch = reported.batch_of(given)
    if why := "" if batch else reported.why_no_engine(data.summary, "requests in its batch"):
        return left_out(name, title, why)
    known = _over_batch(given, batch or {})
    if why := reason(data, len(known)):
        return left_out(name, title, why)
    caption = (
        "Against the requests that the engine says it runs at a time (server.metrics.running), its queue not included. "
        "Points that fall together although users grow: the batch is full, and whoever comes on top waits."
    )
    label = "requests in the engine's batch, mean"
    return Figure(name=name, title=title, caption=caption, draw=_batch_drawing(data, known, label))


def _over_batch(stages: Sequence[Stage], batch: Mapping[int, float]) -> list[tuple[float, Stage]]:
    """(batch, stage) of the stages with tokens, in order of the batch."""
    known = [(batch[stage.stage], stage) for stage in stages if batch.get(stage.stage) and tokens_per_s(stage)]
    return sorted(known, key=lambda point: point[0])


def _batch_drawing(data: Data, known: Sequence[tuple[float, Stage]], label: str) -> Draw:
    ideal = tokens_per_s(known[0][1]) / known[0][0]

    def draw(width: float, height: float) -> Drawing:
        x = linear(label, known[-1][0] * 1.02, width * 0.8, number, every_px=70)
        return _throughput(data, known, ideal, x, width, height, log=False)

    return draw


def _throughput(
    data: Data,
    known: Sequence[tuple[float, Stage]],
    ideal: float,
    x: Axis,
    width: float,
    height: float,
    *,
    log: bool,
) -> Drawing:
    """Points and line of the stages, the ideal line (throughput of the first stage × load), the knee."""
    values = [tokens_per_s(stage) for _, stage in known]
    label, pixels = "output tokens/s", plot_height(height)
    y = logarithmic(label, [*values, max(values) * 1.6], pixels, number) if log else linear(
        label, max(values) * 1.05, pixels, number
    )  # fmt: skip
    f = frame(width, height, x, y)
    points: list[Point] = [(at, tokens_per_s(stage)) for at, stage in known]
    start, top = (x.low, min(x.high, y.high / ideal))
    marks = [clipped(f, line(f, [(start, ideal * start), (top, ideal * top)], "ideal")), line(f, points, "main")]
    marks.append(end_labels(f, [(top, ideal * top, "ideal", "faint")]) if f.px(top) + 50 < width else "")
    best = knee(data.stages)
    marks += [upright(f, at, f"knee: {load_name(stage)}") for at, stage in known if stage is best]
    for at, stage in known:
        title = f"{load_name(stage)}, {quantity(stage.batch_mean)} in flight: {quantity(tokens_per_s(stage))} tokens/s"
        marks.append(dot(f, at, tokens_per_s(stage), title, data.colour(stage.stage)))
    return f, marks


def _throughput_caption(data: Data, first: Stage) -> str:
    best, last = knee(data.stages), max(data.stages, key=lambda stage: load_of(stage) or 0.0)
    end = at_the_end(data.stages)[1] if best is last else ""
    return (
        f"Ideal: {quantity(tokens_per_s(first))} tokens/s of {load_name(first)}, times the users. "
        f"The knee is the fewest users with {KNEE_RATIO:.0%} of the best throughput: beyond it, more users mostly wait "
        f"longer.{end}"
    )


def _latency_over_load(data: Data, field: str, row_field: str, short: str, words: str) -> Figure:
    title, name = f"{short} over concurrency", f"{short.lower()}-over-concurrency"
    known = sorted(((load, s) for s in data.stages if (load := load_of(s))), key=lambda p: p[0])
    stats = [(load, stage, _stat(stage, field)) for load, stage in known if _stat(stage, field).n]
    if why := reason(data, len(stats)):
        return left_out(name, title, why)
    high = best_percentile([stat for *_, stat in stats], least=2)  # one point makes no line
    wanted = [("mean", "mean")] if high is None else [("p50", "p50"), (high, "tail")]
    wanted += [("p50", "p50")] if high is None else []
    series: list[Series] = []
    bands: list[tuple[str, list[tuple[float, float, float]]]] = []
    for which, style in wanted:
        points = [(load, value, stage) for load, stage, stat in stats if (value := getattr(stat, which)) is not None]
        series += [(PERCENTILE_NAMES[which], style, points)] if points else []
        bands.append((style, _ends([(load, stat) for load, _, stat in stats if getattr(stat, which)], which)))
    clouds = [
        (load, data.colour(stage.stage), data.rows.stages[stage.stage].points[row_field].items)
        for load, stage, _ in stats
        if stage.stage in data.rows.stages
    ]
    drawn = {label for label, _, points in series if len(points) == len(stats)}
    missing = [word for word in ("p50", "p99") if word not in drawn]
    caption = f"{words[0].upper()}{words[1:]} of each stage." + _few_samples(missing)
    if any(ends for _, ends in bands):
        caption += " Bands: between what the instrument and the size of the sample leave open, at 99 %."
    if clouds:
        what = "single requests" if field == row_field else "the mean gap of single requests"
        caption += f" Faint points: {what}."

    def draw(width: float, height: float) -> Drawing:
        x = load_axis(data, [load for load, _ in known])
        drawn = [value for *_, points in series for _, value, _ in points]
        drawn += [value for *_, points in clouds for value in points]
        drawn += [value for _, ends in bands for _, *both in ends for value in both]
        y = logarithmic(f"{short}, logarithmic", drawn, plot_height(height), seconds)
        return lines.draw(data, series, x, y, width, height, duration, behind)

    def behind(f: Frame) -> list[str]:
        marks = [cloud(f, [(at, value) for value in points], style, jitter_px=9) for at, style, points in clouds]
        return [*(band(f, ends, style) for style, ends in bands), *marks]

    return Figure(name=name, title=title, caption=caption, draw=draw)


def _ends(stats: Sequence[tuple[float, Stat]], which: str) -> list[tuple[float, float, float]]:
    """(load, low, high) of a percentile where both ends are known; old results have none."""
    found = []
    for load, stat in stats:
        low, high = stat.sample_low.get(which), stat.sample_high.get(which)
        if low is not None and high is not None:
            found.append((load, low, high))
    return found


def _few_samples(missing: Sequence[str]) -> str:
    if not missing:
        return ""
    return f" {' and '.join(missing)}: not drawn where a stage has too few samples (the tables say how many it takes)."


def _stat(stage: Stage, field: str) -> Stat:
    found: Stat = getattr(stage.latency, field)
    return found


def _latency_over_throughput(data: Data) -> Figure:
    title, name = "Latency over throughput", "latency-over-throughput"
    stages = sorted((s for s in data.stages if tokens_per_s(s)), key=lambda s: load_of(s) or 0.0)
    series: list[Series] = []
    for field, short, style in (("ttft_s", "TTFT", "p50"), ("itl_s", "ITL", "tail")):
        stats = [_stat(stage, field) for stage in stages]
        which = best_percentile(stats, max(len(stages), 2), ("p99", "p95", "p90", "p50", "mean"))
        if which is not None:
            points = [(tokens_per_s(s), getattr(stat, which), s) for s, stat in zip(stages, stats, strict=True)]
            series.append((f"{short} {PERCENTILE_NAMES[which]}", style, points))
    if why := reason(data, max((len(points) for *_, points in series), default=0)):
        return left_out(name, title, why)

    def draw(width: float, height: float) -> Drawing:
        high = max(at for _, _, points in series for at, *_ in points) * 1.02
        x = linear("output tokens/s", high, width * 0.8, number, every_px=70)
        drawn = [value for *_, points in series for _, value, _ in points]
        y = logarithmic("latency, logarithmic", drawn, plot_height(height), seconds)
        return lines.draw(data, series, x, y, width, height, duration)

    caption = (
        "What throughput costs, stage by stage: work left of the bend. Where the line rises without going right, more "
        "users only wait. Each line is the highest percentile that every stage has enough samples for."
    )
    return Figure(name=name, title=title, caption=caption, draw=draw)


def _speed_over_batch(data: Data) -> Figure:
    """Over the engine's batch where every stage has one, else over the client's."""
    title, name = "Speed of each user over measured batch", "speed-over-batch"
    given = [stage for stage in data.stages if stage.batch_mean and _speed(stage)]
    engine = reported.batch_of(given)
    batch = engine or {stage.stage: stage.batch_mean or 0.0 for stage in given}
    known = sorted(((batch[stage.stage], stage) for stage in given), key=lambda point: point[0])
    if why := reason(data, len(known)):
        return left_out(name, title, why)

    def draw(width: float, height: float) -> Drawing:
        label = "requests in the engine's batch, mean" if engine else "requests in flight, mean"
        x = linear(label, known[-1][0] * 1.02, width * 0.8, number, every_px=70)
        y = linear("tokens/s of a user", max(_speed(s) for _, s in known) * 1.05, plot_height(height), number)
        f = frame(width, height, x, y)
        marks = [line(f, [(at, _speed(stage)) for at, stage in known], "main")]
        for at, stage in known:
            text = f"{load_name(stage)}: {quantity(_speed(stage))} tokens/s each"
            marks.append(dot(f, at, _speed(stage), text, data.colour(stage.stage)))
        return f, marks

    whose = "The batch is the engine's own count." if engine else "The batch is the client's: requests in flight."
    caption = (
        f"1 / mean TPOT: how fast an answer streams once it has begun. People read about 5 to 10 tokens/s. {whose}"
    )
    return Figure(name=name, title=title, caption=caption, draw=draw)


def _speed(stage: Stage) -> float:
    """Output tokens/s that one user gets while his answer streams."""
    mean = stage.latency.tpot_s.mean
    return 1.0 / mean if mean else 0.0
