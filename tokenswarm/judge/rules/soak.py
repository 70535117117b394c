"""Rules about what only time shows: numbers that drift, memory that grows. They look at `soak` of the summary.

How sure they are, and how often they are wrong: docs/soak.md. A drift of the server is no fault of the measurement, but
the run's numbers are then those of no one time.
"""

from __future__ import annotations

from tokenswarm.judge.rules.evidence import Evidence, Rule, doubt
from tokenswarm.measure.trend import ALPHA, CHANGE_MIN
from tokenswarm.result.soak import Drift, Growth, name_of
from tokenswarm.result.summary import Doubt, Summary

SHOWN = 4
CLIENT = ("worker", "master")


def _told(one: Drift) -> str:
    by = f"{one.change:+.2%} of all" if one.metric == "failed_ratio" else f"{one.change:+.1%}"
    return f"{name_of(one.metric)} {by} (p {one.p:.1g})"


def drift(_evidence: Evidence, summary: Summary) -> Doubt | None:
    found = [one for one in summary.soak.drift if one.drifts] if summary.soak is not None else []
    if summary.soak is None or not found:
        return None
    found.sort(key=lambda one: (not one.worse, one.p, -abs(one.change)))
    worse = [one for one in found if one.worse]
    windows = max(one.windows for one in found)
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return doubt(
        "drift",
        "degraded" if worse else "note",
        f"Over {windows} windows of {summary.soak.window_s:g} s {'it got worse' if worse else 'it got better'}: "
        f"{', '.join(map(_told, found[:SHOWN]))}{more}, more than chance. The numbers of the run are those of no one "
        f"time: look at `soak.windows`, and what the engine, its memory and its clocks did.",
        alpha=ALPHA,
        change_min=CHANGE_MIN,
        drifts={one.metric: {"change": one.change, "p": one.p, "stage": one.stage} for one in found},
    )


def _grows(summary: Summary, *, client: bool) -> list[Growth]:
    every = summary.soak.memory if summary.soak is not None else []
    found = [one for one in every if one.grows and one.what.startswith(CLIENT) is client]
    return sorted(found, key=lambda one: -one.change)


def _sizes(found: list[Growth]) -> str:
    return ", ".join(
        f"{one.what} by {one.change / 2**20:.0f} MiB around {one.middle / 2**20:.0f} MiB, "
        f"{one.per_hour / 2**20:.{0 if one.per_hour >= 10 << 20 else 1}f} MiB an hour" for one in found[:SHOWN]
    )  # fmt: skip


def engine_memory(_evidence: Evidence, summary: Summary) -> Doubt | None:
    found = _grows(summary, client=False)
    if not found:
        return None
    return doubt(
        "engine-memory-grows",
        "degraded",
        f"Memory of what was tested grew all the time: {_sizes(found)}. It will end somewhere: run longer, and look "
        f"for a leak, or a cache without a bound.",
        bytes={one.what: round(one.change) for one in found},
        per_hour={one.what: round(one.per_hour) for one in found},
    )


def client_memory(_evidence: Evidence, summary: Summary) -> Doubt | None:
    found = _grows(summary, client=True)
    if not found:
        return None
    return doubt(
        "client-memory-grows",
        "degraded",
        f"Memory of this program grew all the time: {_sizes(found)}. It should not: keep the results and report it; "
        f"until then end the run before the machine is short of memory.",
        bytes={one.what: round(one.change) for one in found},
        per_hour={one.what: round(one.per_hour) for one in found},
    )


def windows_lost(_evidence: Evidence, summary: Summary) -> Doubt | None:
    if summary.soak is None or not summary.soak.note:
        return None
    return doubt("windows-lost", "note", f"Not all that a long run writes was written or read: {summary.soak.note}.")


RULES: tuple[Rule, ...] = (drift, engine_memory, client_memory, windows_lost)
