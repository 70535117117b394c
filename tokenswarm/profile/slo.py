"""`slo`: what must hold for the run to pass."""

from __future__ import annotations

import msgspec

from tokenswarm.profile.typed_yaml import Seconds


class Percentiles(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits for percentiles of one latency."""

    p50: Seconds | None = None
    p90: Seconds | None = None
    p95: Seconds | None = None
    p99: Seconds | None = None
    p999: Seconds | None = None
    mean: Seconds | None = None
    max: Seconds | None = None


class Slo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What must hold. Ratios are 0 to 1; `goodput_ratio` and the rates are lower bounds, all else upper bounds."""

    ttft_s: Percentiles | None = None
    ttft_intended_s: Percentiles | None = None
    ttfat_s: Percentiles | None = None
    itl_s: Percentiles | None = None
    tpot_s: Percentiles | None = None
    e2e_s: Percentiles | None = None
    e2e_intended_s: Percentiles | None = None
    stall_s: Percentiles | None = None
    goodput_ratio: float | None = None
    failed_ratio: float | None = None
    output_tokens_per_s: float | None = None
    requests_per_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("goodput_ratio", "failed_ratio"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"`slo.{name}: {value}` must lie between 0 and 1")
