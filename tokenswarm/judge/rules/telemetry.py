"""Rules about telemetry: did the engine and the GPUs tell all the time what they did, and did they stay what they were?

They look at `server.metrics` and `gpu` of the summary and are silent where nothing was watched. The client's own times
do not depend on telemetry, so nothing here makes a run INVALID: what can't be known is null in the blocks.
"""

from __future__ import annotations

from typing import Any

import msgspec

from tokenswarm.judge.rules import contamination
from tokenswarm.judge.rules.evidence import Evidence, Rule, Severity, doubt, steady
from tokenswarm.judge.rules.path import engine_word
from tokenswarm.result.summary import Doubt, Summary
from tokenswarm.telemetry.window import HOLE_INTERVALS

UNCOVERED_SHARE = 0.1  # one hole of this share of the windows: means are those of another time
TOKENS_DIFFER = 0.05  # beyond the tolerance: counts that differ by more are of another load
THROTTLED_SHARE = 0.01  # of the time; less is a blip at the start of a stage
AT_WORK = 0.5  # share of the time in which a kernel ran
CLOCK_SHARE = 0.85  # of the card's highest clock; boards at work run at 0.9 of it and more
POWER_REASONS = frozenset({"sw_power_cap", "sync_boost"})  # a card at its power limit does what it was built for

PROBLEM_MAX = 300  # of what a source that never answered said last: our longest sentence, whole

ANOTHER = {
    "several_processes": "Several processes answer at {url} in turn (their counts go back and forth): a router that "
    "takes turns, or a cache of old pages.",
    "cached": "A cache on the path answers at {url} with old pages (it says so, or they stand still while the engine "
    "goes on; Varnish keeps what GET asks for 120 s).",
}
"""Reasons of gaps for which no number of the source means anything, and what they say."""


def engine_gaps(evidence: Evidence, summary: Summary) -> Doubt | None:
    metrics = summary.server.get("metrics")
    if not metrics:
        return None
    wrong = _answered_by_another(metrics["sources"])
    if wrong is not None:
        mend = "Give `telemetry.engine_metrics` each engine's own address."
        told = f"{wrong[0]} The engine's numbers are left out. {mend}"
        return doubt("engine-telemetry-gaps", "degraded", told, urls=wrong[1])
    silent = _silent(metrics["sources"])
    if silent and evidence.profile.telemetry.engine_metrics == ("auto",) and len(silent) == len(metrics["sources"]):
        return None  # not every server has metrics: `auto` that finds none was only a try
    found = _missing(evidence, silent, metrics["coverage"])
    return None if found is None else doubt("engine-telemetry-gaps", found[0], f"The engine{found[1]}", **found[2])


def gpu_gaps(evidence: Evidence, summary: Summary) -> Doubt | None:
    if not summary.gpu.get("sources"):
        return None
    wrong = _answered_by_another(summary.gpu["sources"])
    if wrong is not None:
        told = f"{wrong[0]} The GPUs' numbers are left out. Give `telemetry.gpu_exporters` the address behind it."
        return doubt("gpu-telemetry-gaps", "degraded", told, urls=wrong[1])
    coverage = summary.gpu["coverage"]
    found = _missing(evidence, _silent(summary.gpu["sources"]), coverage)
    if found is None and coverage["resets"]:
        told = "'s counters began again inside a steady window: its energy is that of the longest piece."
        found = ("note", told, {"resets": coverage["resets"]})
    return None if found is None else doubt("gpu-telemetry-gaps", found[0], f"A GPU exporter{found[1]}", **found[2])


def _answered_by_another(sources: list[dict[str, Any]]) -> tuple[str, list[str]] | None:
    """Where something else than the one that was asked gave the pages: what it is, and at which addresses."""
    for reason, told in ANOTHER.items():
        urls = [source["url"][:120] for source in sources if source["gaps"].get(reason)]
        if urls:
            return told.format(url=urls[0]), urls
    return None


