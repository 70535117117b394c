"""Prometheus histograms: validated when read, subtracted over a window, percentiles with the bucket they lie in.

A percentile of a histogram is known no better than its bucket: `Split.ranges` says that bucket, and in the lowest one
(vLLM's inter-token latency: all below 10 ms) or beyond the highest bound there is no value at all, only the range.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec

from tokenswarm.measure.statistics import enough
from tokenswarm.telemetry.exposition import Labels, PageError, Samples, label, without

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


def read(samples: Samples, name: str) -> Histogram | None:
    """The histogram `name`, summed over its label sets (engines, models); None where the page has none.

    Raises PageError where buckets are missing, fall, differ between label sets or disagree with `_count`.
    """
    rows: dict[Labels, list[tuple[float, float]]] = {}
    for labels, value in samples.get(f"{name}_bucket", {}).items():
        edge = label(labels, "le")
        bound = math.inf if edge == "+Inf" else _bound(edge, name)
        rows.setdefault(without(labels, "le"), []).append((bound, value))
    if not rows:
        return None
    total: Histogram | None = None
    for labels, buckets in rows.items():
        buckets.sort()
        one = _checked(buckets, samples.get(f"{name}_sum", {}).get(labels), name)
        count = samples.get(f"{name}_count", {}).get(labels)
        if count is not None and count != one.n:
            raise PageError("incomplete", f"{name}_count differs from its buckets")
        if total is not None and total.bounds != one.bounds:
            raise PageError("incomplete", f"{name} has other buckets for other labels")
        total = one if total is None else add(total, one)
    return total


def _bound(edge: str, name: str) -> float:
    try:
        bound = float(edge)
    except ValueError:
        bound = math.nan
    if not math.isfinite(bound):
        raise PageError("malformed", f"{name} has a bucket le={edge[:20]!r}")
    return bound


def _checked(buckets: list[tuple[float, float]], total: float | None, name: str) -> Histogram:
    cumulative = [count for _, count in buckets]
    if buckets[-1][0] != math.inf or total is None:
        raise PageError("incomplete", f"{name} lacks its last bucket or its sum")
    counts = [b - a for a, b in zip([0.0, *cumulative], cumulative, strict=False)]
    if min(counts) < 0:
        raise PageError("malformed", f"the buckets of {name} fall")
    return Histogram(tuple(bound for bound, _ in buckets[:-1]), tuple(counts), total)


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
