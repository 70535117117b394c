"""Sums over a steady window, by hand: edges, holes, restarts, replicas, GPUs that go; and the blocks made of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sample_runs

from tokenswarm import kv_cache
from tokenswarm.clock import NS_PER_S
from tokenswarm.result.summary import Summary, from_json, to_json
from tokenswarm.telemetry import engines, join, kv
from tokenswarm.telemetry.exposition import PageError
from tokenswarm.telemetry.gpu import Price
from tokenswarm.telemetry.histogram import Histogram
from tokenswarm.telemetry.reading import Reading
from tokenswarm.telemetry.watch import EngineWatch, GpuWatch
from tokenswarm.telemetry.window import Level, Sample, Totals, Window, one_after_another, side_by_side

Find = Callable[[str], Path]


def s(seconds: float) -> int:
    return round(seconds * NS_PER_S)


def reading(running: float = 0.0, tokens: float = 0.0, **more: Any) -> Reading:
    return Reading(kind="vllm", levels={"running": running}, counters={"generation_tokens": tokens}, **more)


def offer(window: Window, at: float, *args: Any, slack: float = 0.0, **more: Any) -> None:
    window.offer(Sample(s(at), s(slack), reading(*args, **more)))


def window(opened: float = 10.0, closed: float | None = None, interval: float = 1.0) -> Window:
    made = Window(0, s(opened), interval)
    if closed is not None:
        made.close(s(closed))
    return made


# -- one window ------------------------------------------------------------------------------------------------------


def test_counters_are_differences_and_levels_are_means_over_time() -> None:
    it = window(10)
    offer(it, 9.9, 99, 1000)  # before it opened
    offer(it, 10.1, 2, 1100)
    offer(it, 11.1, 4, 1300)
    offer(it, 13.1, 4, 1700)
    it.close(s(14))
    offer(it, 14.1, 50, 1900)  # the edge: its levels are the next stage's
    offer(it, 14.2, 60, 5000)  # too late
    total = it.totals(s(99))
    assert total.counters == {"generation_tokens": 800}  # 1900 − 1100
    assert (total.planned_ns, total.covered_ns) == (s(4), s(4))
    assert total.edges_ns == s(0.2)  # 0.1 s late at both ends
    level = total.levels["running"]
    assert level.mean == pytest.approx((3 * 1 + 4 * 2) / 3)  # trapezoids: 1 s at 3, 2 s at 4
    assert (level.low, level.high) == (2, 4)
    assert (total.samples, total.gaps, total.resets, total.empty) == (4, {}, 0, 0)
    assert total.hole_ns == s(2)


def test_the_slack_of_the_round_trips_counts_as_edge() -> None:
    it = window(10)
    offer(it, 10.0, 0, 0, slack=0.05)
    it.close(s(12))
    offer(it, 12.0, 0, 10, slack=0.02)
    assert it.totals(0).edges_ns == s(0.07)


def test_a_reading_long_after_the_end_is_not_taken() -> None:
    it = window(10)
    offer(it, 10.1, 1, 100)
    offer(it, 12.0, 1, 200)
    it.close(s(12.5))
    offer(it, 15.0, 1, 900)
    assert it.done
    assert it.totals(0).counters == {"generation_tokens": 100}
    assert it.totals(0).edges_ns == s(0.6)


def test_one_reading_or_none_is_an_empty_window() -> None:
    it = window(10, 20)
    assert (it.totals(0).empty, it.totals(0).hole_ns) == (1, s(10))
    it = window(10)
    offer(it, 12, 1, 1)
    it.close(s(20))
    total = it.totals(0)
    assert (total.empty, total.counters, total.levels, total.covered_ns) == (1, {}, {}, 0)
    assert total.hole_ns == s(8)


def test_a_hole_is_left_out_of_means_and_counters_go_on_over_it() -> None:
    it = window(0)
    offer(it, 0, 10, 0)
    offer(it, 1, 10, 10)
    it.gap("timeout", s(2))
    it.gap("http_status", s(3))
    it.gap("timeout", s(4))
    offer(it, 5, 20, 50)  # 4 s without a reading: who knows what it was
    offer(it, 6, 20, 60)
    offer(it, 7, 20, 70)
    it.close(s(7))
    it.gap("timeout", s(8))  # after the end
    total = it.totals(0)
    assert total.counters == {"generation_tokens": 70}
    assert total.levels["running"].mean == pytest.approx((10 * 1 + 20 * 2) / 3)
    assert total.gaps == {"timeout": 2, "http_status": 1}
    assert total.hole_ns == s(4)


RESTARTS = {
    "a counter falls": reading(1, 5),
    "the process is another": reading(1, 2000, started_s=2.0),
    "a series is gone": Reading(kind="vllm", levels={}, counters={}),
    "another engine": Reading(kind="llamacpp", counters={"generation_tokens": 2000.0}),
    "buckets fall": reading(1, 2000, histograms={"ttft_s": Histogram((1.0,), (1, 0), 0.5)}),
    "buckets differ": reading(1, 2000, histograms={"ttft_s": Histogram((2.0,), (9, 0), 0.5)}),
}


@pytest.mark.parametrize("restarted", RESTARTS)
def test_a_restart_cuts_the_window_and_nothing_is_negative(restarted: str) -> None:
    histograms = {"ttft_s": Histogram((1.0,), (5, 1), 3.0)} if "buckets" in restarted else {}
    it = window(0)
    offer(it, 0, 1, 1000, histograms=histograms)
    offer(it, 3, 1, 1600, histograms=histograms)
    after = RESTARTS[restarted]
    for at in (4, 5):
        it.offer(Sample(s(at), 0, after))
    it.close(s(5))
    total = it.totals(0)
    assert total.resets == 1
    assert total.counters == {"generation_tokens": 600}  # the piece of 3 s, not that of 1 s
    assert total.covered_ns == s(3)
    assert total.edges_ns == s(2)


def test_the_longer_piece_stands_for_the_window_whether_before_or_after() -> None:
    it = window(0)
    offer(it, 0, 1, 1000)
    offer(it, 1, 1, 1100)
    offer(it, 2, 5, 0)
    offer(it, 9, 5, 70)
    assert it.totals(s(9)).counters == {"generation_tokens": 70}
    assert it.totals(s(9)).levels["running"].high == 5


def test_windows_one_after_another_add() -> None:
    a = Totals(planned_ns=s(10), covered_ns=s(9), edges_ns=s(1), counters={"x": 5}, samples=9, gaps={"timeout": 1})
    a.levels["running"] = join_level(2, 9)
    b = Totals(planned_ns=s(30), covered_ns=s(30), counters={"x": 20, "y": 1}, samples=30, gaps={"timeout": 2})
    b.levels["running"] = join_level(8, 30)
    c = Totals(planned_ns=s(5), empty=1, hole_ns=s(5))
    total = one_after_another([a, b, c])
    assert (total.planned_ns, total.covered_ns, total.empty, total.samples) == (s(45), s(39), 1, 39)
    assert total.counters == {"x": 25}
    assert total.gaps == {"timeout": 3}
    assert total.levels["running"].mean == pytest.approx((2 * 9 + 8 * 30) / 39)
    assert total.hole_ns == s(5)


def join_level(mean: float, seconds: float) -> Level:
    return Level(area=mean * s(seconds), span_ns=s(seconds), low=mean, high=mean)


def test_replicas_side_by_side_add_and_a_missing_one_leaves_no_sum() -> None:
    a = Totals(planned_ns=s(10), covered_ns=s(10), counters={"x": 5}, levels={"running": join_level(2, 10)})
    b = Totals(planned_ns=s(10), covered_ns=s(8), counters={"x": 7}, levels={"running": join_level(6, 8)})
    both = side_by_side([a, b])
    assert (both.planned_ns, both.covered_ns, both.counters) == (s(10), s(9), {"x": 12})
    assert both.levels["running"].mean == 8
    assert side_by_side([a, b, Totals(empty=1)]).counters == {}
    assert side_by_side([a, b, Totals(empty=1)]).levels == {}


# -- a page over a run -----------------------------------------------------------------------------------------------


def watch(interval: float = 1.0) -> EngineWatch:
    return EngineWatch("http://e/metrics", interval, engines.read, "0.33.0")


def test_half_a_page_never_changes_a_number(shared: Find) -> None:
    """After a whole page, each page that was cut at a line is a gap: no counter falls, no window is cut."""
    whole = shared("wire/vllm_metrics.prom").read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    right = engines.read(whole).shape
    for end in ends[::5]:
        it = watch()
        it.open(0, 0)
        it.page(whole, s(1), 0)
        it.page(whole[:end], s(2), 0)
        it.page(whole, s(3), 0)
        total = it.by_stage[0].totals(s(3))
        assert total.resets == 0
        assert set(total.counters.values()) == {0}
        assert sum(total.gaps.values()) == (not holds_all(whole[:end], right))


def holds_all(page: bytes, shape: object) -> bool:
    """True for a cut behind the last line that is read."""
    try:
        return engines.read(page).shape == shape
    except PageError:
        return False


def test_series_that_stay_away_are_a_change_of_the_server_not_half_a_page() -> None:
    base = "\n".join(
        f"vllm:{name} 1"
        for name in ("num_requests_running", "num_requests_waiting", "prompt_tokens_total", "generation_tokens_total")
    )
    more, less = f"{base}\nvllm:num_preemptions_total 0\n".encode(), f"{base}\n".encode()
    it = watch()
    it.open(0, 0)
    for at, page in enumerate((more, more, less, less, less)):
        it.page(page, s(at + 1), 0)
    assert it.gaps == {"incomplete": 1}
    assert it.by_stage[0].totals(s(5)).resets == 1
    assert (it.looks, it.good, it.misses) == (5, 4, 0)


def test_series_that_are_born_in_the_window_count_from_0(shared: Find) -> None:
    """A label's value, a model, families of vLLM's Rust front end: the same process began to tell them."""
    fresh = shared("wire/vllm_rs_metrics_fresh.prom").read_bytes()
    later = shared("wire/vllm_rs_metrics.prom").read_bytes()
    whole = engines.read(later)
    it = watch()
    it.open(0, 0)
    for at, page in enumerate((fresh, fresh, later, later)):
        it.page(page, s(at + 1), 0)
    total = it.by_stage[0].totals(s(4))
    assert (total.resets, total.covered_ns, it.gaps) == (0, s(3), {})
    assert total.counters["prompt_tokens"] == whole.counters["prompt_tokens"] > 0
    assert total.counters["finished.length"] == whole.counters["finished.length"] > 0
    assert total.histograms["ttft_s"] == whole.histograms["ttft_s"]


def told(tokens: float, *more: str, started: float | None = None) -> bytes:
    """A page of one engine that counted so much."""
    lines = ["vllm:num_requests_running 1", "vllm:num_requests_waiting 0", f"vllm:prompt_tokens_total {tokens}"]
    lines += [f"vllm:generation_tokens_total {tokens}", *more]
    lines += [] if started is None else [f"process_start_time_seconds {started}"]
    return "\n".join(lines).encode()


def test_a_label_that_one_stage_or_one_replica_has_not_told_yet_is_0_there() -> None:
    one, two = watch(), watch()
    for it, born in ((one, ["stop"]), (two, ["stop", "abort"])):
        for stage in (0, 1):
            it.open(stage, s(10 * stage))
            for n in range(3):
                reasons = born if stage else born[:1]
                rows = [f'vllm:request_success_total{{finished_reason="{why}"}} {10 * stage + n}' for why in reasons]
                it.page(told(100 * stage + n, *rows), s(10 * stage + n), 0)
            it.close(s(10 * stage + 2.5))
    summary = run(stages=2)
    join.fill(summary, [one, two], [], now_ns=s(30))
    assert [stage.server["metrics"]["finished"] for stage in summary.stages] == [{"stop": 4}, {"abort": 2, "stop": 4}]
    assert summary.server["metrics"]["finished"] == {"abort": 2, "stop": 8}
    assert summary.server["metrics"]["coverage"]["resets"] == 0


def test_a_counter_without_a_value_at_an_edge_has_none_in_the_window() -> None:
    it = watch()
    it.open(0, 0)
    for at, preemptions in enumerate(("NaN", "7", "NaN", "9")):
        it.page(told(at, f"vllm:num_preemptions_total {preemptions}"), s(at), 0)
    total = it.by_stage[0].totals(s(3))
    assert (total.resets, total.counters) == (0, {"prompt_tokens": 3, "generation_tokens": 3})


def test_a_page_that_may_have_been_cut_gives_no_birth() -> None:
    """Without a length, chunks or `# EOF` a page may have ended behind any line: what comes later is no new series."""
    it = watch()
    it.open(0, 0)
    it.page(told(5) + b"\n", s(0), 0, framed=False)
    it.page(told(6, "vllm:num_preemptions_total 900") + b"\n", s(1), 0, framed=False)
    it.page(told(7, "vllm:num_preemptions_total 900") + b"\n", s(3), 0, framed=False)
    total = it.by_stage[0].totals(s(3))
    assert (total.resets, total.counters["preemptions"]) == (1, 0)


A, B = (1000, 1010, 1020, 1030, 1040), (70, 80, 90, 100, 110)
TURNS: dict[str, list[bytes]] = {
    "two in turn": [told(n) for pair in zip(A, B, strict=True) for n in pair],
    "the smaller one first": [told(n) for pair in zip(B, A, strict=True) for n in pair],
    "at random": [told(n) for n in (1000, 1010, 70, 80, 1020, 90, 100, 1030, 1040, 110)],
    "a cache": [told(n) for n in (100, 200, 300, 200, 400, 500, 400, 600)],
    "start times": [told(n, started=n // 1000) for pair in zip(A, B, strict=True) for n in pair],
    "a start time that comes back": [told(1000, started=1), told(70, started=9), told(1010, started=1)],
    "begun together": [told(n, started=1 + n // 1000 * 0.3) for pair in zip(A, B, strict=True) for n in pair],
    "other series": [
        page
        for a, b in zip(A, B, strict=True)
        for page in (told(a, 'vllm:request_success_total{finished_reason="abort"} 1'), told(b))
    ],
    "other series, and more": [
        page
        for a, b in zip(A, B, strict=True)
        for page in (told(b, 'vllm:request_success_total{finished_reason="abort"} 1'), told(a))
    ],
}


@pytest.mark.parametrize("turns", TURNS)
def test_several_processes_at_one_address_are_named_and_give_no_number(turns: str) -> None:
    summary, it = run(), watch()
    it.open(0, 0)
    for at, page in enumerate(TURNS[turns]):
        it.page(page, s(at + 1), 0)
    it.close(s(99))
    assert it.several
    assert it.problem.startswith("several processes answer at this address")
    assert it.gaps["several_processes"] >= 1
    join.fill(summary, [it], [], now_ns=s(200))
    block = summary.stages[0].server["metrics"]
    assert (block["coverage"]["resets"], block["coverage"]["empty_windows"]) == (0, 1)
    assert (block["generation_tokens"], block["running"]["mean"], block["finished"]) == (None, None, {})
    assert it.newest is not None
    assert (it.newest.kind, it.newest.levels) == ("vllm", {})


RESTARTED: dict[str, list[bytes | None]] = {
    "once": [told(n) for n in (100, 200, 300, 5, 15, 25)],
    "beyond the start": [told(n) for n in (3, 200, 300, 5, 15, 25)],
    "twice, from 0": [told(n) for n in (0, 50, 0, 60, 0, 70)],
    "again and again, away meanwhile": [told(n) if n else None for n in (5, 50, 0, 6, 60, 0, 7, 70, 0, 8, 80)],
    "new start times": [told(n, started=start) for n, start in ((9, 1), (99, 1), (10, 4), (99, 4), (11, 8), (99, 8))],
    "a start time alone": [told(n, started=start) for n, start in ((9, 1), (99, 1), (200, 8), (300, 8))],
    "a start time that wobbles": [told(n, started=1795471052 + n * 0.37 % 1) for n in range(1, 9)],
    "a start time in whole seconds": [told(n, started=1795471052 + n % 2) for n in range(1, 9)],
    "a model that leaves while the other one gains": [
        *(told(1, *(f'vllm:num_preemptions_total{{model_name="{m}"}} {n}' for m in "ab")) for n in (10, 20)),
        *(told(1, f'vllm:num_preemptions_total{{model_name="a"}} {n}') for n in (300, 400)),
    ],
    "a cut page again and again": [told(n) if n % 2 else told(n, "vllm:num_preemptions_total 5") for n in range(9)],
}


@pytest.mark.parametrize("restarted", RESTARTED)
def test_restarts_are_restarts(restarted: str) -> None:
    it = watch()
    it.open(0, 0)
    for at, page in enumerate(RESTARTED[restarted]):
        if page is None:
            it.gap("connect", "can't connect", s(at + 1))
        else:
            it.page(page, s(at + 1), 0)
    assert not it.several
    falls = {"twice, from 0": 2, "new start times": 2, "again and again, away meanwhile": 3}
    falls |= dict.fromkeys(("a cut page again and again", "a start time that wobbles"), 0)
    falls["a start time in whole seconds"] = 0
    assert it.by_stage[0].totals(s(20)).resets == falls.get(restarted, 1)
    assert len(it.returns) <= falls.get(restarted, 1)


# -- the server block ------------------------------------------------------------------------------------------------


def vllm_page(tokens: float, *, running: float = 4, prompts: float = 0, **more: float) -> bytes:
    """A page; of the tokens' requests, 20 a token-thousand ended."""
    lines = [
        f"vllm:num_requests_running {running}", "vllm:num_requests_waiting 1", f"vllm:prompt_tokens_total {prompts}",
        f"vllm:generation_tokens_total {tokens}", f"vllm:kv_cache_usage_perc {more.get('usage', 0.5)}",
        f"vllm:num_preemptions_total {more.get('preemptions', 0)}",
        f"vllm:prefix_cache_queries_total {prompts}", f"vllm:prefix_cache_hits_total {prompts / 4}",
        f'vllm:request_success_total{{finished_reason="length"}} {more.get("done", 0)}',
        'vllm:cache_config_info{block_size="16",num_gpu_blocks="1000"} 1',
        f'vllm:time_to_first_token_seconds_bucket{{le="0.1"}} {more.get("done", 0)}',
        f'vllm:time_to_first_token_seconds_bucket{{le="+Inf"}} {more.get("done", 0)}',
        f"vllm:time_to_first_token_seconds_sum {more.get('done', 0) * 0.05}",
        f"vllm:time_to_first_token_seconds_count {more.get('done', 0)}",
    ]  # fmt: skip
    return ("\n".join(lines) + "\n").encode()


