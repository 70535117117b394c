"""Was an answer held back between the engine and this client? Signs of one answer, and their sums over many.

A token that waits in a proxy's buffer makes TTFT longer and TPOT shorter, and leaves the end where it was. No slow
engine and no slow network does that. Each sign costs some comparisons an answer; docs/paths.md tells of them.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from tokenswarm.record import RequestRecord

EVENTS_MIN = 8  # shorter answers may well be one read
STORED_SHARE = 0.02  # of the time since it was sent: all that an answer takes which was stored whole and then sent
STORED_NS = 500_000  # ... and for an event: no stream is that quick
BURST_SHARE = 0.5  # of the events share a read: else no sign in the stream is looked for
CORK_NS = (195_000_000, 240_000_000)  # Linux lets go of a corked socket after 200 ms
CORK_GAPS = 3

Count = Annotated[int, msgspec.Meta(ge=0)]


class Held(msgspec.Struct, kw_only=True):
    """Counts of successful answers of EVENTS_MIN events or more. Everything adds."""

    answers: Count = 0
    stored: Count = 0  # came at once, at their end
    announced: Count = 0  # stated their length ahead, which nobody knows of a stream
    packed: Count = 0  # compressed on the way
    blocks: Count = 0  # came in blocks of 4096 bytes
    corked: Count = 0  # came each 200 ms, whatever the rate

    # Sums over the answers in which the engine stated its own times, ns.
    told: Count = 0
    client_first_ns: Count = 0  # sent to first token
    client_total_ns: Count = 0  # sent to last byte
    engine_first_ns: Count = 0
    engine_total_ns: Count = 0
    engine_decode_ns: Count = 0
    told_events: Count = 0
    told_tokens: Count = 0

    def add(self, record: RequestRecord) -> None:
        """Count a successful answer."""
        events = record.events
        if events < EVENTS_MIN:
            return
        self.answers += 1
        if record.announced:
            self.announced += 1
        if record.packed:
            self.packed += 1
        if record.merged_events > BURST_SHARE * events:
            span_ns = record.last_ns - record.first_ns
            if span_ns <= STORED_SHARE * (record.last_ns - record.sent_ns) and span_ns < STORED_NS * events:
                self.stored += 1
            elif 2 * record.blocks >= record.reads - 2 > 0:
                self.blocks += 1
            elif _corked(record.gaps_ns):
                self.corked += 1
        if record.engine is not None:
            self._tell(record)

    def _tell(self, record: RequestRecord) -> None:
        times, sent_ns = record.engine, record.sent_ns
        assert times is not None
        total_ns, decode_ns = times.total_ns, times.decode_ns
        if total_ns is None or decode_ns is None or not sent_ns or not record.done_ns:
            return
        self.told += 1
        if record.first_ns > sent_ns:
            self.client_first_ns += record.first_ns - sent_ns
        self.client_total_ns += record.done_ns - sent_ns
        first_ns = times.ttft_ns or total_ns - decode_ns
        if first_ns > 0:
            self.engine_first_ns += first_ns
        self.engine_total_ns += total_ns
        self.engine_decode_ns += decode_ns
        self.told_events += record.events
        self.told_tokens += record.output_tokens


def _corked(gaps_ns: tuple[int, ...]) -> bool:
    """Whether the usual gap is that of the cork. The last is not: the end of an answer pulls it.

    Nor need the first be: a timer that was late lets the next one seem early, and the first is the head's.
    """
    if len(gaps_ns) < CORK_GAPS:
        return False
    inside = sum(CORK_NS[0] <= gap_ns <= CORK_NS[1] for gap_ns in gaps_ns[:-1])
    return 3 * inside >= 2 * (len(gaps_ns) - 1)
