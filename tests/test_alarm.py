"""The alarm of an open loop: never early, at once where it is over, and everything else has its turn meanwhile."""

from __future__ import annotations

import contextlib
from pathlib import Path

import gevent
import pytest

from tokenswarm.clock import monotonic_ns
from tokenswarm.cluster.alarm import Alarm


@pytest.mark.parametrize("kernel", [True, False])
def test_it_wakes_in_order_and_never_early(kernel: bool) -> None:
    gevent.sleep(0)  # the loop has descriptors of its own
    before = len(list(Path("/dev/fd").iterdir()))
    turns = 0

    def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            gevent.sleep(0)

    with contextlib.closing(Alarm()) as alarm:
        if not kernel:
            alarm.close()  # what is left is what there is where the kernel has none
        other = gevent.spawn(others)
        at_ns = monotonic_ns()
        for step_ns in (700_000, 1_370_000, 1, 3_000_000):
            at_ns += step_ns
            alarm.wait_until(at_ns)
            assert monotonic_ns() >= at_ns - (0 if kernel else 1_000_000)
        turns = 0
        alarm.wait_until(at_ns - 10**9)  # over: but the others had their turn
        assert turns > 0
        other.kill()
    assert len(list(Path("/dev/fd").iterdir())) == before
