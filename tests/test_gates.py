"""A gate passes only when the sample shows it, fails when it refutes it or is empty, and says so otherwise."""

from __future__ import annotations

import math
import re

import msgspec
import pytest
import sample_runs
from hypothesis import given, settings
from hypothesis import strategies as st
from load_run import SyntheticRun

from tokenswarm.clock import NS_PER_S
from tokenswarm.judge.gates import evaluate, request_limits
from tokenswarm.measure import snapshot
from tokenswarm.measure.recorder import Recorder
from tokenswarm.measure.slo import Slo as RequestSlo
from tokenswarm.measure.snapshot import Merged
from tokenswarm.profile.slo import Percentiles, Slo
from tokenswarm.record import Outcome
from tokenswarm.result.summary import Gate, summarize


def judge(slo: Slo, merged: Merged) -> dict[str, Gate]:
    return {gate.metric: gate for gate in evaluate(slo, sample_runs.summary(merged), merged)}


def one(slo: Slo, merged: Merged) -> Gate:
    (gate,) = judge(slo, merged).values()
    assert gate.reason
    return gate


def ttft_p99(limit: float) -> Slo:
    return Slo(ttft_s=Percentiles(p99=limit))


def test_the_limit_of_a_request_is_that_of_the_highest_percentile() -> None:
    slo = Slo(
        ttft_s=Percentiles(p50=0.2, p99=1.0, mean=0.3),
        itl_s=Percentiles(p999=0.5, max=2.0),
        tpot_s=Percentiles(p90=0.1, p95=0.15),
        e2e_s=Percentiles(mean=3.0),
    )
    assert request_limits(slo) == RequestSlo(ttft_s=1.0, itl_s=2.0, tpot_s=0.15)
    assert request_limits(Slo(e2e_s=Percentiles(mean=3.0), goodput_ratio=0.9)) is None
    assert request_limits(Slo(ttft_s=Percentiles(p50=0.0))) == RequestSlo(ttft_s=0.0)


def test_there_is_one_gate_for_each_limit_in_the_order_of_the_profile() -> None:
    slo = Slo(
        ttft_s=Percentiles(p50=1, p99=2, mean=1, max=3),
        stall_s=Percentiles(p90=1),
        goodput_ratio=0.5,
        failed_ratio=0.1,
        output_tokens_per_s=1,
        requests_per_s=1,
    )
    gates = evaluate(slo, sample_runs.summary(merged := sample_runs.run(slo=slo)), merged)
    assert [(gate.metric, gate.op) for gate in gates] == [
        ("ttft_s.p50", "<="),
        ("ttft_s.p99", "<="),
        ("ttft_s.mean", "<="),
        ("ttft_s.max", "<="),
        ("stall_s.p90", "<="),
        ("goodput_ratio", ">="),
        ("failed_ratio", "<="),
        ("output_tokens_per_s", ">="),
        ("requests_per_s", ">="),
    ]
    assert {gate.result for gate in gates} == {"pass"}
    assert evaluate(Slo(), sample_runs.summary(merged), merged) == []


