"""Rules about an open loop: did every arrival of the schedule come, was it sent, and did the server keep up?

That arrivals were sent late is `send-lag` of instrument.py, which forgives closed loops alone.
"""

from __future__ import annotations

from tokenswarm.judge.rules.evidence import Evidence, Rule, Severity, doubt, graded, worst
from tokenswarm.load.rate import Rate
from tokenswarm.measure.snapshot import Block
from tokenswarm.result.summary import Doubt, Stage, Summary

DROPPED_SHARE_MAX = 0.001
CHANCE_SIGMAS = 5.0  # that the number of random arrivals may be away from its mean
BACKLOG_SHARE = 0.1  # of a window's arrivals, that more of them are under way at its end than at its begin
BACKLOG_ANSWERS = 3.0  # times as long as the quickest answer takes is what the backlog takes to arrive
WAIT_SHARE = 1 / 3  # of the time in which so many arrive, that requests then wait longer


def dropped_arrivals(_evidence: Evidence, summary: Summary) -> Doubt | None:
    counts = summary.requests
    share = counts.dropped / max(1, counts.intended)
    severity = graded(share, 0.0, DROPPED_SHARE_MAX)
    if severity is None:
        return None
    return doubt(
        "dropped-arrivals",
        severity,
        f"{counts.dropped} of {counts.intended} requests that were due were never sent ({share:.2%}), since as many as "
        f"may be were under way: the offered load was lower than planned. Lower the rate, or raise "
        f"`load.max_in_flight` or the number of workers.",
        dropped=counts.dropped,
        intended=counts.intended,
    )


def arrivals_missing(evidence: Evidence, summary: Summary) -> Doubt | None:
    """More or fewer requests became due in a window than its schedule has, beyond what chance makes of it."""
    if evidence.lost or evidence.left or not evidence.merged.final:
        return None  # those doubts say it
    told: list[str] = []
    for stage in summary.stages:
        length_s, came = stage.steady_window.length_s, stage.requests_steady.intended
        if stage.arrivals is not None and came != stage.arrivals and not (evidence.interrupted or evidence.aborted):
            told.append(f"{came} instead of {stage.arrivals} in stage {stage.stage + 1}")
        if stage.rate is None or not length_s or stage.arrivals is not None:
            continue
        ramp_s = length_s if stage.rate_end is not None else 0.0
        expected = Rate(stage.rate, stage.rate_end or stage.rate, ramp_s=ramp_s).due(length_s)
        if abs(came - expected) > _by_chance(evidence, expected) + 1 + evidence.expected_workers:
            told.append(f"{came} instead of {expected:.0f} in stage {stage.stage + 1}")
    if not told:
        return None
    return doubt(
        "arrivals-missing",
        "invalid",
        f"Other requests became due than the schedule has: {'; '.join(told[:3])}. Another load was sent than planned: "
        "look at the workers' logs and CPU, and use more workers.",
        stages=told,
    )


def _by_chance(evidence: Evidence, expected: float) -> float:
    load = evidence.profile.load
    if load.kind == "constant":
        return 0.002 * expected  # windows are cut to some ms
    return CHANCE_SIGMAS * float((expected / min(load.burstiness or 1.0, 1.0)) ** 0.5)


def rate_not_kept(evidence: Evidence, summary: Summary) -> Doubt | None:
    """The server answered clearly fewer requests than came, and made them wait ever longer."""
    severity: Severity | None = None
    told: list[str] = []
    for stage in summary.stages:
        block, length_s = evidence.merged.block(stage.stage), stage.steady_window.length_s
        if not evidence.profile.load.open or not length_s or not block.intended:
            continue
        backlog = block.intended - block.dropped - block.window_requests - block.failed - block.cancelled
        if backlog <= BACKLOG_SHARE * block.intended or not _waits(block, backlog * length_s / block.intended):
            continue
        severity = worst(severity, "degraded")
        told.append(_how(stage, block, backlog, length_s))
    if severity is None:
        return None
    return doubt(
        "rate-not-kept",
        severity,
        f"The server did not keep up: {'; '.join(told[:2])}. Latencies grow while this goes on, and say how "
        "long the run was. Lower the rate.",
        stages=told,
    )


def _waits(block: Block, grown_s: float) -> bool:
    """Whether requests waited for the backlog; else the window only began before the first answers could end."""
    if grown_s < BACKLOG_ANSWERS * (block.e2e.low or 0.0):
        return False
    first, second = (half.get("e2e") for half in (block.first_half, block.second_half))
    later_s = ((second and second.quantile(0.5)) or 0.0) - ((first and first.quantile(0.5)) or 0.0)
    waited_s = max(block.ttft_intended.quantile(0.9) or 0.0, later_s)
    return waited_s > WAIT_SHARE * grown_s or block.censored > BACKLOG_SHARE * block.intended


def _how(stage: Stage, block: Block, backlog: int, length_s: float) -> str:
    return (
        f"in stage {stage.stage + 1} {block.intended / length_s:.3g} requests a second came and "
        f"{block.window_requests / length_s:.3g} were answered, and {backlog} more were under way at its end"
    )


RULES: tuple[Rule, ...] = (dropped_arrivals, arrivals_missing, rate_not_kept)
