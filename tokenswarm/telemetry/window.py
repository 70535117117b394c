"""Readings of one steady window -> sums over it. Memory is constant: a soak of a day keeps two readings a window.

A counter's share of a window is its difference between the first and the last reading inside. Where the process
restarts, a counter falls or series change, the window is cut there and its longest piece stands for it: never a sum
over a restart, never a negative number. Levels are means over time; holes in the readings don't count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from tokenswarm.clock import NS_PER_S
from tokenswarm.telemetry import histogram
from tokenswarm.telemetry.histogram import Histogram
from tokenswarm.telemetry.reading import Reading

EDGE_NS = 1_500_000_000
"""A reading asked for at the end of a window comes a time-out (1 s) after it at the latest; a later one is not its."""

HOLE_INTERVALS = 2.5
"""Two readings further apart than this many intervals have a hole between them: two looks in a row brought nothing."""


class Sample(msgspec.Struct, frozen=True):
    """A reading, and when: halfway between question and answer, sure to half the round trip."""

    at_ns: int
    slack_ns: int
    reading: Reading


class Level(msgspec.Struct):
    """A level over time: the trapezoids between readings (value·ns), the time they cover, the extremes."""

    area: float = 0.0
    span_ns: int = 0
    low: float = 0.0
    high: float = 0.0

    @property
    def mean(self) -> float | None:
        return self.area / self.span_ns if self.span_ns else None


class Totals(msgspec.Struct, kw_only=True):
    """Sums over one window or several."""

    planned_ns: int = 0  # from the opening to the closing of the windows
    covered_ns: int = 0  # between first and last reading of the piece that stands for each
    edges_ns: int = 0  # how far these are from opening and closing, in all: what a comparison of counts may be off by
    hole_ns: int = 0  # longest time without a reading inside a window
    samples: int = 0
    gaps: dict[str, int] = {}
    resets: int = 0
    empty: int = 0  # windows without two readings
    born_at_0: bool = False  # a name that is not here was 0, unless it is one of
    unknown: set[str] = set()  # what was there without a value, or by a part of those that were added
    levels: dict[str, Level] = {}
    counters: dict[str, float] = {}
    histograms: dict[str, Histogram] = {}


class _Piece:
    """Readings in a row of which each follows the one before."""

    def __init__(self, first: Sample) -> None:
        self.first = self.last = first
        self.levels: dict[str, Level] = {}
        for name, value in first.reading.levels.items():
            self.levels[name] = Level(low=value, high=value)

    @property
    def length_ns(self) -> int:
        return self.last.at_ns - self.first.at_ns

    def add(self, sample: Sample, hole_ns: int, *, edge: bool) -> None:
        """`edge`: the reading at the closing counts for counters only, for its levels may be the next stage's."""
        span_ns = sample.at_ns - self.last.at_ns
        before = self.last.reading.levels
        self.last = sample
        if edge:
            return
        for name, value in sample.reading.levels.items():
            level = self.levels.setdefault(name, Level(low=value, high=value))
            level.low, level.high = min(level.low, value), max(level.high, value)
            if name in before and span_ns <= hole_ns:
                level.area += (before[name] + value) / 2 * span_ns
                level.span_ns += span_ns


class Window:
    """One steady window of one source. Offer it every reading and gap; `totals` may be asked at any time."""

    def __init__(self, stage: int, opened_ns: int, interval_s: float) -> None:
        self.stage = stage
        self.opened_ns = opened_ns
        self.closed_ns: int | None = None
        self.done = False  # nothing more is taken
        self._hole_limit_ns = int(HOLE_INTERVALS * interval_s * NS_PER_S)
        self._piece: _Piece | None = None
        self._best: _Piece | None = None
        self._samples = self._resets = self._hole_ns = 0
        self._heard_ns = opened_ns
        self._gaps: dict[str, int] = {}

    def close(self, now_ns: int) -> None:
        if self.closed_ns is None:
            self.closed_ns = now_ns

    def is_over(self, now_ns: int) -> bool:
        """Closed, and nothing more will be taken."""
        return self.closed_ns is not None and (self.done or now_ns > self.closed_ns + EDGE_NS)

    def offer(self, sample: Sample) -> None:
        """Take the reading if it is this window's."""
        if self.done or sample.at_ns < self.opened_ns:
            return
        edge = self.closed_ns is not None and sample.at_ns >= self.closed_ns
        if edge:
            self.done = True
            assert self.closed_ns is not None
            if sample.at_ns > self.closed_ns + EDGE_NS:
                return
        self._heard(sample.at_ns)
        self._samples += 1
        if self._piece is not None and not sample.reading.follows(self._piece.last.reading):
            self._resets += 1
            self._piece = None
        if self._piece is None:
            self._piece = _Piece(sample)
        else:
            self._piece.add(sample, self._hole_limit_ns, edge=edge)
        if self._best is None or self._piece.length_ns > self._best.length_ns:
            self._best = self._piece

    def gap(self, reason: str, at_ns: int) -> None:
        """A look that brought nothing."""
        if not self.done and at_ns >= self.opened_ns and (self.closed_ns is None or at_ns < self.closed_ns):
            self._gaps[reason] = self._gaps.get(reason, 0) + 1

    def _heard(self, at_ns: int) -> None:
        end_ns = at_ns if self.closed_ns is None else min(at_ns, self.closed_ns)
        self._hole_ns = max(self._hole_ns, end_ns - self._heard_ns)
        self._heard_ns = end_ns

    def totals(self, now_ns: int) -> Totals:
        """The sums so far; `now_ns` ends a window that is still open."""
        end_ns = now_ns if self.closed_ns is None else self.closed_ns
        total = Totals(
            planned_ns=end_ns - self.opened_ns,
            hole_ns=max(self._hole_ns, end_ns - self._heard_ns),
            samples=self._samples,
            gaps=dict(self._gaps),
            resets=self._resets,
        )
        piece = self._best
        if piece is None or piece.length_ns <= 0:
            total.empty = 1
            return total
        first, last = piece.first, piece.last
        total.covered_ns = piece.length_ns
        total.edges_ns = abs(first.at_ns - self.opened_ns) + abs(end_ns - last.at_ns) + first.slack_ns + last.slack_ns
        total.levels = piece.levels
        total.born_at_0 = last.reading.born_at_0
        total.unknown = set(first.reading.unknown | last.reading.unknown)
        for name, value in last.reading.counters.items():
            grown = value - first.reading.counters.get(name, 0.0)
            if name not in total.unknown and grown >= 0:  # less: it had no value while its process changed
                total.counters[name] = grown
        for name, now in last.reading.histograms.items():
            before = first.reading.histograms.get(name)
            more = now if before is None else histogram.since(before, now)
            if more is not None and name not in total.unknown:
                total.histograms[name] = more
        return total

    def void(self) -> None:
        """Forget the readings: they are of several processes, and no difference means anything."""
        self._piece = self._best = None
        self._resets = 0


