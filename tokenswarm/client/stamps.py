"""From the kernel's stamps, which are of the wall clock, to the monotonic clock of all durations.

Two clocks can't be read at once, and a pause between the two reads would be taken off a stamp: milliseconds, once in
some thousand reads of a busy machine. So their offset is kept, from a look that was bracketed (monotonic, wall,
monotonic) tightly enough; each read compares it with a pair of its own and asks for a new look where they differ.
A stamp lies between the send, or the read before, and now; where that had to be forced, or the offset is not known,
the read is unsure, and counted.

The rule for whoever reads: both ends of a duration (the send, from the error queue; each read, from its ancillary data)
are placed with the same `offset_ns`, so that their difference is one of the kernel's clock alone. `look` keeps the
offset as long as the clock was not set. Where a stamp can't be placed, the event lies somewhere between a low and a
high moment, and both are told: see `Sent`, and `Response.unsure`.
"""

from __future__ import annotations

import _socket
import contextlib
import errno
import functools
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from tokenswarm import clock
from tokenswarm.clock import Clock

SO_TIMESTAMPNS = 35  # asm-generic/socket.h; Python's socket module has no name for it
SO_TIMESTAMPING = 37
_SENT_REPORT = (1 << 4) | (1 << 11)  # SOF_TIMESTAMPING_SOFTWARE, OPT_TSONLY: stamps alone, no copy of what was sent
_TX_SCHED = 1 << 8  # when the stack handed it over; other than TX_SOFTWARE it needs nothing of the driver
STAMP_THIS = [(socket.SOL_SOCKET, SO_TIMESTAMPING, struct.pack("I", _TX_SCHED))]  # ancillary data of a send
_CANT_STAMP = (errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.ENOSYS)
_QUEUE_BYTES = 256  # ancillary data of one entry of the error queue: 130 with everything asked for
_QUEUE_MAX = 16  # entries taken at a time: a path that floods it with errors must not keep us
_OF_STAMPS = 4  # SO_EE_ORIGIN_TIMESTAMPING; others are errors that the path reported (ICMP)
_TCP_INFO, _SEGMENTS_AT = 11, 152  # tcpi_data_segs_in of struct tcp_info, Linux 4.6

TIGHT_NS = 5_000  # a bracket is trusted up to here; an undisturbed one takes 0.2 µs
SLACK_NS = 2 * TIGHT_NS  # what two looks may differ by without anything being wrong
TRIES = 4  # brackets a look; a machine that is busy enough to widen all of them is told of, not waited for
STEP_NS = 1_000_000  # beyond this, and the drift below, the wall clock did not drift between two looks but was set
DRIFT_PER = 2_000  # a clock that is slewed gains or loses 1 ns in so many at the most (500 ppm)

unpack_timespec = struct.Struct("qq").unpack
_unpack_stamp = struct.Struct("qq").unpack_from
_unpack_origin = struct.Struct("IB").unpack_from
_unpack_segments = struct.Struct("I").unpack_from


class Sent(NamedTuple):
    """When the last byte of a request left, ns of the monotonic clock: the kernel's stamp (low = at = high), or `at`,
    the moment before the send, with the bracket that it happened in."""

    at_ns: int
    low_ns: int
    high_ns: int

    @property
    def stamped(self) -> bool:
        return self.low_ns == self.high_ns


