"""One finished request as one line of requests.jsonl, in at most 15 µs for an answer of 128 tokens.

Offsets and durations are seconds; offsets count from the start that the caller passes, since a worker's monotonic clock
means nothing elsewhere. What did not happen is null. No text unless it is asked for; numbers are finite.
"""

from __future__ import annotations

import msgspec

from tokenswarm.clock import NS_PER_S
from tokenswarm.engines.model_names import is_alias
from tokenswarm.measure.counting import spread
from tokenswarm.record import RequestRecord


class Row(msgspec.Struct, gc=False):
    """The fields of a row, in order. `text` stands in rows of runs with `save_text` only, `model` in those of answers
    that name another model than was asked for (engines/model_names.py)."""

    id: str
    worker: int
    stage: int
    phase: str
    conversation: str
    turn: int
    outcome: str
    status: int | None
    error: str | None
    error_kind: str | None
    finish_reason: str | None
    intended_s: float
    sent_s: float | None
    headers_s: float | None
    first_s: float | None
    last_s: float | None
    done_s: float | None
    ttft_s: float | None
    ttft_intended_s: float | None
    ttfat_s: float | None
    tpot_s: float | None
    e2e_s: float | None
    e2e_intended_s: float | None
    stall_s: float | None
    n_gaps: int
    itl_mean_s: float | None
    itl_p50_s: float | None
    itl_max_s: float | None
    connect_s: float | None
    send_lag_s: float | None
    rx_lag_s_max: float
    stamp: str
    prompt_tokens: int | None
    prompt_cut: bool
    output_tokens: int
    token_source: str
    stated_tokens: int | None
    tokens_max: int | None
    reasoning_tokens: int | None
    cached_tokens: int | None
    draft_tokens: int | None
    accepted_tokens: int | None
    events: int
    reasoning_events: int
    merged_events: int
    reads: int
    bytes_received: int
    reconnected: bool
    engine: dict[str, float | None] | None
    model: str | msgspec.UnsetType = msgspec.UNSET
    text: str | msgspec.UnsetType | None = msgspec.UNSET


_ENCODER = msgspec.json.Encoder()


def row(record: RequestRecord, worker: int, start_ns: int, *, save_text: bool, asked: str = "") -> bytes:
    """The request as one JSON line with its line end. `start_ns` is on the clock of the record; `asked`: the model."""
    model = record.model
    n_gaps, mean_s, p50_s, max_s = _gaps(record)
    first_ns, sent_ns = record.first_ns, record.sent_ns
    # By place, in the order of the fields: by name they would be put into a dict, of each request.
    value = Row(*(
        record.id, worker, record.stage, record.phase, record.conversation, record.turn,
        record.outcome.value, record.status or None, record.error or None, record.error_kind or None,
        record.finish_reason or None,
        (record.intended_ns - start_ns) / NS_PER_S,
        (sent_ns - start_ns) / NS_PER_S if sent_ns else None,
        (record.headers_ns - start_ns) / NS_PER_S if record.headers_ns else None,
        (first_ns - start_ns) / NS_PER_S if first_ns else None,
        (record.last_ns - start_ns) / NS_PER_S if record.last_ns else None,
        (record.done_ns - start_ns) / NS_PER_S if record.done_ns else None,
        _seconds(record.ttft_ns), _seconds(record.ttft_intended_ns), _seconds(record.ttfat_ns),
        _seconds(record.tpot_ns), _seconds(record.e2e_ns), _seconds(record.e2e_intended_ns), _seconds(record.stall_ns),
        n_gaps, mean_s, p50_s, max_s,
        record.connect_ns / NS_PER_S if record.connect_ns else None,
        _seconds(record.send_lag_ns), record.rx_lag_max_ns / NS_PER_S, record.stamp,
        record.prompt_tokens, record.prompt_needed > 0, record.output_tokens, record.token_source.value,
        record.stated_tokens, record.tokens_max, record.reasoning_tokens, record.cached_tokens,
        record.draft_tokens, record.accepted_tokens, record.events, record.reasoning_events, record.merged_events,
        record.reads, record.bytes_received, record.reconnected, _engine(record),
        model if model and model != asked and not is_alias(asked, model) else msgspec.UNSET,
        record.text if save_text else msgspec.UNSET,
    ))  # fmt: skip
    try:
        return _ENCODER.encode(value) + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON on the wire can hold and UTF-8 can't
        return _ENCODER.encode(msgspec.structs.replace(value, **_well_formed(value))) + b"\n"


def _seconds(value_ns: float | None) -> float | None:
    return None if value_ns is None else value_ns / NS_PER_S


def _gaps(record: RequestRecord) -> tuple[int, float | None, float | None, float | None]:
    """(samples, mean, lower median, max) of the gaps between tokens, s; an event of k tokens gives gap/k, k times."""
    gaps_ns = record.gaps_ns
    if not gaps_ns:
        return 0, None, None, None
    if not record.gap_tokens:
        n, (sum_ns, median_ns, most_ns) = len(gaps_ns), spread(gaps_ns)
        return n, sum_ns / (n * NS_PER_S), median_ns / NS_PER_S, most_ns / NS_PER_S
    shared = sorted((gap / k, k) for gap, k in zip(gaps_ns, record.gap_tokens, strict=True) if k > 0)
    n = sum(k for _, k in shared)
    if not n:
        return 0, None, None, None
    seen, middle_ns = 0, 0.0
    for gap_ns, k in shared:
        if seen < (n + 1) // 2:
            middle_ns = gap_ns
        seen += k
    total_ns = sum(gap * k for gap, k in shared)
    return n, total_ns / (n * NS_PER_S), middle_ns / NS_PER_S, shared[-1][0] / NS_PER_S


def _engine(record: RequestRecord) -> dict[str, float | None] | None:
    times = record.engine
    if times is None:
        return None
    return {f"{name[:-3]}_s": _seconds(getattr(times, name)) for name in times.__struct_fields__}


def _well_formed(value: Row) -> dict[str, str]:
    texts = {name: text for name in value.__struct_fields__ if isinstance(text := getattr(value, name), str)}
    return {name: text.encode("utf-8", "replace").decode("utf-8") for name, text in texts.items()}
