"""The sketch keeps its promises: the stated error, exact counts, merging in any order, folding without loss."""

from __future__ import annotations

import math
import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenswarm.measure.sketch import RELATIVE_ERROR, Sketch, SketchWire, Tally, bucket_edge

SECONDS = st.floats(min_value=1e-9, max_value=1e6)
SAMPLES = st.lists(SECONDS, min_size=1, max_size=60)
QS = (0.0, 0.01, 0.25, 0.5, 0.9, 0.95, 0.99, 0.999, 1.0)


def nearest_rank(values: list[float], q: float) -> float:
    return sorted(values)[max(1, math.ceil(q * len(values) - 1e-9)) - 1]


@given(SAMPLES)
def test_quantiles_are_within_the_stated_error(values: list[float]) -> None:
    sketch = Sketch(values)
    for q, found in zip(QS, sketch.quantiles(QS), strict=True):
        assert found == pytest.approx(nearest_rank(values, q), rel=RELATIVE_ERROR, abs=0)


@pytest.mark.parametrize("q", [0.5, 0.95, 0.99, 0.999])
def test_quantiles_of_a_long_tailed_sample(q: float) -> None:
    rng = random.Random(3)
    values = [rng.lognormvariate(-4, 0.5) * (40 if rng.random() < 0.002 else 1) for _ in range(20_000)]
    assert Sketch(values).quantile(q) == pytest.approx(nearest_rank(values, q), rel=RELATIVE_ERROR)


def test_the_bound_is_nearly_reached_so_it_is_not_idle() -> None:
    worst = max(abs(Sketch([1e-9, x, 10.0]).quantile(0.5) / x - 1) for x in (1 + i / 5000 for i in range(200)))
    assert 0.005 < worst <= RELATIVE_ERROR


def test_count_sum_and_extremes_are_exact() -> None:
    sketch = Sketch([0.25, 0.5, 4.0])
    assert (sketch.n, sketch.sum, sketch.low, sketch.high, sketch.mean) == (3, 4.75, 0.25, 4.0, 4.75 / 3)
    assert sketch.quantile(0) == 0.25
    assert sketch.quantile(1) == 4.0


def test_an_empty_sketch_knows_nothing() -> None:
    sketch = Sketch()
    assert (sketch.quantile(0.5), sketch.mean, sketch.low, sketch.high) == (None, None, None, None)
    assert sketch.cdf() == []


def test_rank_is_not_pushed_up_by_float_rounding() -> None:
    # 0.07 · 100 is 7.000000000000001 in floats: the rank is 7, not 8.
    assert Sketch(float(2**i) for i in range(100)).quantile(0.07) == pytest.approx(2**6, rel=RELATIVE_ERROR)


def test_zero_and_negative_values_count_as_zero_and_are_counted() -> None:
    sketch = Sketch([0.0, -0.1, 1.0, 2.0])
    assert (sketch.n, sketch.zero, sketch.negative, sketch.refused) == (4, 2, 1, 0)
    assert (sketch.low, sketch.quantile(0.5), sketch.sum) == (0.0, 0.0, 3.0)
    only = Sketch([0.0])
    assert (only.low, only.high, only.quantile(0.5)) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf, 0.0, -1.0])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_many_at_once_are_as_one_by_one(odd: float, place: int) -> None:
    values = [1.0, 2.0]
    values.insert(place, odd)
    at_once, each = Sketch(), Sketch()
    at_once.add_all(values)
    for value in values:
        each.add(value)
    assert at_once == each


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_refused_and_counted(value: float) -> None:
    sketch = Sketch([value, 1.0])
    assert (sketch.n, sketch.refused, sketch.sum, sketch.high) == (1, 1, 1.0, 1.0)
    assert Sketch.from_wire(sketch.to_wire()) == sketch
    assert Sketch.from_wire(Sketch([value]).to_wire()).refused == 1


@pytest.mark.parametrize("value", [5e-324, 1e-300, 1e300, 1.7976931348623157e308])
def test_the_whole_range_of_floats_is_counted(value: float) -> None:
    sketch = Sketch([value])
    assert sketch.quantile(0.5) == value
    assert Sketch.from_wire(sketch.to_wire()) == sketch
    assert sketch.cdf()[-1] == (value, 1.0)


@given(st.lists(st.integers(min_value=-5, max_value=10**12), max_size=40))
def test_add_gaps_is_add_of_each_gap(gaps_ns: list[int]) -> None:
    bulk, single = Sketch(), Sketch(gap / 1e9 for gap in gaps_ns)
    bulk.add_gaps(gaps_ns)
    assert bulk.sum == pytest.approx(single.sum)
    bulk.sum = single.sum
    assert bulk == single


def test_a_gap_shared_by_k_tokens_counts_k_times() -> None:
    sketch = Sketch()
    sketch.add_gaps((40_000_000, 30_000_000), (4, 1))
    assert (sketch.n, sketch.low, sketch.high) == (5, 0.01, 0.03)
    assert sketch.sum == pytest.approx(0.07)
    sketch.add_gaps((1,), (0,))
    assert (sketch.n, sketch.refused) == (5, 1)
    with pytest.raises(ValueError, match="argument 2 is"):
        sketch.add_gaps((1, 2), (1,))


