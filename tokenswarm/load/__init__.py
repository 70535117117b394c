"""When requests are due: schedules of an open loop, from a seed, without a clock and without IO.

A kind of load is a file and a row of `kinds.KINDS`: how far apart arrivals lie when one is due each second on average.
`rate.py` stretches that to a rate that may change; `schedule.py` gives each worker its share of the one schedule.
"""

from __future__ import annotations

import msgspec


class Arrival(msgspec.Struct, frozen=True, gc=False):
    """One request that is due: its number in the stage, over all workers, and when, in s after the stage began."""

    number: int
    at_s: float
    input_tokens: int | None = None  # of a trace; None: the data set's prompt as it is
    output_tokens: int | None = None
    prefix: tuple[int, ...] = ()  # blocks of text that arrivals of a trace share, by id
