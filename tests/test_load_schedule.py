"""Schedules in virtual time: rates, gap distributions, ramps, stripes."""

from __future__ import annotations

import itertools
from math import exp

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenswarm.load.kinds import KINDS
from tokenswarm.load.rate import Rate
from tokenswarm.load.schedule import schedule, stripe

RATES = st.floats(0.01, 2000)


def moments(kind: str, rate: Rate, n: int, *, seed: int = 1, burstiness: float = 1.0) -> list[float]:
    found = schedule(kind, rate, seed=seed, stage=0, burstiness=burstiness)
    return [arrival.at_s for arrival in itertools.islice(found, n)]


def gaps(times: list[float]) -> list[float]:
    return [later - sooner for sooner, later in itertools.pairwise([0.0, *times])]


def kolmogorov(sample: list[float], cdf: object) -> float:
    """Largest distance of the sample's distribution from `cdf`, times √n: above 1.63 with chance 1 %."""
    ordered, n = sorted(sample), len(sample)
    distance = max(max((i + 1) / n - cdf(x), cdf(x) - i / n) for i, x in enumerate(ordered))  # type: ignore[operator]
    return distance * n**0.5


def test_constant_is_constant() -> None:
    assert moments("constant", Rate(20, 20), 5) == pytest.approx([0, 0.05, 0.10, 0.15, 0.20])


def test_poisson_gaps_are_exponential_and_gamma_of_one_is_poisson() -> None:
    for kind in ("poisson", "gamma"):
        found = gaps(moments(kind, Rate(50, 50), 20_000))
        assert kolmogorov(found, lambda x: 1 - exp(-50 * x)) < 1.63


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_burstiness_is_the_shape(burstiness: float) -> None:
    found = gaps(moments("gamma", Rate(10, 10), 40_000, burstiness=burstiness))
    mean = sum(found) / len(found)
    variance = sum((gap - mean) ** 2 for gap in found) / len(found)
    assert mean == pytest.approx(0.1, rel=0.05)
    assert variance / mean**2 == pytest.approx(1 / burstiness, rel=0.1)


@given(RATES, RATES, st.floats(0, 60), st.floats(0.001, 600), st.floats(0, 1))
def test_the_moment_is_the_inverse_of_what_is_due(
    first: float, last: float, lead: float, ramp: float, x: float
) -> None:
    rate = Rate(first, last, lead, ramp)
    t = x * (lead + ramp) * 1.5
    assert rate.moment(rate.due(t)) == pytest.approx(t, rel=1e-6, abs=1e-9)


def test_a_ramp_sends_the_mean_of_its_rates_and_changes_at_its_moment() -> None:
    times = moments("constant", Rate(5, 80, lead_s=10, ramp_s=600), 40_000)
    assert sum(t < 10 for t in times) == 50
    assert sum(10 <= t < 610 for t in times) == pytest.approx(42.5 * 600, abs=1)
    assert gaps([t - 610 for t in times if t >= 610][1:50])[1:] == pytest.approx([1 / 80] * 48)


def test_a_rate_that_falls_to_nothing_ends() -> None:
    times = moments("constant", Rate(10, 0, lead_s=0, ramp_s=10), 1000)
    assert len(times) == 50
    assert times[-1] < 10


@given(st.sampled_from(sorted(KINDS)), st.integers(1, 17), st.integers(0, 5))
def test_the_workers_together_send_the_schedule_of_one(kind: str, workers: int, seed: int) -> None:
    rate = Rate(3, 30, lead_s=1, ramp_s=20)
    one = list(itertools.islice(schedule(kind, rate, seed=seed, stage=2, burstiness=0.5), 200))
    parts = [
        itertools.islice(stripe(schedule(kind, rate, seed=seed, stage=2, burstiness=0.5), i, workers), 200)
        for i in range(workers)
    ]
    union = sorted(itertools.chain(*parts), key=lambda arrival: arrival.number)
    assert union[:200] == one
    assert [arrival.at_s for arrival in one] == sorted(arrival.at_s for arrival in one)


def test_a_seed_is_a_schedule_and_stages_differ() -> None:
    def first(**words: int) -> float:
        return next(schedule("poisson", Rate(1, 1), **words)).at_s

    assert first(seed=1, stage=0) == first(seed=1, stage=0)
    assert len({first(seed=1, stage=0), first(seed=1, stage=1), first(seed=2, stage=0)}) == 3


@pytest.mark.parametrize(("index", "count"), [(-1, 2), (2, 2), (0, 0)])
def test_no_such_worker(index: int, count: int) -> None:
    with pytest.raises(ValueError):
        stripe([], index, count)
