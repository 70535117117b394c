"""Poisson: independent exponential gaps, the arrivals of many users who know nothing of each other."""

from __future__ import annotations

import random
from collections.abc import Iterator


def gaps(draw: random.Random, burstiness: float) -> Iterator[float]:
    """Gaps of mean 1, without end."""
    del burstiness
    while True:
        yield draw.expovariate(1.0)
