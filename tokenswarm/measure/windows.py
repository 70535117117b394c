"""A long window cut into equal ones as it goes on: each is the difference of two reports, at no cost an event.

Reports are cumulative, so what came between two of them is exact: counts, and the buckets of sketches. A request is in
the window in which it ended, tokens in the one in which they came. Only a sketch's minimum and maximum are not known of
a difference: those of its buckets stand for them. Times are those of the workers' own clocks, s since the run began.
"""

from __future__ import annotations

from collections import Counter

import msgspec

from tokenswarm.clock import NS_PER_S
from tokenswarm.measure.sketch import GROWTH, Count, Sketch, SketchWire, bucket_edge
from tokenswarm.measure.snapshot import Block

METRICS = ("ttft", "tpot", "itl", "e2e")
"""The latencies that a window has a sketch of."""

LEAST_SHARE = 0.5  # of a window's length that the last one of a stage must have to be told


class Restart(msgspec.Struct, frozen=True, kw_only=True):
    """An engine that was gone and came back as another process. s since the run began, to the interval of the looks."""

    url: str
    gone_s: float  # it answered for the last time
    back_s: float
    failed: Count = 0  # requests that failed meanwhile, and in the seconds around it
    by_outcome: dict[str, Count] = {}


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """A line of windows.jsonl. Counts are of requests that are meant for the steady window."""

    number: Count
    stage: Count
    start_s: float
    end_s: float
    ok: Count
    failed: Count
    requests: Count  # successful ones whose last byte came in it
    output_tokens: Count  # that came in it
    sketches: dict[str, SketchWire | None] = {}  # by METRICS, s
    memory_bytes: dict[str, Count] = {}  # at its end, by process or card
    restarts: tuple[Restart, ...] = ()  # that ended in it

    @property
    def length_s(self) -> float:
        return self.end_s - self.start_s


def difference(after: Sketch, before: Sketch) -> Sketch:
    """What was counted between two states of one sketch."""
    found = Sketch()
    found.counts = Counter({key: n for key, was in after.counts.items() if (n := was - before.counts.get(key, 0)) > 0})
    found.zero = max(0, after.zero - before.zero)
    found.n = found.zero + sum(found.counts.values())
    if found.n:
        keys = sorted(found.counts)
        found.sum = max(0.0, after.sum - before.sum)
        found.min = 0.0 if found.zero else max(after.min, bucket_edge(keys[0]) / GROWTH)
        found.max = min(after.max, bucket_edge(keys[-1])) if keys else 0.0
    return found


class Cutter:
    """Cuts the steady windows of a run. Show it the sum of all workers as often as it comes."""

    def __init__(self, width_s: float) -> None:
        self._width_ns = int(width_s * NS_PER_S)
        self._before: Block | None = None  # at the last edge
        self._number = 0

    def look(self, block: Block, *, over: bool = False) -> Window | None:
        """The window that ends with this state of the stage's steady block; None where it goes on.

        `over`: the stage is: what is left becomes a window if it is long enough.
        """
        before = self._before
        if before is None or before.stage != block.stage:
            before = self._before = Block(stage=block.stage, phase=block.phase)
        lasted_ns = block.window_ns - before.window_ns
        if lasted_ns < self._width_ns * (LEAST_SHARE if over else 1.0) or not lasted_ns:
            return None
        assert block.window_start_ns is not None  # it has a length
        start_ns = block.window_start_ns + before.window_ns
        window = Window(
            number=self._number,
            stage=block.stage,
            start_s=start_ns / NS_PER_S,
            end_s=(start_ns + lasted_ns) / NS_PER_S,
            ok=block.ok - before.ok,
            failed=block.failed - before.failed,
            requests=block.window_requests - before.window_requests,
            output_tokens=max(0, block.window_tokens - before.window_tokens),
            sketches={name: difference(getattr(block, name), getattr(before, name)).to_wire() for name in METRICS},
        )
        self._before, self._number = block, self._number + 1
        return window
