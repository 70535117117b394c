"""What the instrument itself can have done to each number: a low and a high side of every sample, in counts.

A sample is known exactly, or lies between two moments: the send within its bracket; the first token between the read
before and its own, where they share a read; the gaps that a read of several events hides; a read whose stamp could not
be placed; a request that left late. For a percentile only order counts: of k gaps whose sum is S, the j-th largest is
at most S/j, and the largest at least S/k. So each side of a metric is a set of values of its own, kept as what it
differs by from the values' sketch (almost nothing: most samples are exact), and merged by addition.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import ceil, exp2, inf, log2
from typing import NamedTuple

import msgspec

from tokenswarm.clock import NS_PER_S
from tokenswarm.measure.sketch import Sketch
from tokenswarm.record import RequestRecord

COARSE, FINE = 64, 512
"""Buckets an octave: a sketch's, 1.1 % wide; 0.14 %, where every value is kept until the end of a run."""

FINE_METRICS = ("ttft", "tpot", "e2e")

ZERO_KEY = -(1 << 20)


class Sides(msgspec.Struct, kw_only=True):
    """How the low and the high side of one metric differ from its values: counts by bucket, which may be negative.

    All fields add up over workers. Seconds. `scale` of the methods: buckets an octave, always the same for a metric.
    """

    low: dict[int, int] = {}
    high: dict[int, int] = {}
    unknown: int = 0  # samples without any bound, and without a value: from 0 to infinity
    low_sum: float = 0.0  # sum of the low side − sum of the values
    high_sum: float = 0.0

    def shift(self, value: float, low: float, high: float, scale: int = COARSE) -> None:
        """One sample that was counted as `value` lies between `low` and `high`."""
        at = bucket_key(value, scale)
        if low != value:
            if (key := bucket_key(low, scale)) != at:
                _count(self.low, at, -1)
                _count(self.low, key, 1)
            self.low_sum += low - value
        if high != value:
            if (key := bucket_key(high, scale)) != at:
                _count(self.high, at, -1)
                _count(self.high, key, 1)
            self.high_sum += high - value

    def replace(self, values: Iterable[float], lows: Iterable[float], highs: Iterable[float]) -> None:
        """Samples that were counted as `values` are, in some order, at least `lows` and at most `highs`."""
        for value in values:
            _count(self.low, bucket_key(value), -1)
            _count(self.high, bucket_key(value), -1)
            self.low_sum -= value
            self.high_sum -= value
        for low in lows:
            _count(self.low, bucket_key(low), 1)
            self.low_sum += low
        for high in highs:
            _count(self.high, bucket_key(high), 1)
            self.high_sum += high


class Budget(msgspec.Struct, kw_only=True):
    """The sides of each latency that has an error of its own."""

    ttft: Sides = msgspec.field(default_factory=Sides)
    ttft_intended: Sides = msgspec.field(default_factory=Sides)
    ttfat: Sides = msgspec.field(default_factory=Sides)
    itl: Sides = msgspec.field(default_factory=Sides)
    tpot: Sides = msgspec.field(default_factory=Sides)
    e2e: Sides = msgspec.field(default_factory=Sides)
    e2e_intended: Sides = msgspec.field(default_factory=Sides)
    stall: Sides = msgspec.field(default_factory=Sides)


class Fine(msgspec.Struct, kw_only=True):
    """Counts by fine bucket of the latencies whose every value is kept until the end of a run; in the final report."""

    ttft: dict[int, int] = {}
    tpot: dict[int, int] = {}
    e2e: dict[int, int] = {}


def scale_of(metric: str) -> int:
    """Buckets an octave of the sides of a metric."""
    return FINE if metric in FINE_METRICS else COARSE


def bucket_key(value_s: float, scale: int = COARSE) -> int:
    """The bucket (2^((k−1)/scale), 2^(k/scale)] of a value; ZERO_KEY for 0 and below."""
    return ceil(log2(value_s) * scale) if value_s > 0.0 else ZERO_KEY


def above(shifts: Mapping[int, int], limit: float, scale: int) -> int:
    """How many more samples of a side than of the values lie beyond `limit`, to the width of a bucket."""
    at = bucket_key(limit, scale)
    return sum(n for key, n in shifts.items() if key > at)


def _count(counts: dict[int, int], key: int, n: int) -> None:
    left = counts.get(key, 0) + n
    if left:
        counts[key] = left
    else:
        counts.pop(key, None)


def exact(record: RequestRecord) -> bool:
    """Whether nothing is unknown about the moments of this request: then it has nothing to add."""
    return not (
        record.merged_events
        or record.unsure
        or record.sent_high_ns > record.sent_ns
        or 0 < record.first_low_ns < record.first_ns
        or 0 < record.last_low_ns < record.last_ns
    )


