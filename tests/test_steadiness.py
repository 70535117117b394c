"""How often a server whose answers only wander is called unsteady, by the rule itself, and that a change is found."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable

import pytest

from tokenswarm.clock import NS_PER_S
from tokenswarm.judge.rules.sample import _drift
from tokenswarm.measure.series import SERIES, Series
from tokenswarm.measure.sketch import Sketch
from tokenswarm.measure.snapshot import Block

N = 500

Make = Callable[[random.Random], list[float]]


def constant(rng: random.Random) -> list[float]:
    return [0.1 * (1 + rng.gauss(0, 0.005)) for _ in range(N)]


def one_stands_out(rng: random.Random) -> list[float]:
    values = constant(rng)
    values[rng.randrange(N)] = 1.0
    return values


def a_few_stand_out(rng: random.Random) -> list[float]:
    return [0.5 if rng.random() < 0.01 else value for value in constant(rng)]


def waits_in_a_queue(rng: random.Random) -> list[float]:
    """TTFT of one server at 80 % of what it carries, arrivals at random: neighbours wait together."""
    free = now = 0.0
    values = []
    for _ in range(N + 200):
        now += rng.expovariate(0.8 / 0.2)
        begin = max(now, free)
        values.append(begin - now + 0.02)
        free = begin + 0.2 * rng.lognormvariate(-0.125, 0.5)
    return values[200:]


def slower_by_a_twelfth(rng: random.Random) -> list[float]:
    return [value * (1.08 if at > N / 2 else 1) for at, value in enumerate(constant(rng))]


def ever_slower(rng: random.Random) -> list[float]:
    return [value * (1 + 0.2 * at / N) for at, value in enumerate(constant(rng))]


def a_long_start(rng: random.Random) -> list[float]:
    return [value * (1.04 if at < 0.4 * N else 1) for at, value in enumerate(constant(rng))]


def judged(make: Make, runs: int) -> list[str | None]:
    """What the rule says of so many windows of 90 s."""
    said: list[str | None] = []
    for seed in range(runs):
        series, block = Series(), Block(stage=0, phase="steady", window_ns=90 * NS_PER_S)
        values = make(random.Random(seed))
        series.intended_ns = array("q", range(len(values)))
        series.values = {metric: array("d", values) for metric in SERIES}
        block.ttft = Sketch(values)
        series.describe(block)
        said.append(_drift(block, "ttft")[0])
    return said


@pytest.mark.parametrize("make", [constant, one_stands_out, a_few_stand_out, waits_in_a_queue])
def test_what_only_wanders_is_steady(make: Make) -> None:
    said = judged(make, 100)
    assert said.count("invalid") == 0
    assert said.count("degraded") <= 2
    assert said.count("note") <= 6


@pytest.mark.parametrize(
    ("make", "severity"), [(slower_by_a_twelfth, "degraded"), (ever_slower, "degraded"), (a_long_start, "note")]
)
def test_a_change_is_found_each_time(make: Make, severity: str) -> None:
    assert judged(make, 10) == [severity] * 10
