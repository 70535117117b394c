"""Rules about what only time shows: numbers that drift, memory that grows. They look at `soak` of the summary.

How sure they are, and how often they are wrong: docs/soak.md. A drift of the server is no fault of the measurement, but
the run's numbers are then those of no one time.
"""

from __future__ import annotations

from typing import Any

from tokenswarm.judge.rules.evidence import Evidence, Rule, doubt
from tokenswarm.measure.trend import ALPHA, CHANGE_MIN
from tokenswarm.result.soak import Drift, Growth, Soak, name_of
from tokenswarm.result.summary import Doubt, Summary

SHOWN = 4
CLIENT = ("worker", "master")


def _told(soak: Soak, one: Drift) -> str:
    by = f"{one.change:+.2%} of all" if one.metric == "failed_ratio" else f"{one.change:+.1%}"
    return f"{name_of(one.metric)}{soak.where(one)} {by} (p {one.p:.1g})"


def drift(_evidence: Evidence, summary: Summary) -> Doubt | None:
    found = [one for one in summary.soak.drift if one.drifts] if summary.soak is not None else []
    if summary.soak is None or not found:
        return None
    found.sort(key=lambda one: (not one.worse, one.p, -abs(one.change)))
    worse = [one for one in found if one.worse]
    windows = max(one.windows for one in found)
    shown = ", ".join(_told(summary.soak, one) for one in found[:SHOWN])
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return doubt(
        "drift",
        "degraded" if worse else "note",
        f"Over {windows} windows of {summary.soak.window_s:g} s {'it got worse' if worse else 'it got better'}: "
        f"{shown}{more}, more than chance. The numbers of the run are those of no one time: look at `soak.windows`, "
        f"and what the engine, its memory and its clocks did.",
        alpha=ALPHA,
        change_min=CHANGE_MIN,
        drifts=[{"metric": one.metric, "stage": one.stage, "change": one.change, "p": one.p} for one in found],
    )


def _grows(summary: Summary, *, client: bool) -> tuple[str, list[dict[str, Any]]]:
    """(in words, as evidence) what grew of this program, or of what it tests; the most first."""
    soak = summary.soak
    found = [] if soak is None else [one for one in soak.memory if one.grows and one.what.startswith(CLIENT) is client]
    found.sort(key=lambda one: -one.change)
    words = [f"{one.what}{soak.where(one)} {_size(one)}" for one in found[:SHOWN]] if soak is not None else []
    return ", ".join(words), [
        {"what": one.what, "stage": one.stage, "bytes": round(one.change), "per_hour": round(one.per_hour)}
        for one in found
    ]


def _size(one: Growth) -> str:
    return (
        f"by {one.change / 2**20:.0f} MiB around {one.middle / 2**20:.0f} MiB, "
        f"{one.per_hour / 2**20:.{0 if one.per_hour >= 10 << 20 else 1}f} MiB an hour"
    )


def engine_memory(_evidence: Evidence, summary: Summary) -> Doubt | None:
    words, grows = _grows(summary, client=False)
    if not grows:
        return None
    return doubt(
        "engine-memory-grows",
        "degraded",
        f"Memory of what was tested grew all the time: {words}. It will end somewhere: run longer, and look for a "
        f"leak, or a cache without a bound.",
        grows=grows,
    )


def client_memory(_evidence: Evidence, summary: Summary) -> Doubt | None:
    words, grows = _grows(summary, client=True)
    if not grows:
        return None
    return doubt(
        "client-memory-grows",
        "degraded",
        f"Memory of this program grew all the time: {words}. It should not: keep the results and report it; until then "
        f"end the run before the machine is short of memory.",
        grows=grows,
    )


def windows_lost(_evidence: Evidence, summary: Summary) -> Doubt | None:
    if summary.soak is None or not summary.soak.note:
        return None
    return doubt("windows-lost", "note", f"Not all that a long run writes was written or read: {summary.soak.note}.")


RULES: tuple[Rule, ...] = (drift, engine_memory, client_memory, windows_lost)