def run(stages: int = 1) -> Summary:
    """800 requests of 9 tokens (prompt 40) in each window of 100 s: 72 output tokens a second."""
    return sample_runs.summary(sample_runs.run(stages=stages))


def watched(rate: float, *, stages: int = 1, running: float = 4, late: float = 0.0) -> EngineWatch:
    """An engine that counts `rate` tokens a second in each window of 100 s."""
    it = watch()
    for stage in range(stages):
        start = 5 + 110 * stage
        it.open(stage, s(start))
        for at in range(101):
            if at == 100:
                it.close(s(start + 100))
            now = start + at + late
            it.page(vllm_page(now * rate, running=running * (stage + 1), prompts=now * 320, done=now * 8), s(now), 0)
    return it


def test_the_block_of_a_stage_by_hand() -> None:
    summary = run()
    it = watched(72.0)
    join.fill(summary, [it], [], now_ns=s(200))
    block = summary.stages[0].server["metrics"]
    assert block["running"] == {"mean": 4.0, "max": 4.0}
    assert block["waiting"] == {"mean": 1.0, "max": 1.0}
    assert block["kv_cache_usage"] == {"mean": 0.5, "max": 0.5}
    assert block["preemptions"] == 0
    assert block["generation_tokens"] == 7200
    assert block["generation_tokens_per_s"] == 72.0
    assert block["prompt_tokens"] == 32_000
    assert block["prefix_cache_hit_ratio"] == 0.25
    assert block["finished"] == {"length": 800}
    ttft = block["latency"]["ttft_s"]
    assert (ttft["n"], ttft["mean"], ttft["p50"]) == (800, pytest.approx(0.05), None)
    assert ttft["ranges"]["p50"] == (0.0, 0.1)
    cover = block["coverage"]
    assert (cover["window_s"], cover["covered_s"], cover["samples"], cover["resets"]) == (100.0, 100.0, 101, 0)
    compared = block["output_tokens_compared"]
    assert compared["client_per_s"] == pytest.approx(summary.throughput.output_tokens_per_s)
    assert compared["agree"]
    assert abs(compared["difference_ratio"]) < 0.002  # the last answers of the run end after the window
    whole = summary.server["metrics"]
    assert whole["generation_tokens"] == 7200
    (source,) = whole["sources"]
    assert (source["url"], source["kind"], source["version"]) == ("http://e/metrics", "vllm", "0.33.0")
    assert (source["looks"], source["good"], source["gaps"]) == (101, 101, {})


