"""What the exporter keeps of runs: bounds, expiry, silence, sums; and its two renderings, at a bounded cost."""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Callable
from typing import Any

import pytest
import sample_runs
from load_run import SyntheticRun
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from exporters.load import proto as load_proto
from exporters.load.render import Text
from exporters.load.runs import RUNS_MAX, SERIES_MAX, Run, Runs, TooManyRunsError
from exporters.load.sums import Recent, SettledSum, gain
from exporters.load.table import HISTOGRAMS, Histogram
from tokenswarm.clock import NS_PER_S, FakeClock
from tokenswarm.measure.sketch import Sketch, bucket_edge
from tokenswarm.measure.snapshot import Block, Instrument, WorkerState, total
from tokenswarm.profile.bars import Bar, Bars
from tokenswarm.result.summary import summarize


def served(run: Run, family: str, now_ns: int = 0) -> dict[tuple[str, ...], float]:
    return dict(run.current(now_ns).get(family, ()))


def ended(run_id: str) -> SyntheticRun:
    played = SyntheticRun(run_id)
    played.finish()
    return played


def test_a_run_expires_when_it_has_been_silent_for_the_keep_time() -> None:
    clock = FakeClock()
    runs = Runs(900, clock)
    runs.put(SyntheticRun("a").envelope())
    clock.advance(899)
    runs.put(SyntheticRun("b").envelope())
    clock.advance(2)
    runs.expire()
    assert (list(runs.runs), runs.expired) == (["b"], 1)


def test_a_run_that_stops_pushing_keeps_its_totals_and_loses_its_gauges() -> None:
    clock = FakeClock()
    runs = Runs(900, clock)
    played = SyntheticRun("a")
    played.advance()
    runs.put(played.envelope())
    run, version = runs.runs["a"], runs.version
    clock.advance(31)
    assert runs.version != version
    assert served(run, "tokenswarm_users", clock()) == {}
    assert served(run, "tokenswarm_requests_in_flight", clock()) == {}
    assert served(run, "tokenswarm_requests_started_total", clock()) == {(): 60}
    assert served(run, "tokenswarm_run_last_push_age_seconds", clock()) == {(): 31.0}
    assert {labels[1] for labels in served(run, "tokenswarm_latency_quantile_seconds_count", clock())} == {"run"}
    runs.put(played.envelope())
    assert served(run, "tokenswarm_users", clock()) != {}


def test_the_final_state_of_an_ended_run_is_served_whole() -> None:
    clock = FakeClock()
    runs = Runs(900, clock)
    runs.put(ended("a").envelope())
    clock.advance(600)
    assert served(runs.runs["a"], "tokenswarm_users", clock()) != {}
    assert served(runs.runs["a"], "tokenswarm_workers", clock())[("done",)] == 2


def test_the_age_of_a_report_is_told_by_one_clock_and_ends_with_the_run() -> None:
    """A moment, held against Prometheus's clock, is wrong by the difference of the clocks and grows for ever."""
    clock, played = FakeClock(), SyntheticRun("a")
    runs = Runs(900, clock)
    played.advance()
    runs.put(played.envelope())
    clock.advance(3)
    runs.put(played.envelope())  # with the same reports
    clock.advance(2)
    assert served(runs.runs["a"], "tokenswarm_worker_report_age_seconds", clock()) == {("0",): 5.0, ("1",): 5.0}
    played.advance()
    runs.put(played.envelope())
    assert served(runs.runs["a"], "tokenswarm_worker_report_age_seconds", clock()) == {("0",): 0.0, ("1",): 0.0}
    runs.put(played.envelope(played.finish()))
    assert served(runs.runs["a"], "tokenswarm_worker_report_age_seconds", clock()) == {}


def test_a_push_that_was_overtaken_changes_nothing() -> None:
    runs = Runs(900, FakeClock())
    played = SyntheticRun("a")
    played.advance()
    early = played.envelope()
    played.advance()
    runs.put(played.envelope())
    runs.put(early)
    assert served(runs.runs["a"], "tokenswarm_requests_started_total") == {(): 120}


def test_the_seventeenth_run_takes_the_place_of_one_that_is_over_or_is_refused() -> None:
    clock = FakeClock()
    runs = Runs(900, clock)
    for number in range(RUNS_MAX):
        runs.put((ended if number == 3 else SyntheticRun)(f"run-{number}").envelope())
    runs.put(SyntheticRun("new").envelope())
    assert "run-3" not in runs.runs
    assert "new" in runs.runs
    with pytest.raises(TooManyRunsError):
        runs.put(SyntheticRun("newer").envelope())
    assert len(runs.runs) == RUNS_MAX
    clock.advance(31)  # all of them are silent now
    runs.put(SyntheticRun("newer").envelope())
    assert len(runs.runs) == RUNS_MAX