_ADD = ("planned_ns", "covered_ns", "edges_ns", "samples", "resets", "empty")


def one_after_another(parts: Iterable[Totals]) -> Totals:
    """The windows of a run's stages as one. What one of them lacks, the sum lacks, too."""
    given = list(parts)
    full = [part for part in given if not part.empty]
    total = _common(given)
    for name in {name for part in full for name in part.levels}:
        levels = [part.levels[name] for part in full if name in part.levels]
        total.levels[name] = Level(
            area=sum(level.area for level in levels),
            span_ns=sum(level.span_ns for level in levels),
            low=min(level.low for level in levels),
            high=max(level.high for level in levels),
        )
    _add_counts(total, full, _later)
    return total


def side_by_side(parts: Iterable[Totals]) -> Totals:
    """The same window of several replicas as one: levels add. `planned_ns` and `covered_ns` are means of theirs.

    What one of them lacks, the sum lacks, all of it where one has no readings: the others' would look like all.
    """
    given = list(parts)
    total = _common(given)
    for name in ("planned_ns", "covered_ns", "edges_ns"):
        setattr(total, name, getattr(total, name) // max(1, len(given)))
    for name in set.intersection(*(set(part.levels) for part in given)) if given else ():
        levels = [part.levels[name] for part in given]
        span_ns = min(level.span_ns for level in levels)
        mean = sum(level.mean or 0.0 for level in levels)
        low, high = sum(level.low for level in levels), sum(level.high for level in levels)
        total.levels[name] = Level(area=mean * span_ns, span_ns=span_ns, low=low, high=high)
    _add_counts(total, given, _labelled)
    return total


def _common(parts: list[Totals]) -> Totals:
    total = Totals(hole_ns=max((part.hole_ns for part in parts), default=0))
    for part in parts:
        for name in _ADD:
            setattr(total, name, getattr(total, name) + getattr(part, name))
        for reason, n in part.gaps.items():
            total.gaps[reason] = total.gaps.get(reason, 0) + n
    return total


def _later(name: str, part: Totals) -> bool:
    """One source told it in another window only: it was 0 in this one."""
    return part.born_at_0 and name not in part.unknown


def _labelled(name: str, part: Totals) -> bool:
    """A replica tells the family, but not yet this value of its label (`finished.abort`): it was 0."""
    family, dot, _ = name.partition(".")
    return bool(dot) and _later(name, part) and any(other.startswith(family + dot) for other in part.counters)


def _add_counts(total: Totals, parts: list[Totals], is_zero: Callable[[str, Totals], bool]) -> None:
    """Add what every part tells, or was 0 in by `is_zero`; the rest is unknown."""
    total.born_at_0 = all(part.born_at_0 for part in parts)
    for part in parts:
        total.unknown |= part.unknown
    for name in {name for part in parts for name in part.counters}:
        if all(name in part.counters or is_zero(name, part) for part in parts):
            total.counters[name] = sum(part.counters.get(name, 0.0) for part in parts)
        else:
            total.unknown.add(name)
    for name in {name for part in parts for name in part.histograms}:
        told = [part.histograms[name] for part in parts if name in part.histograms]
        whole = histogram.combined(told) if all(name in p.histograms or is_zero(name, p) for p in parts) else None
        if whole is None:
            total.unknown.add(name)
        else:
            total.histograms[name] = whole
