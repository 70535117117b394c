"""Sums over the stages of a run that cost little each second, and what was added in the last seconds.

A long sweep has a hundred blocks of which one or two change in a second, so the sum of the settled ones is kept. The
result is `snapshot.total` to the last digit: blocks are added in the same order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from tokenswarm.clock import NS_PER_S
from tokenswarm.measure.sketch import Sketch, bucket_edge
from tokenswarm.measure.snapshot import LATENCIES, Block, total


class SettledSum:
    """`total(blocks)`, with the sum of the first ones kept for as long as they are the same objects."""

    def __init__(self) -> None:
        self._head: list[Block] = []
        self._sum = total(())

    def of(self, blocks: Sequence[Block], stage: int) -> Block:
        """The sum of `blocks` (ascending by stage) while stage `stage` runs; the one before may still change."""
        head = [block for block in blocks if block.stage < stage - 1]
        if len(head) != len(self._head) or any(a is not b for a, b in zip(head, self._head, strict=True)):
            self._head, self._sum = head, total(head)
        return total([self._sum, *blocks[len(head) :]])


class Recent:
    """What the latency sketches of a run gained in the last `seconds`. Remembers one state a push."""

    def __init__(self, seconds: float) -> None:
        self._span_ns = int(seconds * NS_PER_S)
        self._states: deque[tuple[int, dict[str, Sketch]]] = deque()

    def since(self, everything: Block, elapsed_ns: int, now_ns: int) -> dict[str, Sketch]:
        """The gain by metric; {} while less than half of the span is known (this process has just begun).

        `elapsed_ns`: how long the run has lasted: one that is younger than the span began with nothing.
        """
        sketches: dict[str, Sketch] = {name: getattr(everything, name) for name in LATENCIES}
        if not self._states and elapsed_ns < self._span_ns:
            self._states.append((now_ns - self._span_ns, {name: Sketch() for name in LATENCIES}))
        self._states.append((now_ns, sketches))
        while len(self._states) > 1 and self._states[1][0] <= now_ns - self._span_ns:
            self._states.popleft()
        began_ns, before = self._states[0]
        if now_ns - began_ns < self._span_ns / 2:
            return {}
        return {name: gain(before[name], sketch) for name, sketch in sketches.items()}


def gain(before: Sketch, now: Sketch) -> Sketch:
    """What was added between two states of one sketch; minimum and maximum are edges of buckets."""
    added = Sketch()
    for key, count in now.counts.items():
        more = count - before.counts.get(key, 0)
        if more > 0:
            added.counts[key] = more
    added.zero = max(0, now.zero - before.zero)
    added.n = added.zero + sum(added.counts.values())
    added.sum = max(0.0, now.sum - before.sum)
    if added.n:
        added.min = 0.0 if added.zero else bucket_edge(min(added.counts) - 1)
        added.max = min(now.max, bucket_edge(max(added.counts))) if added.counts else 0.0
    return added
