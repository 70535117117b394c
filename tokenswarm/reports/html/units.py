"""Numbers with their unit as the dashboards show them: bytes by 1024; watts, joules and hertz by 1000.

– where there is none. Percentiles of an engine's histogram come with their bucket: they are known no better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from tokenswarm.reports.html.svg import number, seconds
from tokenswarm.reports.numbers import MISSING, duration, quantity, ratio
from tokenswarm.telemetry.histogram import Split

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_METRIC = ("", "k", "M", "G", "T")


def three(value: float | None) -> str:
    """Three digits, also of what is small: 0.00123, 0.578, 12.3, 4.21k."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{value:.3g}" if 0 < abs(value) < 0.9995 else quantity(value)


def exact(value: float | None) -> str:
    """34,864."""
    return MISSING if value is None or not math.isfinite(value) else f"{value:,.0f}"


def top(value: float | None) -> str:
    """A largest value: 64 rather than 64.0."""
    return MISSING if value is None or not math.isfinite(value) else number(value)


def size(value: float | None) -> str:
    """134 GiB."""
    return _scaled(value, 1024.0, _BINARY)


def watts(value: float | None) -> str:
    return _scaled(value, 1000.0, [f"{letter}W" for letter in _METRIC])


def joules(value: float | None) -> str:
    return _scaled(value, 1000.0, [f"{letter}J" for letter in _METRIC])


def hertz(value: float | None) -> str:
    return _scaled(value, 1000.0, [f"{letter}Hz" for letter in _METRIC])


def celsius(value: float | None) -> str:
    return MISSING if value is None or not math.isfinite(value) else f"{value:.0f} °C"


def _scaled(value: float | None, base: float, units: tuple[str, ...] | list[str]) -> str:
    if value is None or not math.isfinite(value):
        return MISSING
    power = 0
    while abs(value) >= base - 0.5 and power < len(units) - 1:
        value, power = value / base, power + 1
    digits = f"{value:.0f}" if abs(value) >= 99.95 or value == 0 else three(value)
    return f"{digits} {units[power]}"


def counts(by_name: Mapping[str, int]) -> str:
    """length 343, abort 2: those above 0, the most frequent first."""
    ordered = sorted(by_name.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name} {n}" for name, n in ordered if n)


def bucket(split: Split, name: str) -> str:
    """The bucket that a percentile lies in: 200ms … 300ms, ≤ 10ms, > 10s; – with too few samples for it."""
    if name not in split.ranges:
        return MISSING
    low, high = split.ranges[name]
    if high is None:
        return f"> {seconds(low)}"
    return f"{seconds(low)} … {seconds(high)}" if low else f"≤ {seconds(high)}"


def percentile(split: Split, name: str) -> tuple[str, str]:
    """Its value as histogram_quantile would show it, and its bucket; the bucket alone at both ends."""
    value, within = getattr(split, name), bucket(split, name)
    return (within, "") if value is None else (duration(value), within)


def throttled(seconds_by_reason: Mapping[str, float], observed_s: float | None) -> tuple[str, ...]:
    """How long clocks were held down, by reason, the longest first: 2.40s, 30% / sw_power_cap; none where never."""
    if not seconds_by_reason:
        return (MISSING,)
    ordered = sorted(seconds_by_reason.items(), key=lambda item: -item[1])
    told = [
        (duration(value) + (f", {ratio(min(1.0, value / observed_s))}" if observed_s else ""), reason)
        for reason, value in ordered
        if value > 0
    ]
    if not told:
        return ("none",)
    return (*told[0], *(f"{reason} {text}" for text, reason in told[1:]))
