"""Times in which no token came of any answer, by what the workers report each second: an engine that stands still.

Gaps say how long the worst one of each answer was; that all answers had it at once is told here alone. Two reports with
one count of tokens have none between them, so a time is never told longer than it was, give or take the half second
in which a worker decodes. Where a worker itself was late with its report, it may have been the one that stood still.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import msgspec

from tokenswarm.clock import NS_PER_S
from tokenswarm.measure.snapshot import Merged

STILL_S = 1.5  # more than the second between two reports
KEPT_MAX = 1000


class Still(msgspec.Struct, frozen=True, kw_only=True):
    """No token came from `start_s` to `end_s`, seconds since the workers began to count."""

    stage: int
    phase: str
    start_s: float
    end_s: float
    decoding: int  # answers that had begun and had not ended, at least
    due: float = 0.0  # events that come in such a time in the rest of the stage's phase

    @property
    def seconds(self) -> float:
        return self.end_s - self.start_s


class Stills:
    """Watches a run: show it each phase, and the sums of each second."""

    def __init__(self) -> None:
        self.of_stage: list[Still] = []  # of the newest stage, whether anything was under way or not
        self._kept: list[Still] = []  # of the whole run, while answers were under way
        self._at = (0, "")
        self._seen: dict[int, int] = {}  # worker -> number of its newest report
        self._last: tuple[float, int, int] | None = None
        self._span: Still | None = None
        self._paces: defaultdict[tuple[int, str], list[float]] = defaultdict(lambda: [0, 0.0])  # events, seconds

    def phase(self, number: int, phase: str, _stage: object, _seconds: float) -> None:
        self._end()
        if number != self._at[0]:
            self.of_stage.clear()
        self._at = (number, phase)

    def note(self, text: str) -> None:
        """Nothing: who watches is told."""

    def tick(self, merged: Merged) -> None:
        """Compare with the look before. A look at which a worker has not reported anew is none."""
        workers = [worker for worker in merged.workers if not worker.final]
        if not workers or any(worker.seq <= self._seen.get(worker.worker, 0) for worker in workers):
            return
        same = self._seen.keys() == {worker.worker for worker in workers}
        self._seen = {worker.worker: worker.seq for worker in workers}
        at_s = max(worker.elapsed_ns for worker in workers) / NS_PER_S
        events = sum(worker.live_output_tokens for worker in workers)
        before, self._last = self._last, (at_s, events, sum(worker.decoding for worker in workers))
        if before is None or not same or at_s - before[0] > STILL_S:
            self._end()
        elif events == before[1]:
            self._extend(before, self._last)
        else:
            self._end()
            pace = self._paces[self._at]
            pace[0] += events - before[1]
            pace[1] += at_s - before[0]

    def _extend(self, before: tuple[float, int, int], now: tuple[float, int, int]) -> None:
        known, (stage, phase) = self._span, self._at
        begun, decoding = (before[0], before[2]) if known is None else (known.start_s, known.decoding)
        least = min(decoding, now[2])
        self._span = Still(stage=stage, phase=phase, start_s=begun, end_s=now[0], decoding=least)

    def _end(self) -> None:
        span, self._span = self._span, None
        if span is None or span.seconds < STILL_S:
            return
        if len(self.of_stage) < KEPT_MAX:
            self.of_stage.append(span)
        if span.decoding and len(self._kept) < KEPT_MAX:
            self._kept.append(span)

    def silences(self) -> Sequence[Still]:
        """Those of the newest stage, the one that goes on included."""
        return [*self.of_stage, *([self._span] if self._span is not None else [])]

    def found(self) -> tuple[Still, ...]:
        """Those of the whole run in which answers were under way, with what would have come meanwhile."""
        self._end()
        told = []
        for still in self._kept:
            events, seconds = self._paces[still.stage, still.phase]
            told.append(msgspec.structs.replace(still, due=still.seconds * events / seconds if seconds else 0.0))
        return tuple(told)
