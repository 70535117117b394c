"""What a run leaves in the master's memory: the controller fills it, the conclusion reads it."""

from __future__ import annotations

from typing import Any

import msgspec

from tokenswarm.cluster.members import Member
from tokenswarm.cluster.strangers import Strangers
from tokenswarm.judge.rules.evidence import UsersSeen
from tokenswarm.measure.snapshot import Merged
from tokenswarm.profile.load import Stage


class RunEnd(msgspec.Struct):
    """What the controller knows at the end, for summary and verdict."""

    merged: Merged
    stages: tuple[Stage, ...]  # those that began
    members: list[Member]
    strangers: Strangers  # who was kept out
    rows: int
    interrupted: bool
    expected_workers: int
    dataset: dict[str, Any]
    remarks: list[str]  # what went wrong on the way, in sentences
    changed: dict[int, tuple[int, int]]  # stage -> (its users, what the web UI made of them)
    unwritten: list[str]  # where rows could not be written, in sentences
    users: tuple[UsersSeen, ...]  # by stage that began
    clock_step_s: float  # of this machine's wall clock
    stood_still_s: float  # of this process
    aborted: str = ""  # why the load was ended: too much of it failed
