"""What a worker measured about itself, as it travels in its reports."""

from __future__ import annotations

import msgspec

from tokenswarm.measure.sketch import Count, Sketch


class Instrument(msgspec.Struct, kw_only=True):
    """What the worker measured about itself. The worker writes into it; the recorder only carries it."""

    loop_lag: Sketch = msgspec.field(default_factory=Sketch)  # seconds a timer of the event loop came late
    loop_lag_ns_max: Count = 0
    rx_lag: Sketch = msgspec.field(default_factory=Sketch)  # seconds from the kernel's receive stamp to our read
    rx_lag_ns_max: Count = 0
    cpu_ratio_last: float = 0.0  # of one core
    cpu_ratio_max: float = 0.0
    throttled_ns: Count = 0  # cgroup CPU throttling
    kernel_stamped: Count = 0  # requests whose receive stamps are the kernel's
    user_stamped: Count = 0
    sends_stamped: Count = 0  # requests whose sending the kernel stamped
    sends_unstamped: Count = 0  # ... did not, or too late: it lies between two looks at the clock
    stamps_unsure: Count = 0  # reads whose moment is not known to some µs
    clock_step_ns_max: Count = 0  # largest |Δ(realtime − monotonic)| between two looks
    gc_pauses: Count = 0
    gc_pause_ns_max: Count = 0
    gc_pause_ns: Count = 0  # all of them
    cpu_ns: Count = 0  # CPU that this process had
    run_delay_ns: Count = 0  # ... and that it waited for, ready to run, while something else had its core
    pressure_ns: Count = 0  # time in which some process of this machine, or container, waited for a core (PSI)
    suspended_ns: Count = 0  # the machine slept
    rss_bytes: Count = 0

    @property
    def kernel_stamp_ratio(self) -> float | None:
        total = self.kernel_stamped + self.user_stamped
        return self.kernel_stamped / total if total else None
