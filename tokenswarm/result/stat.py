"""One latency or length in numbers: percentiles, and for each of them what the instrument and chance leave open.

`low` and `high` are the instrument's own error: what the percentile of this very run is at least and at most.
`sample_low` and `sample_high` hold that and chance: where the percentile of what the run is a sample of lies, at 99 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import floor, inf, isfinite
from typing import Annotated

import msgspec

from tokenswarm.clock import NS_PER_S
from tokenswarm.measure.budget import Intervals, Sides, scale_of
from tokenswarm.measure.sketch import Sketch
from tokenswarm.measure.snapshot import BETWEEN_READS, Block, WorkerState
from tokenswarm.measure.statistics import effective_n, enough, rank_interval
from tokenswarm.profile.bars import Bar, Bars

USER_STALL_S = 0.05  # from here on a read of user space is unsure by itself (STALL_NS of client/transport.py)
PERCENTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p999": 0.999}

RHO_OF = {"ttft": "ttft", "ttft_intended": "ttft", "ttfat": "ttft", "itl": "itl", "tpot": "tpot", "e2e": "e2e"}
RHO_OF |= {"e2e_intended": "e2e", "stall": "tpot", "connect": "ttft"}
"""Whose lag-1 correlation stands for which metric's: a queue delays them together."""

FLOOR_OF = {"ttft_intended": "ttft", "ttfat": "ttft", "e2e_intended": "e2e"}
"""What no request has less of, and is known to finer buckets: so no percentile of it is told as more."""

KERNEL_ERROR_S = 5e-6  # of a duration between two of its stamps: the path inside it, an offset looked at anew
KERNEL_GAP_ERROR_S = 1e-6  # between two reads, which took the same path


Finite = Annotated[float, msgspec.Meta(ge=-1e15, le=1e15)]
"""No file holds more of anything: what does is damaged, and no axis could show it."""


class Stat(msgspec.Struct, kw_only=True):
    """One latency (s) or length (tokens). A percentile p is None where n_effective is below n(1) of statistics.py, or
    where the instrument's own error is too large a part of it (`withheld`).
    """

    n: int = 0
    mean: Finite | None = None
    min: Finite | None = None
    max: Finite | None = None
    p50: Finite | None = None
    p90: Finite | None = None
    p95: Finite | None = None
    p99: Finite | None = None
    p999: Finite | None = None
    low: dict[str, Finite] = {}  # of each percentile with enough samples, be it withheld or not
    high: dict[str, Finite | None] = {}  # None: nothing bounds it
    sample_low: dict[str, Finite] = {}
    sample_high: dict[str, Finite | None] = {}
    withheld: dict[str, Finite | None] = {}  # percentile -> half of its interval / its value; None: nothing bounds it
    n_effective: float = 0.0
    merged_ratio: float = 0.0  # of what lies between reads: the share that shared a read


def half_width(value: float | None, low: float, high: float | None) -> float:
    """Half of an interval as a share of the value: what ± says; inf where nothing bounds it."""
    if high is None or not isfinite(high):
        return inf
    return (high - low) / 2 / value if value else 0.0 if high <= low else inf


def stat(sketch: Sketch, rho: float = 0.0) -> Stat:
    """n, mean = sum/n, exact min and max; p: nearest rank x_(⌈p·n⌉), if n(1−ρ)/(1+ρ) ≥ n(1) of that p."""
    values = sketch.quantiles(list(PERCENTILES.values()))
    shown = {
        name: value if enough(p, sketch.n, rho) else None
        for (name, p), value in zip(PERCENTILES.items(), values, strict=True)
    }
    n_effective = round(effective_n(sketch.n, rho), 1)
    found = Stat(n=sketch.n, mean=sketch.mean, min=sketch.low, max=sketch.high, n_effective=n_effective)
    for name, value in shown.items():
        setattr(found, name, value)
    return found


def latency(steady: Block, metric: str, error_s: float = 0.0, bars: Bars | None = None) -> Stat:
    """The metric over the successful requests of the block, with the correlation that stands for it, and its bars.

    `error_s`: what each stamp of the run may be off by (`stamp_error_s`).
    """
    sketch, rho = getattr(steady, metric), steady.rho(RHO_OF[metric])
    bar: Bar = getattr(bars or Bars(), f"{metric}_s")
    found, spans = stat(sketch, rho), intervals(steady, metric, error_s)
    found.merged_ratio = steady.merged_share(metric)
    whole = floor(found.n_effective)
    for name, p in PERCENTILES.items():
        if getattr(found, name) is None:
            continue
        value = spans.value(p)
        low, high = spans.interval(p)
        found.low[name], found.high[name] = low, high if isfinite(high) else None
        sample_low, sample_high = spans.interval(p, *rank_interval(p, whole))
        found.sample_low[name], found.sample_high[name] = sample_low, sample_high if isfinite(sample_high) else None
        share = half_width(value, low, high)
        if share > bar.invalid:
            found.withheld[name] = share if isfinite(share) else None
            value = None
        setattr(found, name, value)
    return found


def intervals(steady: Block, metric: str, error_s: float = 0.0) -> Intervals:
    """The values of the metric and what each could be."""
    base = FLOOR_OF.get(metric)
    floor = intervals(steady, base, error_s) if base and getattr(steady, base).n == getattr(steady, metric).n else None
    sides = getattr(steady.budget, metric, None) or Sides()
    fine = getattr(steady.fine, metric, {})
    own = 0.0 if metric == "connect" else min(error_s, KERNEL_GAP_ERROR_S) if metric in BETWEEN_READS else error_s
    if error_s > KERNEL_ERROR_S:
        own = error_s  # stamps of user space are late each by itself
    return Intervals(getattr(steady, metric), sides, fine, scale_of(metric), own, floor)


def stamp_error_s(workers: Sequence[WorkerState]) -> float:
    """What a stamp of these workers may be off by: the kernel's next to nothing, others the loop's lag.

    Its p99.9, so that what it leaves out moves no percentile up to p99 by more than a rank in ten. What came in a
    stall that is longer than USER_STALL_S is told by each read.
    """
    errors_s = [KERNEL_ERROR_S]
    for worker in workers:
        own = worker.instrument
        if own.user_stamped > own.kernel_stamped:
            lag_s = own.loop_lag.quantile(0.999) or own.loop_lag_ns_max / NS_PER_S
            errors_s.append(min(lag_s, USER_STALL_S))
    return max(errors_s)
