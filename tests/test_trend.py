"""Mann–Kendall's test against all orders, Sen's slope against hand-made lines, and how often both are wrong."""

from __future__ import annotations

import math
import random
from itertools import permutations

import pytest

from tokenswarm.measure import trend
from tokenswarm.measure.statistics import holm
from tokenswarm.measure.trend import (
    ALPHA,
    CHANGE_MIN,
    WINDOWS_MIN,
    blocks,
    dependence,
    inflation,
    kendall_s,
    mann_kendall,
    sen_slope,
    student_p,
    variance_of_s,
)

TIED = [(3, 1, 2, 5, 4), (1, 1, 2, 3, 3, 3), (0, 0, 0, 0, 1), (2, 2, 2, 2)]


def noisy(n: int, rho: float, spread: float, change: float, chance: random.Random) -> list[float]:
    """A series around 1 of an AR(1) process, which gains `change` from its first value to its last."""
    at, found = chance.gauss(0, spread), []
    for place in range(n):
        found.append(math.exp(at + math.log1p(change) * place / (n - 1)))
        at = rho * at + chance.gauss(0, spread * math.sqrt(1 - rho * rho))
    return found


@pytest.mark.parametrize("values", TIED, ids=str)
def test_the_variance_of_s_is_that_over_all_orders_ties_included(values: tuple[float, ...]) -> None:
    every = [kendall_s(order) for order in permutations(values)]
    assert sum(every) == 0
    assert variance_of_s(values) == pytest.approx(sum(s * s for s in every) / len(every))


@pytest.mark.parametrize(
    ("freedom", "t", "p"),  # of any table
    [(5, 2.571, 0.05), (5, 6.869, 0.001), (10, 3.169, 0.01), (10, 4.587, 0.001), (46, 3.515, 0.001)],
)
def test_the_p_of_students_t_is_that_of_the_tables(freedom: int, t: float, p: float) -> None:
    assert student_p(t, freedom) == pytest.approx(p, rel=0.03 if freedom >= 10 else 0.1)


def test_fewer_independent_values_take_a_steeper_trend() -> None:
    assert student_p(3.0, 1e9) == pytest.approx(math.erfc(3 / math.sqrt(2)))
    for fewer, more in ((-2.0, 3.0), (3.0, 10.0), (10.0, 50.0)):
        assert student_p(3.0, fewer) > student_p(3.0, more)
    rising = list(range(48))
    expected = student_p((1128 - 1) / math.sqrt(48 * 47 * 101 / 18), 46)
    assert mann_kendall(rising) == pytest.approx(expected, rel=1e-9, abs=0)


def test_what_is_all_alike_has_no_trend() -> None:
    assert mann_kendall([2.0] * 30) == 1.0
    assert sen_slope([2.0] * 30) == 0.0
    found = trend.trend([0.0] * 300)
    assert found is not None
    assert (found.p, found.change, found.relative) == (1.0, 0.0, None)


def test_sens_slope_is_not_moved_by_a_few_that_stand_out() -> None:
    line = [10 + 0.5 * at for at in range(21)]
    assert sen_slope(line) == pytest.approx(0.5)
    for at in (3, 4, 5, 6):
        line[at] = 1000.0
    assert sen_slope(line) == pytest.approx(0.5)


def test_blocks_are_medians_of_an_hour_and_fewer_in_a_shorter_run() -> None:
    assert blocks([float(at // 12) for at in range(1152)]) == [float(hour) for hour in range(96)]
    assert len(blocks([1.0] * 288)) == len(blocks([1.0] * 144)) == 48
    assert len(blocks([1.0] * 72)) == 72
    assert blocks([99.0, *[1.0, 2.0, 3.0] * 48])[0] == 2.0, "what does not fill a block is left out at the begin"
    assert trend.trend([1.0] * WINDOWS_MIN) is not None
    assert trend.trend([1.0] * (WINDOWS_MIN - 1)) is None


def test_a_trend_does_not_shrink_the_sample_that_convicts_it() -> None:
    """Dependence is looked for without the trend, so a steeper one is as independent, and surer."""
    noise = noisy(48, 0.0, 0.01, 0.0, random.Random(4))
    before = 1.0
    for change in (0.02, 0.05, 0.2, 1.0):
        values = [value + change * at / 47 for at, value in enumerate(noise)]
        assert dependence(values) == pytest.approx(dependence(noise), abs=0.1)
        p = mann_kendall(values, dependence(values))
        assert p <= before
        before = p
    assert before < 1e-6


def test_values_that_depend_on_each_other_count_for_less() -> None:
    assert inflation(24, 0.0) == 1.0
    assert 1.0 < inflation(24, 0.3) < inflation(24, 0.6) < inflation(24, 0.9)
    values = list(range(24))
    assert mann_kendall(values, 0.8) > mann_kendall(values, 0.0)
    found = [dependence(noisy(200, 0.8, 0.1, 0.0, random.Random(seed))) for seed in range(20)]
    assert sum(found) / len(found) == pytest.approx(0.8, abs=0.08)


def flagged(rho: float, change: float, runs: int, *, seed: int, windows: int = 288) -> int:
    """Of so many runs (a day of five-minute windows), with ten series each: in how many is a drift flagged?"""
    count = 0
    for number in range(runs):
        chance = random.Random(1000 * seed + number)
        spreads = [0.03] * 4 + [0.1] * 4 + [0.02] * 2  # medians, tails, rates; the first ones drift
        found = [trend.trend(noisy(windows, rho, s, change if s == 0.03 else 0.0, chance)) for s in spreads]
        known = [one for one in found if one is not None]
        rare = holm({place: one.p for place, one in enumerate(known)}, ALPHA)
        count += any(rare[place] and abs(one.relative or 0) >= CHANGE_MIN for place, one in enumerate(known))
    return count


def test_five_percent_in_a_day_are_flagged_and_none_are_not() -> None:
    """σ of a window's median is 3 %; docs/soak.md has the rates over more seeds."""
    assert flagged(0.0, 0.0, 60, seed=1) <= 1
    assert flagged(0.5, 0.0, 60, seed=2) <= 1
    assert flagged(0.0, 0.05, 20, seed=3) == 20
    assert flagged(0.5, 0.05, 20, seed=4) >= 16
    assert flagged(0.0, -0.05, 10, seed=5) == 10


def test_a_shorter_run_whose_windows_depend_on_each_other_does_not_cry_wolf() -> None:
    """ρ = 0.8; with fewer windows, with half as many blocks and the normal distribution it was one run in six."""
    assert flagged(0.8, 0.0, 60, seed=6, windows=WINDOWS_MIN) <= 4
    assert flagged(0.8, 0.0, 30, seed=7, windows=96) <= 1
