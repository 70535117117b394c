"""Rules about what got into the numbers beside the load: somebody else's requests, a router's second attempts, a cache
that filled up, what was cold. Each says which share of the run it is.

They look at what engine and client counted of the same windows, so they are silent where the engine tells nothing.
"""

from __future__ import annotations

from typing import Any

from tokenswarm.judge.rules.evidence import Evidence, Rule, doubt, ms, steady
from tokenswarm.judge.rules.sample import dataset_wrapped, repeated
from tokenswarm.measure.snapshot import Block
from tokenswarm.result.summary import Doubt, Summary
from tokenswarm.telemetry.server import COMPARABLE

NOTED_SHARE = 0.01  # of the requests; beyond it they reach the p99
WARMED = 0.1  # share of the prompt tokens that came from the cache, last stage − first
WARM = 0.5  # share of the prompt tokens of first turns: more than a system prompt or a template mostly is
SLOW_LOAD_S = 0.25  # a warm Ollama says 2 to 10 ms, and up to 0.1 s on a machine that is overloaded
REFUSALS = ("http_4xx", "rate_limited", "http_5xx", "connect")  # outcomes that may be no engine's


def _metrics(summary: Summary) -> dict[str, Any]:
    return summary.server.get("metrics") or {}


def _compared(evidence: Evidence, summary: Summary) -> dict[str, Any] | None:
    """Requests as the engines and as the client counted them; None where they can't be laid side by side."""
    compared: dict[str, Any] | None = _metrics(summary).get("requests_compared")
    return compared if evidence.profile.engine.choices == 1 else None


def foreign_load(evidence: Evidence, summary: Summary) -> Doubt | None:
    """The engines ended more answers, or ran more requests, than this client asked for."""
    compared = _compared(evidence, summary)
    extra = compared["server_good"] - compared["client_ok"] if compared is not None else 0.0
    if compared is not None and extra > compared["tolerance"]:
        share = extra / compared["server_good"]
        told = f"ended {extra:.0f} answers of {compared['server_good']} that this client did not get"
    else:
        metrics, batch = _metrics(summary), summary.batch_mean or 0.0
        running = (metrics.get("running") or {}).get("mean") or 0.0
        if not running or _partly_watched(metrics["coverage"]):
            return None
        looks = max(1, metrics["coverage"]["samples"])
        if running - batch <= 1 + 3 * batch / looks**0.5:  # looks are moments, the client's mean is over time
            return None
        share = 1 - batch / running
        told = f"ran {running:.1f} requests at a time, and this client had {batch:.1f} in flight"
    return doubt(
        "foreign-load",
        "degraded",
        f"The engine served others, too: it {told} ({share:.0%} of its load). Latencies and throughput are those of "
        f"both. Keep others off it, or look for answers that an earlier run gave up and a gateway lets go on.",
        share=share,
        **(compared or {}),
    )


def _partly_watched(coverage: dict[str, Any]) -> bool:
    """Whether the readings leave out a tenth of the windows: an engine that died, or restarted. What it ran is then a
    mean of another time than the client's."""
    hole_s = coverage["hole_s"] if coverage["gaps"] else 0.0
    seen_s: float = min(coverage["covered_s"], coverage["window_s"] - hole_s)
    return seen_s < COMPARABLE * float(coverage["window_s"])


def router_retries(evidence: Evidence, summary: Summary) -> Doubt | None:
    """Attempts that failed at an engine and were made again by something in between."""
    metrics, compared = _metrics(summary), _compared(evidence, summary)
    routers = [one for one in metrics.get("routers", []) if one["retries"]]
    sent = max(1, summary.requests_steady.sent)
    if routers:
        retries = sum(one["retries"] for one in routers)
        who = f"{routers[0]['kind']} at {routers[0]['url'][:80]} tried {retries} times again"
    elif compared is not None and compared["server_bad"] - compared["client_failed"] > compared["tolerance"]:
        retries = round(compared["server_bad"] - compared["client_failed"])
        who = (
            f"the engines refused, failed or aborted {retries} requests more than failed here, so they were tried again"
        )
    elif retries := steady(evidence).retried:
        who = f"a gateway says of {retries} answers (in a header) that it asked for them more than once"
    else:
        return None
    exhausted = sum(one["retries_exhausted"] or 0 for one in routers)
    return doubt(
        "router-retries",
        "degraded" if retries > NOTED_SHARE * sent else "note",
        f"Between client and engine {who} ({retries / sent:.1%} of the requests): their latencies hold the failed "
        f"attempts and the pauses. Mend what fails (the engine's log), or switch the router's retries off.",
        retries=retries,
        exhausted=exhausted,
        sent=sent,
    )


def requests_elsewhere(evidence: Evidence, summary: Summary) -> Doubt | None:
    """Answers that none of the watched engines made."""
    compared = _compared(evidence, summary)
    if compared is None or compared["client_ok"] - compared["server_good"] <= compared["tolerance"]:
        return None
    lost = compared["client_ok"] - compared["server_good"]
    share = lost / compared["client_ok"]
    return doubt(
        "requests-elsewhere",
        "degraded",
        f"{lost:.0f} of {compared['client_ok']:.0f} answers ({share:.0%}) came from no engine that is watched: from "
        f"another replica (give `telemetry.engine_metrics` the address of each), or from a gateway's cache.",
        share=share,
        **compared,
    )


