"""Numbers as servers state them, checked: a count or a duration that can't be true counts as not stated.

A wrong number (negative, true, 3.0, 10^12) must not fail a good answer, nor enter a sum: it is None, and the record
falls back to its own count of events, labelled so.
"""

from __future__ import annotations

TOKENS_MAX = 10**9  # no answer has a billion tokens
NS_MAX = 10**16  # 115 days

_NS_PER_MS = 1_000_000


def tokens(value: object) -> int | None:
    """Return a token count, or None where it is no integer in 0..10^9."""
    return value if type(value) is int and 0 <= value <= TOKENS_MAX else None


def ns(value: object) -> int | None:
    """Return a duration stated in ns, or None where it is no integer in 0..10^16."""
    return value if type(value) is int and 0 <= value <= NS_MAX else None


def ms_as_ns(value: object) -> int | None:
    """Return a duration stated in ms (integer or real) in ns, or None where it can't be one."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= NS_MAX / _NS_PER_MS:
        return round(value * _NS_PER_MS)
    return None
