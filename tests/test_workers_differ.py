"""A worker that sees another server than the others is named, and workers that differ by chance are not."""

from __future__ import annotations

import random

import pytest

from tokenswarm.judge.rules.sample import _sum, _worse
from tokenswarm.measure.share import Share
from tokenswarm.measure.sketch import Sketch

USUAL = (200, 0, 0.05)


def share(ok: int, failed: int, ttft_s: float, seed: int = 0) -> Share:
    rng = random.Random(seed)
    return Share(ok=ok, failed=failed, ttft=Sketch(ttft_s * rng.lognormvariate(0, 0.3) for _ in range(ok)))


@pytest.mark.parametrize(
    ("own", "others", "told"),
    [
        ((200, 0, 0.25), [USUAL], "the median of TTFT is"),
        ((200, 0, 0.1), [USUAL] * 3, "the median of TTFT is"),
        ((0, 9, 0.05), [(51, 0, 0.05)], "9 of 9 requests failed, of the others 0 of 51"),
        ((150, 50, 0.05), [(199, 1, 0.05)] * 7, "50 of 200 requests failed, of the others 7 of 1400"),
        ((200, 0, 0.05), [(200, 0, 0.25)], ""),  # the other one is the slow one
        ((200, 0, 0.052), [USUAL], ""),
        ((200, 0, 0.059), [USUAL], ""),  # beyond chance, and not by so much
        ((900, 60, 0.05), [(990, 10, 0.05)], ""),  # nor this
        ((20, 0, 0.25), [USUAL], ""),  # too few to tell
        ((200, 0, 0.004), [(200, 0, 0.001)], ""),  # a few ms are the machine's
        ((190, 10, 0.05), [(192, 8, 0.05)], ""),
        ((0, 50, 0.05), [(0, 48, 0.05)], ""),
        ((0, 0, 0.05), [USUAL], ""),
        ((196, 4, 0.05), [USUAL], ""),
    ],
)
def test_who_is_worse_than_the_others_is_told(
    own: tuple[int, int, float], others: list[tuple[int, int, float]], told: str
) -> None:
    said = _worse(share(*own), _sum(share(*one, seed=1 + n) for n, one in enumerate(others)), 0.3)
    assert said.startswith(told) if told else said == ""


def test_chance_makes_no_worker_worse() -> None:
    rng = random.Random(7)
    for seed in range(200):
        one, other = (share(300, sum(rng.random() < 0.1 for _ in range(300)), 0.05, seed * 2 + n) for n in (0, 1))
        assert _worse(one, other, 0.5) == _worse(other, one, 0.5) == ""
