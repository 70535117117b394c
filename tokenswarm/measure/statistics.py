"""When a number may be printed, and when a gate may be decided: exact binomial rules, no approximation, no scipy.

MLPerf's early stopping without a margin: with t violations among n independent requests, "a share of at least p is
within the limit" holds with confidence 99 % where BinomCDF(t; n, 1−p) ≤ 1 %. Dependent requests count less:
n_eff = n(1−ρ)/(1+ρ), ρ = lag-1 rank correlation in arrival order. Warm-up: MSER-5 (White, 1997).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from math import ceil, exp, floor, fsum, lgamma, log, log1p
from typing import Literal, TypeVar

CONFIDENCE = 0.99
MSER_BATCH = 5
SLOW_FIRST, SLOW_FIRST_S, SLOW_FIRST_N = 5.0, 0.1, 8  # times the median, seconds above it; values
SLOW_SPELL = 6

Name = TypeVar("Name", bound=Hashable)
GateResult = Literal["pass", "fail", "inconclusive"]


def _log_pmf(k: int, n: int, q: float) -> float:
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1) + k * log(q) + (n - k) * log1p(-q)


def binomial_cdf(t: int, n: int, q: float) -> float:
    """P(X ≤ t) for X ~ Binomial(n, q), 0 < q < 1. Sums the smaller tail from its largest term until terms vanish."""
    if t < 0:
        return 0.0
    if t >= n:
        return 1.0
    if t < (n + 1) * q:
        return min(1.0, _tail(t, n, q, down=True))
    return max(0.0, 1.0 - _tail(t + 1, n, q, down=False))


def _tail(k: int, n: int, q: float, *, down: bool) -> float:
    """Σ pmf from k to 0 (down) or to n, relative to the first term, so that nothing underflows on the way."""
    odds = q / (1.0 - q)
    scale, term, terms = _log_pmf(k, n, q), 1.0, [1.0]
    while term > 1e-18 and (k > 0 if down else k < n):
        term *= k / ((n - k + 1) * odds) if down else (n - k) * odds / (k + 1)
        k += -1 if down else 1
        terms.append(term)
    return exp(scale) * fsum(terms)


@lru_cache(maxsize=1024)
def samples_needed(p: float, t: int = 1, confidence: float = CONFIDENCE) -> int:
    """n(t): the smallest n with BinomCDF(t; n, 1−p) ≤ 1−confidence. n(1): p95 130, p99 662, p99.9 6 636."""
    q, alpha = 1.0 - p, 1.0 - confidence + 1e-15
    low, high = t, t + 1  # CDF(low) > alpha ≥ CDF(high), once high is found; CDF falls as n grows
    while binomial_cdf(t, high, q) > alpha:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if binomial_cdf(t, middle, q) > alpha else (low, middle)
    return high


def effective_n(n: int, rho: float) -> float:
    """n(1−ρ)/(1+ρ) with ρ ≥ 0: how many independent requests these n are worth."""
    rho = min(max(rho, 0.0), 1.0)
    return n * (1.0 - rho) / (1.0 + rho)


def enough(p: float, n: int, rho: float = 0.0) -> bool:
    """May percentile p be printed? True from n_eff ≥ n(1)."""
    return effective_n(n, rho) >= samples_needed(p)


@lru_cache(maxsize=4096)
def rank_interval(p: float, n: int) -> tuple[float, float]:
    """Between which ranks of a sample of `n`, as shares of it, percentile p of what it is taken from lies, at 99 %.

    The order statistics l and u with P(X < l) and P(X ≥ u) ≤ 0.5 %, X ~ Binomial(n, p): how many lie below it.
    """
    if n < 1:
        return 0.0, 1.0
    alpha = (1.0 - CONFIDENCE) / 2
    low, high = 0, n  # the largest l with P(X ≤ l − 1) ≤ alpha
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if binomial_cdf(middle - 1, n, p) <= alpha else (low, middle - 1)
    first = low
    low, high = 0, n  # the smallest u with P(X ≤ u − 1) ≥ 1 − alpha
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if binomial_cdf(middle - 1, n, p) >= 1.0 - alpha else (middle + 1, high)
    return first / n, low / n


def binomial_gate(p: float, violations: int, n: int, rho: float = 0.0) -> GateResult:
    """Is "a share of at least p of n requests is within the limit" shown, refuted, or neither, at 99 %?

    `violations` counts the requests beyond the limit and those that failed or were censored; `n` counts them all.
    Violations shrink with the sample: t = ⌈violations·n_eff/n⌉. No requests: fail, since nothing was shown.
    """
    if n <= 0:
        return "fail"
    independent = effective_n(n, rho)
    t = ceil(violations * independent / n * (1 - 1e-12))
    whole, q, alpha = floor(independent * (1 + 1e-12)), 1.0 - p, 1.0 - CONFIDENCE + 1e-15
    if binomial_cdf(t, whole, q) <= alpha:
        return "pass"
    return "fail" if 1.0 - binomial_cdf(t - 1, whole, q) <= alpha else "inconclusive"


def ranks(values: Sequence[float]) -> list[float]:
    """Rank of each value, 1..n; equal values share the mean of their ranks."""
    order = sorted(range(len(values)), key=values.__getitem__)
    result, start = [0.0] * len(values), 0
    while start < len(order):
        end = start
        while end < len(order) and values[order[end]] == values[order[start]]:
            end += 1
        for position in order[start:end]:
            result[position] = (start + end + 1) / 2
        start = end
    return result


def pearson(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Correlation in −1..1; 0 where there are fewer than 3 pairs, or where one side is constant."""
    n = len(xs)
    if n < 3:
        return 0.0
    mean_x, mean_y = fsum(xs) / n, fsum(ys) / n
    xx = fsum((x - mean_x) ** 2 for x in xs)
    yy = fsum((y - mean_y) ** 2 for y in ys)
    xy = fsum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    return max(-1.0, min(1.0, xy / (xx * yy) ** 0.5)) if xx > 0 and yy > 0 else 0.0