def test_counts_of_a_server_that_serves_others_too_disagree() -> None:
    summary = run()
    join.fill(summary, [watched(80.0)], [], now_ns=s(200))
    compared = summary.server["metrics"]["output_tokens_compared"]
    assert compared["difference_ratio"] == pytest.approx(80 / compared["client_per_s"] - 1)
    assert not compared["agree"]


def test_late_edges_widen_the_tolerance() -> None:
    summary, late = run(), run()
    join.fill(summary, [watched(72.0)], [], now_ns=s(200))
    join.fill(late, [watched(72.0, late=0.5)], [], now_ns=s(200))
    one, other = (x.server["metrics"]["output_tokens_compared"] for x in (summary, late))
    assert other["tolerance_ratio"] - one["tolerance_ratio"] == pytest.approx(1.0 / 100)


def test_windows_of_master_and_workers_that_are_not_alike_widen_it() -> None:
    """The master's last a tenth of a second longer in an open loop, in which nothing more is sent."""
    summary, longer = run(), run()
    longer.steady_window.length_s -= 1.5
    for one in (summary, longer):
        join.fill(one, [watched(72.0)], [], now_ns=s(200))
    one, other = (x.server["metrics"]["output_tokens_compared"] for x in (summary, longer))
    assert other["tolerance_ratio"] - one["tolerance_ratio"] == pytest.approx(2 * 1.5 / 100)


