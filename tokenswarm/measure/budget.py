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
from tokenswarm.record import RequestRecord

FINE = 512
"""Buckets an octave: 0.14 % wide. Eight of them are one of a sketch."""

ZERO_KEY = -(1 << 20)


class Sides(msgspec.Struct, kw_only=True):
    """How the low and the high side of one metric differ from its values: counts by fine bucket, which may be negative.

    All fields add up over workers. Seconds.
    """

    low: dict[int, int] = {}
    high: dict[int, int] = {}
    unknown: int = 0  # samples without any bound, and without a value: from 0 to infinity
    low_sum: float = 0.0  # sum of the low side − sum of the values
    high_sum: float = 0.0

    def shift(self, value: float, low: float, high: float) -> None:
        """One sample that was counted as `value` lies between `low` and `high`."""
        at, least, most = fine_key(value), fine_key(low), fine_key(high)
        if least < at:
            self._move(self.low, at, least)
            self.low_sum += low - value
        if most > at:
            self._move(self.high, at, most)
            self.high_sum += high - value

    def replace(self, values: Iterable[float], lows: Iterable[float], highs: Iterable[float]) -> None:
        """Samples that were counted as `values` are, in some order, at least `lows` and at most `highs`."""
        for value in values:
            _count(self.low, fine_key(value), -1)
            _count(self.high, fine_key(value), -1)
            self.low_sum -= value
            self.high_sum -= value
        for low in lows:
            _count(self.low, fine_key(low), 1)
            self.low_sum += low
        for high in highs:
            _count(self.high, fine_key(high), 1)
            self.high_sum += high

    @staticmethod
    def _move(counts: dict[int, int], of: int, to: int) -> None:
        _count(counts, of, -1)
        _count(counts, to, 1)


class Budget(msgspec.Struct, kw_only=True):
    """The sides of each latency that has an error of its own."""

    ttft: Sides = msgspec.field(default_factory=Sides)
    ttft_intended: Sides = msgspec.field(default_factory=Sides)
    ttfat: Sides = msgspec.field(default_factory=Sides)
    itl: Sides = msgspec.field(default_factory=Sides)
    tpot: Sides = msgspec.field(default_factory=Sides)
    e2e: Sides = msgspec.field(default_factory=Sides)
    stall: Sides = msgspec.field(default_factory=Sides)


class Fine(msgspec.Struct, kw_only=True):
    """Counts by fine bucket of the latencies whose every value is kept until the end of a run; in the final report."""

    ttft: dict[int, int] = {}
    tpot: dict[int, int] = {}
    e2e: dict[int, int] = {}


def fine_key(value_s: float) -> int:
    """The bucket (2^((k−1)/512), 2^(k/512)] of a value; ZERO_KEY for 0 and below."""
    return ceil(log2(value_s) * FINE) if value_s > 0.0 else ZERO_KEY


def fine_edge(key: int) -> float:
    """The upper edge of a bucket."""
    return 0.0 if key == ZERO_KEY else exp2(key / FINE)


def _count(counts: dict[int, int], key: int, n: int) -> None:
    counts[key] = counts.get(key, 0) + n


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
    """Count what a successful request could be at least and at most, wherever that differs from what it is taken for."""
    late_ns = (record.send_lag_ns or 0) - record.connect_ns
    if record.first_ns and late_ns > 0:
        whole_ns = record.first_ns - record.intended_ns
        budget.ttft_intended.shift(whole_ns / NS_PER_S, (whole_ns - late_ns) / NS_PER_S, whole_ns / NS_PER_S)
    if exact(record):
        return
    early_ns = record.sent_high_ns - record.sent_ns if record.sent_high_ns else 0
    ends = (
        (budget.ttft, record.ttft_ns, record.first_ns - (record.first_low_ns or record.first_ns)),
        (budget.ttfat, record.ttfat_ns, record.first_answer_ns - (record.answer_low_ns or record.first_answer_ns)),
        (budget.e2e, record.e2e_ns, _unsure(record).get(record.done_ns, 0)),
    )
    for sides, value_ns, hidden_ns in ends:
        if value_ns is not None:
            sides.shift(value_ns / NS_PER_S, max(0, value_ns - hidden_ns - early_ns) / NS_PER_S, value_ns / NS_PER_S)
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
    budget.tpot.shift(tpot_ns / NS_PER_S, max(0, low_ns) / steps, high_ns / steps)