def lag1_rank_correlation(values: Sequence[float]) -> float:
    """Spearman's ρ of (v_i, v_{i+1}); `values` in arrival order."""
    ranked = ranks(values)
    return pearson(ranked[:-1], ranked[1:])


def lag1_beside_a_line(ranked: Sequence[float]) -> float:
    """The same without a trend: of what ranks differ by from a straight line through them."""
    middle = (len(ranked) - 1) / 2
    spread = fsum((i - middle) ** 2 for i in range(len(ranked))) or 1.0
    slope = fsum((i - middle) * rank for i, rank in enumerate(ranked)) / spread
    left = [rank - slope * i for i, rank in enumerate(ranked)]
    return pearson(left[:-1], left[1:])


def mser5(values: Sequence[float]) -> int:
    """How many leading values are transient: MSER-5, a multiple of 5; `values` in arrival order.

    Batch means z of 5; d* = argmin over d < m/2 of Var(z_{d+1..m})/(m−d). A cut of m/3 batches or more means that
    the series never became steady. 0 where there are fewer than 10 batches.
    """
    batches = [
        fsum(values[i : i + MSER_BATCH]) / MSER_BATCH for i in range(0, len(values) - MSER_BATCH + 1, MSER_BATCH)
    ]
    m = len(batches)
    if m < 10:
        return 0
    centre = fsum(batches) / m  # keeps the sums of squares small against their difference
    best_d, best, total, squares = 0, float("inf"), 0.0, 0.0
    for d in range(m - 1, -1, -1):
        z = batches[d] - centre
        total, squares = total + z, squares + z * z
        kept = m - d
        score = max(0.0, squares - total * total / kept) / (kept * kept)
        if d < m / 2 and score <= best:
            best_d, best = d, score
    return best_d * MSER_BATCH


def slow_first(values: Sequence[float]) -> list[float]:
    """Values (s, in arrival order) of another kind than all others, most of them early; [] where there are none.

    They are SLOW_FIRST times the median of the second half and SLOW_FIRST_S above it, a fifth of all at most, and what
    happens once. Either they are 4 times the largest of the rest (so no tail), and half of them lie in the first
    quarter; or, of those who came while something was made ready and waited a part of it, there are SLOW_SPELL in the
    first quarter, none later, and the longest is twice the largest of the rest. Of 1 000 simulated runs with nothing
    cold (three rooflines and a paced engine, closed and open loops) that names none, but pauses of the machine itself.
    """
    if len(values) < 2 * SLOW_FIRST_N:
        return []
    usual = median(values[len(values) // 2 :])
    limit = max(SLOW_FIRST * usual, usual + SLOW_FIRST_S)
    at = [place for place, value in enumerate(values) if value >= limit]
    quarter = len(values) / 4
    if not at or len(at) > len(values) / 5 or at[(len(at) - 1) // 2] >= quarter:
        return []
    slow, rest = [values[place] for place in at], max(value for value in values if value < limit)
    spell = len(at) >= SLOW_SPELL and at[-1] < quarter and max(slow) >= 2 * rest
    return slow if spell or min(slow) >= 4 * rest else []


def median(values: Sequence[float]) -> float:
    """The lower median (nearest rank), as in every quantile here. ValueError where there is none."""
    if not values:
        raise ValueError("no median of nothing")
    return sorted(values)[(len(values) - 1) // 2]


def holm(ps: Mapping[Name, float], alpha: float) -> dict[Name, bool]:
    """Which of these tests stand at level `alpha` for all of them together (S. Holm, 1979), in order of their p."""
    kept: dict[Name, bool] = {}
    standing = True
    for place, name in enumerate(sorted(ps, key=lambda name: ps[name])):
        standing = standing and ps[name] <= alpha / (len(ps) - place) + 1e-12
        kept[name] = standing
    return kept