def test_stages_have_their_own_numbers_and_the_run_those_of_all_windows() -> None:
    summary = run(stages=2)
    join.fill(summary, [watched(72.0, stages=2)], [], now_ns=s(300))
    first, second = (stage.server["metrics"] for stage in summary.stages)
    assert (first["running"]["mean"], second["running"]["mean"]) == (4.0, 8.0)
    whole = summary.server["metrics"]
    assert whole["running"] == {"mean": 6.0, "max": 8.0}
    assert whole["generation_tokens"] == 14_400
    assert whole["coverage"]["window_s"] == 200.0


def test_replicas_are_one_server() -> None:
    summary = run()
    join.fill(summary, [watched(36.0), watched(36.0)], [], now_ns=s(200))
    block = summary.server["metrics"]
    assert block["running"]["mean"] == 8.0
    assert block["kv_cache_usage"] == {"mean": 0.5, "max": 0.5}
    assert block["generation_tokens_per_s"] == 72.0
    assert block["output_tokens_compared"]["agree"]
    assert block["kv_cache"]["capacity_tokens"] == 32_000
    silent = watch()
    silent.open(0, s(5))
    silent.close(s(105))
    other = run()
    join.fill(other, [watched(36.0), silent], [], now_ns=s(200))
    assert other.server["metrics"]["generation_tokens"] is None
    assert other.server["metrics"]["running"] == {"mean": None, "max": None}


