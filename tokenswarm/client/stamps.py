"""From the kernel's stamps, which are of the wall clock, to the monotonic clock of all durations.

Two clocks can't be read at once, and a pause between the two reads would be taken off a stamp: milliseconds, once in
some thousand reads of a busy machine. So their offset is kept, from a look that was bracketed (monotonic, wall,
monotonic) tightly enough; each read compares it with a pair of its own and asks for a new look where they differ.
A stamp lies between the send, or the read before, and now; where that had to be forced, or the offset is not known,
the read is unsure, and counted.
"""

from __future__ import annotations

import socket
import struct
import sys
from typing import Any

from tokenswarm import clock
from tokenswarm.clock import Clock

SO_TIMESTAMPNS = 35  # asm-generic/socket.h; Python's socket module has no name for it
TIGHT_NS = 5_000  # a bracket is trusted up to here; an undisturbed one takes 0.2 µs
SLACK_NS = 2 * TIGHT_NS  # what two looks may differ by without anything being wrong
TRIES = 4  # brackets a look; a machine that is busy enough to widen all of them is told of, not waited for
STEP_NS = 1_000_000  # beyond this, and the drift below, the wall clock did not drift between two looks but was set
DRIFT_PER = 2_000  # a clock that is slewed gains or loses 1 ns in so many at the most (500 ppm)

unpack_timespec = struct.Struct("qq").unpack


class ClockPair:
    """The offset of the wall clock from the monotonic one, ns. `low_ns` to `high_ns`: what a pair of reads may say of
    it without a new look; empty while it is not known."""

    __slots__ = ("_looked_ns", "_monotonic", "_realtime", "error_ns", "high_ns", "low_ns", "offset_ns")

    def __init__(self, monotonic: Clock | None = None, realtime: Clock | None = None) -> None:
        self._monotonic = monotonic or clock.monotonic_ns
        self._realtime = realtime or clock.realtime_ns
        self._looked_ns = self._monotonic()
        self.offset_ns = self._realtime() - self._looked_ns
        self.error_ns = STEP_NS
        self.low_ns, self.high_ns = 1, 0
        self.look()

    def look(self) -> bool:
        """Measure the offset anew. True where the wall clock was set since the last look."""
        before_ns, known = self.offset_ns, self.error_ns <= TIGHT_NS
        least_ns, most_ns = -(1 << 62), 1 << 62  # where all brackets of this look meet
        for _ in range(TRIES):
            began_ns = self._monotonic()
            wall_ns = self._realtime()
            ended_ns = self._monotonic()
            low_ns, high_ns = wall_ns - ended_ns, wall_ns - began_ns
            if low_ns > most_ns or high_ns < least_ns:
                least_ns, most_ns = low_ns, high_ns  # it was set while we looked
            else:
                least_ns, most_ns = max(least_ns, low_ns), min(most_ns, high_ns)
            if most_ns - least_ns <= TIGHT_NS:
                break
        width_ns = most_ns - least_ns
        if width_ns <= TIGHT_NS or not known or not least_ns - SLACK_NS <= before_ns <= most_ns + SLACK_NS:
            self.offset_ns, self.error_ns = least_ns, width_ns  # the least: rather some 0.1 µs late than early
        # else: only wide brackets, and none of them speaks against what a tight one said before
        tight = self.error_ns <= TIGHT_NS
        self.low_ns, self.high_ns = (self.offset_ns - TIGHT_NS, self.offset_ns + TIGHT_NS) if tight else (1, 0)
        drift_ns, self._looked_ns = (ended_ns - self._looked_ns) // DRIFT_PER, ended_ns
        return known and abs(self.offset_ns - before_ns) > STEP_NS + drift_ns

    def place(self, stamp_ns: int, floor_ns: int, now_ns: int) -> tuple[int, bool]:
        """(moment on the monotonic clock, whether it is sure) of a stamp of the wall clock: the slow way, with a look.

        `floor_ns` is the send, or the read before: nothing can have come earlier. What can't be told is `now_ns`.
        """
        was_set = self.look()
        at_ns = stamp_ns - self.offset_ns
        placed_ns = min(max(at_ns, floor_ns), now_ns)
        if was_set or abs(placed_ns - at_ns) > SLACK_NS + self.error_ns:
            return now_ns, False
        return placed_ns, self.error_ns <= TIGHT_NS


def ask_for_stamps(sock: Any) -> bool:
    """Have the kernel stamp what arrives. False where it can't."""
    if not sys.platform.startswith("linux") or struct.calcsize("P") != 8:
        return False
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    except OSError:
        return False
    return True
