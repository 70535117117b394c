"""Does a series of equal times drift, or is it chance? Mann–Kendall's test, Sen's slope, medians of blocks.

H. B. Mann, Econometrica 13 (1945); M. G. Kendall, Rank Correlation Methods (1975): S, its variance with ties; P. K.
Sen, JASA 63 (1968): the slope; K. H. Hamed and A. R. Rao, Journal of Hydrology 204 (1998): the variance of S where
values depend on those before. Their correlation is of the ranks *without the trend*, else a trend would shrink the
sample that convicts it; with so few blocks single lags are noise, so that of an AR(1) process is taken, its first lag
corrected for its bias (Kendall, and Marriott and Pope, Biometrika 41, 1954). It is known the worse the fewer
independent values the blocks are worth, so Student's t of as many stands for the normal distribution (by the
approximation of D. L. Wallace, Annals of Mathematical Statistics 30, 1959).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from math import asin, erfc, log1p, pi, sqrt
from statistics import median

import msgspec

from tokenswarm.measure.statistics import lag1_rank_correlation

ALPHA = 0.01  # of all series that are tested together: Holm
CHANGE_MIN = 0.03  # of the middle of the series, from its begin to its end; less is no matter
WINDOWS_MIN = 40  # below it, how much they depend on each other can't be told from a drift: docs/soak.md
BLOCKS, BLOCK_MAX = 48, 12  # blocks that a longer series is cut into; windows of a block, an hour of five minutes each
RHO_MAX = 0.95  # of blocks; beyond it nothing could be told


class Trend(msgspec.Struct, frozen=True, kw_only=True):
    """`change` is Sen's slope times the length of the series, in its own unit; `p` is two-sided."""

    n: int  # blocks
    p: float
    middle: float  # median
    change: float
    rho: float  # of blocks, without the trend

    @property
    def relative(self) -> float | None:
        return self.change / self.middle if self.middle else None


def blocks(values: Sequence[float]) -> list[float]:
    """Medians of as many successive values as leave BLOCKS of them, but of BLOCK_MAX at most; odd first ones left out.

    Neighbours that depend on each other count as one, and a window that stands out alone is not heard.
    """
    size = min(BLOCK_MAX, max(1, len(values) // BLOCKS))
    first = len(values) % size
    return [median(values[at : at + size]) for at in range(first, len(values), size)]


def sen_slope(values: Sequence[float]) -> float:
    """The median of the slopes of all pairs, a step. 0 below two values."""
    pairs = combinations(enumerate(values), 2)
    slopes = [(after - before) / (j - i) for (i, before), (j, after) in pairs]
    return median(slopes) if slopes else 0.0


def kendall_s(values: Sequence[float]) -> int:
    """S: pairs that rise minus pairs that fall."""
    return sum((after > before) - (after < before) for before, after in combinations(values, 2))


def variance_of_s(values: Sequence[float]) -> float:
    """Of S where nothing drifts, ties taken off: [n(n−1)(2n+5) − Σ t(t−1)(2t+5)] / 18."""
    sizes = (len(values), *(-t for t in Counter(values).values()))
    return sum((1 if t > 0 else -1) * abs(t) * (abs(t) - 1) * (2 * abs(t) + 5) for t in sizes) / 18


def dependence(values: Sequence[float]) -> float:
    """ρ of neighbours, 0 … RHO_MAX: of the ranks without the trend, r = ρ − (2 + 4ρ)/n taken back."""
    slope, n = sen_slope(values), len(values)
    r = lag1_rank_correlation([value - slope * at for at, value in enumerate(values)])
    return min(max((n * r + 2) / (n - 4), 0.0), RHO_MAX)


def inflation(n: int, rho: float) -> float:
    """By how much the variance of S grows: 1 + 2/(n(n−1)(n−2)) · Σ (n−k)(n−k−1)(n−k−2) · ρ_S(k), never less than 1.

    ρ_S(k) = 6/π · asin(ρ^k / 2): the correlation of the ranks of an AR(1) process at lag k.
    """
    if rho <= 0 or n < 4:
        return 1.0
    lags = sum((n - k) * (n - k - 1) * (n - k - 2) * 6 / pi * asin(rho**k / 2) for k in range(1, n - 2))
    return max(1.0, 1 + 2 * lags / (n * (n - 1) * (n - 2)))


def mann_kendall(values: Sequence[float], rho: float = 0.0, *, read: bool = False) -> float:
    """Two-sided p that values whose neighbours depend by ρ rise or fall so steadily by chance; 1: all are alike.

    `read`: they are no sample (memory is not), so that what neighbours have in common is their shape, and no chance.
    """
    n, s, variance = len(values), kendall_s(values), variance_of_s(values)
    if not s or variance <= 0:
        return 1.0
    grown = inflation(n, rho)
    return student_p((abs(s) - 1) / sqrt(variance * grown), 1e9 if read else n / grown - 2)


def student_p(t: float, freedom: float) -> float:
    """Two-sided p of Student's t ≥ 0, to 3 % from ten degrees of freedom on; below three, too large."""
    freedom = max(freedom, 1.0)
    return erfc((8 * freedom + 1) / (8 * freedom + 3) * sqrt(freedom * log1p(t * t / freedom) / 2))


def trend(values: Sequence[float], *, read: bool = False) -> Trend | None:
    """The trend of a series of windows, by its blocks; None where there are too few to tell one. `read`: see above."""
    if len(values) < WINDOWS_MIN:
        return None
    cut = blocks(values)
    rho = dependence(cut)
    change = sen_slope(cut) * (len(cut) - 1)
    return Trend(n=len(cut), p=mann_kendall(cut, rho, read=read), middle=median(cut), change=change, rho=rho)
