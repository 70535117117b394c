"""The instrument watches itself: lag of the event loop, CPU, memory, garbage collection, steps of the wall clock.

All of it goes into the snapshot's `Instrument`, so that the verdict can doubt a run whose worker was the bottleneck.
"""

from __future__ import annotations

import contextlib
import gc
import time
from pathlib import Path

import psutil
from gevent.hub import get_hub

from tokenswarm.clock import NS_PER_S, monotonic_ns, realtime_ns
from tokenswarm.measure.snapshot import Instrument

TICK_S = 0.01  # a stall shorter than this does not matter to streams of 50 tokens/s
_CGROUP_STAT = Path("/sys/fs/cgroup/cpu.stat")


class Probes:
    """One a worker process; `start` when the load starts, `sample` with each report."""

    def __init__(self, instrument: Instrument) -> None:
        self._instrument = instrument
        self._process = psutil.Process()
        self._timer = get_hub().loop.timer(TICK_S, TICK_S)
        self._due_ns = 0
        self._gc_began_ns = 0
        self._cpu_s = time.process_time()
        self._sampled_ns = monotonic_ns()
        self._offset_ns = realtime_ns() - monotonic_ns()
        self._throttled_ns = throttled_ns()

    def start(self) -> None:
        self._due_ns = monotonic_ns() + int(TICK_S * NS_PER_S)
        self._timer.start(self._tick)
        gc.callbacks.append(self._on_gc)

    def stop(self) -> None:
        self._timer.stop()
        if self._on_gc in gc.callbacks:
            gc.callbacks.remove(self._on_gc)

    def sample(self) -> None:
        """Read what is read once a report."""
        instrument, now_ns = self._instrument, monotonic_ns()
        elapsed_s = (now_ns - self._sampled_ns) / NS_PER_S
        if elapsed_s < 0.5:  # a ratio over less says nothing
            return
        cpu_s = time.process_time()
        instrument.cpu_ratio_last = (cpu_s - self._cpu_s) / elapsed_s
        instrument.cpu_ratio_max = max(instrument.cpu_ratio_max, instrument.cpu_ratio_last)
        self._cpu_s, self._sampled_ns = cpu_s, now_ns
        with contextlib.suppress(OSError, psutil.Error):  # /proc can't be opened: no descriptors left
            instrument.rss_bytes = self._process.memory_info().rss
        offset_ns = realtime_ns() - monotonic_ns()
        instrument.clock_step_ns_max = max(instrument.clock_step_ns_max, abs(offset_ns - self._offset_ns))
        self._offset_ns = offset_ns
        instrument.throttled_ns = max(instrument.throttled_ns, throttled_ns() - self._throttled_ns)

    def _tick(self) -> None:
        now_ns = monotonic_ns()
        lag_ns = max(0, now_ns - self._due_ns)
        instrument = self._instrument
        instrument.loop_lag.add(lag_ns / NS_PER_S)
        instrument.loop_lag_ns_max = max(instrument.loop_lag_ns_max, lag_ns)
        self._due_ns = now_ns + int(TICK_S * NS_PER_S)

    def _on_gc(self, phase: str, _info: dict[str, int]) -> None:
        if phase == "start":
            self._gc_began_ns = monotonic_ns()
            return
        self._instrument.gc_pauses += 1
        pause_ns = monotonic_ns() - self._gc_began_ns
        self._instrument.gc_pause_ns_max = max(self._instrument.gc_pause_ns_max, pause_ns)


def throttled_ns() -> int:
    """Time that the cgroup's CPU limit has held this container back, ns; 0 where there is no cgroup v2."""
    try:
        lines = _CGROUP_STAT.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1000 for line in lines if line.startswith("throttled_usec ")), 0)


def calm_garbage_collection() -> None:
    """Collect once, freeze what is there (the data set), and collect seldom from now on.

    A full collection of a worker with a large data set stops every stream for tens of milliseconds.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 1_000)
