"""What happened to one request, frozen: a closed set of outcomes and one flat record.

Times are integer nanoseconds of the worker's monotonic clock (comparable within that worker only); 0 means
"did not happen". Derived values (TTFT, TPOT, ...) are properties here and nowhere else, so that rows, sketches and
reports can't disagree. Definitions: docs/metrics.md.
"""

from __future__ import annotations

import enum

import msgspec


class Outcome(enum.StrEnum):
    """How a request ended. Exactly one each; the set is closed (it is a label of metrics)."""

    OK = "ok"
    TRUNCATED = "truncated"  # a clean end of the body without the protocol's own end
    RESET = "reset"  # the connection died while the answer was owed
    STALLED = "stalled"  # no token for the idle timeout (comments and pings don't count)
    TIMEOUT = "timeout"  # no first token in time, or the total time is up
    HTTP_4XX = "http_4xx"
    RATE_LIMITED = "rate_limited"  # 429
    HTTP_5XX = "http_5xx"
    PROTOCOL = "protocol"  # broken HTTP framing, unexpected content type, redirect, JSON that is none
    ERROR_OBJECT = "error_object"  # an error object inside a 2xx answer
    EMPTY = "empty"  # a 2xx answer without any content
    OVERSIZE = "oversize"  # one event or line is larger than the limit
    CONNECT = "connect"
    TLS = "tls"
    DNS = "dns"
    CANCELLED = "cancelled"  # we gave it up: an interrupt
    CENSORED = "censored"  # still running when the drain bound was reached


OK = Outcome.OK
"""For what runs with each answer: CPython 3.11 spends a thousand instructions on looking a member up by its class."""

FAILED_OUTCOMES = frozenset(Outcome) - {Outcome.OK, Outcome.CANCELLED, Outcome.CENSORED}


BROKEN_OUTCOMES = frozenset(
    (Outcome.TRUNCATED, Outcome.RESET, Outcome.HTTP_5XX, Outcome.PROTOCOL, Outcome.ERROR_OBJECT)
)
"""Ended by the server or something on the way, neither by a time-out of this client nor by a refusal of the request."""


LENGTH_REASONS = frozenset(("length", "max_tokens", "max_output_tokens", "model_context_window_exceeded", "limit"))
"""Finish reasons of answers that their length ended: of OpenAI and Ollama, Anthropic, Responses, llama.cpp itself."""


USUAL_ENDS = LENGTH_REASONS | frozenset(
    (
        *("stop", "completed", "done", "end_turn", "stop_sequence", "message_stop", "incomplete", "pause_turn"),
        *("tool_calls", "tool_use", "function_call", "eos", "eos_token", "stop_token", "stop_words", "word", "end_id"),
        *("STOP", "MAX_TOKENS", "COMPLETE", "EOS", "finish", "complete"),
    )
)
"""... and of one that the model or its limit ended, in the words of engines and gateways. Any other is told."""


class TokenSource(enum.StrEnum):
    """Where the count of output tokens comes from. A label everywhere: sources are never mixed silently."""

    SERVER = "server"  # usage.completion_tokens, eval_count; and its reasoning tokens, where they stand beside it
    EVENTS = "events"  # content-bearing events: a lower bound