def many_workers(count: int) -> list[WorkerState]:
    return [
        WorkerState(
            worker=number, host="h", pid=1, seq=1, final=False, missing=[], sent_ns=1, elapsed_ns=1, in_flight=0,
            decoding=0, users=1, live_output_tokens=1, wraps=0, instrument=Instrument(),
        )
        for number in range(count)
    ]  # fmt: skip


def test_series_beyond_the_budget_are_dropped_and_counted_once() -> None:
    runs = Runs(900, FakeClock())
    played = SyntheticRun("a", stages=tuple(range(1, 61)), seconds=2, requests_per_s=8)
    merged = played.play()
    merged.workers = many_workers(2000)
    for _ in range(2):
        runs.put(played.envelope(merged))
    run = runs.runs["a"]
    lines = [line for line in Text().page(runs.runs, 0).splitlines() if not line.startswith("#")]
    assert SERIES_MAX - 3 <= len(lines) - 1 <= SERIES_MAX  # and the age of the last push
    kept = len(served(run, "tokenswarm_worker_cpu_ratio"))
    assert 0 < kept < 2000
    assert runs.dropped == {"info": 0, "budget": 2000 - kept, "value": 0}


def test_labels_outside_the_allow_list_are_dropped_and_counted() -> None:
    runs = Runs(900, FakeClock())
    played = SyntheticRun("a", info={"dataset": "d" * 500, "password": "hunter2"})
    runs.put(played.envelope())
    text = Text().page(runs.runs, 0)
    assert "hunter2" not in text
    assert f'dataset="{"d" * 128}"' in text
    assert runs.dropped["info"] == 1


def test_values_that_are_no_numbers_are_absent() -> None:
    runs = Runs(900, FakeClock())
    played = SyntheticRun("a")
    played.recorders[0].instrument.cpu_ratio_last = float("nan")
    played.recorders[1].instrument.cpu_ratio_last = 0.5
    played.advance()
    runs.put(played.envelope())
    assert served(runs.runs["a"], "tokenswarm_worker_cpu_ratio") == {("1",): 0.5}


def test_the_sum_over_stages_is_the_summary_s_to_the_digit_at_every_push() -> None:
    played = SyntheticRun("a", stages=(1, 2, 3, 4, 5), seconds=3, requests_per_s=20)
    runs = Runs(900, FakeClock())
    while not played.over:
        played.advance()
        merged = played.inbox.merged()
        runs.put(played.envelope(merged))
        summary = summarize(merged)
        name = "tokenswarm_latency_quantile_seconds_count"
        assert served(runs.runs["a"], name)["itl", "run"] == summary.latency.itl_s.n
        assert served(runs.runs["a"], "tokenswarm_requests_started_total") == {(): summary.requests.sent}


def test_a_settled_sum_notices_blocks_that_change_after_all() -> None:
    blocks = [
        Block(stage=number, phase="steady", sent=number, ttft=Sketch([0.1 * (number + 1)])) for number in range(6)
    ]
    sums = SettledSum()
    assert sums.of(blocks, 5) == total(blocks)
    blocks[1] = Block(stage=1, phase="steady", sent=100)
    assert sums.of(blocks, 5) == total(blocks)
    assert sums.of(blocks, 5) == total(blocks)
    assert sums.of(blocks[:2], 0) == total(blocks[:2])


def test_recent_is_what_the_last_ten_seconds_brought() -> None:
    recent, block = Recent(10), Block(stage=0, phase="steady")
    for second in range(30):
        block = Block(stage=0, phase="steady", ttft=block.ttft.copy())
        block.ttft.add(2.0 if second >= 20 else 0.5, 3)
        found = recent.since(block, second * NS_PER_S, second * NS_PER_S)
        assert found["ttft"].n == 3 * min(second + 1, 10)
    assert found["ttft"].quantile(0.5) == pytest.approx(2.0, rel=0.006)
    assert found["ttft"].low == pytest.approx(2.0, rel=0.011)


def test_recent_says_nothing_of_a_run_that_it_has_just_met() -> None:
    recent, block = Recent(10), Block(stage=0, phase="steady", ttft=Sketch([0.5] * 100))
    assert [bool(recent.since(block, 600 * NS_PER_S, s * NS_PER_S)) for s in range(8)] == [False] * 5 + [True] * 3


