"""Sums over a window -> the `server.metrics` block: the engine's own view, beside which the client's can be laid.

Everything is of the same steady window, from the master's clock. A number that can't be known is null: no reading, a
restart in the way, a name that this version of the engine does not have. docs/telemetry.md explains each field.
"""

from __future__ import annotations

from typing import Any

import msgspec

from tokenswarm.clock import NS_PER_S
from tokenswarm.result.summary import Part
from tokenswarm.telemetry.histogram import Split, split
from tokenswarm.telemetry.names import ENGINES
from tokenswarm.telemetry.window import Totals

TOKENS_BASE = 0.01
"""Token counts that agree this well agree: streams cut at the edges, rounding of the client's share of a stream."""

COUNTS_BASE = 0.01
"""Counts of requests that agree this well agree."""

COMPARABLE = 0.9
"""Readings that cover less of the windows than this are of another time than the client's requests."""

LATENCIES = ("ttft_s", "itl_s", "tpot_s", "e2e_s", "queue_s", "prefill_s", "decode_s")


class LevelBlock(msgspec.Struct, kw_only=True):
    mean: float | None = None
    max: float | None = None


class TokensCompared(msgspec.Struct, kw_only=True):
    """Output tokens a second, the server's count against the client's. difference = server/client − 1."""

    server_per_s: float
    client_per_s: float
    difference_ratio: float
    tolerance_ratio: float
    agree: bool


class RequestsCompared(msgspec.Struct, kw_only=True):
    """Requests that ended in the time that the readings cover: at the engines by their own reasons, at the client.

    `client_*` are those that began in the windows, scaled to that time. `tolerance`: what is in flight at both edges.
    """

    server_good: int  # ended with an answer
    server_bad: int  # ended in an error, were aborted, or were refused by a full queue
    client_ok: float
    client_failed: float  # cancelled ones, and those cut off at the drain bound, included
    tolerance: float


class RouterBlock(msgspec.Struct, kw_only=True):
    """What a router or gateway in front of the engines did in the windows."""

    url: str
    kind: str
    requests: int | None = None
    retries: int | None = None  # attempts after the first
    retries_exhausted: int | None = None  # requests that failed after the last of them
    errors: dict[str, int] = {}
    held: LevelBlock  # requests that it passed on and has not ended


class ReplicaBlock(msgspec.Struct, kw_only=True):
    """What one of several engines told of the windows, by itself: whether they share the load, and which one lags."""

    url: str
    kind: str
    covered_s: float
    running: LevelBlock
    waiting: LevelBlock
    kv_cache_usage: LevelBlock
    preemptions: int | None = None
    prefix_cache_hit_ratio: float | None = None
    prompt_tokens: int | None = None
    generation_tokens: int | None = None
    finished: dict[str, int] = {}
    ttft_s_mean: float | None = None


class Covered(msgspec.Struct, kw_only=True):
    """How much of the windows the readings cover, and what is missing."""

    window_s: float
    covered_s: float
    samples: int
    gaps: dict[str, int]
    hole_s: float  # the longest time without a reading
    resets: int  # restarts inside a window: it was cut there
    empty_windows: int


class ServerBlock(msgspec.Struct, kw_only=True):
    """`server.metrics` of a stage; that of the run has `sources` beside it."""

    coverage: Covered
    running: LevelBlock  # requests in the engine's batch: the measured batch
    waiting: LevelBlock
    kv_cache_usage: LevelBlock
    preemptions: int | None = None
    prefix_cache_hit_ratio: float | None = None  # of prompt tokens
    prompt_tokens: int | None = None
    generation_tokens: int | None = None
    prompt_tokens_per_s: float | None = None
    generation_tokens_per_s: float | None = None
    output_tokens_compared: TokensCompared | None = None
    tokens_per_step_mean: float | None = None  # tokens in one engine step, prefill and decode
    finished: dict[str, int] = {}  # requests by the reason that the engine gives
    rejected: dict[str, int] = {}
    latency: dict[str, Split] = {}
    requests_compared: RequestsCompared | None = None
    replicas: list[ReplicaBlock] = []  # where there are several engines
    routers: list[RouterBlock] = []
    models_loaded: LevelBlock | None = None  # Ollama
    vram_ratio_mean: float | None = None  # Ollama: share of the loaded models that is on the GPU


