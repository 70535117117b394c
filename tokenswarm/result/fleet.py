"""A fleet: what one replica of each kind was measured to carry, what is asked for, and how many that takes.

The structs of `tokenswarm plan --json`; judge/fleet.py has the arithmetic. Rates are requests per second, tokens are
means of a request, power is watts, money is in `currency`.
"""

from __future__ import annotations

from typing import Literal

import msgspec

SCHEMA_VERSION = 1

Word = Literal["pass", "perhaps", "fail", "unknown"]


class Level(msgspec.Struct, frozen=True, kw_only=True):
    """One load that a replica was given, and whether it kept the limits."""

    kind: Literal["rate", "users"]
    load: float
    carried: float  # what came, in an open loop; what was answered, in a closed one
    word: Word  # perhaps: within the limits, by too few requests to be sure; unknown: too few to say anything
    limit: str = ""  # the one that was not kept, or not decided
    power_w: float | None = None  # of all GPUs of the replica


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of replica: as measured, and what it costs."""

    name: str
    model: str
    levels: tuple[Level, ...]
    input_tokens: float | None
    output_tokens: float | None
    gpus: int = 1
    price_per_gpu_hour: float | None = None
    currency: str = "USD"
    notes: tuple[str, ...] = ()


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """What one replica carries within its limits: `best` was seen to, `low` is sure of it, `high` was too much."""

    best: float
    low: float | None  # None: no level is sure
    high: float | None  # None: nothing that was tried was too much
    limit: str  # what ends it: the limit that the next level misses; "" where none did
    users: bool = False  # measured in a closed loop


class Demand(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for, in requests like those that were measured. Of a trace, its busiest window decides."""

    peak: float
    peak_low: float  # where lengths were adjusted: by the one of them that asks for less
    mean: float
    input_tokens: float | None  # of a request, in that window
    output_tokens: float | None
    output_tokens_per_s: float | None  # on average, over all of it
    start_s: float | None = None  # of the window, from the begin of the trace
    window_s: float | None = None
    adjusted: float = 1.0  # by how much a request counts for more, since it is longer than the measured ones

    @property
    def asked(self) -> float:
        """The peak in requests as they were asked for."""
        return self.peak / self.adjusted


class Fleet(msgspec.Struct, frozen=True, kw_only=True):
    """How many replicas of one kind. `low`, `high`: for the interval of what one carries; None: nobody knows."""

    name: str
    capacity: Capacity | None  # None: it keeps the limits at no load that was tried
    demand: Demand
    why: str = ""  # there is no capacity
    undecided: bool = False  # ... that is known: too few requests to tell
    replicas: int | None = None
    replicas_low: int | None = None
    replicas_high: int | None = None
    gpus: int | None = None
    used: float | None = None  # of all that they carry, at the peak
    cost_per_hour: float | None = None
    cost_per_million_output_tokens: float | None = None
    cost_low: float | None = None
    cost_high: float | None = None
    power_w: float | None = None  # of all replicas, on average
    kwh_per_million_output_tokens: float | None = None
    kwh_low: float | None = None
    kwh_high: float | None = None
    currency: str = "USD"
    notes: tuple[str, ...] = ()


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The fleets, the best first."""

    fleets: tuple[Fleet, ...]
    limits: dict[str, float]
    headroom: float
    schema_version: int = SCHEMA_VERSION
