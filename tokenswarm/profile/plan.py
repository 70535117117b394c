"""What a run is about to do, in one sentence: stages, seconds, and how long it may take at most."""

from __future__ import annotations

from tokenswarm.profile.load import ENDLESS_S
from tokenswarm.profile.profile import Profile


def length_s(profile: Profile) -> float:
    """Warm-up, stages and settling, without the drain."""
    stages, phases = profile.load.stages, profile.phases
    return phases.warmup + phases.settle * (len(stages) - 1) + sum(stage.duration for stage in stages)


def plan(profile: Profile) -> str:
    """`plan: 4 stages (1, 8, 32, 96 users), 38 s with warm-up, then 20 s at most for open streams`."""
    stages, kind = profile.load.stages, profile.load.kind
    loads = [f"{stage.users}" if stage.users is not None else stage.told for stage in stages]
    shown = ", ".join(loads if len(loads) <= 8 else [*loads[:4], "…", *loads[-2:]])
    if kind == "trace":
        many = "the arrivals of a trace"
    elif profile.load.open:
        many = f"{len(stages)} stages ({shown}, {kind})" if len(stages) > 1 else f"{shown} ({kind} arrivals)"
    else:
        many = f"{len(stages)} stages ({shown} users)" if len(stages) > 1 else f"{shown} user{'s' * (loads != ['1'])}"
    whole, requests = length_s(profile), profile.load.requests
    many += f", {requests} request{'s' * (requests > 1)}" if requests is not None else ""
    if any(stage.duration >= ENDLESS_S for stage in stages):
        return f"plan: {many}" if requests is not None else f"plan: {many}, until Ctrl-C"
    drain = f"then {time_text(profile.phases.drain)} at most for open streams"
    return f"plan: {many}, {time_text(whole)} with warm-up, {drain}"


def time_text(seconds: float) -> str:
    """`45 s`, `12 min`, `2 h 5 min`."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min".replace(" 0 min", "")
