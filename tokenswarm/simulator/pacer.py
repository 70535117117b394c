"""When the event loop waits for sockets, the engine's tokens leave: one clock for all streams, without a timer each.

asyncio's own timers would cost more than a token does.
"""

from __future__ import annotations

import select
import selectors
from collections.abc import Callable
from time import monotonic_ns

GRAIN_NS = 200_000
"""Wake-ups are at least so far apart: each costs more than some tokens do. What falls due meanwhile leaves together, at
most so much late; its stamp is of when it left, and `lateness_s` of the truth has it."""

NS_PER_S = 1e9
Ready = list[tuple[selectors.SelectorKey, int]]


class Pacer(selectors.DefaultSelector):
    """A selector that calls `pump` at `due_ns`, or GRAIN_NS after its last call. It tells whether it woke somebody."""

    def __init__(self) -> None:
        super().__init__()
        self.due_ns: int | None = None  # of the next token; None: there is none
        self.pump: Callable[[int], bool] | None = None
        self._pumped_ns = 0

    def select(self, timeout: float | None = None) -> Ready:
        """As any selector's, in microseconds where that can be had."""
        now_ns = monotonic_ns()
        end_ns = None if timeout is None else now_ns + max(0, int(timeout * NS_PER_S))
        while True:
            due_ns = self._next_ns()
            if due_ns is not None and due_ns <= now_ns and self.pump is not None:
                self._pumped_ns = now_ns
                if self.pump(now_ns):
                    return super().select(0)
                due_ns = self._next_ns()
                now_ns = monotonic_ns()
            ends = [at_ns for at_ns in (due_ns, end_ns) if at_ns is not None]
            ready = self._wait((min(ends) - now_ns) / NS_PER_S if ends else None)
            now_ns = monotonic_ns()
            if ready or (end_ns is not None and end_ns <= now_ns):
                return ready

    def _next_ns(self) -> int | None:
        """When `pump` is to be called."""
        return None if self.due_ns is None else max(self.due_ns, self._pumped_ns + GRAIN_NS)

    def _wait(self, seconds: float | None) -> Ready:
        # epoll waits in whole milliseconds, which would make each token up to 1 ms late; select() on epoll's own
        # descriptor waits in microseconds.
        if seconds is None or seconds <= 0 or not hasattr(select, "epoll"):
            return super().select(seconds)
        if not select.select([self.fileno()], [], [], seconds)[0]:
            return []
        return super().select(0)
