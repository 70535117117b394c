"""Answers that waited for a model that had answered before, as Ollama tells it, and who went past them meanwhile.

`load_duration` is never 0, and on a busy machine it reaches 0.1 s with the model in memory: it counts from 0.25 s on.
It holds each wait for Ollama's scheduler: the model's own load, another's, the end of another's streams.
"""

from __future__ import annotations

from collections import deque

from tokenswarm.measure.snapshot import Block
from tokenswarm.record import RequestRecord

COLD_NS = 250_000_000
KEPT = 256  # answers of which it is known when they were sent: as many may overtake one that waits


class Loads:
    """What one worker has seen. Call `count` for each answer that ended well, in the order in which they ended.

    In `Block.seldom`: answers that waited "again", and were "overtaken by" so many that were asked for later and ended
    earlier.
    """

    def __init__(self) -> None:
        self._warm_ns = 0  # when the first answer of a loaded model had ended
        self._sent_ns: deque[int] = deque(maxlen=KEPT)

    def count(self, block: Block, record: RequestRecord) -> None:
        times = record.engine
        if times is None or times.load_ns is None:
            return
        load_ns = times.load_ns
        if load_ns >= COLD_NS and 0 < self._warm_ns < record.sent_ns:
            passed = sum(sent_ns > record.sent_ns for sent_ns in self._sent_ns)
            for kind, n in (("again", 1), ("overtaken by", passed)):
                block.seldom[kind] = block.seldom.get(kind, 0) + n
        elif load_ns < COLD_NS and not self._warm_ns:
            self._warm_ns = record.done_ns
        self._sent_ns.append(record.sent_ns)