def test_a_gain_is_the_difference_of_two_sketches() -> None:
    before = Sketch([0.0, 0.1, 3.0])
    now = before.copy()
    for value in (0.0, 0.2, 0.2, 5.0):
        now.add(value)
    added = gain(before, now)
    assert (added.n, added.zero, added.low) == (4, 1, 0.0)
    assert added.high == pytest.approx(5.0, rel=0.011)


# The renderings.


@pytest.mark.parametrize(
    ("accept", "proto"),
    [
        ("", False),
        ("*/*", False),
        ("text/plain;version=0.0.4;q=0.5,*/*;q=0.1", False),
        (
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited,"
            "application/openmetrics-text;version=1.0.0;q=0.8,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            True,
        ),
        ("text/plain;q=0.6,application/vnd.google.protobuf;encoding=delimited;q=0.5", False),
        ("application/vnd.google.protobuf;encoding=text", False),
        ("application/vnd.google.protobuf;encoding=delimited;q=x", False),
    ],
)
def test_protobuf_is_for_those_who_prefer_it(accept: str, proto: bool) -> None:
    assert load_proto.wanted(accept) is proto


Message = dict[int, list[Any]]


def fields(data: bytes) -> Message:
    """A protobuf message, by field: numbers as int, the rest as bytes."""
    found: Message = {}
    at = 0
    while at < len(data):
        tag, at = read_varint(data, at)
        if tag & 7 == 0:
            value, at = read_varint(data, at)
        else:
            length, at = (8, at) if tag & 7 == 1 else read_varint(data, at)
            assert tag & 7 in (1, 2)
            value, at = data[at : at + length], at + length
        found.setdefault(tag >> 3, []).append(value)
    return found


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        number |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return number, at


def zigzag(number: int) -> int:
    return number >> 1 ^ -(number & 1)


def native_counts(histogram: Message) -> dict[int, int]:
    """Counts by key of a native histogram, as the specification says how to read spans and deltas."""
    deltas, at = [], 0
    packed = histogram.get(13, [b""])[0]
    while at < len(packed):
        number, at = read_varint(packed, at)
        deltas.append(zigzag(number))
    counts, key, count = {}, 0, 0
    for data in histogram[12]:
        span = fields(data)
        key += zigzag(span[1][0])
        for _ in range(span[2][0]):
            count += deltas.pop(0)
            counts[key] = count
            key += 1
    assert deltas == []
    return counts


@pytest.mark.parametrize("seed", range(20))
def test_a_native_histogram_says_what_the_sketch_holds(seed: int) -> None:
    chance = random.Random(seed)
    sketch = Sketch(chance.choice([chance.lognormvariate(0, 2), 0.0, 1e-6]) for _ in range(seed * 30))
    histogram = HISTOGRAMS["tokenswarm_time_to_first_token_seconds"][0]
    decoded = fields(load_proto.histogram_message(histogram, sketch))
    assert decoded[1] == [sketch.n]
    assert struct.unpack("<d", decoded[2][0]) == (sketch.sum,)
    assert zigzag(decoded[5][0]) == 5
    assert decoded[7] == [sketch.zero]
    assert native_counts(decoded) == sketch.fold(5)
    assert len(decoded[3]) == len(histogram.keys)


def interpolated(histogram: Histogram, sketch: Sketch, p: float) -> float:
    """As histogram_quantile does it: linear within the bucket."""
    edges, counts = [bucket_edge(key, histogram.schema) for key in histogram.keys], histogram.cumulative(sketch)
    rank = p * sketch.n
    place = next(i for i, count in enumerate(counts) if count >= rank)
    low, below = (edges[place - 1], counts[place - 1]) if place else (0.0, 0)
    return low + (edges[place] - low) * (rank - below) / (counts[place] - below)


@pytest.mark.parametrize("source", ["ttft", "itl", "tpot", "e2e"])
def test_a_percentile_from_the_buckets_is_at_most_2_2_percent_off_however_narrow(source: str) -> None:
    """All values alike is the worst there is for interpolation: the percentile may then lie anywhere in the bucket."""
    (histogram,) = (h for rows in HISTOGRAMS.values() for h in rows if h.source == source)
    assert histogram.dense is not None
    low, high = histogram.dense
    chance = random.Random(source)
    errors = {}
    for where, (first, last) in {"dense": (low, high), "below": (histogram.first, low)}.items():
        worst = 0.0
        for _ in range(300):
            value = 2 ** chance.uniform(first + 0.01, last)
            for p in (0.01, 0.5, 0.99):
                worst = max(worst, abs(interpolated(histogram, Sketch([value] * 100), p) / value - 1))
        errors[where] = worst
    assert errors["dense"] < 0.0219
    assert errors["below"] < 0.19
    assert errors["below"] > 0.1, "that they are coarse is why the others are not"