class EngineTimes(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """Durations that the engine itself reported for this request, in ns; None where it said nothing."""

    total_ns: int | None = None
    load_ns: int | None = None
    prefill_ns: int | None = None
    decode_ns: int | None = None
    queue_ns: int | None = None
    ttft_ns: int | None = None


class RequestRecord(msgspec.Struct, frozen=True, gc=False):
    """One finished request. Built by `Timeline.finish`, read by the recorder and the reports."""

    id: str
    outcome: Outcome
    stage: int
    phase: str  # "warmup" | "steady" | "drain", by intended start
    intended_ns: int
    sent_ns: int = 0
    headers_ns: int = 0
    first_event_ns: int = 0  # first event of the answer, content or not (a role-only one); 0: not noted
    last_event_ns: int = 0  # last event of the answer, content or not (a finish reason); 0: not noted
    first_ns: int = 0  # first content or reasoning
    first_answer_ns: int = 0  # first content that is not reasoning
    last_ns: int = 0  # last content or reasoning
    done_ns: int = 0  # last byte of the answer, or the moment of failure
    connect_ns: int = 0  # duration of connection set-up; 0 where a pooled connection was used
    status: int = 0
    error: str = ""  # at most 200 characters, no prompt text
    error_kind: str = ""  # a bounded word for grouping: "http 503", "ConnectionRefusedError", ...
    finish_reason: str = ""
    model: str = ""  # that the answer says it is from, cleaned and cut; "": it says none
    conversation: str = ""
    turn: int = 0
    retry_after: str = ""  # the header as it came, with a refusal
    prompt_tokens: int | None = None
    prompt_bytes: int = 0  # of the text that was sent, without the dialect's own; 0: not noted
    prompt_needed: int = 0  # tokens that the prompt needs where the server read clearly fewer; 0: nothing is wrong
    output_tokens: int = 0
    reasoning_tokens: int | None = None
    cached_tokens: int | None = None
    draft_tokens: int | None = None  # that a speculative decoder proposed
    accepted_tokens: int | None = None  # of these, those that the model took
    token_source: TokenSource = TokenSource.EVENTS
    stated_tokens: int | None = None  # output tokens as the server stated them, believed or not
    reasoning_added: bool = False  # it left its reasoning tokens out of them; output_tokens has them
    tokens_max: int | None = None  # the most that was asked for, all choices together; None: no limit
    ignore_eos: bool = False  # the server was asked for no less than that
    tokens_told: bool = False  # the wire said of each content event how many tokens it holds
    events: int = 0  # content-bearing events
    reasoning_events: int = 0  # of these, those before the first word of the answer: thoughts, counted or not
    merged_events: int = 0  # of these, events that share one read (one stamp) with an earlier one
    reads: int = 0
    blocks: int = 0  # pieces of the body of exactly 4096 bytes, or multiples
    packed: bool = False  # the body was compressed
    announced: bool = False  # the answer stated its length ahead
    retries: int = 0  # attempts beyond the first that a gateway says it made for this answer
    bytes_received: int = 0
    gaps_ns: tuple[int, ...] = ()  # one per content event after the first that has a stamp of its own
    gap_tokens: tuple[int, ...] = ()  # tokens that share each gap; () means 1 each
    token_stamps_ns: tuple[int, ...] = ()  # stamp of each content event: for counting tokens in a window
    rx_lag_max_ns: int = 0
    sent_high_ns: int = 0  # it left between sent_ns and here; the same, or 0: sent_ns is when
    first_low_ns: int = 0  # the first token, the first of the answer, the last: not before; 0, or the same: then
    answer_low_ns: int = 0
    last_low_ns: int = 0
    first_events: int = 1  # content events that share the read of the first
    gap_events: tuple[int, ...] = ()  # content events that share the read that ends each gap; () means 1 each
    gap_hidden_ns: tuple[int, ...] = ()  # of these gaps, where other events of its read than the last may lie; () none
    gap_choices: bool = False  # the gaps of several choices, one behind the other
    unsure: tuple[tuple[int, int], ...] = ()  # reads whose stamp could not be placed: (not before, their stamp)
    reconnected: bool = False  # a pooled connection died before the first byte and was replaced, once
    stamp: str = "user"  # "kernel" | "user"
    engine: EngineTimes | None = None
    text: str | None = None  # only where the run saves text

    @property
    def ok(self) -> bool:
        return self.outcome is OK

    @property
    def ttft_ns(self) -> int | None:
        """First content or reasoning − sent (service time to first token)."""
        return self.first_ns - self.sent_ns if self.first_ns else None

    @property
    def ttft_intended_ns(self) -> int | None:
        """First content or reasoning − intended start: what a user waited (no coordinated omission)."""
        return self.first_ns - self.intended_ns if self.first_ns else None

    @property
    def ttfat_ns(self) -> int | None:
        """First answer token (not reasoning) − sent."""
        return self.first_answer_ns - self.sent_ns if self.first_answer_ns else None

    @property
    def e2e_ns(self) -> int | None:
        """Last byte − sent."""
        return self.done_ns - self.sent_ns if self.sent_ns and self.done_ns else None

    @property
    def silent_ns(self) -> int | None:
        """From the last event of the answer (or its head, or the sending) to the moment when it ended or broke off."""
        if not self.sent_ns or not self.done_ns:
            return None
        return max(0, self.done_ns - max(self.sent_ns, self.headers_ns, self.last_event_ns, self.last_ns))

    @property
    def e2e_intended_ns(self) -> int | None:
        """Last byte − intended start."""
        return self.done_ns - self.intended_ns if self.sent_ns and self.done_ns else None

    @property
    def tpot_ns(self) -> float | None:
        """(last content − first content) / (output tokens − 1); None below 2 tokens, and where all came in one read."""
        if self.output_tokens < 2 or self.last_ns <= self.first_ns:
            return None
        return (self.last_ns - self.first_ns) / (self.output_tokens - 1)

    @property
    def one_read(self) -> bool:
        """Whether all of several tokens came in one read: their pace is not known.

        One event of two tokens may be a short answer and its end.
        """
        several = self.output_tokens > 1 and (self.merged_events > 0 or self.output_tokens > 2)
        return several and 0 < self.first_ns >= self.last_ns

    @property
    def at_once(self) -> bool:
        """Whether an answer of several tokens came in one event: Ollama's tool calls, on the last line of all."""
        return self.events == 1 and self.output_tokens > 1

    @property
    def counts_part(self) -> bool:
        """Whether the server's count is that of a part: of one event, or of what came until then. Events count."""
        return self.token_source is TokenSource.EVENTS and 0 < (self.stated_tokens or 0) < self.events

    @property
    def counts_beyond(self) -> bool:
        """Whether the server's count is beyond what was asked for, and the answer's events are not. Events count."""
        return self.token_source is TokenSource.EVENTS and (self.stated_tokens or 0) > self.events

    @property
    def over_limit(self) -> bool:
        """More output tokens than were asked for: the server does not keep the limit, or its count is another's."""
        if self.tokens_max is None:
            return False
        if not self.stated_tokens:
            return self.events > self.tokens_max
        # Engines differ on whether the limit holds for the reasoning, too.
        return self.stated_tokens - (0 if self.reasoning_added else self.reasoning_tokens or 0) > self.tokens_max

    @property
    def short(self) -> bool:
        """Fewer output tokens than were asked for, by the server's count, where the answer was to have them all.

        That is: it was told to ignore its end of text, or says itself that the length is what ended it.
        """
        if self.tokens_max is None or self.output_tokens >= self.tokens_max:
            return False
        return self.token_source is TokenSource.SERVER and (self.ignore_eos or self.finish_reason in LENGTH_REASONS)

    @property
    def stall_ns(self) -> int | None:
        """Worst gap between successive content events."""
        return max(self.gaps_ns) if self.gaps_ns else None

    @property
    def send_lag_ns(self) -> int | None:
        """Sent − intended."""
        return self.sent_ns - self.intended_ns if self.sent_ns else None
