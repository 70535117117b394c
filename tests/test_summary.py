"""The summary gives null for what can't be known, balances, and is JSON that any parser reads."""

from __future__ import annotations

import json
import math

import msgspec
import pytest
import sample_runs
from load_run import SyntheticRun

from tokenswarm.measure.recorder import Recorder
from tokenswarm.measure.sketch import Sketch
from tokenswarm.measure.slo import Slo
from tokenswarm.measure.snapshot import Block, Inbox, Instrument, Merged, Snapshot
from tokenswarm.record import Outcome, RequestRecord, TokenSource
from tokenswarm.reports.cells import latency_rows, with_bar
from tokenswarm.result.stat import USER_STALL_S, Stat, stamp_error_s
from tokenswarm.result.summary import Doubt, Gate, StagePlan, Summary, Verdict, from_json, stat, summarize, to_json

MS, S = 1_000_000, 1_000_000_000
START_NS = 9_000 * S


def answer(at_ms: int, *, stage: int = 0, phase: str = "steady", ttft_ms: int = 100, **fields: object) -> RequestRecord:
    sent_ns = START_NS + at_ms * MS
    stamps = (sent_ns + ttft_ms * MS, sent_ns + (ttft_ms + 20) * MS)
    values: dict[str, object] = {
        "id": "r",
        "outcome": Outcome.OK,
        "stage": stage,
        "phase": phase,
        "intended_ns": sent_ns,
        "sent_ns": sent_ns,
        "first_ns": stamps[0],
        "first_answer_ns": stamps[0],
        "last_ns": stamps[1],
        "done_ns": stamps[1],
        "prompt_tokens": 5,
        "output_tokens": 2,
        "token_source": TokenSource.SERVER,
        "events": 2,
        "reads": 2,
        "gaps_ns": (20 * MS,),
        "token_stamps_ns": stamps,
        "rx_lag_max_ns": MS,
    }
    return RequestRecord(**{**values, **fields})  # type: ignore[arg-type]  # fields of the struct, by name


def run(recorder: Recorder, records: list[RequestRecord]) -> None:
    for record in records:
        recorder.intended(record.stage, record.phase)
        recorder.started(record.stage, record.phase)
        recorder.ended(decoding=False)
        recorder.add(record)


def merged_of(*recorders: Recorder, at_s: int = 10) -> Merged:
    inbox = Inbox("run")
    for recorder in recorders:
        inbox.put(recorder.snapshot(START_NS + at_s * S, final=True))
    return inbox.merged()


def sweep() -> Merged:
    """Two workers, two stages: warm-up 0…1 s, window 1…3 s; warm-up 3…4 s, window 4…8 s; a drain."""
    recorders = [Recorder("run", worker, Slo(ttft_s=0.15), start_ns=START_NS) for worker in range(2)]
    for recorder in recorders:
        for stage, begin_s, end_s in ((0, 1, 3), (1, 4, 8)):
            recorder.open_window(stage, START_NS + begin_s * S)
            recorder.close_window(stage, START_NS + end_s * S)
        run(recorder, [answer(100, phase="warmup"), answer(3100, stage=1, phase="warmup")])
        run(recorder, [answer(1000 + 100 * i) for i in range(10)])
        run(recorder, [answer(4000 + 100 * i, stage=1, ttft_ms=200) for i in range(30)])
        run(recorder, [answer(8000, stage=1, phase="drain", outcome=Outcome.CENSORED)])
        run(recorder, [answer(5000, stage=1, outcome=Outcome.HTTP_5XX, error_kind="http 503")])
    return merged_of(*recorders)


