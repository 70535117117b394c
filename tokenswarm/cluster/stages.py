"""Which stages a run has: those of its profile, or what a search asks for next."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import msgspec

from tokenswarm.clock import NS_PER_S
from tokenswarm.judge import search as searches
from tokenswarm.judge.search import Probe, Queue, Result
from tokenswarm.measure.snapshot import Merged
from tokenswarm.measure.stills import Still
from tokenswarm.profile.load import ENDLESS_S, Stage
from tokenswarm.profile.profile import Profile
from tokenswarm.profile.typed_yaml import Seconds

ENDED_MIN = 20  # requests, before a try may end as failed
LONGEST_SHARE = 0.9  # of the longest window: a try that took so long has nothing to gain by another
EARLIEST_S = 5.0  # into its window, likewise


class Stages(Protocol):
    """What the controller asks between two stages, and each second within a window."""

    drains: bool  # whether a stage begins only when the one before has no request left

    def next(self, merged: Merged) -> Stage | None: ...
    def insert(self, stage: Stage) -> None: ...
    def over(self, number: int, merged: Merged) -> bool: ...


class Fixed:
    """The profile's stages, and what somebody asks for in between."""

    drains = False

    def __init__(self, stages: Iterable[Stage]) -> None:
        self._to_come = deque(stages)

    def next(self, merged: Merged) -> Stage | None:  # noqa: ARG002 - the protocol
        return self._to_come.popleft() if self._to_come else None

    def insert(self, stage: Stage) -> None:
        self._to_come.appendleft(stage)

    def over(self, number: int, merged: Merged) -> bool:  # noqa: ARG002 - the protocol
        return False


