"""The look at a target before there is load. It needs no Locust, so a server that is not there is told at once."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import gevent
import msgspec

from tokenswarm.client import preflight
from tokenswarm.cluster.entrance import say
from tokenswarm.judge.gates import latency_limits
from tokenswarm.judge.search import no_more
from tokenswarm.load import schedule
from tokenswarm.measure.snapshot import Merged, total
from tokenswarm.profile.profile import Profile

if TYPE_CHECKING:
    from tokenswarm.cluster.neighbour import Neighbour

LOOKS, LOOK_S = 3, 0.5  # at a target behind a run, and s after each: once is chance


class Looked(msgspec.Struct, frozen=True):
    """A run whose target answers."""

    profile: Profile  # with the model and the base URLs that were found
    arrivals: int | None  # that the schedule has in its window, where it is known before
    findings: preflight.Findings
    neighbour: Neighbour


def look(profile: Profile) -> Looked:
    """Read the trace, ask the target, fix the model. Raises UserError."""
    profile, arrivals = planned(profile)

    @cache
    def neighbour() -> Neighbour:
        from tokenswarm.cluster.neighbour import Neighbour  # once there is something to see: it takes a while

        return Neighbour(profile)

    findings = preflight.check(profile, say, neighbour)
    beside = neighbour()
    notes = [note for note in (beside.note(), unmissable(profile)) if note]
    findings = msgspec.structs.replace(findings, notes=[*findings.notes, *notes])
    engine = msgspec.structs.replace(profile.engine, model=findings.model, path=findings.path)
    profile = msgspec.structs.replace(profile, engine=engine, target=tuple(findings.targets))
    return Looked(profile, arrivals, findings, beside)


def look_again(profile: Profile, merged: Merged) -> str:
    """After a run at whose end something failed: what a target that is gone says; "" where each serves.

    Behind a gateway by a real request, where nothing succeeded at the end.
    """
    if not total(merged.blocks).periods.ends_failing:
        return ""
    reach = preflight.reach(profile)
    for _ in range(LOOKS):
        said = reach()
        if not said:
            return preflight.serve(profile)() if no_more(merged, max(b.stage for b in merged.blocks)) else ""
        gevent.sleep(LOOK_S)
    return said


def unmissable(profile: Profile) -> str:
    """A sentence about limits that no success can miss, as what takes so long is a failure; "" where there are none."""
    bounds = {"ttft": "first_token", "itl": "idle_token", "tpot": "idle_token", "stall": "idle_token"}
    bounds |= {"ttfat": "total", "e2e": "total"}
    for metric, which, limit in latency_limits(profile.slo):
        name = bounds.get(metric)
        if name is not None and limit >= (most := getattr(profile.timeouts, name)):
            return (
                f"`slo.{metric}_s.{which}: {limit:g}` can't be missed: what takes longer than `timeouts.{name}`, "
                f"{most:g} s, is a failure. Limits are in seconds, or say `{limit:g}ms`"
            )
    return ""


def planned(profile: Profile) -> tuple[Profile, int | None]:
    """The profile with a stage as long as its arrivals take, and how many lie in the window; None: not known before."""
    load = profile.load
    if load.trace is not None:
        from tokenswarm.load import trace  # its readers are of few runs

        found = trace.trace_of(load)
        for note in found.notes:
            say(note)
        stage, arrivals = trace.planned(load, found, profile.phases.warmup)
        known = msgspec.structs.replace(load.trace, sha256=load.trace.sha256 or trace.digest(Path(load.trace.path)))
        load = msgspec.structs.replace(load, trace=known)
    elif load.open and load.requests is not None:
        stage, arrivals = schedule.counted(load, profile.phases.warmup)
    else:
        return profile, None
    load = msgspec.structs.replace(load, stages=(stage,))
    return msgspec.structs.replace(profile, load=load), arrivals
