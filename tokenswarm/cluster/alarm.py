"""Wakes a greenlet at a moment of the monotonic clock, to within some tens of µs: a timer of the kernel's (timerfd).

libev's own timers end with its poll, whose time-out is in whole ms, rounded up: on average they are half a ms late.
Where there is no timerfd, they have to do.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

import gevent
from gevent.hub import Waiter, get_hub

from tokenswarm.clock import NS_PER_S, monotonic_ns

_MONOTONIC, _ABSOLUTE = 1, 1  # CLOCK_MONOTONIC, TFD_TIMER_ABSTIME
_READABLE = 1


class _Spec(ctypes.Structure):
    """struct itimerspec."""

    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("s", ctypes.c_long),
        ("ns", ctypes.c_long),
    )


class Alarm:
    """For one greenlet at a time."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
        self._fd = -1 if self._libc is None else self._libc.timerfd_create(_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        self._spec = _Spec()
        self._waiter: Any = None
        if self._fd >= 0:
            self._watcher = get_hub().loop.io(self._fd, _READABLE)
            self._watcher.priority = get_hub().loop.MAXPRI  # before what came to read
            self._watcher.start(self._on_time)

    def wait_until(self, at_ns: int) -> None:
        """Return at that moment; at once, but with everything else having its turn, where it is over."""
        if self._fd < 0:
            gevent.sleep(max(0, at_ns - monotonic_ns()) / NS_PER_S)
            return
        assert self._libc is not None
        self._spec.s, self._spec.ns = divmod(max(at_ns, 1), NS_PER_S)
        self._libc.timerfd_settime(self._fd, _ABSOLUTE, ctypes.byref(self._spec), None)
        self._waiter = Waiter()
        self._waiter.get()

    def _on_time(self) -> None:
        os.read(self._fd, 8)
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter.switch(None)

    def close(self) -> None:
        if self._fd >= 0:
            self._watcher.stop()
            self._watcher.close()
            os.close(self._fd)
            self._fd = -1