class Searching:
    """The tries of a search, each a stage. It ends a try when it is decided, or hopeless."""

    drains = True

    def __init__(self, profile: Profile) -> None:
        asked = self._asked = profile.search
        self._slo = profile.slo
        self.of = "users" if asked.users is not None else "rate"
        low, high = asked.users or asked.rate or (0, 0)
        self.search = searches.Search(low, high, asked.resolution, whole=self.of == "users")
        self._least_s = searches.window_least_s(profile.slo, asked.shortest, asked.longest, asked.resolution)
        self._load: float | None = None
        self._rho = searches.RHO
        self._again = False  # the same load once more: its requests depended on each other more than was thought
        self._number = -1
        self._queue = Queue(None)
        self._given_up: tuple[Result, str] | None = None
        self.unreachable: Callable[[], str] = lambda: ""  # asked after a try that failed
        self.serves_nobody: Callable[[], str] = lambda: ""  # ... at whose end nothing succeeded: by a real request
        self.restarts: Callable[[], int] = lambda: 0  # of the engine, that its metrics told so far
        self._restarts = 0  # before this try
        self.silences: Callable[[], Sequence[Still]] = lambda: ()  # in this try: no token came of any answer
        self._was_away: float | None = None  # at this load

    def next(self, merged: Merged) -> Stage | None:
        """The next try, once the one before is put down."""
        if self._load is not None:
            probe = self._probe(merged, self._load)
            self._rho = max(self._rho, searches.rho_of(merged.block(self._number)))
            probe, ends = self._looked_after(probe, merged)
            self.search.put(probe)
            if ends:
                return None
            self._again = not self._again and _may_be_decided(probe, self._asked.longest)
        if not self._again:
            self._load = self.search.next()
        if self._load is None:
            return None
        self._number += 1
        self._restarts = self.restarts()
        self._given_up = None
        self._queue = Queue(self._load if self.of == "rate" else None)
        longest = Seconds(self._asked.longest)
        if self.of == "users":
            return Stage(users=int(self._load), duration=longest)
        return Stage(rate=(self._load,), duration=longest)

    def insert(self, stage: Stage) -> None:
        """Nothing: a search says itself what comes next."""

    def over(self, number: int, merged: Merged) -> bool:
        block = merged.block(number)
        seconds = block.window_ns / NS_PER_S
        if self._queue.look(sum(worker.in_flight for worker in merged.workers)):
            self._given_up = ("fail", "requests under way grew without bound")
            return True
        if seconds < EARLIEST_S or block.ok + block.failed < ENDED_MIN:
            return False
        result, reason = searches.decided(searches.gates_of(self._slo, merged, number, self._rho))
        if result == "fail":
            self._given_up = (result, reason)
        return result == "fail" or (result == "pass" and seconds >= self._least_s)

    def _looked_after(self, probe: Probe, merged: Merged) -> tuple[Probe, bool]:
        """A try that failed as what it was, and whether the search ends with it: the server is away, or was twice."""
        if probe.within or not self._failed(merged):
            return probe, False
        ends_dead = searches.no_more(merged, self._number)
        if said := self.unreachable() or (self.serves_nobody() if ends_dead else ""):
            return searches.unreached(probe, said), True
        restarted = self.restarts() > self._restarts
        said = searches.away(merged, self._number, restarted=restarted, silences=self.silences())
        if not said:
            return probe, False
        again, self._was_away = self._was_away == probe.load, probe.load
        return searches.was_away(probe, said, again=again), again

    def _failed(self, merged: Merged) -> bool:
        """Whether any request of this try did, those of its warm-up, too."""
        return any(block.failed for block in merged.blocks if block.stage == self._number)

    def _probe(self, merged: Merged, load: float) -> Probe:
        block = merged.block(self._number)
        found = searches.gates_of(self._slo, merged, self._number, None if block.rho_n else self._rho)
        result, reason = self._given_up or searches.decided(found)
        within = result == "pass" or (result == "undecided" and searches.within(found))
        if within and (block.under_way or not block.ok):
            left = block.under_way
            told = f"{left} requests were still running after `phases.drain`" if left else "no request ended"
            result, reason, within = "undecided", told, False
        return Probe(
            stage=self._number,
            load=load,
            result=result,
            within=within,
            reason=reason,
            seconds=round(block.window_ns / NS_PER_S, 3),
            requests=block.ok + block.failed,
        )

    @property
    def plan(self) -> str:
        """What is about to be done, in one sentence."""
        low, high = self._asked.users or self._asked.rate or (0, 0)
        unit = " users" if self.of == "users" else "/s"
        return (
            f"plan: loads between {low:g} and {high:g}{unit}, up to {self._asked.longest:g} s each, until the largest "
            f"that keeps the limits is known to {self._asked.resolution:.1%}"
        )

    @property
    def stage_of_answer(self) -> int:
        """The stage of the largest load that passed; without one, of the least that was tried."""
        wanted = self.search.passed
        tries = self.search.probes
        return next((p.stage for p in reversed(tries) if p.load == wanted), tries[0].stage if tries else 0)

    @property
    def answer(self) -> dict[str, Any]:
        return {**searches.answer(self.search, self.of), "resolution": self._asked.resolution}


def _may_be_decided(probe: Probe, longest_s: float) -> bool:
    """Whether a longer try could show what this one only saw."""
    return probe.result == "undecided" and probe.within and probe.seconds < LONGEST_SHARE * longest_s


def for_search(profile: Profile) -> Profile:
    """The profile with a load that a search begins with, within the most that it may come to."""
    asked, load = profile.search, profile.load
    if asked.users is not None:
        stages = (Stage(users=asked.users[1], duration=Seconds(ENDLESS_S)),)
        changed = msgspec.structs.replace(load, kind="closed", stages=stages, burstiness=None, max_in_flight=None)
    else:
        kind = load.kind if load.open else "poisson"
        stages = (Stage(rate=(asked.rate or (1.0,))[-1:], duration=Seconds(ENDLESS_S)),)
        changed = msgspec.structs.replace(
            load, kind=kind, stages=stages, spawn_rate=None, think_time=Seconds(0.0), trace=None
        )
    return msgspec.structs.replace(profile, load=changed)
