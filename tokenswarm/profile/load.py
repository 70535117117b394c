"""`load`: when requests are sent: so many users who wait for their answers, or so many arrivals a second who don't."""

from __future__ import annotations

import re
from typing import Literal, get_args

import msgspec

from tokenswarm.profile.typed_yaml import SECONDS_MAX, Seconds

STAGES_MAX = 200  # a report of 40 stages is 2 MiB, and 16 MiB is the most that the master reads

ENDLESS_S = SECONDS_MAX
"""The duration of a stage that only a signal or the stop button ends."""

RATE_MIN, RATE_MAX = 0.001, 100_000.0  # requests a second
BURSTINESS_MIN, BURSTINESS_MAX = 0.01, 1000.0
REQUESTS_MAX = 10_000_000
BLOCK_TOKENS_MAX = 1_000_000

Kind = Literal["closed", "poisson", "constant", "gamma", "trace"]
RATE_KINDS = tuple(kind for kind in get_args(Kind) if kind not in ("closed", "trace"))
"""The kinds of an open loop that take a rate; the first is what one means where nobody says more."""
TraceFormat = Literal["auto", "azure", "bailian", "burstgpt", "mooncake", "plain"]


class Stage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    users: int | None = None  # of a closed loop
    rate: tuple[float, ...] | None = None  # of an open loop, requests a second: one, or two to ramp between
    duration: Seconds = Seconds(30.0)

    def __post_init__(self) -> None:
        if self.users is not None and not 1 <= self.users <= 1_000_000:
            raise ValueError(f"`users: {self.users}` must be between 1 and 1000000")
        if self.users is not None and self.rate is not None:
            raise ValueError("`rate` and `users` can't both be given: a stage is of an open loop or of a closed one")
        if self.rate is not None:
            self._check_rate(self.rate)
        if self.duration <= 0:
            raise ValueError("`duration` must be longer than 0s")

    def _check_rate(self, rate: tuple[float, ...]) -> None:
        if not 1 <= len(rate) <= 2:
            raise ValueError(f"`rate` takes one number, or two to ramp between ([5, 80]), not {len(rate)}")
        for value in rate:
            if not RATE_MIN <= value <= RATE_MAX:
                raise ValueError(f"`rate: {value:g}` must be between {RATE_MIN:g} and {RATE_MAX:g} requests a second")

    @property
    def told(self) -> str:
        """What is asked for, in words: `8 users`, `20/s`, `5 to 80/s`."""
        if self.users is not None:
            return f"{self.users} user{'s' * (self.users != 1)}"
        return f"{' to '.join(f'{value:g}' for value in self.rate)}/s" if self.rate else ""