def test_an_engine_that_never_answers_leaves_nulls_and_the_reason() -> None:
    summary = run()
    it = watch()
    it.open(0, s(5))
    it.gap("timeout", "no whole answer within 1 s", s(6))
    it.close(s(105))
    join.fill(summary, [it], [], now_ns=s(200))
    block = summary.server["metrics"]
    assert (block["generation_tokens"], block["preemptions"], block["output_tokens_compared"]) == (None, None, None)
    assert block["coverage"]["empty_windows"] == 1
    assert block["coverage"]["gaps"] == {"timeout": 1}
    assert block["sources"][0]["kind"] is None
    assert block["sources"][0]["problem"] == "no whole answer within 1 s"


def test_llama_cpp_has_means_only_and_counts_answers_at_their_end() -> None:
    summary = run()
    it = watch()
    it.open(0, s(5))
    for at, tokens in ((5, 1000), (105, 8200)):
        it.close(s(105)) if at == 105 else None
        lines = ["requests_processing 4", "requests_deferred 0", f"prompt_tokens_total {tokens * 3}",
                 f"prompt_tokens_cached_total {tokens}", f"tokens_predicted_total {tokens}",
                 f"tokens_predicted_seconds_total {tokens * 0.02}"]  # fmt: skip
        it.page("".join(f"llamacpp:{line}\n" for line in lines).encode(), s(at), 0)
    join.fill(summary, [it], [], now_ns=s(200))
    block = summary.server["metrics"]
    assert block["generation_tokens"] == 7200
    assert block["prompt_tokens"] == 4 * 7200
    assert block["prefix_cache_hit_ratio"] == 0.25
    assert block["latency"]["tpot_s"]["mean"] == pytest.approx(0.02)
    assert block["latency"]["tpot_s"]["p50"] is None
    compared = block["output_tokens_compared"]
    # each of the batch's answers (9 tokens) may be torn at both edges
    torn = 2 * summary.batch_mean * 9 / (compared["client_per_s"] * 100)  # type: ignore[operator]
    assert compared["tolerance_ratio"] == pytest.approx(0.01 + torn)


