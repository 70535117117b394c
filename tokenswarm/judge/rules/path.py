"""Rules about what stands between this client and the engine: does it hold tokens back?

The engine's own word decides where it has one: in its answers (Ollama, vLLM's timings) or in its metrics. Only without
it do signs in the stream speak alone.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from tokenswarm.clock import NS_PER_S
from tokenswarm.judge.rules.evidence import Evidence, Rule, doubt, ms, steady
from tokenswarm.measure.held import Held
from tokenswarm.result.summary import Doubt, Summary

ANSWERS_MIN = 20  # that the engine's metrics speak of, in a window
SIGN_SHARE = 0.5  # of the answers show it
HELD_S, HELD_SHARE = 0.02, 0.25  # the first token later than the engine says, at least: absolute, and of its TTFT
SAME_END = 0.5  # of that delay: what the end may be later
OUTPACED = 0.3  # of that delay: what the tokens must have caught up by
COUNTS_DIFFER = 0.2  # between the engine's window and ours: beyond it the engine speaks of other requests, too
LAG_SHARE = 0.25  # of the delay: where the client itself reads that late, it is not cleared

MENDS = (
    ("server", r"nginx|openresty", "nginx: `proxy_http_version 1.1`, or `proxy_buffering off`, no gzip for the type"),
    ("via", r"varnish", "Varnish: no `beresp.do_gzip`"),
    ("x-varnish", r"", "Varnish: no `beresp.do_gzip`"),
    ("server", r"lighttpd", "lighttpd: `server.stream-response-body = 1`"),
    ("x-powered-by", r"express", "Express: no `compression()` on this route"),
    ("x-portkey-provider", r"", "Portkey keeps the first event for 25 ms and merges what comes meanwhile: go past it"),
)
"""(header, what it says, mend), the first that fits."""

SIGNS = (
    ("announced", "whole, with a Content-Length", "lighttpd: `server.stream-response-body = 1`"),
    ("packed", "packed (gzip), at their end", "No gzip for streams: nginx `gzip_types`, Express `compression()`"),
    ("stored", "at once, at their end", "lighttpd: `server.stream-response-body = 1`; mitmproxy `stream_large_bodies`"),
    ("blocks", "in blocks of 4096 bytes", "nginx: `proxy_http_version 1.1`, or `proxy_buffering off`"),
    ("corked", "each 200 ms, the kernel's cork", "HAProxy: `option http-no-delay`"),
)  # fmt: skip
"""(count, how the answers came, mend): what a stream itself shows."""

LOSSES = (
    (
        "server", r"caddy", "empty",
        "Caddy may have lost the empty ones: 2.6 drops an answer that begins before the question was passed on. "
        "`buffer_requests` in its `reverse_proxy`, or Caddy 2.11.",
    ),
)  # fmt: skip
"""(header, what it says, outcome, cause and mend): healthy answers that a proxy is known to lose."""


class Word(msgspec.Struct, frozen=True):
    """What the engine says of the same answers, means in seconds."""

    engine_ttft_s: float
    client_ttft_s: float
    late_end_s: float  # how much later than for the engine answers ended
    caught_up_s: float  # by how much the tokens came quicker than they were made
    hidden_s: float  # of the delay: tokens that the engine made and did not show

    @property
    def late_s(self) -> float:
        return self.client_ttft_s - self.engine_ttft_s - self.hidden_s

    @property
    def held(self) -> bool:
        """The first token came late, the last did not: no slow engine or network does that."""
        late_s = self.late_s
        return (
            late_s > max(HELD_S, HELD_SHARE * self.engine_ttft_s)
            and self.late_end_s < SAME_END * late_s
            and self.caught_up_s > OUTPACED * late_s
        )


def tokens_held_back(evidence: Evidence, summary: Summary) -> Doubt | None:
    held = steady(evidence).held
    word, sign = engine_word(held, summary), sign_of(held)
    if not (word.held if word is not None else sign):
        return None
    late_s = word.late_s if word is not None else summary.latency.ttft_s.mean or 0.0
    lag = summary.instrument.rx_lag_s
    # A busy machine delays some tokens, and p99 tells of it. Where most answers show a sign as well, the mean must.
    lag_s = (lag.mean if word is not None and sign else lag.p99) or 0.0
    if lag_s > LAG_SHARE * late_s:
        return None  # `receive-lag` tells: it may be this client
    how, mend = (sign[1], sign[2]) if sign else ("late", "")
    named = by_name(evidence.marks)
    who = f" ({named[0]})" if named else ""
    said = f"The engine says TTFT {ms(word.engine_ttft_s)}, the client saw {ms(word.client_ttft_s)}; " if word else ""
    share = f"{getattr(held, sign[0]) / held.answers:.0%} of the answers came {how}: " if sign else ""
    whom = "something on the path" if word is not None else "something on the path, or the server itself,"
    advice = named[1] if named else mend or "HAProxy: `option http-no-delay`; nginx: `proxy_buffering off`"
    return doubt(
        "tokens-held-back",
        "degraded",
        f"{said}{share}{whom} holds tokens back{who}. It is not this client, which reads within {ms(lag_s)}. "
        f"TTFT, ITL and TPOT are the path's; E2E and throughput hold. {advice}.",
        sign=sign[0] if sign else None,
        answers=held.answers,
        marks=dict(list(evidence.marks.items())[:8]),
        **({} if word is None else msgspec.to_builtins(word)),
    )


def sign_of(held: Held) -> tuple[str, str, str] | None:
    """The surest sign that most of the answers show."""
    late = held.stored + held.announced > 0
    for name, how, mend in SIGNS:
        if name == "packed" and not late:
            continue  # a compressor that lets each event go at once holds nothing back
        if held.answers and getattr(held, name) > SIGN_SHARE * held.answers:
            return name, how, mend
    return None


def by_name(marks: dict[str, str]) -> tuple[str, str] | None:
    """What the first answer says stands between, and its mend."""
    for header, pattern, mend in MENDS:
        said = marks.get(header)
        if said is not None and re.search(pattern, said, re.IGNORECASE):
            return f"{header}: {said[:40]}", mend
    return None


def lost_by(marks: dict[str, str], by_outcome: dict[str, int]) -> str:
    """A sentence, with a space before it, about a proxy that may have lost some of the answers; else nothing."""
    for header, pattern, outcome, told in LOSSES:
        if by_outcome.get(outcome) and re.search(pattern, marks.get(header, ""), re.IGNORECASE):
            return f" {told}"
    return ""


def engine_word(held: Held, summary: Summary) -> Word | None:
    """The engine's view of the answers: by its own times in each, else by its metrics; None where it says nothing."""
    if held.told > SIGN_SHARE * held.answers > 0:
        return _told(held)
    metrics = summary.server.get("metrics")
    return _watched(metrics, summary) if metrics else None