def test_stages_and_the_whole_run() -> None:
    got = summarize(sweep(), plan=[StagePlan(stage=0, concurrency=4), StagePlan(stage=1, concurrency=8, rate=2.5)])
    first, second = got.stages
    assert [(s.stage, s.concurrency, s.rate) for s in got.stages] == [(0, 4, None), (1, 8, 2.5)]
    assert (first.steady_window.start_s, first.steady_window.end_s, first.steady_window.length_s) == (1, 3, 2)
    assert (got.steady_window.start_s, got.steady_window.end_s, got.steady_window.length_s) == (1, 8, 6)
    assert first.throughput.requests_per_s == 2 * 10 / 2
    assert second.throughput.output_tokens_per_s == 2 * 30 * 2 / 4
    assert got.throughput.output_tokens_per_s == 2 * 40 * 2 / 6
    assert got.throughput.input_tokens_per_s == pytest.approx(2 * 40 * 5 / 6)
    assert (first.latency.ttft_s.n, second.latency.ttft_s.n, got.latency.ttft_s.n) == (20, 60, 80)
    assert (got.latency.ttft_s.min, got.latency.ttft_s.max) == (0.1, 0.2)
    assert got.failed_latency.e2e_s.n == 2
    assert first.batch_mean == pytest.approx(2 * 10 * 0.12 / 2)
    assert second.decoding_mean == pytest.approx(2 * 31 * 0.02 / 4)
    assert (got.duration_s, got.partial, got.run_id) == (10.0, False, "run")


def test_requests_are_of_the_whole_run_and_latency_of_the_windows() -> None:
    got = summarize(sweep())
    whole, steady = got.requests, got.requests_steady
    assert (whole.intended, whole.sent, whole.ok, whole.failed, whole.censored) == (88, 88, 84, 2, 2)
    assert whole.by_outcome == {"ok": 84, "http_5xx": 2, "censored": 2}
    assert whole.by_error == {"http 503": 2}
    assert (steady.ok, steady.failed, steady.censored) == (80, 2, 0)
    assert sum(stage.requests.sent for stage in got.stages) == whole.sent
    assert got.tokens.output == 160


def test_goodput() -> None:
    first, second = summarize(sweep()).stages
    assert (first.throughput.goodput_ratio, first.throughput.goodput_requests_per_s) == (1.0, 10.0)
    assert (second.throughput.goodput_ratio, second.throughput.goodput_requests_per_s) == (0.0, 0.0)
    assert (second.slo.judged, second.slo.met, second.slo.missed_by) == (62, 0, {"ttft_s": 60})
    plain = Recorder("run", 0, start_ns=START_NS)
    plain.open_window(0, START_NS)
    run(plain, [answer(0)])
    without = summarize(merged_of(plain)).throughput
    assert (without.goodput_ratio, without.goodput_requests_per_s) == (None, None)
    assert without.requests_per_s == 0.1


def test_percentiles_appear_with_the_samples_they_need() -> None:
    def shown(n: int, rho: float = 0.0) -> list[str]:
        got = stat(Sketch([0.1] * n), rho)
        return [name for name in ("p50", "p90", "p95", "p99", "p999") if getattr(got, name) is not None]

    assert [len(shown(n)) for n in (0, 10, 11, 64, 130, 662, 6636)] == [0, 0, 1, 2, 3, 4, 5]
    assert len(shown(6636, 0.5)) == 4
    assert stat(Sketch([0.1] * 90), 0.5).n_effective == 30.0
    assert stat(Sketch([0.1, 0.3])).mean == pytest.approx(0.2)


def test_an_empty_run_is_all_null_and_never_nan() -> None:
    got = summarize(Merged(run_id="run"))
    assert got.partial
    assert got.latency.ttft_s.mean is None
    assert (got.throughput.requests_per_s, got.batch_mean, got.tokens.per_event, got.tokens.source) == (None,) * 4
    assert (got.steady_window.start_s, got.instrument.stamp, got.instrument.cpu_ratio_max) == (None, None, None)
    assert (got.server, got.stages, got.verdict, got.gates) == ({}, [], Verdict(), [])
    assert from_json(to_json(got)) == got


def test_a_planned_stage_that_never_ran_is_listed_empty() -> None:
    (only,) = summarize(Merged(run_id="run"), plan=[StagePlan(stage=3, rate=1.0)]).stages
    assert (only.stage, only.requests.intended, only.throughput.requests_per_s) == (3, 0, None)


def every_number(value: object) -> list[float]:
    if isinstance(value, dict):
        return [number for inner in value.values() for number in every_number(inner)]
    if isinstance(value, list):
        return [number for inner in value for number in every_number(inner)]
    return [value] if isinstance(value, float) else []


