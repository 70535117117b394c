"""Rules about the load: were all users there that the stage asked for, did they send, was one taken away?"""

from __future__ import annotations

from tokenswarm.clock import NS_PER_S
from tokenswarm.judge.rules.evidence import Evidence, Rule, Severity, UsersSeen, doubt, graded, worst
from tokenswarm.profile.load import ENDLESS_S
from tokenswarm.result.summary import Doubt, Summary

USERS_SHARE_MAX = 0.01  # that the mean of the reported users may be away from the users asked for
IDLE_SHARE = (0.1, 0.25)  # of the users' time, in which nothing of theirs was in flight
BETWEEN_S = 0.025  # from one answer to the next request, that is the client's own: more than it takes on a busy machine
FAILED_SHARE_MAX = 0.01  # beyond it users step back, and are idle with reason
CANCELLED_SHARE_MAX = 0.01


def users_differ(evidence: Evidence, _summary: Summary) -> Doubt | None:
    severity: Severity | None = None
    told: list[str] = []
    for number, seen in enumerate(evidence.users):
        if seen.mean is None or seen.lowest == seen.highest == seen.asked or number in evidence.changed:
            continue  # `users-changed` tells of those that somebody changed
        away = abs(seen.mean - seen.asked) > USERS_SHARE_MAX * seen.asked
        severity = worst(severity, "invalid" if away else "degraded")
        told.append(f"stage {number + 1} asked for {seen.asked}, {_range(seen)} were there (mean {seen.mean:.3g})")
    if severity is None:
        return None
    return doubt(
        "users-differ",
        severity,
        f"Other users were there than planned: {'; '.join(told[:3])}. Another load was sent, so don't compare it: "
        "look at the workers' logs, and change no users inside a window.",
        stages=told,
    )


def _range(seen: UsersSeen) -> str:
    return str(seen.lowest) if seen.lowest == seen.highest else f"{seen.lowest} to {seen.highest}"


def users_idle(evidence: Evidence, _summary: Summary) -> Doubt | None:
    """A closed-loop user has a request in flight, but for its think time and what the client needs in between."""
    if evidence.lost or not evidence.merged.final or evidence.profile.load.open:
        return None  # what those workers had in flight is not known
    if evidence.profile.load.requests is not None:
        return None  # who finds none left to send is idle with reason
    severity: Severity | None = None
    told: list[str] = []
    for number, seen in enumerate(evidence.users):
        block = evidence.merged.block(number)
        if not block.window_ns or not seen.asked or block.failed > FAILED_SHARE_MAX * block.intended:
            continue
        window_s = block.window_ns / NS_PER_S
        in_flight = block.window_in_flight_ns / block.window_ns
        between_s = block.intended * (evidence.profile.load.think_time + BETWEEN_S)
        connecting_s = (block.connect.mean or 0.0) * block.connect.n
        share = 1 - (in_flight + (between_s + connecting_s) / window_s) / seen.asked
        grade = graded(share, *IDLE_SHARE)
        if grade is not None:
            severity = worst(severity, grade)
            told.append(f"{in_flight:.3g} of {seen.asked} in stage {number + 1}")
    if severity is None:
        return None
    return doubt(
        "users-idle",
        severity,
        f"Fewer requests were in flight than users were there ({'; '.join(told[:3])}), though users wait only for "
        "answers and think time: less load was sent than planned. Look at the workers' logs and CPU.",
        stages=told,
    )


def cancelled_requests(evidence: Evidence, summary: Summary) -> Doubt | None:
    """Requests of a steady window that were cut off by us."""
    cut = intended = 0
    for stage in summary.stages:
        block = evidence.merged.block(stage.stage)
        intended += block.intended
        cut += block.cancelled
    severity = graded(cut / max(1, intended), 0.0, CANCELLED_SHARE_MAX)
    if severity is None:
        return None
    return doubt(
        "cancelled-requests",
        severity,
        f"{cut} of {intended} requests of the steady windows were cut off by this side before they ended: they have no "
        "latency, and the long ones are hit most. Stop no worker inside a window, and see whether connections to the "
        "server come about.",
        cancelled=cut,
        intended=intended,
    )


def requests_missing(evidence: Evidence, summary: Summary) -> Doubt | None:
    """Another number of requests than the profile asks for; fewer, where the time was over before."""
    asked, came = evidence.profile.load.requests, summary.requests.intended
    if asked is None or not evidence.merged.final:
        return None
    if evidence.lost or evidence.left or evidence.interrupted or evidence.aborted:
        return None  # those doubts say it
    if came == asked:
        if summary.requests_steady.intended:
            return None
        said = f"All {asked} requests were sent in the warm-up: shorten `phases.warmup`, or ask for more."
        return doubt("requests-missing", "invalid", said, asked=asked, came=came)
    over = came < asked and evidence.profile.load.stages[0].duration < ENDLESS_S
    return doubt(
        "requests-missing",
        "note" if over else "invalid",
        f"{came} of the {asked} requests of `load.requests` were sent"
        + (" when the stage's time was over: give it a longer `duration`, or none." if over else ": look at the logs."),
        asked=asked,
        came=came,
    )


RULES: tuple[Rule, ...] = (users_differ, users_idle, requests_missing, cancelled_requests)