# -- the KV-cache ----------------------------------------------------------------------------------------------------

SHAPE = kv_cache.shape_of(
    {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096,
     "dtype": "bfloat16"}
)  # fmt: skip


def test_the_cache_predicted_and_as_the_engine_tells_it() -> None:
    summary = run()
    join.fill(summary, [watched(72.0)], [], now_ns=s(200), shape=SHAPE)
    kv = summary.server["metrics"]["kv_cache"]
    assert kv["capacity_tokens"] == 16_000  # 1000 blocks of 16
    assert kv["predicted_bytes_per_token"] == 131_072
    assert kv["capacity_bytes"] == 16_000 * 131_072
    assert (kv["used_tokens_mean"], kv["used_bytes_mean"]) == (8000.0, 8000 * 131_072)
    assert (kv["context_tokens_mean"], kv["context_tokens_end"]) == (44.5, 49.0)  # prompt 40, answer 9
    assert kv["predicted_bytes_mean"] == 4 * 44.5 * 131_072
    assert kv["batch_at_full"] == pytest.approx(16_000 / 44.5)
    assert kv["batch_at_full_end"] == pytest.approx(16_000 / 49)


def test_without_a_config_only_what_the_engine_tells_is_known() -> None:
    summary = run()
    join.fill(summary, [watched(72.0)], [], now_ns=s(200))
    kv = summary.server["metrics"]["kv_cache"]
    assert (kv["capacity_tokens"], kv["used_tokens_max"]) == (16_000, 8000.0)
    assert kv["predicted_bytes_per_token"] is kv["capacity_bytes"] is kv["batch_at_full"] is None


def test_a_stage_is_told_once_its_last_reading_is_there_and_as_the_summary_tells_it() -> None:
    it = watched(72.0, stages=2)
    assert join.of_stage([it], [], 0, s(106)) == join.StageTold(engine_batch=4.0, engine_waiting=1.0)
    it.open(7, s(300))
    it.page(vllm_page(9_000, running=2), s(301), 0)
    assert join.of_stage([it], [], 7, s(301)) is None, "it goes on"
    it.close(s(302))
    assert join.of_stage([it], [], 7, s(302.1)) is None, "the reading at its end has not come"
    assert join.of_stage([it], [], 7, s(304)) is not None, "and never comes"
    assert join.of_stage([it], [], 8, s(304)) is None, "there was no such stage"