def _told(held: Held) -> Word:
    n, tokens = held.told * NS_PER_S, max(1, held.told_tokens)
    pace_s = held.engine_decode_ns / NS_PER_S / tokens
    late_s, end_s = (held.client_first_ns - held.engine_first_ns) / n, (held.client_total_ns - held.engine_total_ns) / n
    # Engines differ by a token on whether the first one belongs to the prefill.
    hidden_s = (max(0, held.told_tokens - held.told_events) / held.told + 1) * pace_s
    return Word(held.engine_first_ns / n, held.client_first_ns / n, end_s, late_s - end_s, hidden_s)


def _watched(metrics: dict[str, Any], summary: Summary) -> Word | None:
    """None unless the engine's metrics are of these requests, and tell TTFT, TPOT and E2E of enough of them."""
    means = {}
    for name in ("ttft_s", "tpot_s", "e2e_s"):
        engine, client = metrics.get("latency", {}).get(name) or {}, getattr(summary.latency, name)
        n = engine.get("n", 0)
        apart = name == "tpot_s" and client.mean is None  # whole answers in one read have none
        if n < ANSWERS_MIN or engine.get("mean") is None or (client.mean is None and not apart):
            return None
        if not apart and abs(n - client.n) > COUNTS_DIFFER * n and name != "tpot_s":
            return None
        means[name] = (engine["mean"], client.mean or 0.0)
    tokens, ok = summary.tokens.output, summary.requests_steady.ok
    each = tokens / ok if ok else 0.0
    events = each / summary.tokens.per_event if summary.tokens.per_event else each
    (ttft, seen), (pace, seen_pace), (total, seen_total) = means["ttft_s"], means["tpot_s"], means["e2e_s"]
    return Word(ttft, seen, seen_total - total, (pace - seen_pace) * max(0.0, each - 1), max(0.0, each - events) * pace)


RULES: tuple[Rule, ...] = (tokens_held_back,)
