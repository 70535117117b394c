"""Gaps of an answer and their counts: what is compiled says what Python says, value for value."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tokenswarm.compiled import compiled
from tokenswarm.measure import gaps
from tokenswarm.measure.sketch import Sketch, bucket_edge

BUILT = compiled("tokenswarm.measure._gaps")
MOST_NS = 2**63 - 1
EDGES = tuple(max(1, int(bucket_edge(key) * 1e9) + off) for key in range(-1913, 640, 7) for off in (-1, 0, 1))
"""What stands at the edges of buckets, where a rounding would move it."""


def assert_both_count_alike(gaps_ns: tuple[int, ...]) -> None:
    """Into a sketch that has counts already, and between the stamps that these gaps lie between."""
    assert gaps.IN_C is not None
    ours, plain = Sketch((0.001, 0.02, 3.0)), Sketch((0.001, 0.02, 3.0))
    counted = gaps.IN_C.count(gaps_ns, ours.counts)
    if counted is None:
        assert ours == plain, "it gave up, and had counted some"
        assert min(gaps_ns) <= 0 or sum(gaps_ns) > MOST_NS
    gaps.add_gaps(ours if counted is None else (ours := Sketch((0.001, 0.02, 3.0))), gaps_ns)
    plain.add_gaps(gaps_ns)
    assert ours == plain
    stamps = tuple(accumulate(gaps_ns, initial=1_000_000))
    between = gaps.IN_C.between(stamps)
    if between is None:
        assert min(gaps_ns) <= 0 or max(stamps) > MOST_NS or min(stamps) <= 0
    else:
        assert between == gaps_ns
        assert not gaps_ns or min(gaps_ns) > 0


@pytest.mark.skipif(not BUILT or gaps.IN_C is None, reason="not compiled here, or not wanted")
@given(st.lists(st.one_of(st.integers(1, 10**8), st.integers(-(2**70), 2**70), st.sampled_from(EDGES))).map(tuple))
@example(EDGES)
@example(())
@example((5,))
@example((MOST_NS - 2_000_000,))
@example((MOST_NS, 1))
@example((20_000_000,) * 1000 + (0,))
def test_what_is_compiled_counts_as_python_does(gaps_ns: tuple[int, ...]) -> None:
    assert_both_count_alike(gaps_ns)


@pytest.mark.skipif(not BUILT or gaps.IN_C is None, reason="not compiled here, or not wanted")
@pytest.mark.parametrize("numbers", [[1, 2], (1, "2"), (1, None, 3), None], ids=repr)
def test_what_are_no_numbers_is_an_error(numbers: Any) -> None:
    assert gaps.IN_C is not None
    with pytest.raises((TypeError, SystemError)):
        gaps.IN_C.count(numbers, {})
    with pytest.raises((TypeError, SystemError)):
        gaps.IN_C.between(numbers)


def test_a_stamp_that_runs_backwards_is_left_to_the_other_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what is compiled, and without."""
    for _ in range(2):
        assert gaps.plain_gaps((10, 20, 20)) is None
        assert gaps.plain_gaps((10, 20, 15)) is None
        assert gaps.plain_gaps((10, 20, 25)) == (10, 5)
        assert gaps.plain_gaps((10,)) == gaps.plain_gaps(()) == ()
        assert gaps.gaps_of((10, 20, 20, 35), None, None, {}) == ((10, 15), (), (2, 1), (10, 15), 1)
        monkeypatch.setattr(gaps, "IN_C", None)
