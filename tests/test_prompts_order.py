"""Shards: complete, disjoint, endless, and the same in every process."""

from __future__ import annotations

import os
import subprocess
import sys
from array import array
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenswarm.prompts.order import SeededOrder, Shard


def take(rows: int, index: int, count: int, seed: int | None, items: int) -> list[int]:
    return list(islice(Shard(lambda row: row, rows, index, count, seed), items))


@given(rows=st.integers(1, 40), count=st.integers(1, 12), seed=st.none() | st.integers(0, 5), epochs=st.integers(1, 3))
def test_the_shards_together_are_each_epoch_once(rows: int, count: int, seed: int | None, epochs: int) -> None:
    one = take(rows, 0, 1, seed, rows * epochs)
    for epoch in range(epochs):
        assert sorted(one[epoch * rows : (epoch + 1) * rows]) == list(range(rows))
    items = -(-rows * epochs // count)
    parts = [take(rows, index, count, seed, items) for index in range(count)]
    together = [parts[position % count][position // count] for position in range(rows * epochs)]
    assert together == one, "the stripes of n workers are the one sequence"
    assert all(amount == epochs for amount in Counter(together).values()), "no row is given to two workers"


def test_wraps_count_the_epochs() -> None:
    shard = Shard(lambda row: row, 4, 0, 3, 1)
    wraps = []
    for _ in range(8):
        next(shard)
        wraps.append(shard.wraps)
    assert wraps == [0, 0, 1, 2, 3, 3, 4, 5]  # positions 0 3 6 9 12 15 18 21 of epochs of 4


def test_each_epoch_and_each_seed_has_its_own_order() -> None:
    assert take(50, 0, 1, 1, 50) != take(50, 0, 1, 2, 50)
    twice = take(50, 0, 1, 1, 100)
    assert twice[:50] != twice[50:]
    assert take(5, 0, 1, None, 7) == [0, 1, 2, 3, 4, 0, 1]


def test_the_order_is_fair() -> None:
    """Each row comes first about equally often: 6,000 seeds over 6 rows, 1,000 each, give or take 5 sigma (144)."""
    first = Counter(SeededOrder(array("I", range(6)), seed, 0).at(0) for seed in range(6000))
    last = Counter(SeededOrder(array("I", range(6)), seed, 0).at(5) for seed in range(6000))
    assert all(abs(counts[row] - 1000) < 145 for counts in (first, last) for row in range(6))


def test_the_order_is_the_same_in_every_process_and_version() -> None:
    golden = [8, 6, 4, 5, 3, 0, 2, 7, 9, 1, 10, 11]
    assert take(12, 0, 1, 42, 12) == golden
    code = (
        "from tokenswarm.prompts.order import Shard\n"
        "shard = Shard(lambda row: row, 12, 0, 1, 42)\n"
        "print([next(shard) for _ in range(12)])"
    )
    for salt in ("0", "12345"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": salt},
            cwd=Path(__file__).parent.parent,
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        assert done.stdout.strip() == str(golden)


@pytest.mark.parametrize(("rows", "index", "count"), [(0, 0, 1), (5, 0, 0), (5, 3, 3), (5, -1, 3)])
def test_a_shard_that_cannot_be(rows: int, index: int, count: int) -> None:
    with pytest.raises(ValueError):
        Shard(lambda row: row, rows, index, count, 1)