def add(budget: Budget, record: RequestRecord) -> None:
    """Count what a successful request could be at least and at most, where that is not what it is taken for."""
    late_ns = (record.send_lag_ns or 0) - record.connect_ns
    if record.first_ns and late_ns > 0:
        whole_ns = record.first_ns - record.intended_ns
        for sides, took_ns in ((budget.ttft_intended, whole_ns), (budget.e2e_intended, record.e2e_intended_ns)):
            value_s = (took_ns or late_ns) / NS_PER_S
            sides.shift(value_s, ((took_ns or late_ns) - late_ns) / NS_PER_S, value_s)
    if exact(record):
        return
    early_ns = record.sent_high_ns - record.sent_ns if record.sent_high_ns else 0
    ends = (
        ("ttft", record.ttft_ns, record.first_ns - (record.first_low_ns or record.first_ns)),
        ("ttfat", record.ttfat_ns, record.first_answer_ns - (record.answer_low_ns or record.first_answer_ns)),
        ("e2e", record.e2e_ns, _unsure(record).get(record.done_ns, 0)),
    )
    for metric, value_ns, hidden_ns in ends:
        if value_ns is not None and hidden_ns + early_ns:
            value_s, low_s = value_ns / NS_PER_S, max(0, value_ns - hidden_ns - early_ns) / NS_PER_S
            getattr(budget, metric).shift(value_s, low_s, value_s, scale_of(metric))
    if record.one_read:
        budget.tpot.unknown += 1
        budget.stall.unknown += 1
        budget.itl.unknown += max(record.events, 2) - 1
        return
    _add_pace(budget, record)
    _add_gaps(budget, record)


def _unsure(record: RequestRecord) -> Mapping[int, int]:
    """Stamp of each unsure read -> how much earlier it can have come, ns."""
    return {at_ns: at_ns - low_ns for low_ns, at_ns in record.unsure}


def _add_pace(budget: Budget, record: RequestRecord) -> None:
    tpot_ns = record.tpot_ns
    if tpot_ns is None:
        return
    steps = (record.output_tokens - 1) * NS_PER_S
    low_ns = (record.last_low_ns or record.last_ns) - record.first_ns
    high_ns = record.last_ns - (record.first_low_ns or record.first_ns)
    budget.tpot.shift(tpot_ns / NS_PER_S, max(0, low_ns) / steps, high_ns / steps, FINE)


class _Group(NamedTuple):
    """A gap that is not what it seems: how many events ended with it, the least and most that theirs add up to, and how
    long before its end all of them came, s."""

    place: int
    events: int
    low_s: float
    high_s: float
    hidden_s: float
    before_s: float  # the gap without that: to the first of them at least

    @property
    def least(self) -> float:
        """Of several gaps with this sum the largest is at least their mean; and the first, what lies before."""
        return max(self.low_s / self.events, self.before_s)

    @property
    def most(self) -> list[float]:
        """Of several gaps with this sum the j-th largest is at most a j-th of it; all but the first add up to what is
        hidden at most."""
        rest = (min(self.high_s / j, self.hidden_s / (j - 1)) for j in range(2, self.events + 1))
        return [self.high_s, *rest]


def _add_gaps(budget: Budget, record: RequestRecord) -> None:
    """The gaps that ended with a read of several events, or at a moment that is not known, and the worst of them."""
    groups = _groups(record)
    for group in groups:
        place, events, low_s, high_s = group.place, group.events, group.low_s, group.high_s
        tokens = record.gap_tokens[place] if record.gap_tokens else 1
        each = max(1, tokens)
        values = [record.gaps_ns[place] / (each * NS_PER_S)] * tokens
        if events == 1:
            budget.itl.replace(values, [low_s / each] * tokens, [high_s / each] * tokens)
        else:
            budget.itl.replace(values, [group.least] + [0.0] * (events - 1), group.most)
    hidden, span_s = record.first_events - 1, 0.0
    if hidden > 0:  # they came between the earliest moment of the first read and its stamp
        span_s = (record.first_ns - (record.first_low_ns or record.first_ns)) / NS_PER_S
        budget.itl.replace((), [0.0] * hidden, (span_s / j for j in range(1, hidden + 1)))
    if record.stall_ns is not None:
        stall_s = record.stall_ns / NS_PER_S
        most = max([stall_s, span_s] + [group.high_s for group in groups])
        budget.stall.shift(stall_s, _least_stall(record, groups, stall_s), most)


def _least_stall(record: RequestRecord, groups: Sequence[_Group], stall_s: float) -> float:
    sure_ns = list(record.gaps_ns)
    for group in reversed(groups):  # the last of them first, so that places stay
        del sure_ns[group.place]
    return min(stall_s, max([max(sure_ns, default=0) / NS_PER_S] + [group.least for group in groups]))


