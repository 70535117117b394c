"""Rules about the instrument: what its worker, its loop and its clock went through.

What that did to the numbers is judged by their bars (bars.py); here it is told, as evidence. Only a worker without a
core left, and a wall clock that was set, say something about the run that no bar holds.
"""

from __future__ import annotations

from tokenswarm.clock import NS_PER_S
from tokenswarm.judge.gates import latency_limits
from tokenswarm.judge.rules.causes import causes
from tokenswarm.judge.rules.evidence import Evidence, Rule, Severity, doubt, everything, ms, steady
from tokenswarm.measure.sketch import bucket_edge
from tokenswarm.measure.snapshot import BETWEEN_READS, WorkerState
from tokenswarm.result.summary import Doubt, Summary

STALL_S = 0.05  # the longest stall. AIPerf warns at 25 ms of a 250 ms tick
CPU_RATIO = (0.7, 0.9)  # Locust warns at 90 %
RX_LAG_S = 0.001  # p99
SEND_LAG_S, SEND_LAG_OF_TTFT = 0.005, 0.01  # p99; at least this share of the median TTFT
THROTTLED_SHARE = 0.001
CLOCK_STEP_S = 0.01
CLOCK_STEP_JOIN_S = 1.0  # beyond this, series of other machines can't be laid beside ours


def _stamped_by_kernel(summary: Summary) -> bool:
    """True where most stamps are the kernel's. A request that never got a byte counts as stamped in user space."""
    ratio = summary.instrument.kernel_stamp_ratio
    return ratio is None or ratio >= 0.5


def _stalled_share(worker: WorkerState) -> float:
    """Share of the worker's time that it spent in stalls longer than STALL_S."""
    stalled = sum(
        bucket_edge(key) * n for key, n in worker.instrument.loop_lag.counts.items() if bucket_edge(key) > STALL_S
    )
    return stalled * NS_PER_S / worker.elapsed_ns if worker.elapsed_ns else 0.0


def loop_stall(evidence: Evidence, summary: Summary) -> Doubt | None:
    """The longest stall of the worst worker's event loop."""
    worker = max(evidence.merged.workers, key=lambda one: one.instrument.loop_lag_ns_max, default=None)
    if worker is None or worker.instrument.loop_lag_ns_max <= STALL_S * NS_PER_S:
        return None
    longest_s = worker.instrument.loop_lag_ns_max / NS_PER_S
    p99_s, share = worker.instrument.loop_lag.quantile(0.99) or 0.0, _stalled_share(worker)
    why = " ".join(causes(evidence, summary))
    return doubt(
        "loop-stall",
        "note",
        f"The event loop of worker {worker.worker} stood still for up to {ms(longest_s)} (p99 of its lag {ms(p99_s)}, "
        f"{share:.1%} of its time): what it sent and read meanwhile has a wider bar." + (f" {why}" if why else ""),
        worker=worker.worker,
        longest_s=longest_s,
        p99_s=p99_s,
        stalled_ratio=share,
    )


def receive_lag(_evidence: Evidence, summary: Summary) -> Doubt | None:
    p99_s = summary.instrument.rx_lag_s.p99
    if p99_s is None or p99_s <= RX_LAG_S:
        return None
    return doubt(
        "receive-lag",
        "note",
        f"Data waited up to {ms(p99_s)} (p99) in the kernel before the client read it. The stamps are the kernel's, so "
        f"they hold, but what arrived meanwhile may share one.",
        p99_s=p99_s,
        stamps_unsure=summary.instrument.stamps_unsure,
    )


def send_lag(evidence: Evidence, summary: Summary) -> Doubt | None:
    """Sent − intended, beyond the time that connections took. In a closed loop a late start delays nobody else."""
    p99_s = summary.instrument.send_lag_s.p99
    if p99_s is None:
        return None
    block = steady(evidence)
    own_s = p99_s - (block.connect.quantile(0.99) or 0.0)
    limit_s = max(SEND_LAG_S, SEND_LAG_OF_TTFT * (block.ttft.quantile(0.5) or 0.0))
    if own_s <= limit_s:
        return None
    return doubt(
        "send-lag",
        "note",
        f"Requests were sent up to {ms(p99_s)} (p99) after they were due: TTFT as a user sees it (ttft_intended) holds "
        f"the client's own delay, and its bar says so. Use more workers, or cores of their own.",
        p99_s=p99_s,
        without_connect_s=own_s,
        limit_s=limit_s,
    )