def test_json_is_strict_ordered_and_comes_back() -> None:
    got = summarize(sweep())
    got.verdict = Verdict(
        status="INVALID", doubts=[Doubt(code="x", severity="invalid", message="m", evidence={"a": 1})]
    )
    got.gates = [Gate(metric="ttft_s.p99", op="<=", limit=2.0, value=None, result="fail", reason="no samples")]
    got.gpu = {"energy_j": math.nan, "power_w": math.inf}
    data = to_json(got)

    def refuse(word: str) -> None:
        raise AssertionError(word)

    parsed = json.loads(data, parse_constant=refuse)
    assert all(map(math.isfinite, every_number(parsed)))
    assert parsed["gpu"] == {"energy_j": None, "power_w": None}
    assert list(parsed)[:6] == ["schema_version", "run_id", "partial", "verdict", "gates", "duration_s"]
    assert set(parsed) == set(Summary.__struct_fields__)
    got.gpu = {"energy_j": None, "power_w": None}
    assert from_json(data) == got


CONTRACT = {
    "verdict": "status doubts",
    "requests": "intended sent ok failed dropped cancelled censored by_outcome",
    "steady_window": "start_s end_s",
    "throughput": "requests_per_s output_tokens_per_s input_tokens_per_s goodput_ratio goodput_requests_per_s",
    "latency": "ttft_s ttft_intended_s ttfat_s itl_s tpot_s e2e_s stall_s connect_s",
    "tokens": "input output source per_event",
    "instrument": "stamp rx_lag_s loop_lag_s merged_events_ratio cpu_ratio",
    "conventions": "vllm_bench guidellm aiperf",
}


def test_summary_json_keeps_the_public_contract() -> None:
    parsed = json.loads(to_json(summarize(sweep())))
    for block, names in CONTRACT.items():
        assert set(names.split()) <= set(parsed[block]), block
    for part in [parsed["latency"], *(stage["latency"] for stage in parsed["stages"])]:
        assert all({"n", "mean", "min", "max", "p50", "p90", "p95", "p99", "p999"} <= set(s) for s in part.values())
    assert all({"stage", "concurrency", "rate", "batch_mean"} <= set(stage) for stage in parsed["stages"])
    assert {"schema_version", "run_id", "partial", "duration_s", "server", "gpu", "gates"} <= set(parsed)


@pytest.mark.parametrize(
    ("sources", "label"),
    [((), None), (("server",), "server"), (("events",), "events"), (("events", "server"), "mixed")],
)
def test_sources_of_token_counts_are_never_mixed_silently(sources: tuple[str, ...], label: str | None) -> None:
    recorder = Recorder("run", 0, start_ns=START_NS)
    run(recorder, [answer(0, token_source=TokenSource(source)) for source in sources])
    got = summarize(merged_of(recorder)).tokens
    assert (got.source, got.output_by_source) == (label, dict.fromkeys(sources, 2))


def test_the_instrument_of_two_workers() -> None:
    calm = Instrument(kernel_stamped=9, cpu_ratio_max=0.3, loop_lag=Sketch([0.001]), rss_bytes=100)
    busy = Instrument(
        user_stamped=1, cpu_ratio_max=0.9, loop_lag=Sketch([0.3]), clock_step_ns_max=2 * S, throttled_ns=S
    )
    block = Block(
        stage=0, phase="steady", events=10, merged_events=1, rx_lag=Sketch([0.002]), ttft=Sketch([math.nan, -1.0])
    )
    inbox = Inbox("run")
    for worker, instrument in enumerate((calm, busy)):
        inbox.put(
            Snapshot(
                run_id="run",
                worker=worker,
                seq=3,
                final=not worker,
                sent_ns=0,
                elapsed_ns=S,
                wraps=worker,
                instrument=instrument,
                blocks=[block] if not worker else [],
            )
        )
    got = summarize(inbox.merged())
    own = got.instrument
    assert got.partial, "a worker's final report is missing"
    assert (own.stamp, own.kernel_stamp_ratio, own.merged_events_ratio) == ("mixed", 0.9, 0.1)
    assert (own.cpu_ratio, own.cpu_ratio_max) == ({"0": 0.3, "1": 0.9}, 0.9)
    assert (own.loop_lag_s.n, own.loop_lag_s.max, own.rx_lag_s.max) == (2, 0.3, 0.002)
    assert (own.clock_step_s_max, own.throttled_s, own.dataset_wraps) == (2.0, 1.0, 1)
    assert (own.values_refused, own.values_negative) == (1, 1)
    assert [(w.worker, w.final, w.reports_missing) for w in own.workers] == [(0, True, 2), (1, False, 2)]


