"""One good look at a server or a GPU, whatever it speaks: levels, counters, histograms under our own names."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from operator import lt

import msgspec

from tokenswarm.telemetry.exposition import Series
from tokenswarm.telemetry.histogram import Histogram

WOBBLE_S = 1.5
"""Who tells when it began as the time of day less how long it runs is off by that much, where both are whole seconds. A
process that did begin so shortly after the one that was seen tells it by its counts, which fall."""


class Counts(msgspec.Struct, frozen=True):
    """Values by their series. Of two looks at a page with the same lines `keys` are one object."""

    keys: tuple[Series, ...] = ()
    values: Sequence[float] = ()

    def fell(self, before: Counts) -> bool:
        """True where one is below what it was."""
        if self.keys is before.keys:
            return any(map(lt, self.values, before.values))
        now = dict(zip(self.keys, self.values, strict=True))
        then = zip(before.keys, before.values, strict=True)
        return any(now.get(key, value) < value for key, value in then)


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """Names of levels, counters and histograms end in their unit; ratios are 0 to 1."""

    kind: str
    levels: dict[str, float] = {}
    counters: dict[str, float] = {}
    histograms: dict[str, Histogram] = {}
    started_s: float | None = None  # when the process began, where it says so; it may wobble
    facts: dict[str, str] = {}
    shape: frozenset[Series] = frozenset()  # the series behind it: a page with fewer is not whole
    counts: Counts = Counts()  # those of them that can't fall while the process lives
    unknown: frozenset[str] = frozenset()  # quantities that are there without a value (NaN)
    odd: dict[str, str] = {}  # by the page's name: what was left out since it can't be true, and why
    missing: tuple[str, ...] = ()  # quantities of the program's table that the page has under no name
    born_at_0: bool = False  # what the process begins to tell later was 0 until then

    def follows(self, before: Reading) -> bool:
        """True where differences to `before` mean something: same process, no series gone, no counter fell."""
        return (
            self.kind == before.kind
            and not self.fell(before)
            and not _any_below(self.counters, before.counters)
            and (self.started_s is None) is (before.started_s is None)
            and not before.lost_by(self)
            and self._names(self.counters, before.counters, before.unknown)
            and self._names(self.histograms, before.histograms, before.unknown)
            and all(_grew(then, self.histograms.get(name, then)) for name, then in before.histograms.items())
        )

    def fell(self, before: Reading) -> bool:
        """True where another process must have written it: another start time, or a count below what it was."""
        if self.began_apart(before):
            return True
        if before.counts.keys:
            return self.counts.fell(before.counts)
        return _any_below(self.counters, before.counters)

    def began_apart(self, other: Reading) -> bool:
        """Whether both say when their process began, and it was not one moment, give or take what that wobbles."""
        if self.started_s is None or other.started_s is None:
            return False
        return abs(self.started_s - other.started_s) > WOBBLE_S

    def same_as(self, other: Reading) -> bool:
        """True where both must be of one process: all that it counted is alike, and by chance it could not be."""
        sums = [*self.counters.values(), *(one.sum for one in self.histograms.values())]
        one_start = self.started_s is not None and self.started_s == other.started_s
        return (
            any(sums)
            and (one_start or any(value % 1 for value in sums))
            and (self.kind, self.shape) == (other.kind, other.shape)
            and (self.started_s is None) is (other.started_s is None)
            and not self.began_apart(other)
            and (self.counters, self.histograms) == (other.counters, other.histograms)
        )

    def lost_by(self, later: Reading) -> frozenset[Series]:
        """The series that a later page lacks."""
        return frozenset() if later.shape is self.shape else self.shape - later.shape

    def _names(self, now: Collection[str], then: Collection[str], unknown: frozenset[str]) -> bool:
        """No name went, and none came that had a past."""
        return set(then) - set(now) <= self.unknown and (self.born_at_0 or set(now) - set(then) <= unknown)


def _any_below(now: Mapping[str, float], then: Mapping[str, float]) -> bool:
    return any(now.get(key, value) < value for key, value in then.items())


def _grew(before: Histogram, now: Histogram) -> bool:
    return before.bounds == now.bounds and all(b >= a for a, b in zip(before.counts, now.counts, strict=True))
