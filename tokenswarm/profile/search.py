"""`search`: between which loads `tokenswarm search` looks for the largest one that keeps the limits."""

from __future__ import annotations

import msgspec

from tokenswarm.profile.load import RATE_MAX, RATE_MIN
from tokenswarm.profile.typed_yaml import Seconds

RESOLUTION_MIN, RESOLUTION_MAX = 0.005, 1.0


class Search(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    rate: tuple[float, ...] | None = None  # the least and the most, requests a second
    users: tuple[int, ...] | None = None  # the same of a closed loop
    resolution: float = 0.05  # of the answer: the load that fails is at most so much larger than the one that passes
    shortest: Seconds = Seconds(20.0)  # window of a probe
    longest: Seconds = Seconds(300.0)  # a probe that is not decided then does not pass

    def __post_init__(self) -> None:
        if self.rate is not None and self.users is not None:
            raise ValueError("`search.rate` and `search.users` can't both be given: search for one of them")
        for name, bounds in (("rate", self.rate), ("users", self.users)):
            if bounds is not None:
                self._check_bounds(name, bounds)
        if not RESOLUTION_MIN <= self.resolution <= RESOLUTION_MAX:
            raise ValueError(
                f"`search.resolution: {self.resolution:g}` must be between {RESOLUTION_MIN:g} and {RESOLUTION_MAX:g}"
            )
        if not 1 <= self.shortest <= self.longest:
            raise ValueError(f"`search.shortest` ({self.shortest:g} s) must be 1s or more, `search.longest` at most")

    def _check_bounds(self, name: str, bounds: tuple[float, ...]) -> None:
        least, most = (1, 1_000_000) if name == "users" else (RATE_MIN, RATE_MAX)
        if len(bounds) != 2:
            raise ValueError(f"`search.{name}` takes two numbers, the least and the most, not {len(bounds)}")
        low, high = bounds
        if not low < high:
            raise ValueError(f"`search.{name}: [{low:g}, {high:g}]`: the first must be less than the second")
        if low < least or high > most:
            raise ValueError(f"`search.{name}: [{low:g}, {high:g}]` must lie between {least:g} and {most:g}")
