"""The marks of one request while it runs: the only mutable record. `mark` is the hot path; `finish` freezes it.

A content event is one with non-empty content, reasoning or tool arguments. Gaps run between content events of the same
choice; events that share a read share its stamp: the first of them ends the gap, the rest are counted as merged and no
gap is invented for them. Memory: 8 bytes a content event, and 4 and 2 more where the wire gives token counts or
several choices. Definitions: docs/metrics.md.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from functools import lru_cache

from tokenswarm.engines import UNTOLD, Delta, Usage
from tokenswarm.engines.failure import clean_line
from tokenswarm.measure.ending import REASON_CHARS_MAX, gives_up, judged
from tokenswarm.measure.gaps import gaps_of
from tokenswarm.measure.stated import NO_COUNTS, compared, merged, of_single_events, output_tokens, plausible
from tokenswarm.record import OK, EngineTimes, Outcome, RequestRecord

NOT_FINISHED: Mapping[int, str] = {}
NO_USAGE = Usage()
NO_LOWS: Mapping[int, int] = {}


class Timeline:
    """What the exchange learns about one request. Stamps are ns of the worker's monotonic clock; 0: not yet."""

    __slots__ = (
        "_answer_ns",
        "_by_event",
        "_choices",
        "_contiguous",
        "_counted",
        "_error",
        "_finished",
        "_hidden_after",
        "_ignore_eos",
        "_of_choice",
        "_parts",
        "_plain",
        "_reason",
        "_stamps",
        "_started",
        "_stated_after",
        "_thoughts",
        "_times",
        "_tokens",
        "_tokens_max",
        "_told",
        "_uncounted",
        "_usage",
        "announced",
        "blocks",
        "bytes_received",
        "connect_ns",
        "done_ns",
        "first_event_ns",
        "first_low_ns",
        "headers_ns",
        "intended_ns",
        "last_event_ns",
        "last_token_ns",
        "lows",
        "model",
        "one_a_read",
        "over_ns",
        "packed",
        "reads",
        "reconnected",
        "retries",
        "retry_after",
        "rx_lag_ns_max",
        "sent_high_ns",
        "sent_ns",
        "stamp",
        "status",
        "unsure",
    )

    def __init__(
        self, *, choices: int = 1, keep_text: bool = False, tokens_max: int | None = None, ignore_eos: bool = False
    ) -> None:
        """`tokens_max`: the most that each choice was asked for; `ignore_eos`: and no less, where the server can."""
        # Set by the exchange.
        self.intended_ns = 0
        self.sent_ns = 0
        self.connect_ns = 0
        self.headers_ns = 0
        self.done_ns = 0
        self.status = 0
        self.retry_after = ""
        self.reads = 0
        self.blocks = 0
        self.packed = self.announced = False
        self.retries = 0
        self.bytes_received = 0
        self.rx_lag_ns_max = 0
        self.reconnected = False
        self.stamp = "user"
        self.model = ""  # that the answer says it is from
        self.sent_high_ns = 0  # when it left at the latest, where that is not known
        self.first_low_ns = 0  # nothing of the first read came before
        self.one_a_read = False  # each read is one segment: what it holds did come at its stamp
        self.unsure: tuple[
            tuple[int, int], ...
        ] = ()  # reads whose stamp could not be placed: (not before, their stamp)
        self.lows: array[int] | None = None  # pairs (low, stamp): of the read stamped so, nothing came before `low`
        # Kept by mark.
        self.last_token_ns = 0  # stamp of the newest content event, for idle time-outs
        self.first_event_ns = 0  # first and last event that speaks of a choice, with or without content
        self.last_event_ns = 0
        self.over_ns = 0  # stamp of the sentinel, or of an error: no event of the answer comes behind it
        self._choices = choices
        self._tokens_max = tokens_max
        self._ignore_eos = ignore_eos
        self._plain = choices == 1 and not keep_text  # an event is a stamp and nothing else
        self._stamps = array("q")  # one per content event
        self._tokens: array[int] | None = None  # tokens of each, once the wire has said it of one
        self._of_choice: array[int] | None = None  # choice of each, once there is more than choice 0
        self._parts: list[str] | None = [] if keep_text else None
        self._answer_ns = 0
        self._started = False  # an event without content has come
        self._finished: Mapping[int, str] = NOT_FINISHED
        self._reason = ""  # why it will end, where that was told beforehand
        self._hidden_after: int | None = None  # content events before the last event without a model's name
        self._thoughts = 0  # content events before the first word of the answer
        self._usage: Usage | None = None
        self._stated_after = 0  # content events before the newest count of output tokens, its own included
        self._by_event = NO_COUNTS
        self._times: EngineTimes | None = None
        self._error = ""
        self._uncounted: dict[int, int] | None = None  # by choice: tokens of events without text yet (UTF-8 cut in two)
        self._counted = 0  # continuous usage: output tokens up to the newest content event
        self._contiguous = True  # ... and every content event so far carried one
        self._told = 0  # content events with token ids

    @property
    def events(self) -> int:
        """Content events so far."""
        return len(self._stamps)

    def mark(self, recv_ns: int, delta: Delta) -> None:
        """Note one event that arrived with the read stamped `recv_ns`."""
        content = delta.content
        if content or delta.reasoning:
            self._stamps.append(recv_ns)
            self.last_token_ns = self.last_event_ns = recv_ns
            if not self._answer_ns and content:
                self._answer_ns = recv_ns
                self._thoughts = len(self._stamps) - 1
            if self._plain and delta.tokens is None and delta.usage is None and not delta.choice:
                self._contiguous = False
            else:
                self._detail(delta)
        else:
            self._quiet(recv_ns, delta)
        if delta.finished or delta.error or delta.more or delta.usage is not None or delta.times is not None:
            self._rare(recv_ns, delta)

    def extend(self, stamps: array[int], like: Delta) -> None:
        """Note events that arrived at these stamps (one or more) and say what `like` says, but for their words."""
        more = like.finished or like.error or like.more or like.usage is not None or like.times is not None
        if more or not self._plain or like.tokens is not None or like.choice or not (like.content or like.reasoning):
            for recv_ns in stamps:
                self.mark(recv_ns, like)
            return
        self._stamps.extend(stamps)
        self.last_token_ns = self.last_event_ns = stamps[-1]
        if not self._answer_ns and like.content:
            self._answer_ns = stamps[0]
            self._thoughts = len(self._stamps) - len(stamps)
        self._contiguous = False

    @property
    def plain(self) -> bool:
        """Whether an event without counts is a stamp and nothing else: one choice, whose text nobody wants."""
        return self._plain

    def _quiet(self, recv_ns: int, delta: Delta) -> None:
        """Note an event without content: roles, ends, usage, or a token whose text is not complete yet."""
        if delta.void:
            return
        usage = delta.usage
        if usage is not None and usage.nameless:
            self._hidden_after = len(self._stamps)
        if delta.sentinel:
            self.over_ns = recv_ns
        else:
            self._started = True
            counts = usage is not None and (usage.output_tokens is not None or usage.reason)
            if delta.finished or not (counts or delta.times is not None or delta.error):
                self.first_event_ns = self.first_event_ns or (self._stamps[0] if self._stamps else recv_ns)
                self.last_event_ns = recv_ns
        if delta.tokens is not None:
            choice = delta.choice if self._choices != 1 else 0
            uncounted = self._uncounted = self._uncounted or {}
            uncounted[choice] = uncounted.get(choice, 0) + delta.tokens

    def _detail(self, delta: Delta) -> None:
        """Note what belongs to a content event besides its stamp."""
        before = len(self._stamps) - 1
        # Who asked for one choice gets one, whatever its index: some servers number the events there.
        choice = delta.choice if self._choices != 1 else 0
        if choice and self._of_choice is None:
            self._of_choice = array("H", [0]) * before
            self._plain = False
        if self._of_choice is not None:
            self._of_choice.append(choice)
        if self._parts is not None and not choice:
            self._parts.append(delta.content)
        tokens = self._tokens_of(delta, choice)
        if tokens != 1 and self._tokens is None:
            self._tokens = array("I", [1]) * before
            self._plain = False
        if self._tokens is not None:
            self._tokens.append(tokens)

    def _tokens_of(self, delta: Delta, choice: int) -> int:
        """Tokens since the previous content event of the choice, as the wire says; 1 where it does not."""
        usage = delta.usage
        if usage is None or usage.output_tokens is None:
            self._contiguous = False
        waiting = self._uncounted.pop(choice, 0) if self._uncounted else 0
        if delta.tokens is not None:
            self._told += 1
            return delta.tokens + waiting or 1
        if usage is None or usage.output_tokens is None or self._choices != 1:
            return 1  # with several choices servers disagree whether usage counts one of them or all
        tokens = usage.output_tokens - self._counted
        self._counted = usage.output_tokens
        # A usage that only the last content event carries, or that is zeroed on all others (Ollama), counts the whole
        # answer and not that event.
        self._contiguous = self._contiguous and tokens > 0
        return tokens if self._contiguous else 1

    def _rare(self, recv_ns: int, delta: Delta) -> None:
        for choice, reason in delta.finished:
            self._finished = {**self._finished, choice if self._choices != 1 else 0: self._reason or reason}
        if delta.error and not self._error:
            self._error = clean_line(delta.error)
            self.over_ns = recv_ns  # whatever comes behind it, the answer has failed: nobody need wait for its end
        if delta.usage is not None:
            usage = delta.usage
            if usage.output_tokens:
                if len(self._stamps) > self._stated_after:
                    self._by_event = compared(self._by_event, self._usage, usage.output_tokens)
                self._stated_after = len(self._stamps)
            if usage.reason and not (self._reason and usage.reason == UNTOLD):
                self._reason = usage.reason
            whole = usage.prompt_tokens and usage.output_tokens  # else: what it does not state stands
            self._usage = usage if whole else merged(self._usage, usage)
        if delta.times is not None:
            self._times = delta.times
        for other in delta.more:
            self.mark(recv_ns, other)

    def text(self) -> str:
        """Return the answer of choice 0 so far, without reasoning; "" unless `keep_text` was asked for."""
        return "".join(self._parts or ())

    @property
    def complete(self) -> bool:
        """Whether every choice that was asked for, or began, has ended."""
        return bool(self._finished) and not self._unfinished()

    def _unfinished(self) -> list[int]:
        """Choices that were asked for, or began, and have no end."""
        begun = set(self._of_choice) if self._of_choice is not None else set()
        return sorted((begun | set(range(self._choices))) - self._finished.keys())

    @property
    def choices_missing(self) -> int:
        """Choices that were asked for and never began, where all that began have ended."""
        missing = self._unfinished()
        begun = set(self._of_choice or ()) | ({0} if self._stamps else set())
        return len(missing) if self._finished and begun.isdisjoint(missing) else 0

    @property
    def hides_error(self) -> bool:
        """Whether the last event of all named no model: so Ollama's /v1 ends an answer whose error it hides."""
        return self._hidden_after == len(self._stamps) and not self._finished

    def judge(self, end: str = "a finish reason") -> tuple[Outcome, str]:
        """Judge a body that ended well-framed under 2xx. `end`: what the protocol ends an answer with, in words."""
        ended = self._choices == 1 and self._finished and self._stamps and not (self._error or self._of_choice)
        if ended and not any(map(gives_up, self._finished.values())):
            return OK, ""  # most of them
        return judged(
            error=self._error, reasons=self._finished.values(), unfinished=bool(self._unfinished()),
            missing=self.choices_missing, choices=self._choices, events=self.events, began=self._started, end=end,
        )  # fmt: skip

    def finish(
        self,
        outcome: Outcome,
        *,
        id: str,
        stage: int,
        phase: str,
        conversation: str,
        turn: int,
        error: str = "",
        error_kind: str = "",
        prompt_bytes: int = 0,
    ) -> RequestRecord:
        """Freeze the marks. Without an `error_kind` a failure is grouped under its outcome."""
        usage, stamps = self._usage or NO_USAGE, tuple(self._stamps)
        limit = None if self._tokens_max is None else self._tokens_max * self._choices
        partial = self._choices != 1 and bool(self._unfinished())
        alone = of_single_events(self._by_event, len(stamps), usage.output_tokens)
        counted = 0 if alone else self._stated_after
        output, source, added = output_tokens(usage, len(stamps), counted, limit, partial)
        lows = dict(zip(self.lows[1::2], self.lows[::2], strict=True)) if self.lows else NO_LOWS
        gaps, gap_tokens, gap_events, gap_hidden, merged_events = gaps_of(stamps, self._tokens, self._of_choice, lows)
        first_low_ns, answer_low_ns, last_low_ns, first_events = self._lows(stamps, merged_events, lows)
        failed, first_ns = outcome is not OK, stamps[0] if stamps else 0
        # By place, in the order of the record's fields: by name they would be put into a dict, of each request.
        return RequestRecord(*(
            id, outcome, stage, phase, self.intended_ns, self.sent_ns, self.headers_ns,
            self.first_event_ns or first_ns, self.last_event_ns, first_ns, self._answer_ns, self.last_token_ns,
            self.done_ns, self.connect_ns, self.status,
            clean_line(error or self._error) if failed else "",
            (clean_line(error_kind) or outcome.value) if failed else "",
            self._finish_reason(), self.model, conversation, turn,
            self.retry_after if failed else "",
            # No prompt has 0 tokens; what was counted before an answer without an end is an estimate (Ollama).
            (usage.prompt_tokens or None) if usage.output_tokens is not None or not failed else None,
            prompt_bytes, 0, output, usage.reasoning_tokens, usage.cached_tokens,
            usage.draft_tokens, usage.accepted_tokens, source, usage.output_tokens, added, limit, self._ignore_eos,
            bool(stamps) and (self._contiguous or self._told == len(stamps)),
            len(stamps), self._thoughts if self._answer_ns else len(stamps), merged_events, self.reads, self.blocks,
            self.packed, self.announced, self.retries, self.bytes_received, gaps, gap_tokens, stamps,
            self.rx_lag_ns_max, self.sent_high_ns, first_low_ns, answer_low_ns, last_low_ns, first_events, gap_events,
            gap_hidden, self._of_choice is not None, self.unsure, self.reconnected, self.stamp,
            plausible(self._times, self.done_ns - self.sent_ns if self.sent_ns else 0, output),
            self.text() if self._parts is not None else None,
        ))  # fmt: skip

    def _finish_reason(self) -> str:
        if not self._finished:
            return ""
        return _label(",".join([reason[:REASON_CHARS_MAX] for _, reason in sorted(self._finished.items())]))

    def _lows(self, stamps: Sequence[int], merged_events: int, lows: Mapping[int, int]) -> tuple[int, int, int, int]:
        """Not before these came the first token, the first of the answer, the last; and the events of the first read.

        0 where the stamp is the moment. The last event of a read has its stamp; the others are hidden in it, and so is
        a token whose read ended the answer, unless a read is one segment.
        """
        if not stamps:
            return 0, 0, 0, 1
        ended = stamps[-1] >= self.done_ns and not self.one_a_read
        if not merged_events and not self.unsure and not ended:
            return 0, 0, 0, 1
        first_ns, last_ns, answer_ns = stamps[0], stamps[-1], self._answer_ns
        if not merged_events and not self.unsure and len(stamps) > 1 and stamps[-2] < last_ns:
            last_low = max(stamps[-2], lows.get(last_ns, 0))
            return 0, last_low if answer_ns == last_ns else 0, last_low, 1
        first_events = bisect_right(stamps, first_ns) if merged_events else 1
        shared = bool(merged_events) and not self.one_a_read
        first_low = self._low_ns(
            first_ns, lows, hidden=(shared and first_events > 1) or (ended and first_ns == last_ns)
        )
        last_low = self._low_ns(last_ns, lows, hidden=ended)
        alone = bisect_right(stamps, answer_ns) - bisect_left(stamps, answer_ns) == 1
        answer_low = self._low_ns(answer_ns, lows, hidden=(shared and not alone) or (ended and answer_ns == last_ns))
        return first_low, answer_low if answer_ns else 0, last_low, first_events

    def _low_ns(self, at_ns: int, lows: Mapping[int, int], *, hidden: bool) -> int:
        """The earliest moment of an event of the read stamped `at_ns`; 0: the stamp."""
        found = [low_ns for low_ns, stamp_ns in self.unsure if stamp_ns == at_ns]
        if hidden:
            place = bisect_left(self._stamps, at_ns)
            if place:
                before_ns = self._stamps[place - 1]
            elif self.headers_ns == at_ns:  # the read of the first token is the first of all
                before_ns = self.first_low_ns or self.sent_ns
            else:
                before_ns = max(self.headers_ns, self.first_event_ns if self.first_event_ns < at_ns else 0)
            found.append(max(before_ns, lows.get(at_ns, 0)))
        return min(found, default=0)


@lru_cache(maxsize=64)  # servers know a handful of them
def _label(reasons: str) -> str:
    return clean_line(reasons)[:REASON_CHARS_MAX]