def _silent(sources: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [source for source in sources if not source["good"]]


def _missing(
    evidence: Evidence, silent: list[dict[str, Any]], coverage: dict[str, Any]
) -> tuple[Severity, str, dict[str, Any]] | None:
    """A source that never answered, a window without readings, or a hole: severity, rest of the sentence, evidence."""
    if silent:
        url, problem = silent[0]["url"][:120], silent[0]["problem"][:PROBLEM_MAX]
        told = f" gave no metrics at {url} ({problem}): that part of the result is empty. Check `telemetry` and it."
        return "degraded", told, {"url": url, "problem": problem}
    window_s, hole_s = coverage["window_s"], coverage["hole_s"]
    empty = coverage["empty_windows"]
    if not window_s or not (empty or hole_s > HOLE_INTERVALS * evidence.profile.telemetry.interval):
        return None
    gaps = ", ".join(f"{n} × {reason}" for reason, n in coverage["gaps"].items()) or "no look failed"
    told = (
        f" gave no metrics for up to {hole_s:.1f} s of the steady windows ({gaps}): means are those of the rest. Look "
        f"at the load of that machine, and at the network."
    )
    severity: Severity = "degraded" if empty or hole_s > UNCOVERED_SHARE * window_s else "note"
    return severity, told, {"hole_s": hole_s, "empty_windows": empty, "gaps": coverage["gaps"]}


def engine_restarted(_evidence: Evidence, summary: Summary) -> Doubt | None:
    """Counters that began again in a window, or a process that came back: named, with what failed in it."""
    metrics = summary.server.get("metrics")
    resets = metrics["coverage"]["resets"] if metrics else 0
    restarts = summary.soak.restarts if summary.soak is not None else []
    if not resets and not restarts:
        return None
    if not restarts:
        return doubt(
            "engine-restarted",
            "degraded",
            f"The engine's counters began again {resets} time{'s' * (resets != 1)} inside a steady window: it "
            f"restarted, or its metrics changed. Its numbers are those of the longest piece; read its log.",
            resets=resets,
        )
    times = ", ".join(f"{one.url} at {one.gone_s:.0f} s, for {one.back_s - one.gone_s:.3g} s" for one in restarts[:3])
    more = f" and {len(restarts) - 3} more" if len(restarts) > 3 else ""
    failed = summary.soak.failed_in_restarts if summary.soak is not None else 0
    return doubt(
        "engine-restarted",
        "degraded",
        f"The engine restarted {len(restarts)} time{'s' * (len(restarts) != 1)} ({times}{more}): {failed} requests "
        f"failed in it, and the run went on. Its own numbers are those of the longest piece; read its log.",
        resets=resets,
        restarts=[msgspec.to_builtins(one) for one in restarts[:20]],
        failed=failed,
    )


def tokens_disagree(evidence: Evidence, summary: Summary) -> Doubt | None:
    metrics = summary.server.get("metrics") or {}
    compared = metrics.get("output_tokens_compared")
    if not compared or compared["agree"]:
        return None
    difference = compared["difference_ratio"]
    word = engine_word(steady(evidence).held, summary)
    if word is not None and word.held:  # what was made before an edge of the window came behind it
        late_ratio = word.late_s / metrics["coverage"]["window_s"]
        if abs(difference) <= late_ratio + compared["tolerance_ratio"]:
            return None
    more = difference > 0
    why = contamination.foreign_load if more else contamination.requests_elsewhere
    if why(evidence, summary) is not None:
        return None  # that says the same, and whose requests they are
    return doubt(
        "server-tokens-disagree",
        "degraded" if abs(difference) > TOKENS_DIFFER + compared["tolerance_ratio"] else "note",
        f"The engine counted {abs(difference):.1%} {'more' if more else 'fewer'} output tokens a second than the "
        f"client (up to {compared['tolerance_ratio']:.1%} would be nothing). "
        + ("See whether it serves somebody else, too." if more else "See whether it is one of several replicas."),
        **compared,
    )


def gpu_lost(_evidence: Evidence, summary: Summary) -> Doubt | None:
    lost = [one for one in summary.gpu.get("gpus", []) if one["lost"]]
    if not lost:
        return None
    return doubt(
        "gpu-lost",
        "degraded",
        f"{len(lost)} of {len(summary.gpu['gpus'])} GPUs did not answer throughout the steady windows: sums over GPUs "
        f"are left out, and throughput may be that of the others. Look for XIDs in the kernel's log.",
        gpus=[one["gpu"] for one in lost],
    )


def gpu_error(_evidence: Evidence, summary: Summary) -> Doubt | None:
    found = {one["gpu"]: one["xids"] for one in summary.gpu.get("gpus", []) if one["xids"]}
    if not found:
        return None
    codes = ", ".join(sorted({xid for xids in found.values() for xid in xids}, key=lambda xid: (len(xid), xid))[:8])
    return doubt(
        "gpu-error",
        "degraded",
        f"The driver reported critical errors (XID {codes}) inside a steady window. NVIDIA's list of XIDs says whether "
        f"it was the program, the card or its memory.",
        xids=found,
    )


def gpu_throttled(_evidence: Evidence, summary: Summary) -> Doubt | None:
    shares: dict[str, float] = {}
    for one in summary.gpu.get("gpus", []):
        for reason, seconds in one["throttle_s"].items():
            if one["observed_s"]:
                shares[reason] = max(shares.get(reason, 0.0), seconds / one["observed_s"])
    beyond = {reason: share for reason, share in sorted(shares.items()) if share > THROTTLED_SHARE}
    if not beyond:
        return None
    hot = beyond.keys() - POWER_REASONS
    told = ", ".join(f"{reason} {share:.0%}" for reason, share in beyond.items())
    advice = "Cool it better" if hot else "At its power limit a card is as fast as it gets; compare with equal limits"
    return doubt(
        "gpu-throttled",
        "degraded" if hot else "note",
        f"The clocks of a GPU were held down for a part of the steady windows ({told}). {advice}.",
        throttled_ratio=beyond,
    )


def gpu_clocks_held(evidence: Evidence, summary: Summary) -> Doubt | None:
    """Clocks far below the card's highest all the time, at work, and no reason of `gpu_throttled`: they are locked."""
    if gpu_throttled(evidence, summary) is not None:
        return None
    held = {
        one["gpu"]: one["clock_sm_hz_max"] / one["clock_sm_hz_limit"]
        for one in summary.gpu.get("gpus", [])
        if one.get("clock_sm_hz_max")
        and one.get("clock_sm_hz_limit")
        and (one["utilization_ratio_mean"] or 0.0) >= AT_WORK
        and one["clock_sm_hz_max"] < CLOCK_SHARE * one["clock_sm_hz_limit"]
    }
    if not held:
        return None
    share = min(held.values())
    return doubt(
        "gpu-clocks-held",
        "degraded",
        f"{len(held)} of {len(summary.gpu['gpus'])} GPUs never ran faster than {share:.0%} of their highest SM clock "
        f"in the steady windows, at work and without throttling: their clocks are locked. Reset them "
        f"(`nvidia-smi -rgc`), or compare with runs at the same clocks only.",
        clock_ratio=held,
    )


RULES: tuple[Rule, ...] = (
    engine_gaps,
    engine_restarted,
    tokens_disagree,
    gpu_gaps,
    gpu_lost,
    gpu_error,
    gpu_throttled,
    gpu_clocks_held,
)
