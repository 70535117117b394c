"""One schedule from one seed, and each worker's share of it.

Every worker draws the whole schedule and sends every `count`-th arrival, so the union over any number of workers is the
schedule that one process would send, to the last bit. Drawing costs half a microsecond an arrival.
"""

from __future__ import annotations

import itertools
import random
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from math import isinf
from typing import NamedTuple

import msgspec

from tokenswarm.errors import ConfigError
from tokenswarm.load import Arrival
from tokenswarm.load.kinds import KINDS
from tokenswarm.load.rate import Rate
from tokenswarm.profile.load import Load, Stage
from tokenswarm.profile.typed_yaml import Seconds


class Planned(NamedTuple):
    """A stage as long as its arrivals take, and how many of them lie in its window; None where it has no end."""

    stage: Stage
    arrivals: int | None


def schedule(kind: str, rate: Rate, *, seed: int, stage: int, burstiness: float = 1.0) -> Iterator[Arrival]:
    """The arrivals of a stage in order of their time, without end unless the rate falls to 0."""
    draw = random.Random(f"{seed}/{stage}")  # a text seeds by SHA-512: the same on every machine and version
    moments = map(rate.moment, itertools.accumulate(KINDS[kind](draw, burstiness)))
    for number, at_s in enumerate(moments):
        if isinf(at_s):
            return
        yield Arrival(number, at_s)


def counted(load: Load, lead_s: float) -> Planned:
    """The stage of `load.requests` arrivals: it ends one mean gap behind the last, if its time is not over before.

    Raises ConfigError where all of them would be warm-up.
    """
    stage = load.stages[0]
    assert stage.rate is not None
    rate = Rate(stage.rate[0], stage.rate[0])
    arrivals = schedule(load.kind, rate, seed=load.seed, stage=0, burstiness=load.burstiness or 1.0)
    moments = array("d", (one.at_s for one in itertools.islice(arrivals, load.requests)))
    if moments[-1] < lead_s:
        raise ConfigError(
            f"`phases.warmup: {lead_s:g}s` is more than the {moments[-1]:.3g} s that all {load.requests} requests take "
            "to arrive: shorten it, or ask for more"
        )
    end_s = min(lead_s + stage.duration, moments[-1] + 1 / stage.rate[0])
    inside = bisect_left(moments, end_s) - bisect_left(moments, lead_s)
    return Planned(msgspec.structs.replace(stage, duration=Seconds(end_s - lead_s)), inside)


def share(n: int, index: int, count: int) -> int:
    """The share of `n` that worker `index` of `count` has: they differ by one at most."""
    return n // count + (index < n % count)


def share_by_users(load: Load, index: int, count: int) -> int | None:
    """The share of a closed loop's `load.requests` that worker `index` of `count` has for its share of the users.

    So all users have as much to do, and all are there until the end. None: no number is asked for, or none of users.
    """
    n, users = load.requests, load.users_most
    if n is None or users is None:
        return None
    return n // users * share(users, index, count) + share(n % users, index, count)


def stripe(arrivals: Iterable[Arrival], index: int, count: int) -> Iterator[Arrival]:
    """The share of worker `index` of `count`: numbers index, index + count, …"""
    if not 0 <= index < count:
        raise ValueError(f"worker {index} of {count}")
    return itertools.islice(arrivals, index, None, count)
