"""Prometheus histograms: validated when read, subtracted over a window, percentiles with the bucket they lie in.

A percentile of a histogram is known no better than its bucket: `Split.ranges` says that bucket, and in the lowest one
(vLLM's inter-token latency: all below 10 ms) or beyond the highest bound there is no value at all, only the range.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import sub
from typing import NamedTuple

import msgspec

from tokenswarm.measure.statistics import enough
from tokenswarm.telemetry.exposition import GapReason, Labels, PageError, label, picker, without

PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


class Histogram(msgspec.Struct, frozen=True):
    """Counts by bucket, not cumulative; the last one is beyond the highest bound."""

    bounds: tuple[float, ...]
    counts: tuple[float, ...]
    sum: float

    @property
    def n(self) -> float:
        return sum(self.counts)


class Split(msgspec.Struct, kw_only=True):
    """One distribution over a window. A percentile is null outside the bounds, or with too few samples for it."""

    n: int = 0
    mean: float | None = None
    p50: float | None = None
    p90: float | None = None
    p99: float | None = None
    ranges: dict[str, tuple[float, float | None]] = {}  # the bucket of each percentile; null: no upper bound


class _Set(NamedTuple):
    """Where the values of one label set stand: its buckets, cumulative, `_sum`, and `_count` if there is one."""

    buckets: Callable[[Sequence[float]], Sequence[float]]
    total: int
    of: int | None


class Places(msgspec.Struct, frozen=True):
    """Where on a page the parts of the histogram `name` stand; `problem`: it can't be one."""

    name: str
    bounds: tuple[float, ...] = ()
    sets: tuple[_Set, ...] = ()
    problem: tuple[GapReason, str] | None = None

    def read(self, values: Sequence[float]) -> Histogram:
        """The sum over the label sets (engines, models). Raises PageError where it can't be a histogram."""
        if self.problem is not None:
            raise PageError(*self.problem)
        counts: list[Sequence[float]] = []
        total = 0.0
        for one in self.sets:
            cumulative = one.buckets(values)
            counts.append(tuple(map(sub, cumulative, (0.0, *cumulative))))
            if min(counts[-1]) < 0:
                raise PageError("malformed", f"the buckets of {self.name} fall")
            if one.of is not None and values[one.of] != cumulative[-1]:
                raise PageError("incomplete", f"{self.name}_count differs from its buckets")
            total += values[one.total]
        return Histogram(self.bounds, tuple(map(sum, zip(*counts, strict=True))), total)


def places(name: str, page: Mapping[str, Mapping[Labels, int]]) -> Places | None:
    """Where `name` stands; `page`: the place of each sample, by name and labels. None where the page has no bucket.

    Buckets or a sum that are missing, and bounds that differ between label sets, are a problem.
    """
    rows: dict[Labels, list[tuple[float, int]]] = {}
    try:
        for labels, place in page.get(f"{name}_bucket", {}).items():
            edge = label(labels, "le")
            bound = math.inf if edge == "+Inf" else _bound(edge, name)
            rows.setdefault(without(labels, "le"), []).append((bound, place))
        sets, bounds = [], set()
        for labels, buckets in rows.items():
            buckets.sort()
            total = page.get(f"{name}_sum", {}).get(labels)
            if buckets[-1][0] != math.inf or total is None:
                raise PageError("incomplete", f"{name} lacks its last bucket or its sum")
            bounds.add(tuple(bound for bound, _ in buckets[:-1]))
            pick = picker([place for _, place in buckets])
            sets.append(_Set(pick, total, page.get(f"{name}_count", {}).get(labels)))
        if len(bounds) > 1:
            raise PageError("incomplete", f"{name} has other buckets for other labels")
    except PageError as problem:
        return Places(name, problem=(problem.reason, str(problem)))
    return Places(name, bounds.pop(), tuple(sets)) if bounds else None


def _bound(edge: str, name: str) -> float:
    try:
        bound = float(edge)
    except ValueError:
        bound = math.nan
    if not math.isfinite(bound):
        raise PageError("malformed", f"{name} has a bucket le={edge[:20]!r}")
    return bound


def add(a: Histogram, b: Histogram) -> Histogram:
    """The sum of two with the same bounds."""
    return Histogram(a.bounds, tuple(x + y for x, y in zip(a.counts, b.counts, strict=True)), a.sum + b.sum)


def since(before: Histogram, now: Histogram) -> Histogram | None:
    """What was observed between two readings; None where the bounds differ or a count fell (another process)."""
    if before.bounds != now.bounds:
        return None
    counts = tuple(b - a for a, b in zip(before.counts, now.counts, strict=True))
    return None if min(counts) < 0 else Histogram(now.bounds, counts, now.sum - before.sum)


def combined(histograms: Iterable[Histogram]) -> Histogram | None:
    """The sum; None where there is none, or where bounds differ (servers of two versions)."""
    total: Histogram | None = None
    for one in histograms:
        if total is not None and total.bounds != one.bounds:
            return None
        total = one if total is None else add(total, one)
    return total


def split(histogram: Histogram) -> Split:
    """mean = sum/n; percentile: linear within its bucket, as histogram_quantile does it."""
    n = histogram.n
    if not n:
        return Split()
    found = Split(n=int(n), mean=histogram.sum / n)
    for name, p in PERCENTILES.items():
        if enough(p, int(n)):
            value, low, high = _quantile(histogram, p * n)
            setattr(found, name, value)
            found.ranges[name] = (low, high)
    return found


def _quantile(histogram: Histogram, rank: float) -> tuple[float | None, float, float | None]:
    """(value or None, lower and upper bound of the bucket) of the sample with this rank, 0 < rank <= n."""
    below = 0.0
    for i, bound in enumerate(histogram.bounds):
        count = histogram.counts[i]
        if count and below + count >= rank:
            low = histogram.bounds[i - 1] if i else 0.0
            return (low + (bound - low) * (rank - below) / count if i else None), low, bound
        below += count
    return None, histogram.bounds[-1] if histogram.bounds else 0.0, None
