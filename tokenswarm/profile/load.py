"""`load`: how many users, for how long, and how quickly they come."""

from __future__ import annotations

from typing import Literal

import msgspec

from tokenswarm.profile.typed_yaml import SECONDS_MAX, Seconds

STAGES_MAX = 200  # a report of 40 stages is 2 MiB, and 16 MiB is the most that the master reads

ENDLESS_S = SECONDS_MAX
"""The duration of a stage that only a signal or the stop button ends."""


class Stage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    users: int
    duration: Seconds = Seconds(30.0)

    def __post_init__(self) -> None:
        if not 1 <= self.users <= 1_000_000:
            raise ValueError(f"`users: {self.users}` must be between 1 and 1000000")
        if self.duration <= 0:
            raise ValueError("`duration` must be longer than 0s")


class AbortOnFail(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a load that only fails ends by itself."""

    after: int = 50  # requests, in the order they were sent; 0: never
    ratio: float = 1.0  # 1: the first `after` all failed and none succeeded; less: this share of all that ended

    def __post_init__(self) -> None:
        if self.after < 0:
            raise ValueError(f"`load.abort_on_fail.after: {self.after}` must be 1 or more, or 0 for never")
        if not 0 < self.ratio <= 1:
            raise ValueError(f"`load.abort_on_fail.ratio: {self.ratio}` must be above 0, and 1 at most")


class Load(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    kind: Literal["closed"] = "closed"
    stages: tuple[Stage, ...] = (Stage(users=1),)
    spawn_rate: float | None = None  # users a second; None: all of a stage within a second
    think_time: Seconds = Seconds(0.0)  # between the end of an answer and the next prompt of the same user
    abort_on_fail: AbortOnFail = AbortOnFail()

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("`load.stages` is empty")
        if len(self.stages) > STAGES_MAX:
            raise ValueError(f"`load.stages` has {len(self.stages)} stages; {STAGES_MAX} are the most")
        if self.spawn_rate is not None and self.spawn_rate < 0.001:
            raise ValueError("`load.spawn_rate` must be 0.001 users a second or more")
