"""The end of the load: every worker ends its open streams, or cuts them off at the bound, and hands its rows over."""

from __future__ import annotations

from collections.abc import Callable

import gevent

from tokenswarm.clock import NS_PER_S, monotonic_ns
from tokenswarm.cluster.members import Cluster, Member
from tokenswarm.cluster.messages import ToWorker
from tokenswarm.cluster.watchers import Watchers

HAND_OVER_S = 120.0  # for final reports and rows after the drain


def drain(
    cluster: Cluster, ready: list[Member], watchers: Watchers, bound_s: float, look_after: Callable[[], object]
) -> None:
    """Tell these workers to end, wait until they are done; `look_after` is called each second meanwhile."""
    for member in ready:
        if member.here:
            cluster.send(member, ToWorker.DRAIN, {"bound_s": bound_s})
    deadline_ns = monotonic_ns() + int((bound_s + HAND_OVER_S) * NS_PER_S)
    looked_ns, rows = monotonic_ns(), 0
    while any(m.here and not m.done for m in ready) and monotonic_ns() < deadline_ns:
        gevent.sleep(0.05)
        if sum(m.rows for m in ready) > rows:  # as long as rows come, they may: those of a day take a while
            rows = sum(m.rows for m in ready)
            deadline_ns = max(deadline_ns, monotonic_ns() + int(HAND_OVER_S * NS_PER_S))
        if monotonic_ns() - looked_ns > NS_PER_S:
            looked_ns = monotonic_ns()
            look_after()
    for member in ready:
        if not member.done and not member.lost:
            member.lost = "its final report did not come"
            watchers.remark(f"{member.name}: {member.lost}")