def _groups(record: RequestRecord) -> list[_Group]:
    """The gaps of which something is not known; of a request with one choice only the unsure moments."""
    unsure, last, events = _unsure(record), len(record.gaps_ns) - 1, record.gap_events
    widened: dict[int, tuple[int, int]] = {}  # place -> (its end earlier by up to, its begin earlier by up to), ns
    if unsure and not record.gap_choices:
        for place, at_ns in enumerate(sorted(set(record.token_stamps_ns))):
            if early_ns := unsure.get(at_ns, 0):
                widened[place - 1] = (early_ns, widened.get(place - 1, (0, 0))[1])
                widened[place] = (0, early_ns)
    if last >= 0 and 0 < record.last_low_ns < record.last_ns:
        early_ns, begin_ns = widened.get(last, (0, 0))
        widened[last] = (max(early_ns, record.last_ns - record.last_low_ns), begin_ns)
    places = {place for place, n in enumerate(events) if n != 1} | {place for place in widened if 0 <= place <= last}
    groups = []
    for place in sorted(places):
        gap_ns, (early_ns, begin_ns) = record.gaps_ns[place], widened.get(place, (0, 0))
        n = events[place] if events else 1
        hidden_ns = record.gap_hidden_ns[place] if n > 1 and record.gap_hidden_ns else gap_ns
        before_ns = gap_ns - hidden_ns  # 0: they came after the read before, and no more is known
        times_ns = (
            max(0, gap_ns - early_ns),
            gap_ns + begin_ns,
            hidden_ns if before_ns else gap_ns + begin_ns,
            before_ns,
        )
        groups.append(_Group(place, n, *(ns / NS_PER_S for ns in times_ns)))
    return groups


class Counts:
    """One side of a metric: its samples by bucket, `scale` an octave, of which some have no bound."""

    def __init__(self, counts: Mapping[int, int], scale: int, zero: int = 0, unknown: int = 0, *, low: bool) -> None:
        self._buckets = sorted((key, n) for key, n in counts.items() if n)
        self._scale, self._zero = scale, zero + (unknown if low else 0)
        self.n = self._zero + sum(n for _, n in self._buckets) + (0 if low else unknown)

    def bucket(self, p: float) -> tuple[float, float]:
        """(lower, upper) edge of the bucket with the nearest rank of `p`; (inf, inf) beyond all that has a bound."""
        rank, seen = max(1, ceil(p * self.n * (1 - 1e-12))), self._zero
        if seen >= rank:
            return 0.0, 0.0
        for key, n in self._buckets:
            seen += n
            if seen >= rank:
                return (0.0, 0.0) if key == ZERO_KEY else (exp2((key - 1) / self._scale), exp2(key / self._scale))
        return inf, inf


class Intervals:
    """The values of one metric and both of its sides, ready to be asked for percentiles.

    `fine`: the values by fine bucket, {} where they are not all known; then the sketch's own buckets are taken.
    `error_s`: what every sample may be off by, either way. `floor`: values of the same requests, each of them no more.
    """

    def __init__(
        self,
        sketch: Sketch,
        sides: Sides,
        fine: Mapping[int, int],
        sides_scale: int,
        error_s: float,
        floor: Intervals | None = None,
    ) -> None:
        known = sides_scale == FINE and sum(fine.values()) == sketch.n
        values: Mapping[int, int] = fine if known else sketch.counts
        scale, zero = (FINE, 0) if known else (COARSE, sketch.zero)
        ratio = sides_scale // scale
        self._sketch, self._error_s, self._known, self._floor = sketch, error_s, known, floor
        self._values = Counts(values, scale, zero, low=True)
        self._low = Counts(_shifted(values, sides.low, ratio), scale, zero, sides.unknown, low=True)
        self._high = Counts(_shifted(values, sides.high, ratio), scale, zero, sides.unknown, low=False)
        self._least = 0.0 if sides.low or sides.unknown else sketch.min
        self._most = inf if sides.high or sides.unknown else sketch.max

    def value(self, p: float) -> float | None:
        """The nearest rank, to the middle of its bucket; None where nothing was counted."""
        if not self._known or not self._sketch.n:
            value, least = self._sketch.quantile(p), self._floor.value(p) if self._floor is not None else None
            return value if value is None or least is None else max(value, min(least, self._values.bucket(p)[1]))
        low, high = self._values.bucket(p)
        return min(max(2.0 * low * high / (low + high) if high else 0.0, self._sketch.min), self._sketch.max)

    def interval(self, p: float, p_low: float | None = None, p_high: float | None = None) -> tuple[float, float]:
        """What percentile `p` is at least and at most, its value always within; inf where nothing bounds it.

        `p_low` and `p_high`: the ranks that chance allows for it, where the sample is to count, too.
        """
        if not self._sketch.n:
            return 0.0, inf
        least, most = self._values.bucket(p)
        low = max(self._low.bucket(p if p_low is None else p_low)[0], self._least)
        high = min(self._high.bucket(p if p_high is None else p_high)[1], self._most)
        low, high = min(low, max(least, self._sketch.min)), max(high, min(most, self._sketch.max))
        return max(0.0, low - self._error_s), high + self._error_s


def _shifted(values: Mapping[int, int], shifts: Mapping[int, int], ratio: int) -> dict[int, int]:
    """The values, each moved to its side; `ratio` buckets of the shifts are one of the values."""
    merged = dict(values)
    for key, n in shifts.items():
        at = key if key == ZERO_KEY else -(-key // ratio)
        merged[at] = merged.get(at, 0) + n
    return merged
