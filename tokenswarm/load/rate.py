"""A rate over the time of a stage, and the inverse of its integral: when the u-th arrival of unit rate is due.

t = Λ⁻¹(u) with Λ(t) = ∫ rate: the time change that makes any stationary process one of a changing rate (Cox and Lewis,
1966). So a change of rate acts at its moment: a gap that spans it is part long, part short.
"""

from __future__ import annotations

from math import sqrt

import msgspec


class Rate(msgspec.Struct, frozen=True):
    """`first` per s for `lead_s` (warm-up or settling), then in a straight line to `last` over `ramp_s`, then that."""

    first: float
    last: float
    lead_s: float = 0.0
    ramp_s: float = 0.0

    def at(self, t: float) -> float:
        """Arrivals a second at `t` s after the stage began."""
        if t < self.lead_s or self.first == self.last:
            return self.first
        if t >= self.lead_s + self.ramp_s:
            return self.last
        return self.first + (self.last - self.first) * (t - self.lead_s) / self.ramp_s

    def due(self, t: float) -> float:
        """Λ(t): how many arrivals are due by then, on average."""
        lead = min(t, self.lead_s)
        ramp = min(max(t - self.lead_s, 0.0), self.ramp_s)
        rest = max(t - self.lead_s - self.ramp_s, 0.0)
        slope = (self.last - self.first) / self.ramp_s if self.ramp_s else 0.0
        return self.first * lead + (self.first + slope * ramp / 2) * ramp + self.last * rest

    def moment(self, u: float) -> float:
        """Λ⁻¹(u) in s; infinity where so many never come, since the rate has fallen to 0."""
        in_lead = self.first * self.lead_s
        if u < in_lead:
            return u / self.first
        in_ramp = (self.first + self.last) / 2 * self.ramp_s
        left = u - in_lead
        if left < in_ramp:
            slope = (self.last - self.first) / self.ramp_s
            # the root that grows with u, in the form that loses no digits where the slope is small
            return self.lead_s + 2 * left / (self.first + sqrt(max(self.first**2 + 2 * slope * left, 0.0)))
        if not self.last:
            return float("inf")
        return self.lead_s + self.ramp_s + (left - in_ramp) / self.last