def covered(total: Totals) -> Covered:
    return Covered(
        window_s=total.planned_ns / NS_PER_S,
        covered_s=total.covered_ns / NS_PER_S,
        samples=total.samples,
        gaps=dict(sorted(total.gaps.items())),
        hole_s=total.hole_ns / NS_PER_S,
        resets=total.resets,
        empty_windows=total.empty,
    )


def block(total: Totals, kind: str, replicas: int, client: Part) -> ServerBlock:
    """The block of one window, or of all of a run. `client` is the same part of the summary."""
    found = ServerBlock(
        coverage=covered(total),
        running=level(total, "running"),
        waiting=level(total, "waiting"),
        kv_cache_usage=level(total, "kv_cache_usage", replicas),
        preemptions=_count(total, "preemptions"),
        prefix_cache_hit_ratio=_hit_ratio(total),
        prompt_tokens=_prompt_tokens(total),
        generation_tokens=_count(total, "generation_tokens"),
        finished=_by_label(total, "finished"),
        rejected=_by_label(total, "rejected"),
        latency=_latencies(total),
    )
    seconds = total.covered_ns / NS_PER_S
    if seconds and found.prompt_tokens is not None:
        found.prompt_tokens_per_s = found.prompt_tokens / seconds
    if seconds and found.generation_tokens is not None:
        found.generation_tokens_per_s = found.generation_tokens / seconds
    found.output_tokens_compared = _compare(total, kind, found.generation_tokens_per_s, client)
    found.requests_compared = _compare_requests(total, found, client)
    steps = total.histograms.get("step_tokens")
    if steps is not None and steps.n:
        found.tokens_per_step_mean = steps.sum / steps.n
    if "models_loaded" in total.levels:
        found.models_loaded = level(total, "models_loaded")
        found.vram_ratio_mean = level(total, "vram_ratio", replicas).mean
    return found


def level(total: Totals, name: str, share: int = 1) -> LevelBlock:
    """Mean over time and largest reading; with replicas of which each has a ratio, divided by their number."""
    one = total.levels.get(name)
    if one is None:
        return LevelBlock()
    return LevelBlock(mean=None if one.mean is None else one.mean / share, max=one.high / share)


def _count(total: Totals, name: str) -> int | None:
    return round(total.counters[name]) if name in total.counters else None


def _prompt_tokens(total: Totals) -> int | None:
    """Prompt tokens, cached ones included. llama.cpp counts the two apart."""
    if "prompt_tokens_computed" in total.counters:
        return round(total.counters["prompt_tokens_computed"] + total.counters.get("prompt_tokens_cached", 0.0))
    return _count(total, "prompt_tokens")


def _hit_ratio(total: Totals) -> float | None:
    """Cached / all prompt tokens. vLLM's query counter asks again for waiting requests, so it is the second choice."""
    cached, prompts = total.counters.get("prompt_tokens_cached"), _prompt_tokens(total)
    if cached is not None and prompts:
        return cached / prompts
    hits, queries = total.counters.get("cache_hits"), total.counters.get("cache_queries")
    return hits / queries if hits is not None and queries else None


def _by_label(total: Totals, name: str) -> dict[str, int]:
    prefix = f"{name}."
    return {key.removeprefix(prefix): round(n) for key, n in sorted(total.counters.items()) if key.startswith(prefix)}


def _latencies(total: Totals) -> dict[str, Split]:
    found = {name: split(total.histograms[name]) for name in LATENCIES if name in total.histograms}
    tokens, seconds = total.counters.get("generation_tokens"), total.counters.get("generation_seconds")
    if tokens and seconds is not None:  # llama.cpp: no histogram, a mean by token
        found["tpot_s"] = Split(n=round(tokens), mean=seconds / tokens)
    return found