def test_steadiness_of_a_drifting_window() -> None:
    recorder = Recorder("run", 0, start_ns=START_NS)
    run(recorder, [answer(10 * i, ttft_ms=100 if i < 100 else 110) for i in range(200)])
    got = summarize(merged_of(recorder)).steadiness["ttft_s"]
    assert got.change == pytest.approx(0.1, abs=0.012)
    assert (got.n, got.first_half_p50) == (200, 0.1)
    assert got.transient_ratio is not None
    assert got.transient_ratio >= 1 / 3
    assert got.rho > 0.9


def test_correlation_costs_percentiles() -> None:
    recorder = Recorder("run", 0, start_ns=START_NS)
    run(recorder, [answer(10 * i, ttft_ms=100 + i) for i in range(200)])  # ever later: worth few samples
    got = summarize(merged_of(recorder)).latency
    assert got.ttft_s.n == 200
    assert got.ttft_s.p50 is None
    assert got.ttft_intended_s.n_effective < 11
    assert got.tpot_s.p95 is not None


def test_server_times_are_shown_where_the_engine_gives_them() -> None:
    block = Block(stage=0, phase="steady", engine_load=Sketch([0.5]), engine_tokens_per_s=Sketch([40.0]))
    got = summarize(Merged(run_id="run", blocks=[block])).server
    assert {name: value.mean for name, value in got.items()} == {"load_s": 0.5, "tokens_per_s": 40.0}
    assert json.loads(msgspec.json.encode(got))["load_s"]["n"] == 1


def test_other_tools_rates_divide_by_the_whole_run() -> None:
    got = summarize(sweep()).conventions
    # From the first request sent (0.1 s) to the last byte of a success (4 + 2.9 + 0.22 s).
    span_s = 7.12 - 0.1
    assert got["vllm_bench"]["duration"] == pytest.approx(span_s)
    assert got["vllm_bench"]["request_throughput"] == pytest.approx(84 / span_s)
    assert got["vllm_bench"]["total_token_throughput"] == pytest.approx(84 * 7 / span_s)
    assert got["aiperf"]["output_token_throughput"] == pytest.approx(84 * 2 / span_s)
    assert got["sglang"]["concurrency"] == pytest.approx((24 * 0.12 + 60 * 0.22) / span_s)


def test_results_of_the_schema_before_bars_still_load() -> None:
    """Without `low`, `high` and the rest: what is not there is not drawn, and not 0."""
    document = msgspec.json.decode(to_json(sample_runs.summary(sample_runs.run(800))))
    document["schema_version"] = 1
    for part in (document, *document["stages"]):
        for told in part["latency"].values():
            for name in ("low", "high", "sample_low", "sample_high", "withheld"):
                del told[name]
    for name in ("sent_stamp", "sends_unstamped"):
        del document["instrument"][name]
    for worker in document["instrument"]["workers"]:
        for name in ("waited_ratio", "pressure_ratio", "gc_pause_ratio", "suspended_s"):
            del worker[name]
    old = from_json(msgspec.json.encode(document))
    assert (old.schema_version, old.latency.ttft_s.low, old.instrument.sent_stamp) == (1, {}, None)
    assert old.latency.ttft_s.p50 == document["latency"]["ttft_s"]["p50"]
    assert "±" not in "".join(cell for row in latency_rows(old) for cell in row)


def test_a_bar_is_shown_from_one_percent_on() -> None:
    for high, shown in ((0.1008, "100ms"), (0.105, "100ms ±3.00ms"), (None, "100ms")):
        assert with_bar(Stat(p50=0.1, low={"p50": 0.099}, high={"p50": high}), "p50") == shown


@pytest.mark.parametrize(("stall_s", "error_s"), [(0.03, 0.03), (0.3, USER_STALL_S)])
def test_stamps_of_user_space_are_off_by_stalls_that_are_too_short_to_be_told_one_by_one(
    stall_s: float, error_s: float
) -> None:
    (worker,) = SyntheticRun(workers=1).play().workers
    worker.instrument.loop_lag = Sketch([0.0] * 995 + [stall_s] * 5)
    worker.instrument.kernel_stamped, worker.instrument.user_stamped = 2, 1
    assert stamp_error_s([worker]) < 0.001
    worker.instrument.user_stamped = 3
    assert stamp_error_s([worker]) == pytest.approx(error_s, rel=0.02)
