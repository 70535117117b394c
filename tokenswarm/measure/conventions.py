"""The same requests under other tools' definitions, so that a user can reconcile two tools' numbers.

Only requests that succeeded, of the whole run (those tools have no warm-up cut). The formulas are those of vLLM bench
0.32, GuideLLM 0.8, AIPerf 0.13 and SGLang's bench_serving; docs/metrics.md lists them beside ours. What a record
adds stands in `accumulate`, what is printed in `sections`.
"""

from __future__ import annotations

from typing import Protocol, TypedDict

import msgspec

from tokenswarm.clock import NS_PER_S
from tokenswarm.measure.sketch import Sketch
from tokenswarm.record import RequestRecord


class Conventions(msgspec.Struct, kw_only=True):
    """Sketches whose definition differs from ours; where a tool's equals ours, ours is used. Seconds, but for rates."""

    ttft_any_event: Sketch = msgspec.field(default_factory=Sketch)  # vLLM: any event with choices, a role-only one too
    e2e_last_event: Sketch = msgspec.field(default_factory=Sketch)  # vLLM: to the last event with choices
    tpot_last_event: Sketch = msgspec.field(default_factory=Sketch)  # vLLM: of those two
    event_gap: Sketch = msgspec.field(
        default_factory=Sketch
    )  # SGLang, AIPerf: a gap an event, 0 s where one read held two
    edge_gap: Sketch = msgspec.field(default_factory=Sketch)  # vLLM's further gaps: role to content, content to finish
    tpot_from_start: Sketch = msgspec.field(default_factory=Sketch)  # GuideLLM: includes TTFT
    itl_by_token: Sketch = msgspec.field(default_factory=Sketch)  # GuideLLM: a request's mean gap, N − 1 times
    e2e_last_content: Sketch = msgspec.field(default_factory=Sketch)  # AIPerf: to the last content
    second_event: Sketch = msgspec.field(default_factory=Sketch)  # AIPerf: time to second token
    tokens_per_s_user: Sketch = msgspec.field(default_factory=Sketch)  # AIPerf: 1 / its ITL, per request
    prefill_tokens_per_s: Sketch = msgspec.field(default_factory=Sketch)  # AIPerf: prompt tokens / TTFT
    tpot_to_end: Sketch = msgspec.field(default_factory=Sketch)  # SGLang: to the end of the body, [DONE] included


VALUES = (
    "ttft_any_event",
    "e2e_last_event",
    "e2e_last_content",
    "second_event",
    "prefill_tokens_per_s",
    "tpot_from_start",
    "tpot_last_event",
    "tpot_to_end",
    "tokens_per_s_user",
)
"""The sketches of which a request has one value, or none."""

NO_VALUES = (None,) * len(VALUES)


def values(record: RequestRecord) -> tuple[float | None, ...]:
    """What one successful request that has content (`first_ns` is set) says to each of VALUES."""
    sent_ns, first_ns, last_ns, tokens = record.sent_ns, record.first_ns, record.last_ns, record.output_tokens
    opened_ns, closed_ns = record.first_event_ns or first_ns, record.last_event_ns or last_ns
    second = prefill = from_start = last_event = to_end = speed = None
    if record.gaps_ns:
        second = 0.0 if _second_shares_a_read(record) else record.gaps_ns[0] / NS_PER_S
    if record.prompt_tokens and first_ns > sent_ns:
        prefill = record.prompt_tokens * NS_PER_S / (first_ns - sent_ns)
    if tokens:
        from_start = (last_ns - sent_ns) / (tokens * NS_PER_S)
    if tokens > 1:
        steps = (tokens - 1) * NS_PER_S
        last_event, to_end = (closed_ns - opened_ns) / steps, (record.done_ns - first_ns) / steps
        if last_ns > first_ns:
            speed = steps / (last_ns - first_ns)
    return (
        (opened_ns - sent_ns) / NS_PER_S,
        (closed_ns - sent_ns) / NS_PER_S,
        (last_ns - sent_ns) / NS_PER_S,
        second,
        prefill,
        from_start,
        last_event,
        to_end,
        speed,
    )