class _Group(NamedTuple):
    """A gap that is not what it seems: how many events ended with it, and the least and most that theirs add up to, s."""

    place: int
    events: int
    low_s: float
    high_s: float

    @property
    def least(self) -> float:
        """Of several gaps with this sum the largest is at least their mean."""
        return self.low_s / self.events


def _add_gaps(budget: Budget, record: RequestRecord) -> None:
    """The gaps that ended with a read of several events, or at a moment that is not known, and the worst of them."""
    groups = _groups(record)
    for place, events, low_s, high_s in groups:
        tokens = record.gap_tokens[place] if record.gap_tokens else 1
        each = max(1, tokens)
        values = [record.gaps_ns[place] / (each * NS_PER_S)] * tokens
        if events == 1:
            budget.itl.replace(values, [low_s / each] * tokens, [high_s / each] * tokens)
        else:
            lows = [low_s / events] + [0.0] * (events - 1)
            budget.itl.replace(values, lows, (high_s / j for j in range(1, events + 1)))
    hidden, span_s = record.first_events - 1, 0.0
    if hidden > 0:  # they came between the earliest moment of the first read and its stamp
        span_s = (record.first_ns - (record.first_low_ns or record.first_ns)) / NS_PER_S
        budget.itl.replace((), [0.0] * hidden, (span_s / j for j in range(1, hidden + 1)))
    if record.stall_ns is not None:
        stall_s = record.stall_ns / NS_PER_S
        most = max([stall_s, span_s] + [group.high_s for group in groups])
        budget.stall.shift(stall_s, _least_stall(record, groups, stall_s), most)


def _least_stall(record: RequestRecord, groups: Sequence[_Group], stall_s: float) -> float:
    doubtful = {group.place for group in groups}
    surely_ns = max((gap for place, gap in enumerate(record.gaps_ns) if place not in doubtful), default=0)
    return min(stall_s, max([surely_ns / NS_PER_S] + [group.least for group in groups]))


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
        groups.append(_Group(place, n, max(0, gap_ns - early_ns) / NS_PER_S, (gap_ns + begin_ns) / NS_PER_S))
    return groups


class Counts:
    """One side of a metric: how many samples there are up to each bucket. `counts` by fine bucket, or by coarse ones
    (eight fine ones each) where `width` is 8."""

    def __init__(
        self, counts: Mapping[int, int], zero: int, shifts: Mapping[int, int], unknown: int, width: int
    ) -> None:
        merged = dict(counts)
        for key, n in shifts.items():
            at = ZERO_KEY if key == ZERO_KEY else -(-key // width)
            merged[at] = merged.get(at, 0) + n
        merged[ZERO_KEY] = merged.get(ZERO_KEY, 0) + zero
        self._buckets = sorted((key, n) for key, n in merged.items() if n)
        self._width = width
        self._unknown = unknown
        self.n = sum(n for _, n in self._buckets) + unknown

    def bucket(self, p: float) -> tuple[float, float]:
        """(lower, upper) edge of the bucket with the nearest rank of `p`; (inf, inf) beyond all that has a bound."""
        rank, seen = max(1, ceil(p * self.n * (1 - 1e-12))), 0
        for key, n in self._buckets:
            seen += n
            if seen >= rank:
                if key == ZERO_KEY:
                    return 0.0, 0.0
                return fine_edge((key - 1) * self._width), fine_edge(key * self._width)
        return inf, inf
