"""What one worker had of the steady windows, beside the others: whether they saw the same server."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

import msgspec

from tokenswarm.measure.sketch import Count, Sketch


class Share(msgspec.Struct, kw_only=True):
    ok: Count = 0
    failed: Count = 0
    ttft: Sketch = msgspec.field(default_factory=Sketch)

    def add(self, ok: int, failed: int, ttft: Sketch) -> None:
        self.ok, self.failed = self.ok + ok, self.failed + failed
        self.ttft.merge(ttft)


class Worker(Protocol):
    worker: int
    share: Share


class Counts(Protocol):
    ok: int
    failed: int
    ttft: Sketch


def fill(workers: Iterable[Worker], steady: Iterable[Mapping[int, tuple[int, Counts]]]) -> None:
    """Give each worker its share; `steady`: the blocks of each window, by worker, behind the number of their report."""
    for worker in workers:
        for _, block in (by_worker[worker.worker] for by_worker in steady if worker.worker in by_worker):
            worker.share.add(block.ok, block.failed, block.ttft)
