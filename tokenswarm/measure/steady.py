"""The steady window of a stage on one worker's clock, and how much of a request lies in it."""

from __future__ import annotations

from bisect import bisect_left

from tokenswarm.record import RequestRecord


class Window:
    """From `open_ns` to `close_ns`, which does not belong to it; None while nobody knows where it ends."""

    def __init__(self, stage: int, open_ns: int, close_ns: int | None) -> None:
        self.stage, self.open_ns, self.close_ns = stage, open_ns, close_ns
        self.closed = False

    def until(self, now_ns: int) -> int:
        """Where it ends, or has come to by now."""
        return now_ns if self.close_ns is None else min(now_ns, self.close_ns)

    def holds(self, moment_ns: int) -> bool:
        return self.open_ns <= moment_ns and (self.close_ns is None or moment_ns < self.close_ns)

    def overlap_ns(self, start_ns: int, end_ns: int) -> int:
        """How much of this time lies in it."""
        return max(0, self.until(end_ns) - max(start_ns, self.open_ns))

    def tokens_of(self, record: RequestRecord) -> int:
        """Output tokens that came inside: tokens × events inside / events.

        Rounded at both ends of the window rather than once, so that adjoining windows share out exactly all tokens.
        """
        stamps, tokens = record.token_stamps_ns, record.output_tokens
        if not stamps:  # nothing says when they came: all at the last byte
            return tokens if self.holds(record.done_ns) else 0
        events = len(stamps)
        before = bisect_left(stamps, self.open_ns)
        until = events if self.close_ns is None else bisect_left(stamps, self.close_ns)
        return tokens * until // events - tokens * before // events
