"""The kinds of an open loop, by the word of the profile. A new one is a file beside this and a row here."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from tokenswarm.load import constant, gamma, poisson

Gaps = Callable[[random.Random, float], Iterator[float]]

KINDS: dict[str, Gaps] = {
    "constant": constant.gaps,
    "poisson": poisson.gaps,
    "gamma": gamma.gaps,
}