def merged_events(evidence: Evidence, summary: Summary) -> Doubt | None:
    """Told where a percentile up to p99 of what lies between reads, or one with a limit, is withheld."""
    block = steady(evidence)
    share = block.merged_share("tpot")
    limited = {(name, which) for name, which, _ in latency_limits(evidence.profile.slo)}
    lacking = [
        f"{name}.{which}"
        for name in BETWEEN_READS
        for which in getattr(summary.latency, f"{name}_s").withheld
        if which != "p999" or (name, which) in limited
    ]
    if not share or not (lacking or block.one_read):
        return None
    return doubt(
        "merged-events",
        "note",
        f"{share:.2%} of the tokens came in one read with others"
        + (f", {block.one_read} whole answers among them" if block.one_read else "")
        + (f": not told are {', '.join(lacking)}" if lacking else "")
        + ". The server sends tokens in bursts, a proxy does (see `tokens-held-back`), or this client reads too late: "
        "see `receive-lag` and `loop-stall`.",
        merged_events_ratio=share,
        one_read=block.one_read,
        withheld=lacking,
    )


def cpu_saturated(evidence: Evidence, _summary: Summary) -> Doubt | None:
    busiest = max(evidence.merged.workers, key=lambda worker: worker.instrument.cpu_ratio_max, default=None)
    if busiest is None or busiest.instrument.cpu_ratio_max <= CPU_RATIO[0]:
        return None
    ratio, late = busiest.instrument.cpu_ratio_max, 0.0
    for worker in evidence.merged.workers:
        if worker.instrument.cpu_ratio_max > CPU_RATIO[1]:
            late = max(late, worker.instrument.loop_lag.quantile(0.99) or 0.0)
    severity: Severity = "note" if ratio <= CPU_RATIO[1] else "degraded"
    return doubt(
        "cpu-saturated",
        severity,
        f"Worker {busiest.worker} used {ratio:.0%} of a core"
        + (f" and its event loop fell behind (p99 {ms(late)}): the client was the bottleneck" if late else "")
        + ". Use more workers.",
        worker=busiest.worker,
        cpu_ratio_max=ratio,
        loop_lag_p99_s=late,
    )


def cpu_throttled(evidence: Evidence, _summary: Summary) -> Doubt | None:
    shares = {w.worker: w.instrument.throttled_ns / w.elapsed_ns for w in evidence.merged.workers if w.elapsed_ns}
    worker = max(shares, key=lambda number: shares[number], default=None)
    if worker is None or shares[worker] <= THROTTLED_SHARE:
        return None
    return doubt(
        "cpu-throttled",
        "note",
        f"The container's CPU limit held worker {worker} back for {shares[worker]:.1%} of its time: raise the limit.",
        worker=worker,
        throttled_ratio=shares[worker],
    )


def clock_step(evidence: Evidence, summary: Summary) -> Doubt | None:
    step_s = max(summary.instrument.clock_step_s_max, evidence.clock_step_s)
    if step_s < CLOCK_STEP_S:
        return None
    whose = " of the master" if step_s > summary.instrument.clock_step_s_max else ""
    join = (
        " Series of other machines (GPU, server) can't be laid beside this run." if step_s > CLOCK_STEP_JOIN_S else ""
    )
    return doubt(
        "clock-step",
        "degraded",
        f"The wall clock{whose} stepped by {ms(step_s)} during the run. Durations are monotonic and hold, but times "
        f"of day are off.{join} Let NTP slew the clock rather than step it.",
        step_s=step_s,
        stamps_unsure=summary.instrument.stamps_unsure,
    )


def user_stamps(evidence: Evidence, summary: Summary) -> Doubt | None:
    if _stamped_by_kernel(summary):
        return None
    return doubt(
        "user-stamps",
        "note",
        "Tokens were stamped when the client read them, not when they arrived"
        ": under load they are late by the event loop's lag (`instrument.loop_lag_s`). On Linux the kernel stamps.",
        kernel_stamp_ratio=summary.instrument.kernel_stamp_ratio,
        loop_lag_p99_s=summary.instrument.loop_lag_s.p99,
        reads=everything(evidence).reads,
    )


RULES: tuple[Rule, ...] = (
    loop_stall,
    receive_lag,
    send_lag,
    merged_events,
    cpu_saturated,
    cpu_throttled,
    clock_step,
    user_stamps,
)
