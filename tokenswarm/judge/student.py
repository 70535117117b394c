"""One run against the spread of several: Student's t on logarithms, exact for whole degrees of freedom. No scipy.

A single run has no spread of its own, so it borrows that of the other side: what is asked is whether it could be one
more of them. That takes the values' logarithms to be about normal, which ranks do not; so its level is stricter.
Formula of the distribution: Abramowitz and Stegun (1964), 26.7.3 and 26.7.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import atan, cos, fsum, pi, sin, sqrt

from tokenswarm.judge.ranksum import spread
from tokenswarm.measure.sketch import RELATIVE_ERROR

RUNS_LEAST = 3
"""Of the other side: two have a spread of one difference, which says nothing."""

MEASURED = RELATIVE_ERROR
"""The least spread of percentiles and rates (a logarithm): the error of a percentile."""

COUNTED = 0.001
"""The least spread of the share that succeeds: one request of a thousand fails by chance where no other did."""


def p_above(t: float, df: int) -> float:
    """P(T ≥ t) of Student's t with `df` ≥ 1 degrees of freedom."""
    angle = atan(abs(t) / sqrt(df))
    term, powers = (cos(angle), [cos(angle)]) if df % 2 else (1.0, [1.0])
    for k in range(2 if df % 2 else 1, df - 2, 2):
        term *= k / (k + 1) * cos(angle) ** 2
        powers.append(term)
    inner = sin(angle) * fsum(powers)
    if df % 2:
        inner = 2 / pi * (angle + (inner if df > 1 else 0.0))
    tail = max(0.0, (1.0 - inner) / 2)
    return tail if t >= 0 else 1.0 - tail


def quantile(p_upper: float, df: int) -> float:
    """The t that T exceeds with probability `p_upper` (0 < p_upper < 0.5)."""
    low, high = 0.0, 1.0
    while p_above(high, df) > p_upper and high < 1e12:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if p_above(middle, df) > p_upper else (low, middle)
    return high


def one_against(
    a: Sequence[float], b: Sequence[float], confidence: float, least: float = MEASURED
) -> tuple[float, float, float, float, float]:
    """(shift b − a, its low end, its high end, P(so high by chance), P(so low by chance)); one side is a single value.

    A spread smaller than `least` is taken as that: runs can't be more alike than is known.
    ValueError where not one side is single, or the other has fewer than RUNS_LEAST.
    """
    many = b if len(a) == 1 else a
    if min(len(a), len(b)) != 1 or len(many) < RUNS_LEAST:
        raise ValueError(f"takes one value against {RUNS_LEAST} or more")
    df = len(many) - 1
    scale = max(spread(many), least) * sqrt(1 + 1 / len(many))
    shift = fsum(b) / len(b) - fsum(a) / len(a)
    reach = quantile((1 - confidence) / 2, df) * scale
    return shift, shift - reach, shift + reach, p_above(shift / scale, df), p_above(-shift / scale, df)
