"""The sample-size rules against published tables, exact arithmetic and simulations with known answers."""

from __future__ import annotations

import random
import statistics as stdlib
from fractions import Fraction
from math import comb

import pytest

from tokenswarm.measure.statistics import (
    binomial_cdf,
    binomial_gate,
    effective_n,
    enough,
    lag1_beside_a_line,
    lag1_rank_correlation,
    median,
    mser5,
    pearson,
    ranks,
    samples_needed,
)

T = (0, 1, 2, 5, 10, 20)
TABLE = {
    (0.9, 0.99): (44, 64, 81, 127, 197, 325),
    (0.95, 0.99): (90, 130, 165, 259, 398, 656),
    (0.99, 0.99): (459, 662, 838, 1307, 2010, 3304),
    (0.999, 0.99): (4603, 6636, 8403, 13105, 20140, 33097),
    (0.95, 0.95): (59, 93, 124, 208, 336, 577),
    (0.99, 0.95): (299, 473, 628, 1049, 1693, 2902),
}


@pytest.mark.parametrize("key", TABLE, ids=str)
def test_samples_needed_is_the_published_table(key: tuple[float, float]) -> None:
    assert tuple(samples_needed(key[0], t, key[1]) for t in T) == TABLE[key]


@pytest.mark.parametrize(("t", "n", "q"), [(0, 10, 0.1), (3, 50, 0.01), (49, 50, 0.99), (25, 50, 0.5), (7, 300, 0.05)])
def test_binomial_cdf_equals_exact_fractions(t: int, n: int, q: float) -> None:
    share = Fraction(q)
    exact = sum(comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(t + 1))
    assert binomial_cdf(t, n, q) == pytest.approx(float(exact), rel=1e-11)


def test_binomial_cdf_at_its_ends_and_far_out() -> None:
    assert binomial_cdf(-1, 5, 0.1) == 0.0
    assert binomial_cdf(5, 5, 0.1) == 1.0
    assert binomial_cdf(10, 10_000_000, 0.01) == 0.0  # underflows to 0, not to an error
    assert binomial_cdf(100_000, 10_000_000, 0.01) == pytest.approx(0.5, abs=0.01)


def test_effective_n() -> None:
    assert effective_n(100, 0.0) == 100
    assert effective_n(90, 0.5) == pytest.approx(30)
    assert effective_n(100, -0.9) == 100  # never more than there are
    assert effective_n(100, 1.0) == 0


def test_a_percentile_needs_n1_effective_samples() -> None:
    assert (enough(0.95, 129), enough(0.95, 130)) == (False, True)
    assert (enough(0.99, 661), enough(0.99, 662)) == (False, True)
    assert not enough(0.99, 662, rho=0.1)
    assert enough(0.99, 662 * 3, rho=0.5)
    assert not enough(0.5, 0)


@pytest.mark.parametrize(
    ("violations", "n", "rho", "result"),
    [
        (0, 459, 0.0, "pass"),
        (0, 458, 0.0, "inconclusive"),
        (1, 662, 0.0, "pass"),
        (1, 661, 0.0, "inconclusive"),
        (10, 1000, 0.0, "inconclusive"),  # exactly 1 %
        (18, 1000, 0.0, "inconclusive"),  # P(18 or more) = 1.4 %
        (19, 1000, 0.0, "fail"),  # 0.7 %
        (5, 5, 0.0, "fail"),
        (0, 0, 0.0, "fail"),
        (0, 459, 0.2, "inconclusive"),
        (30, 1000, 0.9, "inconclusive"),
    ],
)
def test_the_gate_for_99_percent(violations: int, n: int, rho: float, result: str) -> None:
    assert binomial_gate(0.99, violations, n, rho) == result


def test_more_violations_never_better_a_gate() -> None:
    order = {"pass": 0, "inconclusive": 1, "fail": 2}
    results = [order[binomial_gate(0.95, t, 400, 0.1)] for t in range(60)]
    assert results == sorted(results)
    assert set(results) == {0, 1, 2}


def test_the_gate_errs_at_most_as_often_as_it_says() -> None:
    rng, p = random.Random(5), 0.95
    wrong = {"pass": 0, "fail": 0}
    for _ in range(1000):
        bad = sum(rng.random() < 0.0505 for _ in range(300))  # the truth is just outside
        wrong["pass"] += binomial_gate(p, bad, 300) == "pass"
        good = sum(rng.random() < 0.0495 for _ in range(300))  # just inside
        wrong["fail"] += binomial_gate(p, good, 300) == "fail"
    assert max(wrong.values()) <= 25  # 1 % of 1000, and three standard deviations


def test_ranks_share_ties() -> None:
    assert ranks([3.0, 1.0, 3.0, 2.0]) == [3.5, 1.0, 3.5, 2.0]
    assert ranks([]) == []


def test_pearson_against_the_standard_library_and_degenerate_cases() -> None:
    rng = random.Random(2)
    xs = [rng.random() for _ in range(50)]
    ys = [x + rng.random() for x in xs]
    assert pearson(xs, ys) == pytest.approx(stdlib.correlation(xs, ys))
    assert pearson([1, 2], [1, 2]) == 0.0
    assert pearson([1, 1, 1], [1, 2, 3]) == 0.0


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_lag1_correlation_finds_that_of_an_ar1_series(rho: float) -> None:
    rng, x, values = random.Random(7), 0.0, []
    for _ in range(4000):
        x = rho * x + rng.gauss(0, 1)
        values.append(2.718**x)  # rank correlation does not mind the scale
    assert lag1_rank_correlation(values) == pytest.approx(rho, abs=0.05)


def test_mser5_cuts_a_transient_and_leaves_a_steady_series_alone() -> None:
    rng = random.Random(11)
    steady = [10 + rng.gauss(0, 1) for _ in range(900)]
    transient = [30 + rng.gauss(0, 1) for _ in range(100)]
    assert mser5(transient + steady) == pytest.approx(100, abs=10)
    assert mser5(steady) < len(steady) / 3
    assert mser5([1.0] * 1000) == 0


def test_mser5_says_never_steady_of_a_ramp_and_nothing_of_a_short_series() -> None:
    assert mser5([float(i) for i in range(600)]) >= 600 / 3
    assert mser5([5.0] + [1.0] * 48) == 0


def test_mser5_is_the_formula() -> None:
    rng = random.Random(4)
    values = [rng.random() + (2 if i < 40 else 0) for i in range(203)]
    batches = [sum(values[i : i + 5]) / 5 for i in range(0, 200, 5)]
    m = len(batches)
    scores = {d: stdlib.pvariance(batches[d:]) / (m - d) for d in range(m) if d < m / 2}
    assert mser5(values) == 5 * min(scores, key=scores.__getitem__)


def test_the_median_is_one_of_the_values() -> None:
    assert median([3, 1, 2, 4]) == 2
    with pytest.raises(ValueError, match="no median"):
        median([])


@pytest.mark.parametrize("rho", [0.0, 0.8])
def test_a_trend_is_no_correlation_beside_its_line(rho: float) -> None:
    rng, x, values = random.Random(5), 0.0, []
    for at in range(2000):
        x = rho * x + (1 - rho**2) ** 0.5 * rng.gauss(0, 1)
        values.append(x + at / 100)
    assert lag1_rank_correlation(values) > 0.9
    assert lag1_beside_a_line(ranks(values)) == pytest.approx(rho, abs=0.08)
    assert lag1_beside_a_line([1.0] * 20) == lag1_beside_a_line([]) == 0.0
