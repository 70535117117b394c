"""The one clock of durations. Monotonic, integer nanoseconds; wall time only names when a run happened.

Core code takes a `Clock` (a callable) instead of importing `time`, so that tests run in virtual time.
"""

from __future__ import annotations

import time
from collections.abc import Callable

Clock = Callable[[], int]

NS_PER_S = 1_000_000_000

monotonic_ns: Clock = time.monotonic_ns
"""Nanoseconds of CLOCK_MONOTONIC: comparable within one process (on Linux: one machine), never across machines."""

realtime_ns: Clock = time.time_ns
"""Nanoseconds of CLOCK_REALTIME: may step; for naming a moment and for kernel receive stamps only."""


class FakeClock:
    """A clock that moves only when a test says so. Call it for now (ns); `advance` moves it."""

    def __init__(self, now_ns: int = 0) -> None:
        self.now_ns = now_ns

    def __call__(self) -> int:
        return self.now_ns

    def advance(self, seconds: float) -> None:
        self.now_ns += int(seconds * NS_PER_S)
