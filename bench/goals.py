"""What is promised, and whether a set of rounds keeps it: the goals of bench/RESULTS.md in one table."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

CLIENTS = ("tokenswarm", "tokenswarm-python", "locust", "aiohttp", "epoll")
OURS = CLIENTS[:2]  # with the reader in C, and with the one in Python

# Largest |client − truth| in ms, by streams on one core: p50, p99. The same for TTFT and ITL.
ACCURACY_MS = {100: (0.3, 0.5), 400: (0.5, 1.0), 1000: (1.0, 3.0)}

# CPU of an event, against the floor of the same round, by streams of 50 tokens/s: about 20 000 and 45 000 events/s.
FLOOR_RATIO = {400: 1.1, 1000: 0.95}

INSTRUCTIONS_RATIO = 0.4  # of the replayed hot path: the reader in C against the one in Python

STAMP_ERROR_P99_US = 50.0  # at 400 streams
CAPACITY_EVENTS_PER_S = 90_000
CAPACITY_TTFT_P99_MS = 1.0
MEMORY_MB = 12.0  # per 1 000 open streams of 128 tokens
COMPARE_FALSE_RED = 0.01  # of equal sides
COMPARE_SLOWER = 0.10  # is found
COMPARE_FOUND = 0.9  # in so many live pairs of five
COMPARE_CPU_S = 3.0  # ten runs of 100 000 requests
RECORDER_ADD_US = 120.0  # an answer of 128 tokens
REPORT_ROW_RATIO = 2.5  # what report.html takes for a row, by what decoding its line takes; row by row it was 4.6
LOOK_US = 30_000.0  # CPU of a look at ten replicas of 5 000 series each


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