def delimited(data: bytes) -> list[Message]:
    found, at = [], 0
    while at < len(data):
        length, at = read_varint(data, at)
        found.append(fields(data[at : at + length]))
        at += length
    return found


def test_both_formats_have_the_same_families_and_values() -> None:
    runs = Runs(900, FakeClock())
    played = SyntheticRun("a")
    runs.put(played.envelope(played.play()))
    proto = {message[1][0].decode(): message for message in delimited(load_proto.page(runs.runs, 0))}
    text = Text().page(runs.runs, 0)
    kinds = {line.split()[2]: line.split()[3] for line in text.splitlines() if line.startswith("# TYPE")}
    assert set(proto) == set(kinds)
    names = {0: "counter", 1: "gauge", 2: "summary", 4: "histogram"}
    assert {name: names[message[3][0]] for name, message in proto.items()} == kinds
    metrics = [fields(data) for data in proto["tokenswarm_requests_total"][4]]
    values = [struct.unpack("<d", fields(metric[3][0])[1][0])[0] for metric in metrics]
    shown = [float(line.split()[-1]) for line in text.splitlines() if line.startswith("tokenswarm_requests_total{")]
    assert values == shown


# The cost.


def cpu_s(work: Callable[[], object], times: int = 7) -> float:
    """The least CPU time of several tries: others share this machine."""
    spent = []
    for _ in range(times):
        began = time.process_time()
        work()
        spent.append(time.process_time() - began)
    return min(spent)


class _Parsed(Collector):
    def __init__(self, text: str) -> None:
        self._families = list(text_string_to_metric_families(text))

    def collect(self) -> list[Metric]:
        return self._families


def test_five_thousand_series_cost_a_fraction_of_prometheus_client_s_rendering() -> None:
    runs = Runs(900, FakeClock())
    played = SyntheticRun("a", stages=tuple(range(1, 41)), seconds=2, requests_per_s=40)
    merged = played.play()
    merged.workers = many_workers(1500)
    text, run = Text(), None
    runs.put(played.envelope(merged))
    run = runs.runs["a"]
    page = text.page(runs.runs, 0)
    assert run.readings.series > 4_900

    def after_a_push() -> None:
        run.version += 1
        text.page(runs.runs, 0).encode()

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Parsed(page))
    assert cpu_s(lambda: generate_latest(registry)) > 3 * cpu_s(after_a_push)


def test_both_ends_of_a_percentile_are_told_and_one_that_is_withheld_by_its_ends_alone() -> None:
    """Some gaps share a read: ITL p99 is known to lie between 20 and 40 ms, and no more than that."""
    played, runs = SyntheticRun(sample_runs.RUN_ID), Runs(900, FakeClock())
    runs.put(played.envelope(sample_runs.shared_reads(0.03)))
    run = runs.runs[sample_runs.RUN_ID]
    ends, told = (served(run, f"tokenswarm_latency_quantile_{name}") for name in ("bound_seconds", "seconds"))
    assert ends["ttft", "0.5", "low"] <= told["ttft", "run", "0.5"] <= ends["ttft", "0.5", "high"]
    assert ("itl", "run", "0.99") not in told
    assert ends["itl", "0.99", "low"] == pytest.approx(0.02, rel=0.02)
    assert ends["itl", "0.99", "high"] == pytest.approx(0.04, rel=0.02)


def test_what_the_profile_lets_pass_is_told_here_too() -> None:
    """`bars` decide what a report withholds, so they decide it here: over the run and of each stage."""
    wide = Bars(itl_s=Bar(degraded=0.3, invalid=0.9), ttft_s=Bar(degraded=1e-9, invalid=1e-9))
    played, runs = (
        SyntheticRun(sample_runs.RUN_ID, bars=wide, stage=0, phase="ended"),
        Runs(900, FakeClock()),
    )
    merged = sample_runs.shared_reads(0.03)
    runs.put(played.envelope(merged))
    report = summarize(merged, bars=wide).latency
    told = served(runs.runs[sample_runs.RUN_ID], "tokenswarm_latency_quantile_seconds")
    of_stage = served(runs.runs[sample_runs.RUN_ID], "tokenswarm_stage_latency_seconds")
    assert told["itl", "run", "0.99"] == report.itl_s.p99 == of_stage["0", "itl", "0.99"] is not None
    assert report.ttft_s.p50 is None
    assert ("ttft", "run", "0.5") not in told
    assert ("0", "ttft", "0.5") not in of_stage
