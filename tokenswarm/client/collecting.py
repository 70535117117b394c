"""When to read by a clock instead of at each arrival: many streams wake the reader so often that being woken is half of
what an event costs.

The stamps are the kernel's, so reading a moment later changes no number, unless two events of one stream then share a
read. So the period is a small part of the gaps, and whoever sends faster, or in bursts, is read at each arrival. What
an answer ends with (the last token, the usage, the end) may share a read; the look before bounds what that hides.
"""

from __future__ import annotations

from typing import NamedTuple

from tokenswarm.clock import NS_PER_S

WAKES = 256  # of arrivals, between two looks at the pace
TICKS = 64  # of the clock
WAKES_PER_S = 5_000  # from here on it is worth it
READS_PER_S = 4_000  # below, no longer
PERIOD_MAX_NS, PERIOD_MIN_NS = 400_000, 200_000  # a shorter one would save nothing
OF_GAP = 64  # a period is such a part of the mean gap at most
OF_NEAR = 500  # one event in so many may come within NEAR_NS (_reader.c) of the one before
READS_OF_ANSWER = 8  # at least, on average: an end is seen up to a period late, and so the next request is sent
AWAY_NS, AWAY_MAX_NS = NS_PER_S, 60 * NS_PER_S


class Seen(NamedTuple):
    """What the reader saw since the look before."""

    wakes: int
    elapsed_ns: int
    reads: int
    alike: int  # events that look like those before them: the tokens of streams whose shape is known
    near: int  # of them, those that shared a read or followed closely, or whose stamp is not the kernel's
    ends: int
    gaps_ns: int  # the sum


class Collecting:
    """Without IO, without a clock."""

    def __init__(self) -> None:
        self.period_ns = 0  # 0: at each arrival
        self._away_ns, self._until_ns, self._since_ns = AWAY_NS, 0, 0

    def look(self, now_ns: int, seen: Seen) -> None:
        """Choose the period from what was seen."""
        fits_ns = _period_ns(seen)
        if not self.period_ns:
            often = seen.wakes * NS_PER_S > WAKES_PER_S * seen.elapsed_ns
            if often and fits_ns and now_ns >= self._until_ns and seen.near * OF_NEAR <= seen.alike:
                self.period_ns, self._since_ns = fits_ns, now_ns
        elif (seen.near - 1) * OF_NEAR > seen.alike:
            held = now_ns - self._since_ns > AWAY_MAX_NS
            self._away_ns = AWAY_NS if held else min(2 * self._away_ns, AWAY_MAX_NS)
            self.period_ns, self._until_ns = 0, now_ns + self._away_ns
        elif not fits_ns or seen.reads * NS_PER_S < READS_PER_S * seen.elapsed_ns:
            self.period_ns = 0
        elif not 0.7 < self.period_ns / fits_ns < 1.1:
            self.period_ns = fits_ns


def _period_ns(seen: Seen) -> int:
    """The longest that these streams bear; 0: none."""
    if seen.alike * 2 < seen.reads or not seen.alike or seen.reads < READS_OF_ANSWER * seen.ends:
        return 0
    period_ns = min(PERIOD_MAX_NS, seen.gaps_ns // seen.alike // OF_GAP)
    return period_ns if period_ns >= PERIOD_MIN_NS else 0
