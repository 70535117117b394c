"""A timer of the kernel's (timerfd) as a watcher of the hub: to within some tens of µs.

libev's own timers end with its poll, whose time-out is in whole ms, rounded up: on average they are half a ms late.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable

from gevent.hub import get_hub

from tokenswarm.clock import NS_PER_S

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


class KernelTimer:
    """Calls back from the hub. `works` is False where there is no timerfd; then nothing else may be called."""

    def __init__(self, on_time: Callable[[], None], *, first: bool = False) -> None:
        """`first`: before what came to read in the same turn of the loop."""
        self._libc = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
        self._fd = -1 if self._libc is None else self._libc.timerfd_create(_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        self._spec = _Spec()
        self._on_time = on_time
        if self.works:
            self._watcher = get_hub().loop.io(self._fd, _READABLE)
            if first:
                self._watcher.priority = get_hub().loop.MAXPRI
            self._watcher.start(self._on_readable)

    @property
    def works(self) -> bool:
        return self._fd >= 0

    def once(self, at_ns: int) -> None:
        """At that moment of the monotonic clock; soon where it is over."""
        self._set(_ABSOLUTE, at_ns, 0)

    def every(self, period_ns: int) -> None:
        """Again and again; 0: no more."""
        self._set(0, period_ns, period_ns)

    def _set(self, flags: int, ns: int, period_ns: int) -> None:
        assert self._libc is not None
        spec = self._spec
        spec.s, spec.ns = divmod(ns, NS_PER_S)
        spec.interval_s, spec.interval_ns = divmod(period_ns, NS_PER_S)
        self._libc.timerfd_settime(self._fd, flags, ctypes.byref(spec), None)

    def _on_readable(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:  # it was set anew meanwhile
            return
        self._on_time()

    def close(self) -> None:
        if self.works:
            self._watcher.stop()
            self._watcher.close()
            os.close(self._fd)
            self._fd = -1
