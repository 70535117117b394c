"""The interval of each percentile holds the truth, whatever the reads hid; else it is a bucket wide."""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Sequence
from itertools import pairwise

import msgspec
import pytest

from tokenswarm.clock import NS_PER_S
from tokenswarm.engines import Delta
from tokenswarm.measure import snapshot
from tokenswarm.measure.budget import COARSE, FINE, Intervals, Sides, bucket_key
from tokenswarm.measure.recorder import Recorder
from tokenswarm.measure.sketch import Sketch
from tokenswarm.measure.snapshot import Block, Inbox
from tokenswarm.measure.statistics import binomial_cdf, rank_interval
from tokenswarm.measure.timeline import Timeline
from tokenswarm.record import Outcome, RequestRecord
from tokenswarm.result.stat import PERCENTILES, intervals, latency

MS = 1_000_000
TOKEN, END = Delta("word "), Delta(finished=((0, "stop"),))
QUANTILES = {**PERCENTILES, "all": 1.0}


class Truth:
    """What really happened: latencies in s, whatever was seen of them."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {name: [] for name in ("ttft", "itl", "tpot", "e2e", "stall")}

    def add(self, sent_ns: int, tokens_ns: Sequence[int], done_ns: int) -> None:
        gaps = [after - before for before, after in pairwise(tokens_ns)]
        self.values["ttft"].append((tokens_ns[0] - sent_ns) / NS_PER_S)
        self.values["e2e"].append((done_ns - sent_ns) / NS_PER_S)
        self.values["itl"] += [gap / NS_PER_S for gap in gaps]
        self.values["tpot"].append(sum(gaps) / len(gaps) / NS_PER_S)
        self.values["stall"].append(max(gaps) / NS_PER_S)

    def quantile(self, metric: str, p: float) -> float:
        ordered = sorted(self.values[metric])
        return ordered[max(1, math.ceil(p * len(ordered))) - 1]


def request(
    dice: random.Random, truth: Truth, *, stalls: float, unsure: float, bracket: float, looks: float = 0.0
) -> RequestRecord:
    """A stream of 4 to 40 tokens, 10 ms each; reads that were late hold what came meanwhile, with the newest stamp.

    `looks`: of how many reads it is known that nothing of them had come at some moment after the read before.
    """
    sent_ns = dice.randrange(10**9, 10**12)
    at_ns, tokens_ns = sent_ns, []
    for _ in range(dice.randrange(4, 40)):
        at_ns += int(dice.expovariate(1) * 10 * MS) + (50 * MS if not tokens_ns else 1000)
        tokens_ns.append(at_ns)
    done_ns = at_ns + dice.choice((2_000, 12 * MS))
    truth.add(sent_ns, tokens_ns, done_ns)
    timeline = Timeline()
    timeline.sent_ns = timeline.intended_ns = timeline.sent_high_ns = sent_ns
    if dice.random() < bracket:
        timeline.sent_ns = timeline.intended_ns = sent_ns - dice.randrange(5 * MS)
        timeline.sent_high_ns = sent_ns + dice.randrange(5 * MS)
    reads: list[list[int]] = []
    until_ns = 0
    for moment_ns in (*tokens_ns, done_ns):
        if moment_ns > until_ns:
            reads.append([])
            until_ns = moment_ns + (int(dice.expovariate(1) * 60 * MS) if dice.random() < stalls else 0)
        reads[-1].append(moment_ns)
    lows, before_ns, seen = [], timeline.sent_ns, 0
    looked = array("q")
    timeline.first_low_ns = timeline.sent_ns if len(reads[0]) > 1 else reads[0][0]
    for read in reads:
        stamp_ns = read[-1]
        if dice.random() < unsure:
            stamp_ns += dice.randrange(1, 1000)
            lows.append((before_ns, stamp_ns))
        timeline.headers_ns = timeline.headers_ns or stamp_ns
        for _ in read:
            timeline.mark(stamp_ns, TOKEN if seen < len(tokens_ns) else END)
            seen += 1
        if dice.random() < looks and before_ns < read[0]:
            looked.extend((read[0] - int(dice.random() ** 3 * (read[0] - before_ns)), stamp_ns))
        before_ns = timeline.done_ns = stamp_ns
    timeline.unsure, timeline.reads, timeline.lows = tuple(lows), len(reads), looked
    timeline.one_a_read = all(len(read) == 1 for read in reads)
    record = timeline.finish(Outcome.OK, id="0", stage=0, phase="steady", conversation="c", turn=0)
    return msgspec.structs.replace(record, output_tokens=len(tokens_ns))


def counted(records: Sequence[RequestRecord]) -> Block:
    recorder = Recorder("run", 0, start_ns=0)
    for record in records:
        recorder.add(record)
    inbox = Inbox("run")
    inbox.put(snapshot.decode(snapshot.encode(recorder.snapshot(10**13, final=True))))
    block = inbox.merged().block(0)
    block.rho_weighted = {}
    return block


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("looks", [0.0, 0.8])
@pytest.mark.parametrize(
    ("stalls", "unsure", "bracket"),
    [(0.0, 0.0, 0.0), (0.02, 0.0, 0.0), (0.3, 0.0, 0.0), (0.0, 0.02, 0.0), (0.0, 0.0, 0.5), (0.05, 0.02, 0.1)],
)
def test_every_interval_holds_the_truth(seed: int, stalls: float, unsure: float, bracket: float, looks: float) -> None:
    dice, truth = random.Random(seed), Truth()
    kinds = {"stalls": stalls, "unsure": unsure, "bracket": bracket, "looks": looks}
    block = counted([request(dice, truth, **kinds) for _ in range(300)])
    for metric in truth.values:
        spans = intervals(block, metric)
        for which, p in QUANTILES.items():
            low, high = spans.interval(p)
            exact = truth.quantile(metric, p)
            assert low * (1 - 1e-9) <= exact <= high * (1 + 1e-9), (metric, which)
            value = spans.value(p)
            assert value is not None
            assert low <= value <= high


def test_what_a_look_knows_makes_no_bar_wider() -> None:
    def seen(looks: float) -> Block:
        dice = (random.Random(number) for number in range(200))
        return counted([request(d, Truth(), stalls=0.1, unsure=0, bracket=0, looks=looks) for d in dice])

    with_looks, without = seen(1.0), seen(0.0)
    for metric in ("itl", "tpot", "stall", "ttft"):
        for p in QUANTILES.values():
            (low, high), (least, most) = (intervals(block, metric).interval(p) for block in (with_looks, without))
            assert least <= low <= high <= most, (metric, p)


def test_two_tokens_that_came_within_half_a_ms_leave_half_a_ms_open() -> None:
    """Pairs of tokens every 20 ms, one read a pair: where it was looked 0.5 ms before, all but that is known."""

    def seen(looks: bool) -> Block:
        records = []
        for _ in range(50):
            timeline = Timeline()
            timeline.sent_ns = timeline.intended_ns = timeline.sent_high_ns = 10**9
            reads = [10**9 + 20 * MS * (number + 1) for number in range(40)]
            for at_ns in reads:
                timeline.headers_ns = timeline.headers_ns or at_ns
                timeline.mark(at_ns, TOKEN)
                timeline.mark(at_ns, TOKEN)
            timeline.lows = array("q", [x for at_ns in reads for x in (at_ns - MS // 2, at_ns)]) if looks else None
            timeline.done_ns = reads[-1] + MS
            record = timeline.finish(Outcome.OK, id="0", stage=0, phase="steady", conversation="c", turn=0)
            records.append(msgspec.structs.replace(record, output_tokens=80))
        return counted(records)

    for metric, most_s in (("itl", 0.0008), ("stall", 0.0008), ("tpot", 0.00002)):
        (low, high), (least, most) = (intervals(seen(looks), metric).interval(0.9) for looks in (True, False))
        assert high - low < most_s < 5 * most_s < most - least, metric
        assert least <= low <= high <= most, metric


def test_where_nothing_is_hidden_a_bar_is_a_bucket_wide() -> None:
    dice, truth = random.Random(3), Truth()
    block = counted([request(dice, truth, stalls=0, unsure=0, bracket=0) for _ in range(300)])
    for metric, wide in (("ttft", 0.0015), ("e2e", 0.0015), ("tpot", 0.0015), ("itl", 0.011), ("stall", 0.011)):
        low, high = intervals(block, metric).interval(0.5)
        assert (high - low) / low <= wide, metric
    assert [side for sides in (block.budget.itl, block.budget.ttft) for side in (sides.low, sides.high)] == [{}] * 4


def test_a_request_that_left_late_by_itself_has_a_wider_bar_as_due_alone() -> None:
    dice, truth = random.Random(4), Truth()
    records = [request(dice, truth, stalls=0, unsure=0, bracket=0) for _ in range(100)]
    late = [msgspec.structs.replace(r, intended_ns=r.sent_ns - 30 * MS, connect_ns=10 * MS) for r in records]
    block = counted(late)
    low, high = intervals(block, "ttft_intended").interval(0.5)
    assert low == pytest.approx(truth.quantile("ttft", 0.5) + 0.01, rel=0.02)  # the connection took 10 of the 30 ms
    assert high == pytest.approx(truth.quantile("ttft", 0.5) + 0.03, rel=0.02)
    assert block.budget.ttft.low == {}


def test_of_answers_in_one_read_nobody_knows_the_pace() -> None:
    dice, truth = random.Random(5), Truth()
    records = [request(dice, truth, stalls=0, unsure=0, bracket=0) for _ in range(60)]
    whole = [
        msgspec.structs.replace(
            r, first_ns=r.last_ns, gaps_ns=(), merged_events=r.events - 1, first_events=r.events, first_low_ns=r.sent_ns
        )
        for r in records[:40]
    ]
    block = counted(whole + records[40:])
    assert (block.budget.tpot.unknown, block.budget.itl.unknown) == (40, sum(r.events - 1 for r in whole))
    for metric in ("tpot", "itl", "stall"):
        stat = latency(block, metric)
        assert (stat.p50, stat.low["p50"], stat.high["p50"], stat.withheld["p50"]) == (None, 0.0, None, None)


def test_workers_add_up_as_one_would_have_counted() -> None:
    dice, truth = random.Random(6), Truth()
    records = [request(dice, truth, stalls=0.1, unsure=0.02, bracket=0.1) for _ in range(200)]
    together = counted(records)
    apart = Block(stage=0, phase="steady")
    for part in (records[::2], records[1::2]):
        snapshot.add_into(apart, counted(part))
    for metric in truth.values:
        for p in QUANTILES.values():
            assert intervals(apart, metric).interval(p) == intervals(together, metric).interval(p)


def test_fine_buckets_fold_into_those_of_a_sketch() -> None:
    dice = random.Random(7)
    for _ in range(2000):
        value = dice.lognormvariate(-3, 2)
        assert -(-bucket_key(value, FINE) // (FINE // COARSE)) == bucket_key(value, COARSE)
        assert list(Sketch([value]).counts) == [bucket_key(value)]


def test_without_the_fine_counts_of_a_worker_the_sketch_serves() -> None:
    values = [0.1 + 0.0001 * number for number in range(200)]
    fine: dict[int, int] = {}
    for value in values:
        fine[bucket_key(value, FINE)] = fine.get(bucket_key(value, FINE), 0) + 1
    narrow = Intervals(Sketch(values), Sides(), fine, FINE, 0.0).interval(0.5)
    wide = Intervals(Sketch(values), Sides(), {}, FINE, 0.0).interval(0.5)
    assert wide[0] <= narrow[0] <= 0.1099 <= narrow[1] <= wide[1]
    assert narrow[1] - narrow[0] < (wide[1] - wide[0]) / 4


@pytest.mark.parametrize("p", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("n", [30, 700, 20_000])
def test_the_ranks_that_chance_allows_are_the_binomial_ones(p: float, n: int) -> None:
    low, high = (round(share * n) for share in rank_interval(p, n))
    assert low <= p * n <= high
    assert binomial_cdf(low - 1, n, p) <= 0.005 < binomial_cdf(low, n, p) or low == 0
    assert binomial_cdf(high - 1, n, p) >= 0.995 or high == n
    assert binomial_cdf(high - 2, n, p) < 0.995
