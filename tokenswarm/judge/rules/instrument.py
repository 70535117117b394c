"""Rules about the instrument: was the client quick enough, and its clock steady, to measure what it says?

Kernel stamps stay true while the event loop is late, so a stall weighs one step more where stamps are user-space ones.
"""

from __future__ import annotations

from tokenswarm.clock import NS_PER_S
from tokenswarm.judge.gates import latency_limits
from tokenswarm.judge.rules.evidence import (
    SEVERITIES,
    Evidence,
    Rule,
    Severity,
    doubt,
    everything,
    graded,
    ms,
    steady,
    worst,
)
from tokenswarm.measure.sketch import bucket_edge
from tokenswarm.measure.snapshot import BETWEEN_READS, WorkerState
from tokenswarm.measure.statistics import carried, enough
from tokenswarm.result.summary import PERCENTILES, Doubt, Summary

STALL_S = (0.05, 0.25, 1.0)  # the longest stall: note, degraded, invalid. AIPerf warns at 25 ms of a 250 ms tick
LOOP_P99_S = (0.05, 0.25)
STALLED_SHARE = (0.01, 0.05)  # of the time: requests that ran then are tainted
SATURATED_LOOP_P99_S = 0.02  # with a busy CPU: work queues up, so the client was the bottleneck
CPU_RATIO = (0.7, 0.9)  # Locust warns at 90 %
RX_LAG_S = (0.001, 0.005, 0.05)  # p99; the second and third are at least these shares of the median gap:
RX_LAG_OF_ITL = (0.1, 1.0)
SEND_LAG_S = (0.005, 0.02)  # p99; at least these shares of the median TTFT:
SEND_LAG_OF_TTFT = (0.01, 0.05)
THROTTLED_SHARE = (0.001, 0.05)
CLOCK_STEP_S = 0.01
CLOCK_STEP_JOIN_S = 1.0  # beyond this, series of other machines can't be laid beside ours


def _stamped_by_kernel(summary: Summary) -> bool:
    """True where most stamps are the kernel's. A request that never got a byte counts as stamped in user space."""
    ratio = summary.instrument.kernel_stamp_ratio
    return ratio is None or ratio >= 0.5


def _stalled_share(worker: WorkerState) -> float:
    """Share of the worker's time that it spent in stalls longer than STALL_S[0]."""
    stalled = sum(
        bucket_edge(key) * n for key, n in worker.instrument.loop_lag.counts.items() if bucket_edge(key) > STALL_S[0]
    )
    return stalled * NS_PER_S / worker.elapsed_ns if worker.elapsed_ns else 0.0


def loop_stall(evidence: Evidence, summary: Summary) -> Doubt | None:
    """Event loop lag of the worst worker: its longest stall, its p99, the share of time in stalls."""
    found: list[tuple[Severity, float, float, float, int]] = []
    for worker in evidence.merged.workers:
        longest_s = worker.instrument.loop_lag_ns_max / NS_PER_S
        p99_s, share = worker.instrument.loop_lag.quantile(0.99) or 0.0, _stalled_share(worker)
        severity = worst(graded(longest_s, *STALL_S), graded(p99_s, *LOOP_P99_S), graded(share, *STALLED_SHARE))
        if severity is not None:
            found.append((severity, longest_s, p99_s, share, worker.worker))
    if not found:
        return None
    severity, longest_s, p99_s, share, number = max(found, key=lambda row: (SEVERITIES.index(row[0]), row[1]))
    if not _stamped_by_kernel(summary):
        severity = SEVERITIES[min(len(SEVERITIES) - 1, SEVERITIES.index(severity) + 1)]
    return doubt(
        "loop-stall",
        severity,
        f"The event loop of worker {number} stood still for up to {ms(longest_s)} (p99 of its lag {ms(p99_s)}, "
        f"{share:.1%} of its time): requests went out and were read late. Give it a core of its own, or use more.",
        worker=number,
        longest_s=longest_s,
        p99_s=p99_s,
        stalled_ratio=share,
    )


def receive_lag(_evidence: Evidence, summary: Summary) -> Doubt | None:
    p99_s = summary.instrument.rx_lag_s.p99
    itl_s = summary.latency.itl_s.p50 or 0.0
    limits = (RX_LAG_S[0], *(max(a, b * itl_s) for a, b in zip(RX_LAG_S[1:], RX_LAG_OF_ITL, strict=True)))
    severity = None if p99_s is None else graded(p99_s, *limits)
    if p99_s is None or severity is None:
        return None
    return doubt(
        "receive-lag",
        severity,
        f"Data waited up to {ms(p99_s)} (p99) in the kernel before the client read it. The stamps are the kernel's, so "
        f"they hold, but what arrived meanwhile shares one. Use more workers, or cores of their own.",
        p99_s=p99_s,
        limits_s=list(limits),
        stamps_unsure=summary.instrument.stamps_unsure,
    )


def send_lag(evidence: Evidence, summary: Summary) -> Doubt | None:
    """Sent − intended, beyond the time that connections took. In a closed loop a late start delays nobody else."""
    p99_s = summary.instrument.send_lag_s.p99
    if p99_s is None:
        return None
    block = steady(evidence)
    own_s = p99_s - (block.connect.quantile(0.99) or 0.0)
    ttft_s = block.ttft.quantile(0.5) or 0.0
    limits = tuple(max(a, b * ttft_s) for a, b in zip(SEND_LAG_S, SEND_LAG_OF_TTFT, strict=True))
    severity = graded(own_s, *limits)
    if severity is None:
        return None
    if evidence.profile.load.kind == "closed":
        severity = "degraded"
    return doubt(
        "send-lag",
        severity,
        f"Requests were sent up to {ms(p99_s)} (p99) after they were due: TTFT as a user sees it (ttft_intended) holds "
        f"the client's own delay. Use more workers, or cores of their own.",
        p99_s=p99_s,
        without_connect_s=own_s,
        limits_s=list(limits),
    )


def merged_events(evidence: Evidence, _summary: Summary) -> Doubt | None:
    """Degraded where a median or a percentile with a limit is withheld, a note where another one up to p99 is."""
    block = steady(evidence)
    share = block.merged_share("tpot")
    limited = [which for name, which, _ in latency_limits(evidence.profile.slo) if name in BETWEEN_READS]
    wanted = [
        which for which in ("p50", "p90", "p95", "p99") if block.itl.n and enough(PERCENTILES[which], block.itl.n)
    ]
    lacking = [
        which for which in PERCENTILES if which in (*wanted, *limited) and not carried(PERCENTILES[which], share)
    ]
    if not lacking and carried(0.5, share):
        return None
    degraded = not carried(0.5, share) or set(lacking) & set(limited)
    return doubt(
        "merged-events",
        "degraded" if degraded else "note",
        f"{share:.2%} of the tokens came in one read with others"
        + (f", {block.one_read} whole answers among them" if block.one_read else "")
        + f": ITL, TPOT and the worst gap are not told for {', '.join(lacking or ['any percentile'])}, which take less "
        f"than (1 − p)/2. A proxy or the server sends tokens in bursts, or this client reads too late: see "
        f"`receive-lag` and `loop-stall`.",
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
    severity: Severity = "note" if ratio <= CPU_RATIO[1] else "invalid" if late > SATURATED_LOOP_P99_S else "degraded"
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
    severity = None if worker is None else graded(shares[worker], *THROTTLED_SHARE)
    if worker is None or severity is None:
        return None
    return doubt(
        "cpu-throttled",
        severity,
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
