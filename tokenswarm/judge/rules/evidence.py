"""What the rules of the verdict look at beside the summary, and how a rule says its doubt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import msgspec

from tokenswarm.measure.snapshot import Block, Merged, total
from tokenswarm.measure.stills import Still
from tokenswarm.profile.profile import Profile
from tokenswarm.result.summary import Doubt, Summary

Severity = Literal["note", "degraded", "invalid"]

SEVERITIES: tuple[Severity, ...] = ("note", "degraded", "invalid")


class UsersSeen(msgspec.Struct):
    """The users that all workers together reported in a steady window, beside those that its stage asked for."""

    asked: int
    lowest: int = 0
    highest: int = 0
    total: int = 0
    looks: int = 0

    def look(self, users: int) -> None:
        self.lowest = min(self.lowest, users) if self.looks else users
        self.highest = max(self.highest, users)
        self.total += users
        self.looks += 1

    @property
    def mean(self) -> float | None:
        return self.total / self.looks if self.looks else None


class Beside(msgspec.Struct, frozen=True):
    """What the processes of an engine on this machine used of its cores while the load ran."""

    host: str
    cores: float  # on average
    of: int  # cores that the workers may use


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """What is known at the end of a run, beyond its numbers."""

    merged: Merged
    expected_workers: int
    profile: Profile
    lost: dict[str, str] = {}  # name of a worker -> why it was gone before its final report
    left: dict[str, str] = {}  # name of a worker -> why it drained and left before the run's end
    refused: tuple[str, ...] = ()  # workers and strangers that were not let in, in sentences; the first few
    refused_workers: int = 0  # how many workers
    dropped_messages: int = 0  # how many messages of strangers
    silences: dict[str, float] = {}  # name of a worker that came back -> how long it was silent, s
    stood_still_s: float = 0.0  # of the master itself, which heard nobody meanwhile
    users: tuple[UsersSeen, ...] = ()  # by stage
    clock_step_s: float = 0.0  # of the master's wall clock
    dataset: dict[str, Any] = {}  # what was read, as the manifest has it
    rows: int | None = None  # rows of requests.jsonl; None: none were asked for
    interrupted: bool = False  # a signal ended the run
    changed: dict[int, tuple[int, int]] = {}  # stage -> (its users, how many somebody made of them in its window)
    recovered: str = ""  # the run had no end: what was brought back from its workers' disks, and what is missing
    goes_on: str = ""  # the run has not ended: how long ago its newest sums were written, and what they lack
    remarks: tuple[str, ...] = ()  # what went wrong on the way, in sentences
    marks: dict[str, str] = {}  # headers of the first answer in which proxies and gateways give themselves away
    beside: Beside | None = None  # None: the engine is elsewhere, or nobody may see what it uses
    aborted: str = ""  # why the load was ended: too much of it failed
    gone: str = ""  # what became of a request to the target behind the run, where it is not there any more
    stills: tuple[Still, ...] = ()  # when no token came of any answer under way


Rule = Callable[[Evidence, Summary], Doubt | None]


def doubt(code: str, severity: Severity, message: str, **evidence: Any) -> Doubt:
    return Doubt(code=code, severity=severity, message=message, evidence=evidence)


def graded(value: float, *limits: float) -> Severity | None:
    """The severity of a value beyond limits that ascend: (degraded, invalid), or (note, degraded, invalid)."""
    beyond = sum(value > limit for limit in limits)
    return SEVERITIES[len(SEVERITIES) - len(limits) + beyond - 1] if beyond else None


def worst(*severities: Severity | None) -> Severity | None:
    given = [severity for severity in severities if severity is not None]
    return max(given, key=SEVERITIES.index, default=None)


def everything(evidence: Evidence) -> Block:
    return total(evidence.merged.blocks)


def steady(evidence: Evidence) -> Block:
    return total(block for block in evidence.merged.blocks if block.phase == "steady")


def ms(seconds: float) -> str:
    """For sentences: 12 ms, 1.5 s."""
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