def test_the_cache_right_now_by_the_newest_readings() -> None:
    both = [watched(72.0), watched(72.0)]
    found = kv.now(both, SHAPE, decoding=99, prompt=40.0, answer=9.0)
    assert found.capacity_tokens == 32_000
    assert found.predicted_bytes_mean == 8 * 44.5 * 131_072, "the batch is the engines', 4 each"
    assert found.used_bytes_mean == 0.5 * 32_000 * 131_072
    assert found.batch_at_full == pytest.approx(32_000 / 44.5)
    early = kv.now(both, SHAPE, decoding=0, prompt=None, answer=None)
    assert (early.predicted_bytes_per_token, early.predicted_bytes_mean) == (131_072, None)


def test_an_engine_that_tells_no_batch_has_the_clients() -> None:
    silent = EngineWatch("http://h:1/metrics", 1.0, engines.read)
    found = kv.now([silent], SHAPE, decoding=3, prompt=40.0, answer=9.0)
    assert found.predicted_bytes_mean == 3 * 44.5 * 131_072
    assert found.notes[-1] == kv.CLIENTS_BATCH
    assert found.capacity_bytes is found.used_bytes_mean is found.batch_at_full is None
    one_of_two = kv.now([watched(72.0), silent], SHAPE, decoding=3, prompt=40.0, answer=9.0)
    assert one_of_two.used_bytes_mean is None, "the other's would look like all"
    assert one_of_two.capacity_bytes is None
    assert one_of_two.predicted_bytes_mean == 3 * 44.5 * 131_072


# -- GPUs ------------------------------------------------------------------------------------------------------------


def gpu_page(at: float, *gpus: str, watts: float = 500.0, started: float = 0.0, **more: Any) -> bytes:
    """Each GPU draws `watts`, is busy 90 % of the time and throttles 2 % of it. `started`: when the exporter began."""
    lines = [f"tokenswarm_gpus {len(gpus)}", "tokenswarm_host_cpus 8"]
    for gpu in gpus:
        lines += [
            f'tokenswarm_gpu_info{{gpu="{gpu}",index="{gpus.index(gpu)}",name="H200",backend="nvml"}} 1',
            f'tokenswarm_gpu_up{{gpu="{gpu}"}} 1',
            f'tokenswarm_gpu_energy_joules_total{{gpu="{gpu}"}} {1e6 + at * watts}',
            f'tokenswarm_gpu_busy_seconds_total{{gpu="{gpu}"}} {(at - started) * 0.9}',
            f'tokenswarm_gpu_observed_seconds_total{{gpu="{gpu}"}} {at - started}',
            f'tokenswarm_gpu_power_watts{{gpu="{gpu}"}} {watts + 10 * (at % 2)}',
            f'tokenswarm_gpu_memory_used_bytes{{gpu="{gpu}"}} {1e9 * min(at, 50)}',
            f'tokenswarm_gpu_clock_hertz{{gpu="{gpu}",clock="sm"}} {1.9e9 if at < 60 else 1.5e9}',
            f'tokenswarm_gpu_temperature_celsius{{gpu="{gpu}",sensor="gpu"}} {40 + at / 10}',
            f'tokenswarm_gpu_throttle_seconds_total{{gpu="{gpu}",reason="sw_thermal"}} {(at - started) * 0.02}',
        ]
    lines += [f'tokenswarm_gpu_up{{gpu="{gpu}"}} 0' for gpu in more.get("down", ())]
    lines += [
        f'tokenswarm_gpu_xid_errors_total{{gpu="{gpu}",xid="{xid}"}} {n}'
        for (gpu, xid), n in more.get("xids", {}).items()
    ]
    return ("\n".join(lines) + "\n").encode()


def gpu_watch(page: Callable[[int], bytes | None]) -> GpuWatch:
    """One window of 100 s, with a page a second; None is a gap."""
    it = GpuWatch("http://g/metrics", 1.0)
    it.page(page(4) or b"", s(4), 0)
    it.open(0, s(5))
    for at in range(5, 106):
        if at == 105:
            it.close(s(105))
        body = page(at)
        if body is None:
            it.gap("timeout", "no whole answer within 1 s", s(at))
        else:
            it.page(body, s(at), 0)
    return it


def gpu_block(*watches: GpuWatch, price: Price | None = None) -> dict[str, Any]:
    summary = run()
    join.fill(summary, [], watches, now_ns=s(200), price=price)
    own = {name: value for name, value in summary.gpu.items() if name != "sources"}
    assert own == summary.stages[0].gpu
    assert from_json(to_json(summary)).gpu["count"] == summary.gpu["count"]
    return summary.gpu


