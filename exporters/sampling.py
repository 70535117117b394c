"""One plain thread that reads something at a fixed interval and keeps the newest answer for whoever asks.

Sampling and scraping never wait for each other: a wedged driver call holds this thread, not the web server, and a
busy scraper costs no extra driver call. A reader that raises is a bug: `on_crash` is told and the process ends.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from tokenswarm.clock import NS_PER_S, monotonic_ns

T = TypeVar("T")


class Sampler(threading.Thread, Generic[T]):
    """`newest` is the last answer (None before the first), `seq` its number, from 1."""

    def __init__(self, name: str, read: Callable[[], T], interval_s: float, on_crash: Callable[[], None]) -> None:
        # A daemon, because a thread inside a wedged driver call can't be joined and must not hold back the exit.
        super().__init__(name=name, daemon=True)
        self.newest: T | None = None
        self.seq = 0
        self.crashed = False
        self._read = read
        self._interval_ns = int(interval_s * NS_PER_S)
        self._on_crash = on_crash
        self._stopping = threading.Event()
        self._reading_since_ns: int | None = None

    def run(self) -> None:
        ended = False
        due_ns = monotonic_ns()
        try:
            while not self._stopping.is_set():
                self._reading_since_ns = monotonic_ns()
                self.newest = self._read()
                self.seq += 1
                self._reading_since_ns = None
                # Absolute due times, so that the interval does not drift; a late reading skips turns, never bunches.
                due_ns += self._interval_ns
                now_ns = monotonic_ns()
                if due_ns < now_ns:
                    due_ns = now_ns + self._interval_ns
                self._stopping.wait((due_ns - now_ns) / NS_PER_S)
            ended = True
        finally:
            if not ended:
                self.crashed = True
                self._on_crash()

    def reading_for_s(self) -> float:
        """How long the reading under way has taken so far (seconds); 0 between readings."""
        since_ns = self._reading_since_ns
        return 0.0 if since_ns is None else (monotonic_ns() - since_ns) / NS_PER_S

    def stop(self, patience_s: float = 2.0) -> bool:
        """Ask the thread to end and wait a little; False if it is stuck in a call."""
        self._stopping.set()
        self.join(patience_s)
        return not self.is_alive()
