"""One schedule from one seed, and each worker's share of it.

Every worker draws the whole schedule and sends every `count`-th arrival, so the union over any number of workers is the
schedule that one process would send, to the last bit. Drawing costs half a microsecond an arrival.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator
from math import isinf

from tokenswarm.load import Arrival
from tokenswarm.load.kinds import KINDS
from tokenswarm.load.rate import Rate


def schedule(kind: str, rate: Rate, *, seed: int, stage: int, burstiness: float = 1.0) -> Iterator[Arrival]:
    """The arrivals of a stage in order of their time, without end unless the rate falls to 0."""
    draw = random.Random(f"{seed}/{stage}")  # a text seeds by SHA-512: the same on every machine and version
    moments = map(rate.moment, itertools.accumulate(KINDS[kind](draw, burstiness)))
    for number, at_s in enumerate(moments):
        if isinf(at_s):
            return
        yield Arrival(number, at_s)


def share(n: int, index: int, count: int) -> int:
    """The share of `n` that worker `index` of `count` has: they differ by one at most."""
    return n // count + (index < n % count)


def stripe(arrivals: Iterable[Arrival], index: int, count: int) -> Iterator[Arrival]:
    """The share of worker `index` of `count`: numbers index, index + count, …"""
    if not 0 <= index < count:
        raise ValueError(f"worker {index} of {count}")
    return itertools.islice(arrivals, index, None, count)