class AbortOnFail(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a load that only fails ends by itself."""

    after: int = 50  # requests, in the order they were sent; 0: never
    ratio: float = 1.0  # 1: the first `after` all failed and none succeeded; less: this share of all that ended

    def __post_init__(self) -> None:
        if self.after < 0:
            raise ValueError(f"`load.abort_on_fail.after: {self.after}` must be 1 or more, or 0 for never")
        if not 0 < self.ratio <= 1:
            raise ValueError(f"`load.abort_on_fail.ratio: {self.ratio}` must be above 0, and 1 at most")


class TraceSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`load.trace`: which arrivals of which file."""

    path: str
    sha256: str | None = None  # of the file: every worker's must be the one; None: the master's
    format: TraceFormat = "auto"
    time_scale: float = 1.0  # of the time between arrivals: 0.1 is ten times as fast
    start: Seconds = Seconds(0.0)  # of the window, in the trace's own time
    length: Seconds | None = None  # of the window; None: to the end
    loop: bool = False  # begin again where the window ends
    block_tokens: int | None = None  # of the prompt that one of `hash_ids` stands for; None: the format's own

    def __post_init__(self) -> None:
        if not 1e-6 <= self.time_scale <= 1e6:
            raise ValueError(f"`load.trace.time_scale: {self.time_scale:g}` must be between 1e-06 and 1e+06")
        if self.sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise ValueError("`load.trace.sha256` takes 64 hexadecimal digits, as `sha256sum` writes them")
        if self.length is not None and self.length <= 0:
            raise ValueError("`load.trace.length` must be longer than 0s")
        if self.block_tokens is not None and not 1 <= self.block_tokens <= BLOCK_TOKENS_MAX:
            raise ValueError(f"`load.trace.block_tokens: {self.block_tokens}` must be between 1 and {BLOCK_TOKENS_MAX}")


_ONE_USER = (Stage(users=1),)


class Load(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    kind: Kind = "closed"
    stages: tuple[Stage, ...] = _ONE_USER
    spawn_rate: float | None = None  # users a second; None: all of a stage within a second
    think_time: Seconds = Seconds(0.0)  # between the end of an answer and the next prompt of the same user
    burstiness: float | None = None  # shape of the gamma distribution of gaps; None: 1, which is Poisson
    max_in_flight: int | None = None  # over all workers; None: as many as file descriptors allow
    requests: int | None = None  # over all workers: the load ends with them, if its stage's time does not end it before
    seed: int = 1  # of the arrivals
    trace: TraceSource | None = None
    abort_on_fail: AbortOnFail = AbortOnFail()

    @property
    def open(self) -> bool:
        """Whether requests are sent when they are due, whatever became of the ones before."""
        return self.kind != "closed"

    @property
    def users_most(self) -> int | None:
        """Of all stages; None: an open loop has no users."""
        return None if self.open else max(stage.users or 1 for stage in self.stages)

    @property
    def under_way(self) -> int:
        """How many requests the user means to have under way at once; 1 where an open loop has no limit."""
        return self.max_in_flight or max(stage.users or 1 for stage in self.stages)

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("`load.stages` is empty")
        if len(self.stages) > STAGES_MAX:
            raise ValueError(f"`load.stages` has {len(self.stages)} stages; {STAGES_MAX} are the most")
        if self.spawn_rate is not None and self.spawn_rate < 0.001:
            raise ValueError("`load.spawn_rate` must be 0.001 users a second or more")
        if self.trace is not None and self.kind != "trace":
            raise ValueError(f"`load.trace` needs `load.kind: trace`, not {self.kind}")
        if self.kind == "trace":
            self._check_trace()
        elif self.open:
            self._check_open()
        else:
            self._check_closed()
        if self.open:
            self._check_without_users()
        if self.requests is not None:
            self._check_requests(self.requests)

    def _check_closed(self) -> None:
        for number, stage in enumerate(self.stages):
            if stage.rate is not None:
                raise ValueError(
                    f"`load.stages.{number}.rate` needs an open loop: say `load.kind: poisson`, or constant, or gamma"
                )
            if stage.users is None:
                raise ValueError(f"`load.stages.{number}.users` is missing")
        for name in ("burstiness", "max_in_flight"):
            if getattr(self, name) is not None:
                raise ValueError(f"`load.{name}` is of an open loop; with `load.kind: closed` it means nothing")

    def _check_open(self) -> None:
        if self.stages is _ONE_USER:
            raise ValueError(f"`load.kind: {self.kind}` needs `load.stages`, such as [{{rate: 20, duration: 2m}}]")
        for number, stage in enumerate(self.stages):
            if stage.users is not None:
                raise ValueError(
                    f"`load.stages.{number}.users` is of a closed loop (`load.kind: closed`); {self.kind} takes `rate`"
                )
            if stage.rate is None:
                raise ValueError(f"`load.stages.{number}.rate` is missing")

    def _check_requests(self, requests: int) -> None:
        if not 1 <= requests <= REQUESTS_MAX:
            raise ValueError(f"`load.requests: {requests}` must be between 1 and {REQUESTS_MAX}")
        if self.kind == "trace":
            raise ValueError(
                "`load.requests` is not of a trace, which has arrivals of its own: cut `load.trace.length`"
            )
        if self.stages is _ONE_USER:
            msgspec.structs.force_setattr(self, "stages", (Stage(users=1, duration=Seconds(ENDLESS_S)),))
        if len(self.stages) > 1:
            raise ValueError(f"`load.requests` takes one stage in `load.stages`, not {len(self.stages)}")
        if len(self.stages[0].rate or ()) > 1:
            raise ValueError("`load.requests` takes one rate: a ramp of `load.stages` is over when its duration is")

    def _check_trace(self) -> None:
        if self.trace is None:
            raise ValueError("`load.kind: trace` needs `load.trace`, such as {path: trace.csv}")
        if self.stages is _ONE_USER:
            msgspec.structs.force_setattr(self, "stages", (Stage(duration=Seconds(ENDLESS_S)),))
        if len(self.stages) > 1 or self.stages[0].users is not None or self.stages[0].rate is not None:
            raise ValueError(
                "`load.stages` of a trace is one stage with a duration, or left out: the trace has the rest"
            )

    def _check_without_users(self) -> None:
        if self.spawn_rate is not None or self.think_time:
            name = "think_time" if self.think_time else "spawn_rate"
            raise ValueError(f"`load.{name}` is of a closed loop's users; `load.kind: {self.kind}` has none")
        if self.burstiness is not None:
            if self.kind != "gamma":
                raise ValueError(f"`load.burstiness` is of `load.kind: gamma`, not of {self.kind}")
            if not BURSTINESS_MIN <= self.burstiness <= BURSTINESS_MAX:
                raise ValueError(
                    f"`load.burstiness: {self.burstiness:g}` must be between {BURSTINESS_MIN:g} and "
                    f"{BURSTINESS_MAX:g}: 1 is Poisson, less comes in bursts"
                )
        if self.max_in_flight is not None and self.max_in_flight < 1:
            raise ValueError(f"`load.max_in_flight: {self.max_in_flight}` must be 1 or more")