@given(SAMPLES, SAMPLES, SAMPLES)
def test_merge_is_commutative_associative_and_equals_pooling(a: list[float], b: list[float], c: list[float]) -> None:
    def merged(*parts: Sketch) -> Sketch:
        result = Sketch()
        for part in parts:
            result.merge(part)
        return result

    x, y, z, pooled = Sketch(a), Sketch(b), Sketch(c), Sketch([*a, *b, *c])
    for result in (merged(x, y, z), merged(z, x, y), merged(merged(y, z), x)):
        assert result.sum == pytest.approx(pooled.sum)
        result.sum = pooled.sum
        assert result == pooled


def test_merge_and_copy_leave_the_other_sketch_alone() -> None:
    first, second = Sketch([1.0]), Sketch([2.0, math.nan])
    twin = second.copy()
    first.merge(second)
    first.add(2.0)
    assert second == twin
    assert (first.n, first.refused) == (3, 1)


@given(st.lists(SECONDS, max_size=60), st.sampled_from([0, 1, 2, 3, 4, 6]))
def test_folding_counts_exactly_as_the_coarser_buckets_would(values: list[float], schema: int) -> None:
    sketch, wanted = Sketch(values), {}
    for value in values:
        # The coarser key of the fine key: what lies on an edge by float rounding must not differ between the two.
        key = math.ceil(math.ceil(math.log2(value) * 64) / 2 ** (6 - schema))
        wanted[key] = wanted.get(key, 0) + 1
        assert bucket_edge(key - 1, schema) * (1 - 1e-9) <= value <= bucket_edge(key, schema) * (1 + 1e-9)
    assert sketch.fold(schema) == dict(sorted(wanted.items()))


def test_cumulative_buckets_hold_all_that_is_not_larger() -> None:
    sketch = Sketch([0.0, 1e-9, 0.4, 1.0, 1.01, 2.0, 300.0])
    # Edges 2^-2 … 2^2: zeros and what lies below the first edge are in every bucket.
    assert sketch.cumulative(0, -2, 2) == [2, 3, 4, 6, 6]
    assert sketch.cumulative(3, 0, 8) == [4, *[5] * 7, 6]
    assert sketch.cumulative(3, -80, 80)[-1] == sketch.n
    assert [bucket_edge(k, 3) for k in (0, 8, 16)] == [1.0, 2.0, 4.0]


def test_above_counts_what_is_larger_than_a_limit() -> None:
    sketch = Sketch([0.0, 0.5, 1.0, 2.0, 4.0])
    assert [sketch.above(limit) for limit in (-1.0, 0.0, 0.1, 1.0, 3.0, 4.0)] == [4, 4, 4, 2, 1, 0]


def test_cdf_ends_at_one_and_never_falls() -> None:
    points = Sketch([0.0, 0.1, 0.1, 3.0]).cdf()
    assert points[0] == (0.0, 0.25)
    assert points[-1] == (3.0, 1.0)
    assert points == sorted(points)


@given(st.lists(st.floats(allow_nan=True), max_size=30))
def test_the_wire_form_gives_the_same_sketch_back(values: list[float]) -> None:
    sketch = Sketch(value for value in values if not abs(value) > 1e100)
    data = msgspec.msgpack.encode(sketch.to_wire())
    assert Sketch.from_wire(msgspec.msgpack.decode(data, type=SketchWire | None)) == sketch


def test_the_wire_form_is_small() -> None:
    rng = random.Random(1)
    sketch = Sketch(rng.lognormvariate(-4, 0.5) for _ in range(100_000))
    size = len(msgspec.msgpack.encode(sketch.to_wire()))
    assert size < 4 * len(sketch.counts) + 60


BAD_WIRES = {
    "deltas and counts differ": SketchWire(1.0, 1.0, 1.0, 0, 0, 0, 0, [1], [1]),
    "key too large": SketchWire(1.0, 1.0, 1.0, 0, 0, 0, 10**9, [], [1]),
    "deltas run away": SketchWire(1.0, 1.0, 1.0, 0, 0, 0, 0, [10**12], [1, 1]),
    "sum is NaN": SketchWire(math.nan, 1.0, 1.0, 0, 0, 0, 0, [], [1]),
    "max is infinite": SketchWire(1.0, 1.0, math.inf, 0, 0, 0, 0, [], [1]),
}


@pytest.mark.parametrize("wire", BAD_WIRES.values(), ids=BAD_WIRES.keys())
def test_a_wire_form_that_no_sketch_has_is_refused(wire: SketchWire) -> None:
    with pytest.raises(ValueError, match="a sketch has"):
        Sketch.from_wire(wire)


@settings(max_examples=20)
@given(SAMPLES)
def test_weights_count_as_repeats(values: list[float]) -> None:
    weighted = Sketch()
    for value in values:
        weighted.add(value, 3)
    repeated = Sketch(value for value in values for _ in range(3))
    assert (weighted.counts, weighted.n, weighted.low) == (repeated.counts, repeated.n, repeated.low)


def test_sketches_compare_by_value_and_print_what_matters() -> None:
    assert Sketch([1.0]) != Sketch([2.0])
    assert Sketch([1.0]) != 1.0
    assert repr(Sketch([1.0])) == "Sketch(n=1, p50=1.0, max=1.0)"


def test_a_tally_is_the_sum_of_its_sketches_wherever_their_buckets_lie() -> None:
    parts = [[1.0, 1.5, 2.0], [], [1e-9, 0.0], [1e6, 1.5, -1.0, math.inf], [3.0] * 5]
    tally, whole = Tally(), Sketch()
    for values in parts:
        tally.add(Sketch(values))
        whole.merge(Sketch(values))
        assert tally.sketch() == whole
        assert tally.n == whole.n
