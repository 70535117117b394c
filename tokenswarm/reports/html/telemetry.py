"""The charts of what engine and GPUs say over the sweep: batch and queue, KV-cache, time to first token, energy.

Points are the stages of summary.json: means over the steady windows. The client's own number stands beside the
engine's where both have one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tokenswarm.reports.html import lines, sweep
from tokenswarm.reports.html.figure import Data, Drawing, Figure, left_out, load_of
from tokenswarm.reports.html.lines import LOG_FROM, Series, load_axis, over_load, reason
from tokenswarm.reports.html.reported import Engine, Gpus, engine, gpus, replayed, why_no_engine, why_no_gpu
from tokenswarm.reports.html.svg import Frame, Text, level, linear, logarithmic, number, plot_height, seconds
from tokenswarm.reports.html.units import exact, joules, three
from tokenswarm.reports.numbers import duration, quantity, ratio
from tokenswarm.result.summary import Stage

NEAR = 1.6  # the batch that fills the cache is drawn where it is at most so far above the points
HALF_FULL = 0.5  # from here on the axis of the KV-cache goes to 100 %

RECORDED = "Recorded values of a GPU (backend replay), not of this run's. "


def figures(data: Data) -> list[Figure]:
    """The charts, or why they are left out."""
    return [
        sweep.throughput_over_engine_batch(data),
        _batch(data),
        _first_token(data),
        _kv_cache(data),
        _energy(data),
        _tokens_per_watt(data),
    ]


def _engine(read: Callable[[Engine], float | None]) -> Callable[[Stage], float | None]:
    def value(stage: Stage) -> float | None:
        block = engine(stage)
        return None if block is None else read(block)

    return value


def _gpu(read: Callable[[Gpus], float | None]) -> Callable[[Stage], float | None]:
    def value(stage: Stage) -> float | None:
        block = gpus(stage)
        return None if block is None else read(block)

    return value


def _lines(data: Data, *given: tuple[str, str, Callable[[Stage], float | None]]) -> list[Series]:
    """The lines (label, classes, value of a stage) that have two points or more."""
    found = [(label, style, over_load(data, value)) for label, style, value in given]
    return [(label, style, points) for label, style, points in found if len(points) > 1]


def _highest(series: Sequence[Series]) -> float:
    return max(value for *_, points in series for _, value, _ in points)


def _loads(series: Sequence[Series]) -> list[float]:
    return [at for *_, points in series for at, *_ in points]


def _why_not(data: Data, found: Sequence[Series], missing: str) -> str:
    """A clause, "" where there is something to draw."""
    if found:
        return ""
    return reason(data, 0) if len(data.stages) < 2 else missing


def _batch(data: Data) -> Figure:
    title, name = "Batch and queue over concurrency", "batch-over-concurrency"
    own = _lines(
        data,
        ("running", "p50", _engine(lambda block: block.running.mean)),
        ("waiting", "tail", _engine(lambda block: block.waiting.mean)),
    )
    if why := _why_not(data, own, why_no_engine(data.summary, "requests in its batch")):
        return left_out(name, title, why)
    series = _lines(data, ("in flight", "mean", lambda stage: stage.batch_mean)) + own
    highest = _highest(series)
    full = _full(data)
    shown = full if full is not None and full <= NEAR * highest else None

    def draw(width: float, height: float) -> Drawing:
        x = load_axis(data, _loads(series))
        y = linear("requests, mean", (max(highest, shown or 0.0) or 1.0) * 1.05, plot_height(height), number)
        return lines.draw(data, series, x, y, width, height, quantity, limit)

    def limit(f: Frame) -> Sequence[str]:
        return (
            ()
            if shown is None
            else [level(f, shown, max(_loads(series)), f"cache full at {quantity(shown)}, predicted")]
        )

    caption = (
        "Running and waiting are the engine's own counts, in flight is the client's. What is in flight but neither "
        "runs nor waits is under way, or in a queue that the engine does not count; less in flight than it runs: it "
        "serves others, too."
    )
    if full is not None and shown is None:
        caption += f" The KV-cache would be full at a batch of {quantity(full)}, as predicted: beyond this chart."
    return Figure(name=name, title=title, caption=caption, draw=draw)


def _full(data: Data) -> float | None:
    """The batch that fills the KV-cache, with requests as in the stage of the highest load."""
    block = engine(max(data.stages, key=lambda stage: load_of(stage) or 0.0))
    return None if block is None or block.kv_cache is None else block.kv_cache.batch_at_full


def _first_token(data: Data) -> Figure:
    """Means, since means add up."""
    title, name = "Where the time to the first token goes", "first-token-over-concurrency"

    def mean(which: str) -> Callable[[Stage], float | None]:
        return _engine(lambda block: block.latency[which].mean if which in block.latency else None)

    own = _lines(
        data,
        ("engine", "p50", mean("ttft_s")),
        ("queue", "tail", mean("queue_s")),
        ("prefill", "second", mean("prefill_s")),
    )
    if why := _why_not(data, own, why_no_engine(data.summary, "time to the first token, queue or prefill")):
        return left_out(name, title, why)
    series = _lines(data, ("client", "mean", lambda stage: stage.latency.ttft_s.mean)) + own

    def draw(width: float, height: float) -> Drawing:
        x = load_axis(data, _loads(series))
        y = linear("mean", (_highest(series) or 1.0) * 1.05, plot_height(height), seconds)
        return lines.draw(data, series, x, y, width, height, duration)

    caption = (
        "Mean TTFT as the client sees it and as the engine says, and the engine's queue and prefill in it. The client "
        "far above the engine: network, a proxy, or a queue that the engine does not count. Queue the largest part: "
        "overload; while it grows the two differ, too, for the engine counts what began to answer in the window, the "
        "client what was sent in it."
    )
    return Figure(name=name, title=title, caption=caption, draw=draw)


def _kv_cache(data: Data) -> Figure:
    title, name = "KV-cache in use over concurrency", "kv-cache-over-concurrency"
    own = _lines(
        data,
        ("mean", "p50", _engine(lambda block: block.kv_cache_usage.mean)),
        ("max", "tail", _engine(lambda block: block.kv_cache_usage.max)),
    )
    if why := _why_not(data, own, why_no_engine(data.summary, "KV-cache in use")):
        return left_out(name, title, why)
    series = [*own, *_lines(data, ("predicted", "ideal", _engine(_predicted)))]
    highest = _highest(series)

    def draw(width: float, height: float) -> Drawing:
        x = load_axis(data, _loads(series))
        y = linear("share of the cache", _top(highest), plot_height(height), _share)
        return lines.draw(data, series, x, y, width, height, ratio)

    preempted = sum(block.preemptions or 0 for stage in data.stages if (block := engine(stage)) is not None)
    caption = "Share that the engine says is in use: mean over time, and the fullest moment. "
    caption += (
        "Predicted: the bytes of the measured batch at its mean context, from the model's configuration. "
        if len(series) > len(own)
        else "There is no prediction: it takes telemetry.model_config, and an engine that says how large its cache is. "
    )
    caption += f"At 100% requests are put out of the batch: {exact(preempted) if preempted else 'none'} here."
    return Figure(name=name, title=title, caption=caption, draw=draw)


def _predicted(block: Engine) -> float | None:
    """The predicted bytes of the batch as a share of the cache."""
    kv = block.kv_cache
    if kv is None or kv.predicted_bytes_mean is None or not kv.capacity_bytes:
        return None
    return kv.predicted_bytes_mean / kv.capacity_bytes


def _share(value: float) -> str:
    """A tick: 0.5%, 20%."""
    return f"{value * 100:.3g}%"


def _top(highest: float) -> float:
    if highest < HALF_FULL:
        return highest * 1.05 or 0.1
    return max(1.0, highest)


def _energy(data: Data) -> Figure:
    return _of_gpus(
        data,
        ("energy-over-concurrency", "Energy per output token over concurrency", "J/token"),
        lambda block: block.j_per_output_token,
        joules,
        "Energy of all GPUs for an output token (mean power / tokens a second), idle ones included. Where it stops "
        "falling, a larger batch does not fill the GPUs better.",
    )


def _tokens_per_watt(data: Data) -> Figure:
    return _of_gpus(
        data,
        ("tokens-per-watt-over-concurrency", "Tokens/s/W over concurrency", "output tokens/s/W"),
        lambda block: block.output_tokens_per_s_per_w,
        three,
        "Output tokens a second for each watt that all GPUs draw. Tokens a joule is the same number: a watt is a "
        "joule a second.",
    )


def _of_gpus(
    data: Data, names: tuple[str, str, str], read: Callable[[Gpus], float | None], text: Text, caption: str
) -> Figure:
    """One line of the GPUs; `names` are the figure's, its title and its axis."""
    name, title, label = names
    series = _lines(data, ("", "main", _gpu(read)))
    if why := _why_not(data, series, why_no_gpu(data.summary)):
        return left_out(name, title, why)
    values = [value for _, value, _ in series[0][2]]
    log = min(values) > 0 and max(values) / min(values) >= LOG_FROM

    def draw(width: float, height: float) -> Drawing:
        x = load_axis(data, _loads(series))
        pixels = plot_height(height)
        y = logarithmic(f"{label}, logarithmic", values, pixels, number) if log else linear(
            label, max(values) * 1.05, pixels, number
        )  # fmt: skip
        return lines.draw(data, series, x, y, width, height, text)

    recorded = RECORDED if replayed(gpus(data.summary)) else ""
    return Figure(name=name, title=title, caption=recorded + caption, draw=draw)