def accumulate(into: Conventions, record: RequestRecord) -> None:
    """Add what `values` does not tell of such a request, but for its gaps between events (`event_gap`)."""
    first_ns, last_ns, tokens = record.first_ns, record.last_ns, record.output_tokens
    opened_ns = record.first_event_ns or first_ns
    closed_ns = record.last_event_ns or last_ns
    if record.merged_events:
        into.event_gap.add(0.0, record.merged_events)
    for gap_ns in (first_ns - opened_ns, closed_ns - last_ns):
        if gap_ns > 0:
            into.edge_gap.add(gap_ns / NS_PER_S)
    if tokens > 1:
        into.itl_by_token.add((last_ns - first_ns) / ((tokens - 1) * NS_PER_S), tokens - 1)


def _second_shares_a_read(record: RequestRecord) -> bool:
    stamps = record.token_stamps_ns
    return len(stamps) > 1 and stamps[0] == stamps[1]


class Spread(TypedDict):
    """A distribution in the words of another tool."""

    n: int
    mean: float | None
    p50: float | None
    p99: float | None


class _Total(Protocol):
    """What `sections` reads of a run's total block."""

    ttft: Sketch
    e2e: Sketch
    tpot: Sketch
    ok: int
    prompt_tokens: int
    output_tokens: int
    first_sent_ns: int | None
    last_done_ns: int | None
    conventions: Conventions


def sections(run: _Total) -> dict[str, dict[str, Spread | int | float | None]]:
    """The `conventions` of summary.json: by tool, metrics under that tool's own names and units.

    A distribution is {n, mean, p50, p99}: these tools print percentiles whatever the sample size. Throughputs divide by
    the time from the first request sent to the last byte of a success (offsets of several workers start alike to within
    the skew of their start).
    """
    own = run.conventions
    every_gap = own.event_gap.copy()
    every_gap.merge(own.edge_gap)
    begun_ns, ended_ns = run.first_sent_ns, run.last_done_ns
    span_s = None if begun_ns is None or ended_ns is None else (ended_ns - begun_ns) / NS_PER_S
    requests_per_s, output_per_s = _rate(run.ok, span_s), _rate(run.output_tokens, span_s)
    all_per_s = _rate(run.output_tokens + run.prompt_tokens, span_s)
    return {
        "vllm_bench": {
            "ttft_ms": _ms(own.ttft_any_event),
            "tpot_ms": _ms(own.tpot_last_event),
            "itl_ms": _ms(every_gap),
            "e2el_ms": _ms(own.e2e_last_event),
            "completed": run.ok,
            "duration": span_s,
            "request_throughput": requests_per_s,
            "output_throughput": output_per_s,
            "total_token_throughput": all_per_s,
        },
        "guidellm": {
            "time_to_first_token_ms": _ms(run.ttft),
            "time_per_output_token_ms": _ms(own.tpot_from_start),
            "inter_token_latency_ms": _ms(own.itl_by_token),
            "request_latency": _spread(run.e2e),
        },
        "aiperf": {
            "time_to_first_token_ms": _ms(run.ttft),
            "time_to_second_token_ms": _ms(own.second_event),
            "inter_token_latency_ms": _ms(run.tpot),
            "inter_chunk_latency_ms": _ms(own.event_gap),
            "request_latency_ms": _ms(own.e2e_last_content),
            "output_token_throughput_per_user": _spread(own.tokens_per_s_user),
            "prefill_throughput_per_user": _spread(own.prefill_tokens_per_s),
            "request_throughput": requests_per_s,
            "output_token_throughput": output_per_s,
        },
        "sglang": {
            "ttft_ms": _ms(run.ttft),
            "tpot_ms": _ms(own.tpot_to_end),
            "itl_ms": _ms(own.event_gap),
            "e2e_latency_ms": _ms(run.e2e),
            "request_throughput": requests_per_s,
            "output_throughput": output_per_s,
            "concurrency": _rate(run.e2e.sum, span_s),
        },
    }


def _rate(quantity: float, span_s: float | None) -> float | None:
    return quantity / span_s if span_s else None


def _spread(sketch: Sketch, scale: float = 1.0) -> Spread:
    found = [None if value is None else value * scale for value in (sketch.mean, *sketch.quantiles((0.5, 0.99)))]
    return {"n": sketch.n, "mean": found[0], "p50": found[1], "p99": found[2]}


def _ms(sketch: Sketch) -> Spread:
    return _spread(sketch, 1e3)
