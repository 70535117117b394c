"""How many requests ended, and how many of them failed, in each short time of a run: bounded, and it adds over workers.

Times are seconds since the recorder began. A bin is 1 s wide, and twice as wide whenever there would be too many.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

BINS_MAX = 512


class Outage(msgspec.Struct, frozen=True, kw_only=True):
    """A time in which most requests failed: [start_s, end_s), to the width of a bin."""

    start_s: int
    end_s: int
    failed: int
    ended: int


class Periods(msgspec.Struct, kw_only=True):
    width_s: int = 1
    ended: dict[int, int] = {}  # bin -> requests
    failed: dict[int, int] = {}

    def add(self, at_s: int, *, failed: bool) -> None:
        """Count a request that ended at `at_s`."""
        key, ended = at_s // self.width_s if at_s > 0 else 0, self.ended
        if failed:
            self.failed[key] = self.failed.get(key, 0) + 1
        if key in ended:
            ended[key] += 1
            return
        ended[key] = 1
        while len(ended) > BINS_MAX:
            self._widen(2 * self.width_s)

    def merge(self, other: Periods) -> None:
        """Add another worker's, or another stage's."""
        self._widen(max(self.width_s, other.width_s))
        for mine, theirs in ((self.ended, other.ended), (self.failed, other.failed)):
            for key, n in theirs.items():
                wide = key * other.width_s // self.width_s
                mine[wide] = mine.get(wide, 0) + n
        while len(self.ended) > BINS_MAX:
            self._widen(2 * self.width_s)

    def _widen(self, width_s: int) -> None:
        if width_s == self.width_s:
            return
        for table in (self.ended, self.failed):
            old = dict(table)
            table.clear()
            for key, n in old.items():
                wide = key * self.width_s // width_s
                table[wide] = table.get(wide, 0) + n
        self.width_s = width_s

    def worst(self) -> Outage | None:
        """The longest time in which more failed than did not, in each bin; bins in which nothing ended don't count."""
        return self._longest(lambda failed, ended: 2 * failed > ended)

    def dead(self) -> Outage | None:
        """The longest time in which nothing succeeded, likewise."""
        return self._longest(lambda failed, ended: failed == ended)

    def _longest(self, holds: Callable[[int, int], bool]) -> Outage | None:
        found: list[Outage] = []
        start: int | None = None
        failed = ended = last = 0
        for key in [*sorted(self.ended), -1]:
            bad = key >= 0 and holds(self.failed.get(key, 0), self.ended[key])
            if bad:
                if start is None:
                    start, failed, ended = key, 0, 0
                failed, ended, last = failed + self.failed[key], ended + self.ended[key], key
            elif start is not None:
                end = (last + 1) * self.width_s
                found.append(Outage(start_s=start * self.width_s, end_s=end, failed=failed, ended=ended))
                start = None
        return max(found, key=lambda outage: outage.end_s - outage.start_s, default=None)

    @property
    def ends_failing(self) -> bool:
        """Whether something failed in the last bin in which anything ended."""
        return bool(self.ended) and self.failed.get(max(self.ended), 0) > 0

    def at_the_end(self) -> Outage | None:
        """The time from the bin behind the last success on; None where the last bin has one."""
        bins = sorted(self.ended)
        last_ok = max((key for key in bins if self.ended[key] > self.failed.get(key, 0)), default=-1)
        behind = [key for key in bins if key > last_ok]
        if not behind:
            return None
        failed = sum(self.failed[key] for key in behind)
        start, end = behind[0] * self.width_s, (behind[-1] + 1) * self.width_s
        return Outage(start_s=start, end_s=end, failed=failed, ended=failed)