def test_energy_power_and_cost_by_hand() -> None:
    block = gpu_block(gpu_watch(lambda at: gpu_page(at, "A", "B")), price=Price(3.6, "EUR"))
    a = block["gpus"][0]
    assert (a["gpu"], a["index"], a["name"], a["backend"], a["lost"]) == ("A", "0", "H200", "nvml", False)
    assert (a["energy_j"], a["observed_s"], a["power_w_mean"]) == (50_000.0, 100.0, 500.0)
    assert (a["power_w_max"], a["utilization_ratio_mean"]) == (510.0, pytest.approx(0.9))
    assert (a["memory_used_bytes_max"], a["clock_sm_hz_min"]) == (50e9, 1.5e9)
    assert a["temperature_c_max"] == pytest.approx(40 + 104 / 10)  # the reading at the edge is the next stage's
    assert a["throttle_s"] == {"sw_thermal": pytest.approx(2.0)}
    assert (block["count"], block["energy_j"], block["power_w_mean"]) == (2, 100_000.0, 1000.0)
    rate = run().throughput.output_tokens_per_s
    assert rate == pytest.approx(72.0, rel=0.01)
    assert block["output_tokens_per_j"] == block["output_tokens_per_s_per_w"] == pytest.approx(rate / 1000)
    assert block["j_per_output_token"] == pytest.approx(1000 / rate)
    # a million tokens take 1e6/72 s, two GPUs cost 2 · 3.6/3600 = 0.002 a second
    assert block["cost_per_million_output_tokens"] == pytest.approx(1e6 / rate * 0.002)
    assert (block["price_per_gpu_hour"], block["currency"]) == (3.6, "EUR")


def test_a_price_alone_needs_the_number_of_gpus() -> None:
    assert gpu_block(price=Price(3.6, "USD"))["cost_per_million_output_tokens"] is None
    assert gpu_block(price=Price(3.6, "USD", 4))["cost_per_million_output_tokens"] == pytest.approx(
        1e6 / 72 * 0.004, rel=0.01
    )


def test_two_exporters_add_up() -> None:
    block = gpu_block(gpu_watch(lambda at: gpu_page(at, "A")), gpu_watch(lambda at: gpu_page(at, "B", watts=300.0)))
    assert (block["count"], block["power_w_mean"], block["coverage"]["window_s"]) == (2, 800.0, 100.0)


def test_two_exporters_of_one_machine_count_its_gpus_once() -> None:
    one = gpu_block(gpu_watch(lambda at: gpu_page(at, "A", "B")))
    both = gpu_block(gpu_watch(lambda at: gpu_page(at, "A", "B")), gpu_watch(lambda at: gpu_page(at, "B", "C")))
    assert (one["count"], one["energy_j"]) == (2, 100_000.0)
    assert ([gpu["gpu"] for gpu in both["gpus"]], both["energy_j"]) == (["A", "B", "C"], 150_000.0)
    assert both["cpu"] == one["cpu"]


def test_a_lost_gpu_leaves_no_sums() -> None:
    block = gpu_block(
        gpu_watch(
            lambda at: (
                gpu_page(at, "A", "B")
                if at < 50
                else gpu_page(at, "A", down=["B"], xids={("B", "79"): 1, ("A", "13"): 2})
            )
        )
    )
    a, b = block["gpus"]
    assert (a["lost"], b["lost"]) == (False, True)
    assert (a["xids"], b["xids"]) == ({"13": 2}, {"79": 1})
    assert (b["observed_s"], b["energy_j"]) == (44.0, 22_000.0)  # from 5 to 49
    assert block["energy_j"] is block["power_w_mean"] is block["output_tokens_per_j"] is None


def test_xids_from_before_the_window_are_not_its() -> None:
    block = gpu_block(gpu_watch(lambda at: gpu_page(at, "A", xids={("A", "31"): 4 if at < 60 else 5})))
    assert block["gpus"][0]["xids"] == {"31": 1}


def test_an_exporter_that_began_again_cuts_the_window() -> None:
    block = gpu_block(gpu_watch(lambda at: gpu_page(at, "A", started=0 if at < 80 else 79)))
    a = block["gpus"][0]
    assert block["coverage"]["resets"] == 1
    assert (a["observed_s"], a["power_w_mean"]) == (74.0, 500.0)  # from 5 to 79, not over the restart


def test_an_exporter_whose_values_stand_still_draws_no_zero_watts() -> None:
    a = gpu_block(gpu_watch(lambda _at: gpu_page(7, "A")))["gpus"][0]
    assert (a["power_w_mean"], a["energy_j"], a["utilization_ratio_mean"]) == (None, None, None)


def test_gaps_of_an_exporter_are_counted_and_change_no_number() -> None:
    block = gpu_block(gpu_watch(lambda at: None if 30 <= at < 40 else gpu_page(at, "A")))
    assert block["coverage"]["gaps"] == {"timeout": 10}
    assert block["coverage"]["hole_s"] == 11.0
    assert (block["energy_j"], block["power_w_mean"]) == (50_000.0, 500.0)