@pytest.mark.parametrize(
    ("late", "n", "result"),
    [
        (0, 458, "inconclusive"),  # n(0) of p99 is 459
        (0, 459, "pass"),
        (1, 661, "inconclusive"),
        (1, 662, "pass"),  # n(1)
        (6, 1000, "inconclusive"),
        (20, 1000, "fail"),
        (0, 20, "inconclusive"),
        (2, 20, "inconclusive"),  # chance 1.7 %
        (3, 20, "fail"),  # chance 0.1 %
    ],
)
def test_a_percentile_is_decided_by_the_binomial_rule(late: int, n: int, result: str) -> None:
    slow = {n * (i + 1) // (late + 1) for i in range(late)} if late else set()
    slo = ttft_p99(0.5)
    merged = sample_runs.run(n, slo=slo, ttft=lambda number: 2.0 if number in slow else 0.1)
    for block in merged.blocks:
        block.rho_weighted = {}  # as if independent
    gate = one(slo, merged)
    assert gate.result == result, gate
    assert f"{late} of {n} requests" in gate.reason


@pytest.mark.parametrize("slo", [ttft_p99(0.5), Slo(ttft_s=Percentiles(p99=0.5), goodput_ratio=0.99)])
def test_misses_of_requests_that_failed_are_told_as_such(slo: Slo) -> None:
    """The observed value, which is of the others, lies within the limit."""
    for gate in judge(slo, sample_runs.run(200, slo=slo, ends={Outcome.HTTP_5XX: 40})).values():
        assert gate.result == "fail"
        assert re.fullmatch(r"40 of \d+ requests miss it, 40 of these failed or never ended", gate.reason)


def test_a_small_sample_says_what_it_would_take() -> None:
    gate = one(ttft_p99(0.5), sample_runs.run(20, slo=ttft_p99(0.5)))
    assert gate.result == "inconclusive"
    assert "662" in gate.reason
    assert gate.value == pytest.approx(0.12, rel=0.3)


@pytest.mark.parametrize("n", [1, 2, 5, 20, 800])
@pytest.mark.parametrize("which", ["p50", "p90", "p95", "p99", "p999", "mean", "max"])
def test_an_impossible_limit_fails_however_small_the_sample(n: int, which: str) -> None:
    slo = Slo(ttft_s=Percentiles(**{which: 0.001}))
    assert one(slo, sample_runs.run(n, slo=slo)).result == "fail"


@pytest.mark.parametrize(("slow_s", "result"), [(0.35, "inconclusive"), (3.0, "fail")])
def test_an_undecided_median_fails_where_it_is_far_beyond(slow_s: float, result: str) -> None:
    slo = Slo(ttft_s=Percentiles(p50=0.3))
    merged = sample_runs.run(5, slo=slo, ttft=lambda number: 0.1 if number == 2 else slow_s)
    assert one(slo, merged).result == result


def test_one_outlier_of_a_small_sample_refutes_no_tail() -> None:
    slo = ttft_p99(0.3)
    merged = sample_runs.run(20, slo=slo, ttft=lambda number: 9.0 if number == 2 else 0.1)
    assert one(slo, merged).result == "inconclusive"


def test_dependent_requests_count_less() -> None:
    slo = ttft_p99(0.5)
    slow_wave = sample_runs.run(800, slo=slo, ttft=lambda number: 0.1 + 0.1 * math.sin(number / 100))
    gate = one(slo, slow_wave)
    assert gate.result == "inconclusive"
    assert "independent" in gate.reason
    assert one(slo, sample_runs.run(800, slo=slo)).result == "pass"


@pytest.mark.parametrize("metric", ["ttft_s", "ttft_intended_s", "ttfat_s", "itl_s", "tpot_s", "e2e_s", "stall_s"])
@pytest.mark.parametrize("outcome", [Outcome.HTTP_5XX, Outcome.TIMEOUT, Outcome.CENSORED])
def test_failed_and_cut_off_requests_are_beyond_every_latency_limit(metric: str, outcome: Outcome) -> None:
    slo = Slo(**{metric: Percentiles(p95=5.0)})
    assert one(slo, sample_runs.run(800, slo=slo)).result == "pass"
    gate = one(slo, sample_runs.run(800, slo=slo, ends={outcome: 200}))
    assert gate.result == "fail"
    assert one(Slo(**{metric: Percentiles(max=5.0)}), sample_runs.run(800, ends={outcome: 1})).result == "fail"


def test_thinking_that_never_comes_to_an_answer_violates_the_time_to_an_answer() -> None:
    slo = Slo(ttfat_s=Percentiles(p90=5.0))
    merged = sample_runs.run(800, slo=slo, first_answer_ns=0)
    assert one(slo, merged).result == "fail"


def test_answers_of_one_token_violate_no_limit_on_gaps() -> None:
    slo = Slo(tpot_s=Percentiles(p90=5.0))
    merged = sample_runs.run(800, slo=slo)
    short = sample_runs.run(1, slo=slo, output_tokens=1, gaps_ns=())
    merged.blocks.extend(short.blocks)
    assert one(slo, merged).result == "pass"
    assert one(slo, short).result == "fail"  # none has a TPOT: nothing was shown


ALL = Slo(
    ttft_s=Percentiles(p50=9, p99=9, mean=9, max=9),
    itl_s=Percentiles(p99=9),
    goodput_ratio=0.0,
    failed_ratio=1.0,
    output_tokens_per_s=0.0,
    requests_per_s=0.0,
)


@pytest.mark.parametrize(
    "merged",
    [
        Merged(run_id=sample_runs.RUN_ID),
        sample_runs.run(0, slo=ALL),
        sample_runs.run(50, slo=ALL, phase="warmup"),
    ],
    ids=["nothing", "no request", "warm-up only"],
)
def test_nothing_measured_never_passes(merged: Merged) -> None:
    gates = judge(ALL, merged)
    facts = {"output_tokens_per_s", "requests_per_s"} if any(block.window_ns for block in merged.blocks) else set()
    assert {name for name, gate in gates.items() if gate.result != "fail"} == facts  # "at least 0 a second" is true


def test_only_failures_never_pass() -> None:
    gates = judge(ALL, sample_runs.run(0, slo=ALL, ends={Outcome.HTTP_5XX: 50}))
    latencies = [gate for name, gate in gates.items() if name.startswith(("ttft", "itl"))]
    assert {(gate.result, gate.reason) for gate in latencies} == {("fail", "no request succeeded in a steady window")}


@pytest.mark.parametrize("limit", [math.nan, math.inf])
def test_a_limit_that_is_no_number_fails(limit: float) -> None:
    for which in ("p50", "p99", "mean", "max"):
        assert one(Slo(ttft_s=Percentiles(**{which: limit})), sample_runs.run(800)).result == "fail"


def test_a_number_that_is_none_fails() -> None:
    merged = sample_runs.run(800)
    summary = sample_runs.summary(merged)
    summary.throughput.requests_per_s = math.nan
    (gate,) = evaluate(Slo(requests_per_s=0.0), summary, merged)
    assert (gate.result, gate.value) == ("fail", None)


@pytest.mark.parametrize(
    ("slo", "ends", "result"),
    [
        (Slo(goodput_ratio=0.9), {}, "pass"),  # no latency limit: the share that succeeded
        (Slo(goodput_ratio=0.9), {Outcome.RESET: 300}, "fail"),
        (Slo(goodput_ratio=0.9, ttft_s=Percentiles(p99=1.0)), {}, "pass"),
        (Slo(goodput_ratio=0.9, ttft_s=Percentiles(p99=0.1)), {}, "fail"),
        (Slo(goodput_ratio=0.9, ttft_s=Percentiles(p99=1.0)), {Outcome.CENSORED: 80}, "inconclusive"),
        (Slo(goodput_ratio=1.0), {}, "pass"),
        (Slo(goodput_ratio=1.0), {Outcome.RESET: 1}, "fail"),
        (Slo(goodput_ratio=0.0), {Outcome.RESET: 1}, "pass"),
        (Slo(failed_ratio=0.01), {}, "pass"),
        (Slo(failed_ratio=0.01), {Outcome.RESET: 8}, "pass"),
        (Slo(failed_ratio=0.01), {Outcome.RESET: 9}, "fail"),
        (Slo(failed_ratio=0.01), {Outcome.CENSORED: 8}, "pass"),  # at worst 8 of 808
        (Slo(failed_ratio=0.01), {Outcome.CENSORED: 9}, "inconclusive"),  # 0 at best, 9 of 809 at worst
        (Slo(failed_ratio=0.01), {Outcome.CENSORED: 5, Outcome.RESET: 4}, "inconclusive"),
        (Slo(failed_ratio=0.01), {Outcome.CENSORED: 1, Outcome.RESET: 9}, "fail"),
        (Slo(requests_per_s=7.5), {}, "pass"),
        (Slo(requests_per_s=8.5), {}, "fail"),
        (Slo(output_tokens_per_s=70), {}, "pass"),
        (Slo(output_tokens_per_s=73), {}, "fail"),
    ],
)
def test_ratios_and_rates(slo: Slo, ends: dict[Outcome, int], result: str) -> None:
    merged = sample_runs.run(800, slo=slo, ends=ends)
    gate = {gate.metric: gate for gate in evaluate(slo, sample_runs.summary(merged), merged)}
    wanted = next(name for name in ("goodput_ratio", "failed_ratio", "requests_per_s", "output_tokens_per_s")
                  if getattr(slo, name) is not None)  # fmt: skip
    assert gate[wanted].result == result, gate[wanted]


@pytest.mark.parametrize("limit", [0.0, 0.5, 1.0])
def test_where_every_answer_hangs_nothing_passes(limit: float) -> None:
    slo = Slo(failed_ratio=limit, goodput_ratio=0.0)
    gates = judge(slo, sample_runs.run(0, slo=slo, ends={Outcome.CENSORED: 10}))
    assert {name: gate.result for name, gate in gates.items()} == {"failed_ratio": "fail", "goodput_ratio": "fail"}


def test_what_hangs_since_the_warm_up_may_have_failed_too() -> None:
    slo = Slo(failed_ratio=0.01)
    merged = sample_runs.run(800, slo=slo)
    early = sample_runs.run(0, ends={Outcome.CENSORED: 9}, phase="warmup").block(0)
    early.phase = "warmup"
    merged.blocks.append(early)
    gate = one(slo, merged)
    assert (gate.result, "9 had not ended" in gate.reason) == ("inconclusive", True)


def test_a_mean_of_those_that_ended_says_nothing_of_those_that_did_not() -> None:
    slo = Slo(e2e_s=Percentiles(mean=5.0))
    gate = one(slo, sample_runs.run(800, slo=slo, ends={Outcome.CENSORED: 1}))
    assert (gate.result, "1 more had not ended" in gate.reason) == ("inconclusive", True)


def in_one_read(n: int, slo: Slo, ok: int = 800, ttft: float = 0.5) -> Merged:
    """`ok` answers, of which `n` came in one read `ttft` s after they were sent."""
    merged = sample_runs.run(ok - n, slo=slo)
    whole = {"gaps_ns": (), "merged_events": 8, "events": 9, "reads": 1}
    inbox = snapshot.Inbox(sample_runs.RUN_ID)
    recorder = Recorder(sample_runs.RUN_ID, 1, request_limits(slo), start_ns=0)
    recorder.open_window(0, 5 * NS_PER_S)
    for number in range(n):
        record = sample_runs.request(number, 6 * NS_PER_S, ttft_s=ttft)
        recorder.add(msgspec.structs.replace(record, last_ns=record.first_ns, **whole))
    recorder.close_window(0, 7 * NS_PER_S)
    inbox.put(recorder.snapshot(8 * NS_PER_S, final=True))
    for block in inbox.merged().blocks:
        snapshot.add_into(merged.block(block.stage, block.phase), block)
    for block in merged.blocks:
        block.rho_weighted = {}
    return merged


@pytest.mark.parametrize("metric", ["tpot_s", "itl_s", "stall_s"])
@pytest.mark.parametrize("which", ["p50", "p99", "mean", "max"])
@pytest.mark.parametrize("n", [400, 800])
def test_answers_in_one_read_pass_no_limit_on_their_pace(metric: str, which: str, n: int) -> None:
    slo = Slo(**{metric: Percentiles(**{which: 0.04})})
    gate = one(slo, in_one_read(n, slo))
    assert gate.result == ("fail" if n == 800 else "inconclusive"), gate
    assert re.search("read|nothing is known", gate.reason)
    assert gate.value != 0.0


def test_few_answers_in_one_read_count_as_beyond_the_limit_at_worst() -> None:
    slo = Slo(tpot_s=Percentiles(p90=0.04))
    gates = {}
    for n in (10, 60):
        merged = in_one_read(n, slo, ok=2000)
        merged.block(0).merged_events = 0  # of many answers without
        gates[n] = one(slo, merged)
    assert (gates[10].result, gates[60].result) == ("pass", "pass")
    slo = Slo(tpot_s=Percentiles(p99=0.04))
    merged = in_one_read(20, slo, ok=10_000)
    merged.block(0).merged_events = 0
    assert (one(slo, merged).result) == "pass"
    slo = Slo(tpot_s=Percentiles(p99=0.04), goodput_ratio=0.999)
    merged = in_one_read(48, slo, ok=10_000)
    merged.block(0).merged_events = 0
    assert {name: gate.result for name, gate in judge(slo, merged).items()} == {
        "tpot_s.p99": "pass",
        "goodput_ratio": "inconclusive",
    }


@pytest.mark.parametrize(("unknown", "result"), [(0, "inconclusive"), (80, "inconclusive"), (400, "inconclusive")])
def test_what_is_unknown_refutes_no_limit(unknown: int, result: str) -> None:
    """9 % are late, which p90 leaves open; 4 % more may be."""
    slo = Slo(tpot_s=Percentiles(p90=0.04))
    merged = in_one_read(unknown, slo, ok=2000)
    block = merged.block(0)
    block.merged_events = 0
    late = round(0.09 * 2000)
    block.slo_missed_by["tpot_s"] = block.slo_missed_by.get("tpot_s", 0) + late
    assert one(slo, merged).result == result


def test_what_the_whole_time_keeps_is_kept() -> None:
    """An answer of 9 tokens that was there after 80 ms had no TPOT above 10 ms, in however few reads it came."""
    slo = Slo(tpot_s=Percentiles(max=0.03), goodput_ratio=0.9)
    assert judge(slo, in_one_read(800, slo, ttft=0.08))["goodput_ratio"].result == "pass"
    assert judge(slo, in_one_read(800, slo, ttft=0.5))["goodput_ratio"].result == "fail"


@pytest.mark.parametrize(
    ("n", "limit", "result"),
    [
        (200, 0.7, "pass"),  # three quarters are known to keep it
        (200, 0.9, "inconclusive"),  # the others may, too
        (200, 1.0, "inconclusive"),
        (0, 1.0, "pass"),
        (800, 0.9, "fail"),  # nothing measured is a fail
        (800, 1.0, "fail"),
    ],
)
def test_goodput_of_answers_whose_pace_nobody_knows_is_not_decided(n: int, limit: float, result: str) -> None:
    slo = Slo(tpot_s=Percentiles(max=0.03), goodput_ratio=limit)
    assert judge(slo, in_one_read(n, slo))["goodput_ratio"].result == result


def test_a_sure_miss_beside_an_unknown_one_is_sure() -> None:
    slo = Slo(tpot_s=Percentiles(max=0.03), ttft_s=Percentiles(max=0.4), goodput_ratio=0.9)
    assert judge(slo, in_one_read(200, slo))["goodput_ratio"].result == "fail"


def test_a_limit_between_what_a_gap_is_at_least_and_at_most_is_not_decided() -> None:
    """Gaps of 20 ms, some of them hidden in a read behind one of 40 ms: from 1 % on p99 may be either."""
    results = {}
    for share in (0.0, 0.004, 0.03):
        merged = sample_runs.shared_reads(share)
        for limit in (0.015, 0.03, 0.05):
            gate = one(Slo(itl_s=Percentiles(p99=limit)), merged)
            results[share, limit] = gate.result
    assert results == {
        (0.0, 0.015): "fail", (0.0, 0.03): "pass", (0.0, 0.05): "pass",
        (0.004, 0.015): "fail", (0.004, 0.03): "pass", (0.004, 0.05): "pass",
        (0.03, 0.015): "fail", (0.03, 0.03): "inconclusive", (0.03, 0.05): "pass",
    }  # fmt: skip


def test_what_would_decide_a_gate_is_said() -> None:
    gate = one(Slo(itl_s=Percentiles(p99=0.03)), sample_runs.shared_reads(0.03))
    assert (gate.result, gate.value) == ("inconclusive", None)
    assert re.search(r"error puts it between 0\.0[12]\d+ s and 0\.04\d+ s: .* would decide it", gate.reason)


@pytest.mark.parametrize(("share", "withheld"), [(0.0, []), (0.002, ["p999"]), (0.03, ["p99", "p999"])])
def test_only_the_percentile_that_is_spoiled_is_withheld(share: float, withheld: list[str]) -> None:
    latency = sample_runs.summary(sample_runs.shared_reads(share)).latency
    assert sorted(latency.itl_s.withheld) == withheld
    for which in ("p50", "p90", "p95", "p99", "p999"):
        assert (getattr(latency.itl_s, which) is None) == (which in withheld)
        assert latency.itl_s.low[which] <= 0.0203 <= (latency.itl_s.high[which] or 0) * 1.02
    assert latency.ttft_s.withheld == {}


@pytest.mark.parametrize(("which", "between"), [("mean", 0.02), ("max", 0.03)])
def test_a_mean_or_a_maximum_has_a_bar_too(which: str, between: float) -> None:
    merged = sample_runs.shared_reads(0.03)
    results = [one(Slo(itl_s=Percentiles(**{which: limit})), merged).result for limit in (0.01, between, 0.05)]
    assert results == ["fail", "inconclusive", "pass"]


def test_merged_reads_excuse_no_failure_and_no_server_that_is_far_too_slow() -> None:
    for limit, ends in ((0.004, {}), (0.05, {Outcome.HTTP_5XX: 800})):
        slo = Slo(itl_s=Percentiles(p99=limit))
        assert one(slo, sample_runs.shared_reads(0.15, slo=slo, ends=ends)).result == "fail"


def test_a_limit_inside_a_bucket_is_compared_exactly_where_it_is_the_requests_limit() -> None:
    slo = ttft_p99(0.1001)
    beyond = sample_runs.run(20, slo=slo, ttft=lambda _: 0.1002)  # 0.1 % beyond: the same bucket of the sketch
    within = sample_runs.run(800, slo=slo, ttft=lambda _: 0.1000)
    assert one(slo, beyond).result == "fail"
    assert one(slo, within).result == "pass"


_RANK = {"pass": 0, "inconclusive": 1, "fail": 2}


@settings(max_examples=60)
@given(
    ok=st.integers(0, 300),
    late=st.integers(0, 40),
    more=st.integers(1, 40),
    which=st.sampled_from(["p50", "p90", "p95", "p99", "max"]),
    cut_off=st.booleans(),
)
def test_a_further_violation_never_helps(ok: int, late: int, more: int, which: str, cut_off: bool) -> None:
    slo = Slo(ttft_s=Percentiles(**{which: 0.5}))

    def gate(violations: int) -> str:
        if cut_off:
            merged = sample_runs.run(ok, slo=slo, ends={Outcome.CENSORED: violations}, ttft=lambda _: 0.1)
        else:
            merged = sample_runs.run(ok + violations, slo=slo, ttft=lambda number: 0.1 if number < ok else 0.6)
        for block in merged.blocks:
            block.rho_weighted = {}
        return one(slo, merged).result

    assert _RANK[gate(late)] <= _RANK[gate(late + more)]


def test_gates_are_plain_json() -> None:
    merged = sample_runs.run(100, slo=ALL)
    for gate in evaluate(ALL, sample_runs.summary(merged), merged):
        assert msgspec.json.decode(msgspec.json.encode(gate), type=Gate) == gate


def test_a_gate_shows_the_number_of_the_table_and_no_percentile_is_less_than_what_it_holds() -> None:
    """Some metrics are known to finer buckets than others of the same requests: the finer one is the floor."""
    merged = SyntheticRun(seconds=20, stages=(4,)).play()
    summary, limits = summarize(merged), Percentiles(p50=9.0, p90=9.0)
    metrics = ("ttft_s", "ttft_intended_s", "ttfat_s", "itl_s", "tpot_s", "e2e_s", "e2e_intended_s", "stall_s")
    shown = {gate.metric: gate.value for gate in evaluate(Slo(**dict.fromkeys(metrics, limits)), summary, merged)}
    told = {f"{name}.{p}": getattr(getattr(summary.latency, name), p) for name in metrics for p in ("p50", "p90")}
    assert shown == told
    for more, less in (("ttft_intended_s", "ttft_s"), ("ttfat_s", "ttft_s"), ("e2e_intended_s", "e2e_s")):
        high, low = getattr(summary.latency, more), getattr(summary.latency, less)
        assert high.n == low.n > 662
        for p in ("p50", "p90", "p95", "p99"):
            assert getattr(high, p) >= getattr(low, p) * 0.9999, f"{more}.{p}"
            assert high.low[p] <= getattr(high, p) <= high.high[p]
