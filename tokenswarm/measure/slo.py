"""The limits of an SLO, and whether a request that succeeded meets them."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from tokenswarm.clock import NS_PER_S
from tokenswarm.measure.snapshot import Block
from tokenswarm.record import RequestRecord

ALL = "all"
"""Beside the limits: requests of which no miss is sure, so that they may have met all of them."""


class Slo(msgspec.Struct, frozen=True, kw_only=True):
    """Limits for one request, in seconds; None: no limit. A request meets the SLO if it succeeds within all of them."""

    ttft_s: float | None = None
    ttft_intended_s: float | None = None
    ttfat_s: float | None = None
    itl_s: float | None = None  # for each gap, shared by the tokens of its event
    tpot_s: float | None = None
    e2e_s: float | None = None
    e2e_intended_s: float | None = None
    stall_s: float | None = None


class Limits:
    """The limits of an SLO that are set; `any`: whether there is one."""

    def __init__(self, slo: Slo | None) -> None:
        self._limits = (
            [] if slo is None else [(n, v) for n in slo.__struct_fields__ if (v := getattr(slo, n)) is not None]
        )
        self.any = bool(self._limits)

    def met(self, block: Block, record: RequestRecord) -> bool:
        """Whether a success meets all of them; those that it misses are counted in its block.

        Strict: every limit. An answer too short to have a gap or a TPOT can't miss that limit; one that came in one
        read misses it where the time since it was sent leaves that open.
        """
        met, sure = self.any, False
        for name, limit_s in self._limits:
            value_s = _SLO_VALUES[name](record)
            unsure = value_s is None and name in _SLO_BOUNDS and record.one_read
            if unsure:
                value_s = _SLO_BOUNDS[name](record)
            if name in _MUST_HAVE if value_s is None else value_s > limit_s:
                met = False
                block.slo_missed_by[name] = block.slo_missed_by.get(name, 0) + 1
                sure = sure or not unsure
                if unsure:
                    block.slo_unsure[name] = block.slo_unsure.get(name, 0) + 1
        if self.any and not (met or sure):
            block.slo_unsure[ALL] = block.slo_unsure.get(ALL, 0) + 1
        return met


def _seconds(value_ns: float | None) -> float | None:
    return None if value_ns is None else value_ns / NS_PER_S


def _worst_itl_s(record: RequestRecord) -> float | None:
    if not record.gaps_ns:
        return None
    if not record.gap_tokens:
        return max(record.gaps_ns) / NS_PER_S
    return max(gap / k for gap, k in zip(record.gaps_ns, record.gap_tokens, strict=True) if k > 0) / NS_PER_S


_SLO_VALUES: dict[str, Callable[[RequestRecord], float | None]] = {
    "ttft_s": lambda record: _seconds(record.ttft_ns),
    "ttft_intended_s": lambda record: _seconds(record.ttft_intended_ns),
    "ttfat_s": lambda record: _seconds(record.ttfat_ns),
    "itl_s": _worst_itl_s,
    "tpot_s": lambda record: _seconds(record.tpot_ns),
    "e2e_s": lambda record: _seconds(record.e2e_ns),
    "e2e_intended_s": lambda record: _seconds(record.e2e_intended_ns),
    "stall_s": lambda record: _seconds(record.stall_ns),
}

_SLO_BOUNDS: dict[str, Callable[[RequestRecord], float]] = {
    "itl_s": lambda record: (record.last_ns - record.sent_ns) / NS_PER_S,
    "tpot_s": lambda record: (record.last_ns - record.sent_ns) / max(1, record.output_tokens - 1) / NS_PER_S,
    "stall_s": lambda record: (record.last_ns - record.sent_ns) / NS_PER_S,
}
"""The most that can be true of an answer that came in one read: its first token came after it was sent."""

_MUST_HAVE = ("ttft_s", "ttft_intended_s", "ttfat_s", "e2e_s", "e2e_intended_s")
"""A success without one of these misses its limit: thinking that never came to an answer is not a fast answer."""
