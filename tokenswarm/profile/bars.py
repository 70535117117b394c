"""`bars`: how wide the instrument's own error may be, as a share of the number."""

from __future__ import annotations

import msgspec


class Bar(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Half of the interval / the value: above `degraded` the number needs care, above `invalid` it is withheld."""

    degraded: float = 0.02
    invalid: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.degraded <= self.invalid:
            raise ValueError(f"needs 0 < degraded <= invalid, not {self.degraded:g} and {self.invalid:g}")


class Bars(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One for each latency."""

    ttft_s: Bar = Bar()
    ttft_intended_s: Bar = Bar()
    ttfat_s: Bar = Bar()
    itl_s: Bar = Bar()
    tpot_s: Bar = Bar()
    e2e_s: Bar = Bar()
    e2e_intended_s: Bar = Bar()
    stall_s: Bar = Bar()
    connect_s: Bar = Bar()
