"""The instrument watches itself: lag of the event loop, CPU and the wait for it, memory, garbage collection, clocks.

All of it goes into the snapshot's `Instrument`, so that the verdict can doubt a run whose worker was the bottleneck.
"""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections.abc import Sequence
from pathlib import Path

import gevent
import psutil
from gevent.hub import get_hub

from tokenswarm.client.transport import Connection
from tokenswarm.clock import NS_PER_S, monotonic_ns, realtime_ns
from tokenswarm.measure.snapshot import Instrument
from tokenswarm.untold import UNTOLD

TICK_S = 0.01  # a stall shorter than this does not matter to streams of 50 tokens/s
CGROUPS = Path("/sys/fs/cgroup")
_THROTTLED = {"throttled_usec": 1000, "throttled_time": 1}  # v2 in µs, v1 in ns


class Probes:
    """One a worker process; `start` when the load starts, `sample` with each report."""

    def __init__(self, instrument: Instrument) -> None:
        self._instrument = instrument
        self._timer = get_hub().loop.timer(TICK_S, TICK_S)
        self._due_ns = 0
        self._gc_began_ns = 0
        self._cpu_s = time.process_time()
        self._sampled_ns = monotonic_ns()
        self._offset_ns = realtime_ns() - monotonic_ns()
        self._stats = cpu_stats(_membership())
        self._throttled_ns = throttled_ns(self._stats)
        self._began = _waits(self._stats)
        self._ticks = (0, 0)  # the last two

    def start(self) -> None:
        self._due_ns = monotonic_ns() + int(TICK_S * NS_PER_S)
        self._timer.start(self._tick)
        gc.callbacks.append(self._on_gc)

    def stop(self) -> None:
        self._timer.stop()
        Connection.polled_ns = 0
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
        instrument.rss_bytes = resident_bytes() or instrument.rss_bytes
        offset_ns = realtime_ns() - monotonic_ns()
        instrument.clock_step_ns_max = max(instrument.clock_step_ns_max, abs(offset_ns - self._offset_ns))
        self._offset_ns = offset_ns
        instrument.throttled_ns = max(instrument.throttled_ns, throttled_ns(self._stats) - self._throttled_ns)
        for name, value_ns in _waits(self._stats).items():
            setattr(instrument, name, max(getattr(instrument, name), value_ns - self._began[name]))

    def _tick(self) -> None:
        now_ns = monotonic_ns()
        lag_ns = max(0, now_ns - self._due_ns)
        instrument = self._instrument
        instrument.loop_lag.add(lag_ns / NS_PER_S)
        instrument.loop_lag_ns_max = max(instrument.loop_lag_ns_max, lag_ns)
        self._due_ns = now_ns + int(TICK_S * NS_PER_S)
        # What a read finds came after the poll before it; the tick before the last one lies before that for certain.
        Connection.polled_ns, self._ticks = self._ticks[0], (self._ticks[1], now_ns)

    def _on_gc(self, phase: str, _info: dict[str, int]) -> None:
        if phase == "start":
            self._gc_began_ns = monotonic_ns()
            return
        self._instrument.gc_pauses += 1
        pause_ns = monotonic_ns() - self._gc_began_ns
        self._instrument.gc_pause_ns += pause_ns
        self._instrument.gc_pause_ns_max = max(self._instrument.gc_pause_ns_max, pause_ns)


def resident_bytes() -> int:
    """Memory of this process; 0 where it can't be read."""
    with contextlib.suppress(*UNTOLD):  # or /proc can't be opened: no descriptors left
        return int(psutil.Process().memory_info().rss)
    return 0


def cpu_stats(membership: str, root: Path = CGROUPS) -> list[Path]:
    """The cpu.stat of each group that limits this process, its own first: /proc/self/cgroup names them, v1 and v2.

    A quota may stand on any level: a container's is the root that it sees, a systemd unit's is further down.
    """
    found = []
    for line in membership.splitlines():
        if line.count(":") < 2:
            continue
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / controllers if controllers else root
        group = mount / path.lstrip("/")
        found += [level / "cpu.stat" for level in (group, *group.parents) if level.is_relative_to(mount)]
    return [path for path in dict.fromkeys(found) if os.access(path, os.R_OK)]


def throttled_ns(stats: Sequence[Path]) -> int:
    """Time that the strictest of the groups has held its processes back, ns; 0 where there are none."""
    found = [0]
    for path in stats:
        try:
            lines = path.read_text(encoding="ascii").splitlines()
        except OSError:
            continue
        words = [line.partition(" ") for line in lines]
        found += [int(told) * _THROTTLED[name] for name, _, told in words if name in _THROTTLED and told.isdecimal()]
    return max(found)


def _waits(stats: Sequence[Path]) -> dict[str, int]:
    """What this process and its machine went through since they began, ns; 0 where the kernel does not tell."""
    ran_ns, waited_ns = _scheduled()
    return {
        "cpu_ns": ran_ns,
        "run_delay_ns": waited_ns,
        "pressure_ns": _pressure_ns([stat.with_name("cpu.pressure") for stat in stats[:1]]),
        "suspended_ns": _suspended_ns(),
    }


def _scheduled() -> tuple[int, int]:
    """CPU that the main thread had, and that it waited for while it was ready to run."""
    try:
        ran, waited, *_ = Path("/proc/self/schedstat").read_text(encoding="ascii").split()
        return int(ran), int(waited)
    except (OSError, ValueError):
        return 0, 0


def _pressure_ns(groups: Sequence[Path]) -> int:
    """How long some process of the group, or of the machine, waited for a core (PSI, `some`)."""
    for path in (*groups, Path("/proc/pressure/cpu")):
        try:
            return int(path.read_text(encoding="ascii").partition("\n")[0].partition("total=")[2]) * 1000
        except (OSError, ValueError):
            continue
    return 0


def _suspended_ns() -> int:
    """How long the machine slept: the boot clock goes on, the monotonic one does not."""
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    return 0 if boottime is None else time.clock_gettime_ns(boottime) - time.monotonic_ns()


def _membership() -> str:
    try:
        return Path("/proc/self/cgroup").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def calm_garbage_collection() -> None:
    """Collect once, freeze what is there (the data set), and collect seldom from now on.

    A full collection of a worker with a large data set stops every stream for tens of milliseconds.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 1_000)


def forget_spawners() -> None:
    """Greenlets note the stack of whoever spawned them, for gevent's own pages: 1 kB a user that nobody looks at."""
    gevent.config.track_greenlet_tree = False
