"""Values in, quantiles out: counts by exponential bucket, merged by addition.

A value x > 0 has the key ceil(log2(x)·64): the buckets (2^((k−1)/64), 2^(k/64)] of Prometheus' native histograms,
schema 6. A quantile is the nearest rank; the number given for it is off by at most RELATIVE_ERROR (0.55 %), whatever
was merged, in whatever order. n, min and max are exact, the sum is exact to float rounding. Values are seconds, or
any other unit (tokens). Nothing is dropped silently: zero, negative and non-finite values have counters.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import pairwise
from math import ceil, exp2, inf, isfinite, log2
from typing import Annotated

import msgspec

from tokenswarm.clock import NS_PER_S

SCHEMA = 6
BUCKETS_PER_OCTAVE = 2**SCHEMA
GROWTH = exp2(1 / BUCKETS_PER_OCTAVE)

RELATIVE_ERROR = 0.0055
"""Stated bound of |quantile − true nearest rank| / true; the bucket's own bound is (γ−1)/(γ+1) = 0.542 %."""

_KEY_MAX = 70_000  # the keys of all float64 values lie within ±69 000, so a larger one on the wire is damage
_RANK_SLACK = 1 - 1e-12  # 0.07 * 100 is 7.000000000000001: without this its rank would be 8

Count = Annotated[int, msgspec.Meta(ge=0)]


class SketchWire(msgspec.Struct, frozen=True, array_like=True):
    """How a sketch travels: the first key, then differences; about 2 bytes a bucket in msgpack."""

    sum: float
    min: float
    max: float
    zero: Count
    negative: Count
    refused: Count
    first_key: int
    key_deltas: list[Annotated[int, msgspec.Meta(ge=1)]]  # one per bucket after the first
    counts: list[Annotated[int, msgspec.Meta(ge=1)]]


