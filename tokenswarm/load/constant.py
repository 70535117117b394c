"""Constant: every gap is the same. No jitter, no exponential draw under another name."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator


def gaps(draw: random.Random, burstiness: float) -> Iterator[float]:
    """Gaps of mean 1, without end; the first arrival is due at once."""
    del draw, burstiness
    return itertools.chain((0.0,), itertools.repeat(1.0))
