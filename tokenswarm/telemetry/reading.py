"""One good look at a server or a GPU, whatever it speaks: levels, counters, histograms under our own names."""

from __future__ import annotations

import msgspec

from tokenswarm.telemetry.exposition import Labels
from tokenswarm.telemetry.histogram import Histogram


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """Names of levels, counters and histograms end in their unit; ratios are 0 to 1."""

    kind: str
    levels: dict[str, float] = {}
    counters: dict[str, float] = {}
    histograms: dict[str, Histogram] = {}
    started_s: float | None = None  # when the process began, where it says so: another value is another process
    facts: dict[str, str] = {}
    shape: frozenset[tuple[str, Labels]] = frozenset()  # the series behind it: a page with fewer is not whole

    def follows(self, before: Reading) -> bool:
        """True where differences to `before` mean something: same process, same series, no counter fell."""
        return (
            self.kind == before.kind
            and self.started_s == before.started_s
            and self.counters.keys() == before.counters.keys()
            and self.histograms.keys() == before.histograms.keys()
            and all(value >= before.counters[name] for name, value in self.counters.items())
            and all(_grew(before.histograms[name], now) for name, now in self.histograms.items())
        )


def _grew(before: Histogram, now: Histogram) -> bool:
    return before.bounds == now.bounds and all(b >= a for a, b in zip(before.counts, now.counts, strict=True))
