"""The largest load whose gates still pass: which load to try next, when a try is decided, what the answer is. Pure.

Bracketing first (twice as much each time, from the least), then bisection, on a logarithmic scale, until the load that
does not keep the limits is at most `resolution` above the one that does. A try is judged by the gates' rule. While it
runs, how much its requests depend on each other is not known: as much as in the tries before, RHO at least.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, sqrt
from typing import Any, Literal

import msgspec

from tokenswarm.judge import gates
from tokenswarm.measure.periods import Outage
from tokenswarm.measure.snapshot import Block, Merged, total
from tokenswarm.measure.stills import Still
from tokenswarm.profile.slo import Slo
from tokenswarm.record import Outcome
from tokenswarm.result.summary import Gate, summarize

Result = Literal["pass", "fail", "undecided", "gone"]

STEP = 2.0  # between tries of the bracketing
RHO, RHO_MAX = 0.3, 0.9  # lag-1 correlation that is assumed while a try runs: 100 requests are worth 54; or 5
LOOKS = 8  # seconds over which a queue is watched
GROWTH = 0.1  # of the rate: a queue that grows so quickly
GROWN = 3.0  # and is so many times what it was, grows without bound
QUEUE_MIN = 20
BROKEN = (Outcome.CONNECT, Outcome.DNS, Outcome.RESET, Outcome.TRUNCATED)  # of who is away; who has too much says so
REFUSED = (Outcome.HTTP_5XX, Outcome.ERROR_OBJECT)  # of either, and of a gateway before one that is away
CHANCE = 0.001  # that so many in a row were refused of those that a limit lets in one by one
BIN_S = 1  # before a time without a success, in which something may have succeeded first
AWAY = (5, 2)  # failures, and seconds, from which on nothing that succeeds is no chance


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """One try: a stage of the run."""

    stage: int
    load: float
    result: Result
    within: bool  # passed, or undecided with what was seen within its limits: too few requests to be sure
    reason: str
    seconds: float
    requests: int


class Search:
    """Asks for loads, is told what came of them. Never leaves [low, high]; whole numbers where `whole`."""

    def __init__(self, low: float, high: float, resolution: float, *, whole: bool) -> None:
        self._low, self._high = low, high
        self._resolution = resolution
        self._whole = whole
        self.probes: list[Probe] = []

    def put(self, probe: Probe) -> None:
        self.probes.append(probe)

    @property
    def passed(self) -> float | None:
        """The largest load within its limits below every one that was not."""
        failed = self.failed
        loads = [probe.load for probe in self.probes if probe.within]
        return max((load for load in loads if failed is None or load < failed), default=None)

    @property
    def failed(self) -> float | None:
        """The smallest load that was not."""
        tries = (probe for probe in self.probes if probe.result != "gone")
        return min((probe.load for probe in tries if not probe.within), default=None)

    def next(self) -> float | None:
        """The next load to try; None where the answer is known."""
        passed, failed = self.passed, self.failed
        if failed is None:
            if passed is None:
                return self._low
            return None if passed >= self._high else min(self._high, self._rounded(passed * STEP))
        if passed is None:
            return None  # not even the least
        if self._whole:
            fine = failed - passed <= max(1, int(passed * self._resolution))
            return None if fine else float(min(max(round(sqrt(passed * failed)), passed + 1), failed - 1))
        return None if failed <= passed * (1 + self._resolution) * (1 + 1e-9) else sqrt(passed * failed)

    def _rounded(self, load: float) -> float:
        return float(ceil(load)) if self._whole else load


def window_least_s(slo: Slo, shortest_s: float, longest_s: float, resolution: float) -> float:
    """How long a try must go on before it may pass.

    Beyond capacity by `resolution` the queue grows by that share of the time: a limit shows it after limit/resolution.
    """
    limits = gates.request_limits(slo)
    values = [] if limits is None else [getattr(limits, name) or 0.0 for name in limits.__struct_fields__]
    return min(longest_s, max(shortest_s, max(values, default=0.0) / resolution))


def of_stage(merged: Merged, stage: int) -> Merged:
    """The run as if it had this stage alone."""
    blocks = [block for block in merged.blocks if block.stage == stage]
    return Merged(run_id=merged.run_id, blocks=blocks, workers=merged.workers)


def unreached(probe: Probe, said: str) -> Probe:
    """A try that failed at a server that is not there any more: no load was too much for it."""
    reason = f"{said} after the try at {probe.load:g}: the server was gone, and how much it carries is not known"
    return msgspec.structs.replace(probe, result="gone", within=False, reason=reason)


def away(merged: Merged, stage: int, *, restarted: bool, silences: Sequence[Still] = ()) -> str:
    """When the server was away in a try, although it is there after it: no load was too much for it; "" if it was not.

    `restarted`: its own metrics say so. Else nothing succeeded for a while, as connections broke or none came about;
    or as all were refused, which who has too much does, too: but that one ends what it took, when no more is sent, and
    meanwhile tokens come (`silences` of the try: none did, for longer than any answer ever took to begin).
    """
    block = total(block for block in merged.blocks if block.stage == stage)
    broken, refused = (sum(block.by_outcome.get(name, 0) for name in names) for names in (BROKEN, REFUSED))
    last, longest = block.periods.at_the_end(), block.periods.dead()
    for found, least_s in ((last, 0), (longest, AWAY[1])):
        if found is None or found.failed < AWAY[0] or found.end_s - found.start_s < least_s:
            continue
        mute = _ended_so(block, found) if found is last else _is_mute(found, silences, merged)
        if restarted or 2 * broken > block.failed or (mute and 2 * (broken + refused) > block.failed):
            return f"nothing succeeded from {found.start_s} s to {found.end_s} s of the run"
    return "its metrics tell of a restart" if restarted else ""


def _ended_so(block: Block, last: Outage) -> bool:
    """Whether it ended with refusals although nothing that it had taken goes on, and not by chance: who lets a few in
    (a limit of a rate) refuses several in a row, too.
    """
    before = [key for key in block.periods.ended if key * block.periods.width_s < last.start_s]
    ended, failed = (
        sum(counts.get(key, 0) for key in before) for counts in (block.periods.ended, block.periods.failed)
    )
    by_chance = ((failed + 1) / (ended + 1)) ** last.failed
    return by_chance < CHANCE and not (block.under_way or block.censored)


def _is_mute(outage: Outage, silences: Sequence[Still], merged: Merged) -> bool:
    """Whether no token came in it, for longer than it takes to read the longest prompt."""
    least_s = max(AWAY[1], (total(merged.blocks).ttft.high or 0.0) + BIN_S)
    return any(
        min(outage.end_s, one.end_s) - max(outage.start_s - BIN_S, one.start_s) >= least_s for one in silences
    )  # fmt: skip


def was_away(probe: Probe, said: str, *, again: bool) -> Probe:
    """A try in which it was, `again` where it had been in another one at this load."""
    which = f"both tries at {probe.load:g}, in the last one" if again else f"the try at {probe.load:g}:"
    then = "how much it carries is not known; read its log" if again else "it is held against no load, and tried again"
    reason = f"the server was away in {which} {said}; {then}"
    return msgspec.structs.replace(probe, result="gone", within=False, reason=reason)


def no_more(merged: Merged, stage: int) -> bool:
    """Whether from some moment on nothing in a try succeeded any more."""
    last = total(block for block in merged.blocks if block.stage == stage).periods.at_the_end()
    return last is not None and last.failed >= AWAY[0]


def gone(search: Search, merged: Merged) -> str:
    """Why what failed is no capacity: the server was not there after it, or in the last try nothing succeeded.

    A server that is too slow for a load still answers some of it; one that died earlier and came back answers here.
    """
    if search.probes and search.probes[-1].result == "gone":
        return search.probes[-1].reason
    last = search.probes[-1].stage if search.probes else None
    blocks = [block for block in merged.blocks if block.stage == last and block.phase == "steady"]
    if any(block.ok for block in blocks) or not any(block.failed for block in blocks):
        return ""
    counts = total(blocks)
    kind = max(counts.by_error, key=lambda name: counts.by_error[name], default="")
    return (
        f"the last try, at {search.probes[-1].load:g}, had no success in {counts.failed} requests ({kind}): the server "
        f"was gone, and how much it carries is not known"
    )


def gates_of(slo: Slo, merged: Merged, stage: int, rho: float | None) -> list[Gate]:
    """The gates of one stage. `rho`: what to take its correlation for; None: as it was found."""
    alone = of_stage(merged, stage)
    if rho is not None:
        alone = msgspec.structs.replace(alone, blocks=[_assumed(block, rho) for block in alone.blocks])
    return gates.evaluate(slo, summarize(alone), alone)


def rho_of(block: Block) -> float:
    """The largest correlation that was found, within what may be assumed of the next try."""
    return min(RHO_MAX, max((block.rho(metric) for metric in block.rho_n), default=0.0))


def _assumed(block: Block, rho: float) -> Block:
    known = {metric: max(1, getattr(block, metric).n) for metric in ("ttft", "itl", "tpot", "e2e")}
    weighted = {metric: rho * n for metric, n in known.items()}
    return msgspec.structs.replace(block, rho_n=known, rho_weighted=weighted)


def within(found: Sequence[Gate]) -> bool:
    """Whether what was seen keeps every limit, be it too little to be sure."""
    for gate in found:
        kept = gate.value is not None and (gate.value <= gate.limit if gate.op == "<=" else gate.value >= gate.limit)
        if gate.result == "fail" or (gate.result == "inconclusive" and not kept):
            return False
    return True


def decided(found: Sequence[Gate]) -> tuple[Result, str]:
    """What gates together say: fail if one fails, pass if all pass."""
    for wanted in ("fail", "inconclusive"):
        gate = next((gate for gate in found if gate.result == wanted), None)
        if gate is not None:
            return "fail" if wanted == "fail" else "undecided", f"{gate.metric}: {gate.reason}"
    return "pass", ""


class Queue:
    """Whether requests under way grow without bound, from one look a second."""

    def __init__(self, rate: float | None) -> None:
        self._rate = rate  # None: a closed loop, whose users bound it
        self._looks: list[int] = []

    def look(self, in_flight: int) -> bool:
        """True where they do."""
        self._looks.append(in_flight)
        if self._rate is None or len(self._looks) < 2 * LOOKS or in_flight < QUEUE_MIN:
            return False
        before, now = sum(self._looks[:LOOKS]) / LOOKS, sum(self._looks[-LOOKS:]) / LOOKS
        slope = (now - sum(self._looks[-2 * LOOKS : -LOOKS]) / LOOKS) / LOOKS
        return slope > GROWTH * self._rate and now > GROWN * max(before, 1.0)


def answer(search: Search, what: str) -> dict[str, Any]:
    """`search` of summary.json: the interval, and every try."""
    return {
        "of": what,
        "passed": search.passed,
        "failed": search.failed,
        "probes": [msgspec.to_builtins(probe) for probe in search.probes],
    }
