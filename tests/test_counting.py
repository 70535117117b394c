"""What is counted of every answer: what is compiled says what Python says, value for value."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from itertools import accumulate
from math import inf, isclose, nan
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tokenswarm.measure import counting
from tokenswarm.measure.gaps import gaps_of
from tokenswarm.measure.sketch import Sketch, bucket_edge

MOST_NS = 2**63 - 1
BEFORE = (0.001, 0.02, 3.0)
EDGES = tuple(max(1, int(bucket_edge(key) * 1e9) + off) for key in range(-1913, 640, 7) for off in (-1, 0, 1))
"""What stands at the edges of buckets, where a rounding would move it."""

needs_c = pytest.mark.skipif(counting.IN_C is None, reason="not compiled here, or not wanted")


def in_python(function: Callable[..., Any], *arguments: Any) -> Any:
    compiled, counting.IN_C = counting.IN_C, None
    try:
        return function(*arguments)
    finally:
        counting.IN_C = compiled


def add_gaps(sketch: Sketch, gaps_ns: tuple[int, ...]) -> None:
    """Of some answers, the first counted by itself."""
    gaps = counting.Gaps()
    gaps.add(gaps_ns[:3])
    gaps.move([sketch])
    for some in (gaps_ns[3:5], (), gaps_ns[5:]):
        gaps.add(some)
    gaps.move([sketch])
    gaps.move([sketch])


def both_counted(add: Callable[[Sketch, Any], None], values: Any) -> tuple[Sketch, Sketch]:
    ours, plain = Sketch(BEFORE), Sketch(BEFORE)
    add(ours, values)
    in_python(add, plain, values)
    return ours, plain


def assert_both_count_alike(gaps_ns: tuple[int, ...]) -> None:
    """Gaps, into a sketch that has counts already; the stamps that they lie between; what a row says of them."""
    ours, plain = both_counted(add_gaps, gaps_ns)
    assert ours == plain
    stamps = tuple(accumulate(gaps_ns, initial=1_000_000))
    expected = in_python(counting.between, stamps)
    assert counting.between(stamps) == expected == (None if min(gaps_ns, default=1) <= 0 else gaps_ns)
    if gaps_ns:
        assert counting.spread(gaps_ns) == in_python(counting.spread, gaps_ns)
    pairs, *sums = counting.log_sums(gaps_ns)
    expected_pairs, *expected_sums = in_python(counting.log_sums, gaps_ns)
    assert pairs == expected_pairs
    for found, wanted in zip(sums, expected_sums, strict=True):
        assert isclose(found, wanted, rel_tol=1e-12)


@needs_c
@given(st.lists(st.one_of(st.integers(1, 10**8), st.integers(-(2**70), 2**70), st.sampled_from(EDGES))).map(tuple))
@example(EDGES)
@example(())
@example((5,))
@example((MOST_NS - 2_000_000,))
@example((MOST_NS, 1))
@example((20_000_000,) * 1000 + (0,))
@example(tuple(range(1, 1000)) + tuple(range(1000, 0, -1)))
def test_what_is_compiled_counts_gaps_as_python_does(gaps_ns: tuple[int, ...]) -> None:
    assert_both_count_alike(gaps_ns)


@needs_c
@given(st.lists(st.one_of(st.floats(), st.floats(1e-6, 1e3), st.integers(1, 10**6))))
@example([128, 64, 1])
@example([0.1, nan])
@example([nan, 0.1])
@example([0.1, inf, 5e-324])
@example([0.1, 0.0])
def test_what_is_compiled_counts_values_as_python_does(values: list[float]) -> None:
    ours, plain = both_counted(counting.add_values, values)
    assert ours == plain or repr(ours.sum) == repr(plain.sum) == "nan"
    assert (type(ours.min), type(ours.max), ours.counts) == (type(plain.min), type(plain.max), plain.counts)


@needs_c
def test_what_is_left_to_python_has_counted_nothing() -> None:
    assert counting.IN_C is not None
    table, counts = array("I", bytes(4 * counting.IN_C.KEYS)), dict[int, int]()
    for odd in ((20_000_000, 0), (MOST_NS, 1), (2**64,)):
        assert counting.IN_C.count(odd, table) is None
    assert not any(table)
    assert counting.IN_C.count_values([0.1, 0.0], counts) is False
    assert counts == {}
    with pytest.raises(ValueError, match="not a table of counts"):
        counting.IN_C.count((1,), array("I", [0]))


@needs_c
@pytest.mark.parametrize("numbers", [[1, 2], (1, "2"), (1, None, 3), None], ids=repr)
def test_what_are_no_numbers_is_an_error(numbers: Any) -> None:
    assert counting.IN_C is not None
    table = array("I", bytes(4 * counting.IN_C.KEYS))
    for function, more in (("count", (table,)), ("between", ()), ("spread", ()), ("log_sums", ())):
        with pytest.raises((TypeError, SystemError)):
            getattr(counting.IN_C, function)(numbers, *more)


def test_a_stamp_that_runs_backwards_is_left_to_the_other_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what is compiled, and without."""
    for _ in range(2):
        assert counting.between((10, 20, 20)) is None
        assert counting.between((10, 20, 15)) is None
        assert counting.between((10, 20, 25)) == (10, 5)
        assert counting.between((10,)) == counting.between(()) == ()
        assert gaps_of((10, 20, 20, 35), None, None, {}) == ((10, 15), (), (2, 1), (10, 15), 1)
        monkeypatch.setattr(counting, "IN_C", None)
