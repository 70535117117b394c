"""Gamma: gaps of shape `burstiness`, as in vLLM's benchmark. 1 is Poisson, less comes in bursts, more is more even."""

from __future__ import annotations

import random
from collections.abc import Iterator


def gaps(draw: random.Random, burstiness: float) -> Iterator[float]:
    """Gaps of mean 1 and coefficient of variation 1/√burstiness, without end."""
    while True:
        yield draw.gammavariate(burstiness, 1.0 / burstiness)
