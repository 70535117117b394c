"""What the client measured about itself, summed over workers: the `instrument` of summary.json.

A load test is a measuring instrument, so its own errors are results, too: receive lag, event loop lag, send lag, merged
reads, CPU. The verdict judges by them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from tokenswarm.clock import NS_PER_S
from tokenswarm.measure.sketch import Sketch
from tokenswarm.measure.snapshot import Block, WorkerState


class Spread(msgspec.Struct, kw_only=True):
    """A quantity of the instrument, seconds: shown whatever the sample size, since it is there to raise doubts."""

    n: int = 0
    mean: float | None = None
    p50: float | None = None
    p99: float | None = None
    max: float | None = None


class WorkerReport(msgspec.Struct, kw_only=True):
    worker: int
    host: str
    pid: int
    final: bool
    reports_missing: int
    cpu_ratio_max: float
    loop_lag_s: Spread
    rx_lag_s: Spread
    clock_step_s_max: float
    gc_pause_s_max: float
    throttled_s: float
    waited_ratio: float = 0.0  # of its time: ready to run, while something else had its core
    pressure_ratio: float = 0.0  # ... in which some process of its machine, or container, waited for one
    gc_pause_ratio: float = 0.0
    suspended_s: float = 0.0  # the machine slept
    rss_bytes: int
    wraps: int


class InstrumentReport(msgspec.Struct, kw_only=True):
    """What the client measured about itself."""

    stamp: Literal["kernel", "user", "mixed"] | None = None
    kernel_stamp_ratio: float | None = None
    rx_lag_s: Spread
    loop_lag_s: Spread
    send_lag_s: Spread  # sent − intended, requests of the steady windows
    merged_events_ratio: float | None = None
    cpu_ratio: dict[str, float] = {}  # worker -> largest share of one core
    cpu_ratio_max: float | None = None
    stamps_unsure: int = 0  # reads whose moment is not known to some µs, over all workers
    sent_stamp: Literal["kernel", "user", "mixed"] | None = None  # whose clock says when a request left
    sends_unstamped: int = 0  # requests that the kernel did not stamp, or too late
    clock_step_s_max: float = 0.0
    gc_pause_s_max: float = 0.0
    throttled_s: float = 0.0
    values_refused: int = 0  # NaN or infinite: a bug, if it is not 0
    values_negative: int = 0  # durations below 0: a clock went backwards
    dataset_wraps: int = 0
    workers: list[WorkerReport] = []


def spread(sketch: Sketch) -> Spread:
    """n, mean, p50, p99 (nearest rank, whatever n) and exact max, in seconds."""
    p50, p99 = sketch.quantiles((0.5, 0.99))
    return Spread(n=sketch.n, mean=sketch.mean, p50=p50, p99=p99, max=sketch.high)


def instrument(workers: Sequence[WorkerState], steady: Block, everything: Block) -> InstrumentReport:
    """Sums and maxima over workers; merged_events_ratio = merged / content-bearing events of the whole run."""
    rx_lag, loop_lag = Sketch(), Sketch()
    for worker in workers:
        rx_lag.merge(worker.instrument.rx_lag)
        loop_lag.merge(worker.instrument.loop_lag)
    reports = [_worker_report(worker) for worker in workers]
    kernel = sum(worker.instrument.kernel_stamped for worker in workers)
    user = sum(worker.instrument.user_stamped for worker in workers)
    stamped = sum(worker.instrument.sends_stamped for worker in workers)
    unstamped = sum(worker.instrument.sends_unstamped for worker in workers)
    sketches = [value for name in Block.__struct_fields__ if isinstance(value := getattr(everything, name), Sketch)]
    return InstrumentReport(
        stamp=_whose(kernel, user),
        kernel_stamp_ratio=kernel / (kernel + user) if kernel + user else None,
        rx_lag_s=spread(rx_lag if rx_lag.n else everything.rx_lag),
        loop_lag_s=spread(loop_lag),
        send_lag_s=spread(steady.send_lag),
        merged_events_ratio=everything.merged_events / everything.events if everything.events else None,
        cpu_ratio={str(report.worker): report.cpu_ratio_max for report in reports},
        cpu_ratio_max=max((report.cpu_ratio_max for report in reports), default=None),
        stamps_unsure=sum(worker.instrument.stamps_unsure for worker in workers),
        clock_step_s_max=max((report.clock_step_s_max for report in reports), default=0.0),
        gc_pause_s_max=max((report.gc_pause_s_max for report in reports), default=0.0),
        throttled_s=sum(report.throttled_s for report in reports),
        sent_stamp=_whose(stamped, unstamped),
        sends_unstamped=unstamped,
        values_refused=sum(sketch.refused for sketch in sketches),
        values_negative=sum(sketch.negative for sketch in sketches),
        dataset_wraps=max((worker.wraps for worker in workers), default=0),
        workers=reports,
    )


def _whose(kernel: int, user: int) -> Literal["kernel", "user", "mixed"] | None:
    if not kernel + user:
        return None
    return "mixed" if kernel and user else "kernel" if kernel else "user"


def _worker_report(worker: WorkerState) -> WorkerReport:
    own, elapsed_ns = worker.instrument, max(1, worker.elapsed_ns)
    return WorkerReport(
        worker=worker.worker,
        host=worker.host,
        pid=worker.pid,
        final=worker.final,
        reports_missing=len(worker.missing),
        cpu_ratio_max=own.cpu_ratio_max,
        loop_lag_s=spread(own.loop_lag),
        rx_lag_s=spread(own.rx_lag),
        clock_step_s_max=own.clock_step_ns_max / NS_PER_S,
        gc_pause_s_max=own.gc_pause_ns_max / NS_PER_S,
        throttled_s=own.throttled_ns / NS_PER_S,
        waited_ratio=own.run_delay_ns / elapsed_ns,
        pressure_ratio=own.pressure_ns / elapsed_ns,
        gc_pause_ratio=own.gc_pause_ns / elapsed_ns,
        suspended_s=own.suspended_ns / NS_PER_S,
        rss_bytes=own.rss_bytes,
        wraps=worker.wraps,
    )