class Sketch:
    """Counts by bucket of one quantity. Mutable; `merge` adds another one into it."""

    __slots__ = ("counts", "max", "min", "n", "negative", "refused", "sum", "zero")

    def __init__(self, values: Iterable[float] = ()) -> None:
        self.counts: Counter[int] = Counter()
        self.n = 0  # all values that were counted, zeros included
        self.sum = 0.0
        self.min = inf  # of an empty sketch; `low` and `high` give None instead
        self.max = -inf
        self.zero = 0  # values <= 0, each taken as 0
        self.negative = 0  # of these, values < 0: impossible for a duration, so a doubt about a clock
        self.refused = 0  # NaN and infinities; not in n
        for value in values:
            self.add(value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sketch):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    __hash__ = None  # type: ignore[assignment]  # mutable, compared by value

    def __repr__(self) -> str:
        return f"Sketch(n={self.n}, p50={self.quantile(0.5)}, max={self.high})"

    def add(self, value: float, times: int = 1) -> None:
        """Count `value`, `times` times."""
        if 0.0 < value < inf:
            key = ceil(log2(value) * 64)
            counts = self.counts
            counts[key] = counts.get(key, 0) + times
            self.sum += value * times
            if value < self.min:
                self.min = value
            if value > self.max:
                self.max = value
            self.n += times
        elif -inf < value <= 0.0:
            self.zero += times
            self.negative += times * (value < 0.0)
            self.n += times
            self.min = 0.0
            self.max = max(self.max, 0.0)
        else:
            self.refused += times

    def add_all(self, values: Sequence[float]) -> None:
        """`add` each of these, in one go where none of them is odd."""
        if not values:
            return
        low, high, total = min(values), max(values), sum(values, self.sum)
        if not (low > 0.0 and isfinite(total)):  # min and max pass over a NaN that does not come first
            for value in values:
                self.add(value)
            return
        self.counts.update([ceil(octaves * 64) for octaves in map(log2, values)])
        self.n += len(values)
        self.sum = total
        self.min, self.max = min(self.min, low), max(self.max, high)

    def add_gaps(self, gaps_ns: Sequence[int], tokens: Sequence[int] = ()) -> None:
        """Count gaps between events, in seconds. Where an event held k tokens, gap/k counts k times.

        `tokens` is () (one token each) or as long as `gaps_ns`. A gap that no token shares (k < 1) is refused.
        """
        if not gaps_ns:
            return
        ordered = sorted(gaps_ns)
        if ordered[0] <= 0 or tokens:
            for gap_ns, k in zip(gaps_ns, tokens or (1,) * len(gaps_ns), strict=True):
                if k < 1:
                    self.refused += 1
                else:
                    self.add(gap_ns / (k * NS_PER_S), k)
            return
        # The common case, a token an event: a turn a bucket and not a gap, since most gaps of an answer are alike.
        counts, at, n = self.counts, 0, len(ordered)
        while at < n:
            key = ceil(log2(ordered[at] / 1e9) * 64)
            before, at = at, bisect_right(ordered, _last_ns(key), at + 1)
            counts[key] = counts.get(key, 0) + at - before
        self.n += n
        self.sum += sum(ordered) / NS_PER_S
        self.min = min(self.min, ordered[0] / NS_PER_S)
        self.max = max(self.max, ordered[-1] / NS_PER_S)

    def merge(self, other: Sketch) -> None:
        """Add the counts of `other`. Commutative and associative (the sum: up to float rounding)."""
        if other.n:
            counts = self.counts
            if counts:
                get = counts.get
                for key, count in other.counts.items():
                    counts[key] = get(key, 0) + count
            else:
                counts.update(other.counts)
        self.add_totals(other)

    def add_totals(self, other: Sketch) -> None:
        """Add all of `other` but its counts by bucket, for whoever keeps those."""
        if other.n:
            self.n += other.n
            self.sum += other.sum
            self.min = min(self.min, other.min)
            self.max = max(self.max, other.max)
            self.zero += other.zero
            self.negative += other.negative
        self.refused += other.refused

    def copy(self) -> Sketch:
        twin = Sketch()
        twin.merge(self)
        return twin

    @property
    def mean(self) -> float | None:
        return self.sum / self.n if self.n else None

    @property
    def low(self) -> float | None:
        """The exact minimum; None where nothing was counted."""
        return self.min if self.n else None

    @property
    def high(self) -> float | None:
        """The exact maximum; None where nothing was counted."""
        return self.max if self.n else None

    def quantile(self, q: float) -> float | None:
        """Nearest rank: the value x_(⌈q·n⌉) within RELATIVE_ERROR; None where nothing was counted."""
        return self.quantiles((q,))[0]

    def quantiles(self, qs: Sequence[float]) -> list[float | None]:
        """`quantile` of each of `qs` (each in 0..1, any order) in one pass over the buckets."""
        if not self.n:
            return [None] * len(qs)
        buckets = sorted(self.counts.items())
        found: dict[float, float] = {}
        seen, at, edge = self.zero, -1, 0.0
        for q in sorted(set(qs)):
            rank = max(1, ceil(q * self.n * _RANK_SLACK))
            while seen < rank:
                at += 1
                edge = _representative(buckets[at][0])
                seen += buckets[at][1]
            found[q] = self.max if rank >= self.n else self.min if rank == 1 else min(max(edge, self.min), self.max)
        return [found[q] for q in qs]

    def above(self, limit: float) -> int:
        """How many values are larger than `limit`; values in the limit's own bucket count as not larger."""
        key = ceil(log2(limit) * 64) if limit > 0 else -_KEY_MAX
        return sum(count for k, count in self.counts.items() if k > key)

    def fold(self, schema: int) -> dict[int, int]:
        """Counts by key of a coarser schema (2^schema buckets an octave), exactly; zeros are not in it."""
        width = 1 << (SCHEMA - schema)
        folded: Counter[int] = Counter()
        for key, count in self.counts.items():
            folded[-(-key // width)] += count
        return dict(sorted(folded.items()))

    def cumulative(self, schema: int, first: int, last: int) -> list[int]:
        """Counts of values ≤ 2^(k / 2^schema) for k = first..last: Prometheus' classic buckets; +Inf is `n`."""
        folded = self.fold(schema)
        total = self.zero + sum(count for key, count in folded.items() if key < first)
        sums = []
        for key in range(first, last + 1):
            total += folded.get(key, 0)
            sums.append(total)
        return sums

    def cdf(self) -> list[tuple[float, float]]:
        """(upper edge of a bucket, share of values ≤ it), ascending: what a CDF plot draws."""
        points, seen = [(0.0, self.zero / self.n)] if self.zero else [], self.zero
        for key, count in sorted(self.counts.items()):
            seen += count
            points.append((min(bucket_edge(key), self.max), seen / self.n))
        return points

    def to_wire(self) -> SketchWire | None:
        """The compact form; None for a sketch that never saw a value."""
        if not self.n:
            return SketchWire(0.0, 0.0, 0.0, 0, 0, self.refused, 0, [], []) if self.refused else None
        buckets = sorted(self.counts.items())
        keys = [key for key, _ in buckets]
        deltas = [after - before for before, after in pairwise(keys)]
        first = keys[0] if keys else 0
        counts = [count for _, count in buckets]
        return SketchWire(self.sum, self.min, self.max, self.zero, self.negative, self.refused, first, deltas, counts)

    @classmethod
    def from_wire(cls, wire: SketchWire | None) -> Sketch:
        """The sketch that `to_wire` described. Raises ValueError for a form that no sketch can have."""
        sketch = cls()
        if wire is None:
            return sketch
        if len(wire.key_deltas) != max(0, len(wire.counts) - 1):
            raise ValueError(f"a sketch has {len(wire.counts)} counts and {len(wire.key_deltas)} key differences")
        if not all(-inf < number < inf for number in (wire.sum, wire.min, wire.max)):
            raise ValueError("a sketch has a sum, minimum or maximum that is no finite number")
        key = wire.first_key
        if abs(key) > _KEY_MAX or abs(key + sum(wire.key_deltas)) > _KEY_MAX:
            raise ValueError("a sketch has a bucket outside the range of a float")
        counts: dict[int, int] = {}
        for delta, count in zip((0, *wire.key_deltas), wire.counts, strict=False):
            key += delta
            counts[key] = count
        sketch.counts = Counter(counts)
        sketch.zero, sketch.negative, sketch.refused = wire.zero, wire.negative, wire.refused
        sketch.n = wire.zero + sum(wire.counts)
        if sketch.n:
            sketch.sum, sketch.min, sketch.max = wire.sum, wire.min, wire.max
        return sketch


class Tally:
    """Sketches added up and kept: 8 bytes a bucket, side by side, where a Sketch takes a hundred."""

    __slots__ = ("_cells", "_first", "_totals")

    def __init__(self) -> None:
        self._totals = Sketch()  # without counts
        self._first = 0
        self._cells = array("Q")

    @property
    def n(self) -> int:
        return self._totals.n

    def add(self, sketch: Sketch) -> None:
        """Add its counts."""
        if sketch.counts:
            low, high = min(sketch.counts), max(sketch.counts)
            if not self._cells:
                self._first = low
            if low < self._first:
                self._cells[:0] = array("Q", bytes(8 * (self._first - low)))
                self._first = low
            if (more := high + 1 - self._first - len(self._cells)) > 0:
                self._cells.frombytes(bytes(8 * more))
            cells, first = self._cells, self._first
            for key, count in sketch.counts.items():
                cells[key - first] += count
        self._totals.add_totals(sketch)

    def sketch(self) -> Sketch:
        """The sum, as a sketch."""
        found = self._totals.copy()
        found.counts = Counter({key: count for key, count in enumerate(self._cells, self._first) if count})
        return found


def bucket_edge(key: int, schema: int = SCHEMA) -> float:
    """The upper edge of a bucket, 2^(key / 2^schema); inf above the largest float."""
    octaves = key / (1 << schema)
    return exp2(octaves) if octaves < 1024 else inf


@cache  # as many keys as gaps of a run have
def _last_ns(key: int) -> int:
    """The longest gap of this bucket, by the very formula that finds a gap's bucket."""
    ns = max(1, int(exp2(key / BUCKETS_PER_OCTAVE) * NS_PER_S))
    while ceil(log2((ns + 1) / 1e9) * 64) <= key:
        ns += 1
    while ns > 1 and ceil(log2(ns / 1e9) * 64) > key:
        ns -= 1
    return ns


def _representative(key: int) -> float:
    """The value whose relative error against either edge of the bucket is the same: 2·edge/(γ+1)."""
    return 2.0 * bucket_edge(key) / (GROWTH + 1.0)