def _compare(total: Totals, kind: str, server_per_s: float | None, client: Part) -> TokensCompared | None:
    """The tolerance: 1 %, the time between edges and readings, and twice what the master's windows are longer than the
    workers' (an open loop sends nothing more when its own has ended, and chance says what came just before), requests
    whose tokens the client does not count, and the requests that are half counted at both edges: one step's tokens
    each, or whole answers (llama.cpp)."""
    client_per_s = client.throughput.output_tokens_per_s
    if server_per_s is None or not client_per_s or client.tokens.source != "server":
        return None
    seconds = total.covered_ns / NS_PER_S
    sent = client.requests.sent
    uncounted = (client.requests.failed + client.requests.cancelled + client.requests.censored) / sent if sent else 0.0
    at_the_end = kind in ENGINES and ENGINES[kind].at_the_end
    answer = (client.tokens.output_length.mean or 1.0) if at_the_end else 1.0
    torn = 2 * (client.batch_mean or 0.0) * answer / (client_per_s * seconds)
    apart_s = 2 * abs(total.planned_ns / NS_PER_S - client.steady_window.length_s) + total.edges_ns / NS_PER_S
    tolerance = TOKENS_BASE + apart_s / seconds + uncounted + torn
    difference = server_per_s / client_per_s - 1
    return TokensCompared(
        server_per_s=server_per_s,
        client_per_s=client_per_s,
        difference_ratio=difference,
        tolerance_ratio=tolerance,
        agree=abs(difference) <= tolerance,
    )


GOOD = frozenset({
    "stop", "length", "repetition", "all", "success", "finish", "end_id", "stop_words", "eos", "eos_token",
    "stop_sequence", "tool_calls", "content_filter",
})  # fmt: skip
"""Reasons, of any engine, for the end of a whole answer; any other is an error, an abort, a refusal."""


def _compare_requests(total: Totals, found: ServerBlock, client: Part) -> RequestsCompared | None:
    """None where the engine tells no ends, or the readings leave out a tenth of the windows or more."""
    ends = {reason.rpartition(".")[2].lower(): n for reason, n in found.finished.items()}  # ResponseType.FINISH
    if not ends or total.empty or total.covered_ns < COMPARABLE * total.planned_ns:
        return None
    bad = sum(n for reason, n in ends.items() if reason not in GOOD) + sum(found.rejected.values())
    scale = total.covered_ns / total.planned_ns
    counts = client.requests_steady
    per_s = (counts.ok + counts.failed) / (total.planned_ns / NS_PER_S)
    in_flight = max(client.batch_mean or 0.0, found.running.max or 0.0)
    return RequestsCompared(
        server_good=sum(n for reason, n in ends.items() if reason in GOOD),
        server_bad=bad,
        client_ok=counts.ok * scale,
        client_failed=(counts.failed + counts.cancelled + counts.censored) * scale,
        tolerance=2 * in_flight + per_s * total.edges_ns / NS_PER_S + COUNTS_BASE * (counts.ok + counts.failed) + 2,
    )


def replica(url: str, kind: str, total: Totals) -> ReplicaBlock:
    """The block of one engine of several."""
    ttft = total.histograms.get("ttft_s")
    return ReplicaBlock(
        url=url,
        kind=kind,
        covered_s=total.covered_ns / NS_PER_S,
        running=level(total, "running"),
        waiting=level(total, "waiting"),
        kv_cache_usage=level(total, "kv_cache_usage"),
        preemptions=_count(total, "preemptions"),
        prefix_cache_hit_ratio=_hit_ratio(total),
        prompt_tokens=_prompt_tokens(total),
        generation_tokens=_count(total, "generation_tokens"),
        finished=_by_label(total, "finished"),
        ttft_s_mean=ttft.sum / ttft.n if ttft is not None and ttft.n else None,
    )


def router(url: str, kind: str, total: Totals) -> RouterBlock:
    """The block of one router. LiteLLM tells attempts: those beyond the requests are retries, fallbacks included."""
    requests, attempts = _count(total, "requests"), _count(total, "attempts")
    retries = _count(total, "retries")
    if retries is None and requests is not None and attempts is not None:
        retries = max(0, attempts - requests)
    finished = _by_label(total, "finished")
    return RouterBlock(
        url=url,
        kind=kind,
        requests=sum(finished.values()) if requests is None and finished else requests,
        retries=retries,
        retries_exhausted=_count(total, "retries_exhausted"),
        errors={name: n for name, n in _by_label(total, "errors").items() if n},
        held=level(total, "held"),
    )


def to_dict(block: Any) -> dict[str, Any]:
    """As summary.json has it."""
    plain: dict[str, Any] = msgspec.to_builtins(block)
    return plain
