"""What the engine really did, for judging an instrument: send stamps of every token, each request's outcome, totals.

Kept bounded: the newest 100 000 requests, and the token stamps of the newest requests up to 2 million tokens (32 MB).
Rows are flat tuples of numbers and strings, which the garbage collector doesn't have to visit.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterator

from tokenswarm.measure.sketch import Sketch

ROWS_MAX = 100_000
STAMPS_MAX = 2_000_000
OUTCOMES = ("completed", "disconnected", "faulted", "rejected", "refused")

COLUMNS = (
    "seq",
    "id",
    "api",
    "outcome",
    "fault",
    "received_real_ns",
    "received_mono_ns",
    "queue_ns",
    "prefill_ns",
    "first_sent_real_ns",
    "first_sent_mono_ns",
    "last_sent_real_ns",
    "last_sent_mono_ns",
    "prompt_tokens",
    "output_tokens",
    "preemptions",
    "asked",
)
Row = tuple[int | str | None, ...]


class Truth:
    """`received` = in flight + the sum of `outcomes`, at any moment."""

    def __init__(self) -> None:
        self.late_ns = array("q")  # of tokens that are not yet counted; those who send hold it, too
        self.next_seq = 0  # goes on after a reset, so that a `since` stays valid
        self.reset(in_flight=0)

    def reset(self, in_flight: int) -> None:
        """Forget everything; requests still in flight count as received after the reset."""
        self.rows: deque[Row] = deque(maxlen=ROWS_MAX)
        self.stamps: dict[int, tuple[bytes, bytes]] = {}
        self._stamps_kept = 0
        self.received = in_flight
        self.max_concurrent = in_flight
        self.outcomes = dict.fromkeys(OUTCOMES, 0)
        self.tokens_sent = 0
        self.blocked_writes = 0  # tokens that waited in this process because the client didn't read
        self.lateness = Sketch()
        del self.late_ns[:]

    def settle(self) -> None:
        """Count what waits in `late_ns`."""
        self.lateness.add_gaps(self.late_ns)
        self.tokens_sent += len(self.late_ns)
        del self.late_ns[:]

    def arrive(self, in_flight: int) -> None:
        self.received += 1
        self.max_concurrent = max(self.max_concurrent, in_flight)

    def finish(self, values: tuple[int | str | None, ...], real_ns: array[int], mono_ns: array[int]) -> None:
        """`values`: COLUMNS from `id` on. The outcome is counted here and nowhere else."""
        self.outcomes[str(values[2])] += 1
        seq = self.next_seq = self.next_seq + 1
        self.rows.append((seq, *values))
        if real_ns:
            self.stamps[seq] = (real_ns.tobytes(), mono_ns.tobytes())
            self._stamps_kept += len(real_ns)
        while self._stamps_kept > STAMPS_MAX:
            self._stamps_kept -= len(self.stamps.pop(next(iter(self.stamps)))[0]) // 8

    def totals(self, in_flight: int, slips: int) -> dict[str, object]:
        self.settle()
        late = self.lateness
        p50, p99 = late.quantiles([0.5, 0.99])
        return {
            "received": self.received,
            "in_flight": in_flight,
            **self.outcomes,
            "tokens_sent": self.tokens_sent,
            "max_concurrent": self.max_concurrent,
            "blocked_writes": self.blocked_writes,
            "slipped_steps": slips,
            "lateness_s": {"n": late.n, "p50": p50, "p99": p99, "max": late.high},
        }

    def since(self, seq: int, tokens: bool) -> Iterator[dict[str, object]]:
        """The rows after `seq` as of now, oldest first. Stamps are absent where they are forgotten."""
        last = self.next_seq
        at = max(seq, self.next_seq - len(self.rows))
        rows = self.rows
        while at < last:
            # Found by number each time: rows leave at the left, or by a reset, while somebody reads slowly.
            place = len(rows) - (self.next_seq - at)
            if rows is not self.rows or not 0 <= place < len(rows):
                return
            row: dict[str, object] = dict(zip(COLUMNS, rows[place], strict=True))
            if tokens and (kept := self.stamps.get(at + 1)):
                row["tokens_real_ns"] = array("q", kept[0]).tolist()
                row["tokens_mono_ns"] = array("q", kept[1]).tolist()
            yield row
            at += 1
