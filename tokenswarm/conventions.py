"""The same requests under other tools' definitions, so that a user can reconcile two tools' numbers.

Only requests that succeeded, of the whole run (those tools have no warm-up cut). The formulas are those of vLLM bench
0.32, GuideLLM 0.8, AIPerf 0.13 and SGLang's bench_serving; docs/metrics.md lists them beside ours. What a record
adds stands in `accumulate`, what is printed in `SECTIONS`.
"""

from __future__ import annotations

import msgspec

from tokenswarm.clock import NS_PER_S
from tokenswarm.record import RequestRecord
from tokenswarm.sketch import Sketch


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


def accumulate(into: Conventions, record: RequestRecord) -> None:
    """Add one successful request that has content (`first_ns` is set)."""
    sent_ns, first_ns, last_ns, tokens = record.sent_ns, record.first_ns, record.last_ns, record.output_tokens
    opened_ns = record.first_event_ns or first_ns
    closed_ns = record.last_event_ns or last_ns
    into.ttft_any_event.add((opened_ns - sent_ns) / NS_PER_S)
    into.e2e_last_event.add((closed_ns - sent_ns) / NS_PER_S)
    into.e2e_last_content.add((last_ns - sent_ns) / NS_PER_S)
    into.event_gap.add_gaps(record.gaps_ns)
    if record.merged_events:
        into.event_gap.add(0.0, record.merged_events)
    for gap_ns in (first_ns - opened_ns, closed_ns - last_ns):
        if gap_ns > 0:
            into.edge_gap.add(gap_ns / NS_PER_S)
    if record.gaps_ns:
        into.second_event.add(0.0 if _second_shares_a_read(record) else record.gaps_ns[0] / NS_PER_S)
    if record.prompt_tokens and first_ns > sent_ns:
        into.prefill_tokens_per_s.add(record.prompt_tokens * NS_PER_S / (first_ns - sent_ns))
    if tokens:
        into.tpot_from_start.add((last_ns - sent_ns) / (tokens * NS_PER_S))
    if tokens > 1:
        into.tpot_last_event.add((closed_ns - opened_ns) / ((tokens - 1) * NS_PER_S))
        into.tpot_to_end.add((record.done_ns - first_ns) / ((tokens - 1) * NS_PER_S))
        into.itl_by_token.add((last_ns - first_ns) / ((tokens - 1) * NS_PER_S), tokens - 1)
        if last_ns > first_ns:
            into.tokens_per_s_user.add((tokens - 1) * NS_PER_S / (last_ns - first_ns))


def _second_shares_a_read(record: RequestRecord) -> bool:
    stamps = record.token_stamps_ns
    return len(stamps) > 1 and stamps[0] == stamps[1]
