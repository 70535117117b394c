"""What is promised, and whether a set of rounds keeps it: the goals of bench/RESULTS.md in one table."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

CLIENTS = ("tokenswarm", "locust", "aiohttp", "epoll")

# Largest |client − truth| in ms, by streams on one core: p50, p99. The same for TTFT and ITL.
ACCURACY_MS = {100: (0.3, 0.5), 400: (0.5, 1.0), 1000: (1.0, 3.0)}

CPU_US = {400: 20.0, 1000: 14.0}  # by streams of 50 tokens/s: about 20 000 and 45 000 events/s

STAMP_ERROR_P99_US = 50.0  # at 400 streams
CAPACITY_EVENTS_PER_S = 50_000
CAPACITY_TTFT_P99_MS = 1.0
MEMORY_MB = 60.0  # per 1 000 open streams of 128 tokens
RECORDER_ADD_US = 120.0  # an answer of 128 tokens


class Spread(NamedTuple):
    """Median and range over rounds."""

    middle: float
    low: float
    high: float

    def show(self, digits: int) -> str:
        if self.low == self.high:
            return f"{self.middle:.{digits}f}"
        return f"{self.middle:.{digits}f} ({self.low:.{digits}f}..{self.high:.{digits}f})"


def spread(values: Sequence[float]) -> Spread | None:
    return Spread(median(values), min(values), max(values)) if values else None


def met(measured: Spread | None, goal: float, *, at_least: bool = False) -> str:
    """Tell in a word whether the median keeps the goal, and whether every round did."""
    if measured is None:
        return "not usable"
    sign = -1 if at_least else 1
    if not sign * measured.middle <= sign * goal:  # also where it is no number: nothing was seen
        return "**no**"
    worst = measured.low if at_least else measured.high
    return "yes" if sign * worst <= sign * goal else "yes, not in each round"
