"""Numbers and foreign text for human eyes: three digits and a unit, and nothing that a terminal could obey."""

from __future__ import annotations

import math
import re
import unicodedata

MISSING = "–"

_SI = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def duration(seconds: float | None) -> str:
    """850µs, 12.3ms, 1.23s, 125s; – where there is none."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    size = abs(seconds)
    if size >= 0.9995:
        return f"{_three(seconds)}s"
    if size >= 0.9995e-3 or size == 0:
        return f"{_three(seconds * 1e3)}ms"
    return f"{_three(seconds * 1e6)}µs"


def quantity(value: float | None) -> str:
    """0.42, 12.3, 940, 4.21k, 1.2M; – where there is none."""
    if value is None or not math.isfinite(value):
        return MISSING
    for scale, letter in _SI:
        if abs(value) >= 0.9995 * scale:
            return f"{_three(value / scale)}{letter}"
    return _three(value)


def ratio(value: float | None) -> str:
    """100%, 99.5%, 0%; – where there is none. Never rounds to all or nothing what is neither."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value in (0.0, 1.0):
        return f"{value:.0%}"
    percent = min(max(value * 100, 0.01), 99.99) if 0 < value < 1 else value * 100
    return f"{_three(percent) if percent < 99 else f'{percent:.4g}'}%"


def of_metric(name: str, value: float | None) -> str:
    """The value of a gate, by the unit in its name: ttft_s.p99, goodput_ratio, requests_per_s."""
    if name.endswith("_ratio"):
        return ratio(value)
    return quantity(value) if name.endswith("_per_s") else duration(value)


def of_limit(name: str, limit: float) -> str:
    """A limit as a user would write it: 2s rather than 2.00s."""
    return re.sub(r"(\.\d*?)0+(?=\D|$)", lambda found: found[1].rstrip("."), of_metric(name, limit))


def _three(value: float) -> str:
    size = abs(value)
    if size >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if size >= 9.995 else f"{value:.2f}"


def harmless(text: str, length_max: int = 400) -> str:
    """Foreign text on one line: no control or format characters (ANSI, line breaks, text direction), bounded."""
    if text.isascii() and text.isprintable() and len(text) <= length_max:
        return " ".join(text.split())
    cut = text[: length_max + 1]
    clean = "".join(c if unicodedata.category(c)[0] != "C" else " " for c in cut)
    clean = " ".join(clean.split())
    return clean if len(text) <= length_max else f"{clean[:length_max]}…"