def requests_lost(evidence: Evidence, summary: Summary) -> Doubt | None:
    """Refusals that the engines know nothing of."""
    compared = _compared(evidence, summary)
    counts = summary.requests_steady
    refused = sum(counts.by_outcome.get(name, 0) for name in REFUSALS)
    if compared is None or requests_elsewhere(evidence, summary) is not None:
        return None
    lost = refused - compared["server_bad"]
    if lost <= compared["tolerance"]:
        return None
    share = lost / max(1, counts.sent)
    return doubt(
        "requests-lost",
        "note",
        f"{lost} of {counts.sent} requests ({share:.1%}) were refused before an engine had them: by a router (no "
        f"worker, a limit, an open circuit), or by the engine's own front end (too long, an unknown field).",
        lost=lost,
        sent=counts.sent,
        **compared,
    )


def _cached(block: Block, server: dict[str, Any], *, told: bool) -> float | None:
    """The share of the prompt tokens that needed no prefill: of first turns where answers tell it, else the engine's.

    A later turn finds its own history in the cache: that is no repeat, and a window holds more or fewer of those.
    """
    if told:
        return block.first_cached_tokens / block.first_prompt_tokens if block.first_prompt_tokens else None
    share: float | None = (server.get("metrics") or {}).get("prefix_cache_hit_ratio")
    return share


def prefix_cache_warmed(evidence: Evidence, summary: Summary) -> Doubt | None:
    """A later stage found in the cache what an earlier one had computed: a sweep that compares unlike work."""
    blocks = {stage.stage: evidence.merged.block(stage.stage) for stage in summary.stages}
    told = any(block.cached_tokens for block in blocks.values())
    shares = {stage.stage: _cached(blocks[stage.stage], stage.server, told=told) for stage in summary.stages}
    known = [share for share in shares.values() if share is not None]
    if len(known) < 2 or known[-1] - known[0] <= WARMED:
        return None
    of = " of first turns" if told else ""
    return doubt(
        "prefix-cache-warmed",
        "degraded",
        f"The prefix cache filled up over the stages: {known[0]:.0%} of the prompt tokens{of} came from it in the "
        f"first, {known[-1]:.0%} in the last, so later stages had less to compute. Use a data set that no stage "
        f"repeats (`dataset.rounds: distinct`), warm it up before the first stage, or switch prefix caching off.",
        cached_by_stage={str(stage): share for stage, share in shares.items()},
        share=_cached(steady(evidence), summary.server, told=told),
    )


def prefix_cache_hits(evidence: Evidence, summary: Summary) -> Doubt | None:
    """Most prompts needed no prefill, and nothing in this run repeats them: the cache is an earlier run's."""
    for told_by in (dataset_wrapped, prefix_cache_warmed):
        if told_by(evidence, summary) is not None:
            return None
    block = steady(evidence)
    share = _cached(block, summary.server, told=block.cached_tokens > 0)
    later = 1 - block.first_prompt_tokens / block.prompt_tokens if block.prompt_tokens else 1.0
    if share is not None and not block.cached_tokens:  # of all turns, and later ones find their history there
        share = (share - later) / (1 - later) if later < 1 else None
    if share is None or share < WARM or share <= repeated(evidence):
        return None
    few = "hardly a" if repeated(evidence) else "no"
    return doubt(
        "prefix-cache-hits",
        "note",
        f"{share:.0%} of the prompt tokens of first turns came from the prefix cache, though {few} prompt came twice "
        f"in this run: an earlier one asked the same (another `dataset.shuffle_seed` takes others of a large data "
        f"set), or all begin alike. TTFT and prefill are those of a warm cache: for a cold one restart the engine, or "
        f"switch prefix caching off.",
        share=share,
    )


def cold_start(evidence: Evidence, summary: Summary) -> Doubt | None:
    """Something was loaded, compiled or captured inside a window."""
    block = steady(evidence)
    loads, first, n = block.engine_load.above(SLOW_LOAD_S), block.slow_first, max(1, summary.requests_steady.ok)
    if not loads and not first.n:
        return None
    slow, longest = (loads, block.engine_load.high) if loads else (first.n, first.high)
    told = (
        f"{slow} requests of the steady windows waited up to {ms(longest or 0.0)} for the model to be loaded, or for "
        f"the scheduler"
        if loads
        else f"the first {slow} requests of a window waited up to {ms(longest or 0.0)} for their first token, all "
        f"others {ms(block.ttft.quantile(0.5) or 0.0)} (median)"
    )
    return doubt(
        "cold-start",
        "degraded" if slow > NOTED_SHARE * n else "note",
        f"Something was cold inside a window: {told} ({slow / n:.1%} of the requests). A model, kernels, graphs of a "
        f"new batch size, or the burst of a start. Lengthen `phases.warmup`; keep the model loaded (`keep_alive`).",
        requests=slow,
        share=slow / n,
        longest_s=longest,
        loads=loads,
    )


RULES: tuple[Rule, ...] = (
    foreign_load,
    router_retries,
    requests_elsewhere,
    requests_lost,
    prefix_cache_warmed,
    prefix_cache_hits,
    cold_start,
)