class ClockPair:
    """The offset of the wall clock from the monotonic one, ns. `low_ns` to `high_ns`: what a pair of reads may say of
    it without a new look; empty while it is not known. `set_ns`: when a look found the clock set, and by what it was
    not slewed; what waited to be read then may have stamps of the clock before."""

    __slots__ = ("_looked_ns", "_monotonic", "_realtime", "error_ns", "high_ns", "low_ns", "offset_ns", "set_ns")

    def __init__(self, monotonic: Clock | None = None, realtime: Clock | None = None) -> None:
        self._monotonic = monotonic or clock.monotonic_ns
        self._realtime = realtime or clock.realtime_ns
        self._looked_ns = self._monotonic()
        self.offset_ns = self._realtime() - self._looked_ns
        self.error_ns = STEP_NS
        self.low_ns, self.high_ns = 1, 0
        self.set_ns = 0
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
        if known and least_ns <= before_ns <= most_ns:
            pass  # the same clock still: a duration whose ends lie on both sides of this look is one of it alone
        elif width_ns <= TIGHT_NS or not known or not least_ns - SLACK_NS <= before_ns <= most_ns + SLACK_NS:
            self.offset_ns, self.error_ns = least_ns, width_ns  # the least: rather some 0.1 µs late than early
        # else: only wide brackets, and none of them speaks against what a tight one said before
        tight = self.error_ns <= TIGHT_NS
        self.low_ns, self.high_ns = (self.offset_ns - TIGHT_NS, self.offset_ns + TIGHT_NS) if tight else (1, 0)
        drift_ns, self._looked_ns = (ended_ns - self._looked_ns) // DRIFT_PER, ended_ns
        by_ns = abs(self.offset_ns - before_ns) - drift_ns
        if known and by_ns > SLACK_NS:
            self.set_ns = ended_ns
        return known and by_ns > STEP_NS

    def place(self, stamp_ns: int, floor_ns: int, now_ns: int, low_ns: int = 0) -> tuple[int, bool]:
        """(moment on the monotonic clock, whether it is sure) of a stamp of the wall clock: the slow way, with a look.

        `floor_ns` is the send, or the read before: nothing can have come earlier, nor than `low_ns`, where more is
        known. What can't be told is `now_ns`, and so is what may have waited since before the clock was set.
        """
        before_ns = self.set_ns
        was_set = self.look()
        if self.set_ns > before_ns:
            self.set_ns = now_ns  # what comes behind this read came behind it, too
        was_set = was_set or max(floor_ns, low_ns) < self.set_ns
        at_ns = stamp_ns - self.offset_ns
        placed_ns = min(max(at_ns, floor_ns), now_ns)
        if was_set or abs(placed_ns - at_ns) > SLACK_NS + self.error_ns:
            return now_ns, False
        return placed_ns, self.error_ns <= TIGHT_NS

    def place_sent(self, stamp_ns: int, before_ns: int, after_ns: int) -> Sent:
        """The send, from its stamp of the wall clock and the bracket of it: a look only where they disagree."""
        at_ns = stamp_ns - self.offset_ns
        if self.low_ns <= self.high_ns and before_ns <= at_ns <= after_ns:
            return Sent(at_ns, at_ns, at_ns)
        placed_ns, sure = self.place(stamp_ns, before_ns, after_ns)
        return Sent(placed_ns, placed_ns, placed_ns) if sure else Sent(before_ns, before_ns, after_ns)


@functools.cache
def keep_stamping() -> _socket.socket | None:
    """A socket that asks for stamps for as long as this process lives, and does nothing else; None where none can.

    Linux stamps what arrives while any socket asks for it, and begins to, and leaves off, some µs behind the first and
    the last of them: with no other open, what a new connection gets at once would have no stamp.
    """
    with contextlib.suppress(OSError):  # out of descriptors: who opens a connection will say so
        sock = _socket.socket(socket.AF_INET, socket.SOCK_DGRAM)  # not gevent's: it needs no loop
        return sock if ask_for_stamps(sock) else None
    return None


def ask_for_stamps(sock: Any) -> bool:
    """Have the kernel stamp what arrives. False where it can't."""
    if not sys.platform.startswith("linux") or struct.calcsize("P") != 8:
        return False
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    except OSError:
        return False
    return True


def ask_for_sent_stamps(sock: Any) -> bool:
    """Have the kernel report when it sent what is sent with STAMP_THIS. False where it can't."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, _SENT_REPORT)
    except OSError:
        return False
    return True


def cant_stamp(error: OSError) -> bool:
    """Whether a send with STAMP_THIS was refused because of the stamp: then nothing was sent."""
    return error.errno in _CANT_STAMP


def take_sent_stamps(recvmsg: Callable[..., Any], *, one: bool = False) -> list[int]:
    """Empty the error queue: the stamps of sends in it, ns of the wall clock. What else lies there is thrown away.

    An error that the path reported (ICMP) belongs to the connection: TCP tells it by itself where it matters.
    `one`: up to the first stamp, behind which there is hardly ever anything; what there is wakes whoever reads.
    """
    stamps = []
    for _ in range(_QUEUE_MAX):
        try:
            _, ancillary, _, _ = recvmsg(0, _QUEUE_BYTES, socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT)
        except OSError:  # empty, mostly
            break
        stamp_ns, of_a_send = 0, False
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPING and len(data) >= 16:
                seconds, nanoseconds = _unpack_stamp(data)
                stamp_ns = seconds * 1_000_000_000 + nanoseconds
            elif level != socket.SOL_SOCKET and len(data) >= 16:
                of_a_send = _unpack_origin(data)[1] == _OF_STAMPS
        if stamp_ns and of_a_send:
            stamps.append(stamp_ns)
            if one:
                break
    return stamps


def segments_in(sock: Any) -> int | None:
    """How many segments with data came on this connection so far; None where the kernel does not tell.

    As many as there were reads: then no read held two, and what shared a read did come at one moment.
    """
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _SEGMENTS_AT + 4)
    except OSError:
        return None
    if len(info) < _SEGMENTS_AT + 4:
        return None
    segments: int = _unpack_segments(info, _SEGMENTS_AT)[0]
    return segments
