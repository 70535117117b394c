"""Wakes a greenlet at a moment of the monotonic clock, to within some tens of µs, by a timer of the kernel's.

Where there is none, libev's have to do.
"""

from __future__ import annotations

from typing import Any

import gevent
from gevent.hub import Waiter

from tokenswarm.client.timer import KernelTimer
from tokenswarm.clock import NS_PER_S, monotonic_ns


class Alarm:
    """For one greenlet at a time."""

    def __init__(self) -> None:
        self._timer = KernelTimer(self._on_time, first=True)
        self._waiter: Any = None

    def wait_until(self, at_ns: int) -> None:
        """Return at that moment; at once, but with everything else having its turn, where it is over."""
        if not self._timer.works:
            gevent.sleep(max(0, at_ns - monotonic_ns()) / NS_PER_S)
            return
        self._timer.once(max(at_ns, 1))
        self._waiter = Waiter()
        self._waiter.get()

    def _on_time(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter.switch(None)

    def close(self) -> None:
        self._timer.close()
