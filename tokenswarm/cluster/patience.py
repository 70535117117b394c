"""What a user does after a failure, and when a load that only fails has shown enough. Nothing is ever sent again."""

from __future__ import annotations

import email.utils
import random

from tokenswarm.clock import NS_PER_S, realtime_ns
from tokenswarm.measure.snapshot import Merged, total
from tokenswarm.profile.load import AbortOnFail
from tokenswarm.record import FAILED_OUTCOMES, RequestRecord

STEP_BACK_S = 0.1  # after the first failure in a row; doubled with each further one
STEP_BACK_S_MAX = 2.0
RETRY_AFTER_S_MAX = 30.0  # a server may ask for more; a user of a load test does not wait longer


def retry_after_s(header: str) -> float:
    """What a Retry-After header asks for, in seconds: a number or a date; 0 where it says nothing."""
    text = header.strip()
    if text.isascii() and text.replace(".", "", 1).isdigit():
        return min(float(text), RETRY_AFTER_S_MAX)
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except (ValueError, TypeError):
        return 0.0
    return min(max(0.0, moment.timestamp() - realtime_ns() / NS_PER_S), RETRY_AFTER_S_MAX)


class StepBack:
    """How long one user waits before its next prompt. The same seed gives the same waits."""

    def __init__(self, think_s: float, seed: str) -> None:
        self._think_s = think_s
        self._random = random.Random(f"tokenswarm step back {seed}")
        self._failures = 0

    def after(self, record: RequestRecord) -> float:
        """Seconds from the end of this answer to the next prompt: the think time; after a failure as long as the server
        asks for, too, and the step back. That counts from when the request was due: a slow failure floods nobody.
        """
        if record.outcome not in FAILED_OUTCOMES:
            self._failures = 0
            return self._think_s
        bound_s = min(STEP_BACK_S_MAX, STEP_BACK_S * 2.0 ** min(self._failures, 30))
        self._failures += 1
        wait_s = bound_s * (0.5 + 0.5 * self._random.random())
        took_s = max(0.0, (record.done_ns - record.intended_ns) / NS_PER_S) if record.done_ns else 0.0
        return max(self._think_s, wait_s - took_s, retry_after_s(record.retry_after))


class FirstAnswers:
    """How many requests, from the first that was sent on, have ended in a failure without a gap; `limit` at most.

    In the order of sending, not of ending: where a server takes a few of many and refuses the rest at once, the first
    hundred answers are refusals, but a request that was sent before them still runs.
    """

    def __init__(self, limit: int) -> None:
        self.failed = 0
        self._limit = limit
        self._ahead: set[int] = set()

    def ended(self, number: int, record: RequestRecord) -> None:
        """Request `number` (from 0, in the order of sending) ended."""
        if number >= self._limit or record.outcome not in FAILED_OUTCOMES:
            return
        self._ahead.add(number)
        while self.failed in self._ahead:
            self._ahead.discard(self.failed)
            self.failed += 1


def hopeless(rule: AbortOnFail, merged: Merged) -> str:
    """Why the load should end here, with what the server said; "" where it may go on."""
    ok, failed = sum(block.ok for block in merged.blocks), sum(block.failed for block in merged.blocks)
    if rule.ratio >= 1:
        met = not ok and sum(worker.first_failed for worker in merged.workers) >= rule.after
        what = f"the first {rule.after} requests all failed"
    else:
        met = ok + failed >= rule.after and failed >= rule.ratio * (ok + failed)
        what = f"{failed} of {ok + failed} requests failed (`load.abort_on_fail.ratio` is {rule.ratio:g})"
    if not rule.after or not met:
        return ""
    counts = total(merged.blocks)
    kind = max(counts.by_error, key=lambda name: counts.by_error[name], default="")
    return f"{what}, so the load was ended; most of them: {counts.error_says.get(kind) or kind}"
