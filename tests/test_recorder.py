"""The recorder counts each request once, gives each window its own tokens, and judges the SLO strictly."""

from __future__ import annotations

import random
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenswarm.measure import recorder as recorders
from tokenswarm.measure import series
from tokenswarm.measure.ending import count_others
from tokenswarm.measure.recorder import Recorder
from tokenswarm.measure.slo import Slo
from tokenswarm.measure.snapshot import Block, Snapshot, total
from tokenswarm.record import FAILED_OUTCOMES, EngineTimes, Outcome, RequestRecord, TokenSource

MS = 1_000_000
S = 1000 * MS
START_NS = 5_000 * S


def answer(
    at_ms: float = 0, stamps_ms: tuple[float, ...] = (100, 120, 140), *, tail_ms: float = 1, **fields: object
) -> RequestRecord:
    """A request sent `at_ms` after the start; `stamps_ms` of its tokens count from there, too."""
    stamps = tuple(START_NS + int(ms * MS) for ms in stamps_ms)
    sent_ns = START_NS + int(at_ms * MS)
    values: dict[str, object] = {
        "id": "r",
        "outcome": Outcome.OK,
        "stage": 0,
        "phase": "steady",
        "intended_ns": sent_ns,
        "sent_ns": sent_ns,
        "first_ns": stamps[0] if stamps else 0,
        "first_answer_ns": stamps[0] if stamps else 0,
        "last_ns": stamps[-1] if stamps else 0,
        "done_ns": (stamps[-1] if stamps else sent_ns) + int(tail_ms * MS),
        "prompt_tokens": 10,
        "output_tokens": len(stamps),
        "token_source": TokenSource.SERVER,
        "events": len(stamps),
        "reads": len(stamps),
        "gaps_ns": tuple(b - a for a, b in pairwise(stamps) if b > a),
        "token_stamps_ns": stamps,
    }
    return RequestRecord(**{**values, **fields})  # type: ignore[arg-type]  # fields of the struct, by name


def new(slo: Slo | None = None) -> Recorder:
    return Recorder("run", 0, slo, start_ns=START_NS)


def block(recorder: Recorder, stage: int = 0, phase: str = "steady") -> Block:
    report = recorder.snapshot(START_NS + 60 * S, final=True)
    return next(b for b in report.blocks if (b.stage, b.phase) == (stage, phase))


def test_the_account_balances_whatever_the_outcomes() -> None:
    recorder = new()
    for index, outcome in enumerate(Outcome):
        for _ in range(index + 1):
            recorder.intended(0, "steady")
            recorder.started(0, "steady")
            recorder.ended(decoding=False)
            recorder.add(answer(outcome=outcome))
    recorder.intended(0, "steady", 4)
    recorder.dropped(0, "steady", 4)
    got = block(recorder)
    assert got.intended == got.sent + got.dropped
    assert got.sent == got.ok + got.failed + got.cancelled + got.censored == sum(got.by_outcome.values())
    assert got.by_outcome == {outcome.value: index + 1 for index, outcome in enumerate(Outcome)}
    assert got.failed == sum(got.by_outcome[outcome.value] for outcome in FAILED_OUTCOMES)
    assert recorder.in_flight == 0


def test_the_gauges_follow_a_request() -> None:
    recorder = new()
    recorder.started(0, "warmup")
    recorder.started(0, "warmup")
    recorder.first_token()
    recorder.live_tokens(3)
    recorder.users, recorder.wraps = 7, 1
    report = recorder.snapshot(START_NS + S)
    assert (report.in_flight, report.decoding, report.live_output_tokens) == (2, 1, 3)
    assert (report.users, report.wraps, report.elapsed_ns) == (7, 1, S)
    recorder.ended(decoding=True)
    recorder.ended(decoding=False)
    assert (recorder.in_flight, recorder.decoding) == (0, 0)


def test_failed_requests_enter_no_latency_and_no_token_count() -> None:
    recorder = new(Slo(e2e_s=9))
    recorder.open_window(0, START_NS)
    for outcome in sorted(FAILED_OUTCOMES | {Outcome.CANCELLED, Outcome.CENSORED}):
        recorder.add(answer(outcome=outcome))
    got = block(recorder)
    assert [name for name in ("ttft", "itl", "tpot", "e2e", "stall", "output_len") if getattr(got, name).n] == []
    assert (got.output_tokens, got.window_tokens, got.window_requests, got.events) == (0, 0, 0, 0)
    assert (got.failed_ttft.n, got.failed_e2e.n) == (len(FAILED_OUTCOMES), len(FAILED_OUTCOMES))
    assert (got.slo_judged, got.slo_met) == (len(FAILED_OUTCOMES) + 1, 0)
    assert got.conventions.tpot_to_end.n == 0


def test_of_what_was_broken_off_age_and_silence_are_kept() -> None:
    recorder = new()
    recorder.open_window(0, START_NS)
    recorder.add(answer(tail_ms=3000, outcome=Outcome.RESET))
    recorder.add(answer(stamps_ms=(), tail_ms=3000, outcome=Outcome.HTTP_5XX, headers_ns=START_NS + 500 * MS))
    recorder.add(answer(tail_ms=3000, outcome=Outcome.STALLED))
    got = block(recorder)
    assert (got.broken_e2e.n, got.broken_e2e.low, got.broken_e2e.high) == (2, 3.0, 3.14)
    assert (got.broken_silence.n, got.broken_silence.low, got.broken_silence.high) == (2, 2.5, 3.0)


def test_a_request_that_never_connected_counts_without_times() -> None:
    recorder = new()
    recorder.open_window(0, START_NS)
    recorder.add(answer(stamps_ms=(), sent_ns=0, outcome=Outcome.CONNECT, error_kind="ConnectionRefusedError"))
    got = block(recorder)
    assert (got.failed, got.by_error, got.failed_e2e.n, got.send_lag.n) == (1, {"ConnectionRefusedError": 1}, 0, 0)
    assert (got.window_in_flight_ns, got.first_sent_ns) == (0, None)


def test_kinds_of_error_are_bounded() -> None:
    recorder = new()
    for index in range(100):
        recorder.add(answer(outcome=Outcome.PROTOCOL, error_kind=f"kind {index}"))
    recorder.add(answer(outcome=Outcome.PROTOCOL, error_kind="kind 3"))
    recorder.add(answer(outcome=Outcome.RESET))
    got = block(recorder).by_error
    assert len(got) == recorders.KINDS_MAX + 1
    assert (got["kind 3"], got["other"], sum(got.values())) == (2, 69, 102)


def test_models_are_counted_by_name_of_successes_within_bounds_and_add_up() -> None:
    recorder = new()
    for index in range(100):
        recorder.add(answer(model=f"model {index % 50}"))
    recorder.add(answer(model=""))
    recorder.add(answer(outcome=Outcome.RESET, model="model 3"))
    got = block(recorder)
    assert len(got.by_model) == recorders.KINDS_MAX + 1
    assert (got.by_model["model 3"], got.by_model["other"], sum(got.by_model.values())) == (2, 36, 100)
    assert total([got, block(recorder)]).by_model == {name: 2 * n for name, n in got.by_model.items()}


def test_what_was_said_of_a_kind_of_error_is_kept_and_merges_the_same_in_any_order() -> None:
    sentences = ["HTTP 422: b", "HTTP 422: a" + "x" * 500, "", "HTTP 422: c"]
    blocks = []
    for order in (sentences, sentences[::-1]):
        recorder = new()
        for sentence in order:
            recorder.add(answer(outcome=Outcome.HTTP_4XX, error_kind="http 422", error=sentence))
        blocks.append(block(recorder))
    wanted = {"http 422": ("HTTP 422: a" + "x" * 500)[:200]}
    assert [one.error_says for one in blocks] == [wanted, wanted]
    other = new()
    other.add(answer(outcome=Outcome.HTTP_4XX, error_kind="http 422", error="HTTP 422: A, the first"))
    other.add(answer(outcome=Outcome.RESET, error_kind="reset", error="gone"))
    for pair in ([blocks[0], block(other)], [block(other), blocks[0]]):
        assert total(pair).error_says == {"http 422": "HTTP 422: A, the first", "reset": "gone"}


def test_latencies_of_one_request() -> None:
    recorder = new()
    recorder.add(
        answer(
            10,
            (110, 130, 190),
            intended_ns=START_NS,
            connect_ns=3 * MS,
            first_answer_ns=START_NS + 130 * MS,
            rx_lag_max_ns=MS,
            engine=EngineTimes(total_ns=150 * MS, load_ns=MS, prefill_ns=80 * MS, decode_ns=60 * MS, queue_ns=9 * MS),
            reasoning_tokens=1,
            cached_tokens=4,
        )
    )
    got = block(recorder)
    expected = {
        "ttft": 0.1,
        "ttft_intended": 0.11,
        "ttfat": 0.12,
        "tpot": 0.04,
        "e2e": 0.181,
        "stall": 0.06,
        "connect": 0.003,
        "send_lag": 0.01,
        "rx_lag": 0.001,
        "output_len": 3.0,
        "prompt_len": 10.0,
        "engine_total": 0.15,
        "engine_load": 0.001,
        "engine_prefill": 0.08,
        "engine_decode": 0.06,
        "engine_queue": 0.009,
        "engine_tokens_per_s": 50.0,
    }
    assert {name: getattr(got, name).sum for name in expected} == pytest.approx(expected)
    assert (got.itl.n, got.itl.low, got.itl.high) == (2, 0.02, 0.06)
    assert (got.reasoning_tokens, got.cached_tokens, got.engine_ttft.n) == (1, 4, 0)
    assert (got.output_tokens_by_source, got.prompt_tokens) == ({"server": 3}, 10)


def test_cached_tokens_of_first_turns_are_counted_apart() -> None:
    """Of all of them: vLLM and SGLang leave the number out where it is 0, and tell of the others alone."""
    recorder = new()
    for turn, cached in ((0, 4), (1, 9), (0, 0), (0, None)):
        recorder.add(answer(turn=turn, cached_tokens=cached))
    got = block(recorder)
    assert (got.prompt_tokens, got.cached_tokens) == (40, 13)
    assert (got.first_prompt_tokens, got.first_cached_tokens) == (30, 4)


def test_tokens_belong_to_the_window_in_which_they_came() -> None:
    recorder = new()
    recorder.open_window(0, START_NS + 100 * MS)
    recorder.close_window(0, START_NS + 200 * MS)
    # Began in warm-up, ran past the end: 100, 150 and 199 ms are inside, 200 ms is not.
    recorder.add(answer(0, (50, 100, 150, 199, 200, 250), phase="warmup"))
    warmup, steady = block(recorder, phase="warmup"), block(recorder)
    assert (steady.window_tokens, steady.window_requests, steady.window_prompt_tokens) == (3, 0, 0)
    assert (warmup.output_tokens, warmup.ttft.n, steady.ttft.n) == (6, 1, 0)
    # An answer that ends in the window, whose first token came before it.
    recorder.add(answer(0, (99, 101), phase="warmup"))
    # One whose first token came in it, and that never had a stamp of its own.
    recorder.add(answer(100, (120,), token_stamps_ns=(), output_tokens=8))
    steady = block(recorder)
    assert (steady.window_tokens, steady.window_requests, steady.window_prompt_tokens) == (3 + 1 + 8, 2, 10)
    assert (steady.window_start_ns, steady.window_end_ns, steady.window_ns) == (100 * MS, 200 * MS, 100 * MS)


@given(
    stamps=st.lists(st.integers(0, 1000), min_size=1, max_size=30).map(sorted),
    tokens=st.integers(1, 100),
    cuts=st.lists(st.integers(0, 1000), max_size=5).map(sorted),
)
def test_adjoining_windows_share_out_all_tokens(stamps: list[int], tokens: int, cuts: list[int]) -> None:
    recorder, edges = new(), [0, *cuts, 1001]
    for stage, (begin, end) in enumerate(pairwise(edges)):
        recorder.open_window(stage, START_NS + begin * MS)
        recorder.close_window(stage, START_NS + end * MS)
    recorder.add(answer(0, tuple(stamps), tail_ms=0, output_tokens=tokens))
    blocks = [b for b in recorder.snapshot(START_NS + 2 * S, final=True).blocks if b.phase == "steady"]
    assert sum(b.window_tokens for b in blocks) == tokens
    assert sum(b.window_requests for b in blocks) == 1
    assert sum(b.window_prompt_tokens for b in blocks) == 10
    assert sum(b.window_in_flight_ns for b in blocks) == stamps[-1] * MS
    assert sum(b.window_decoding_ns for b in blocks) == (stamps[-1] - stamps[0]) * MS


def test_an_open_window_grows_with_each_report() -> None:
    recorder = new()
    recorder.open_window(0, START_NS + S)
    recorder.add(answer(0, (900, 1000, 1500)))
    for seconds in (2, 3, 9):
        report = recorder.snapshot(START_NS + seconds * S)
        assert report.blocks[0].window_ns == (seconds - 1) * S
        assert report.blocks[0].window_tokens == 2
    recorder.close_window(0, START_NS + 10 * S)
    recorder.close_window(0, START_NS + 20 * S)
    recorder.close_window(5, START_NS + 20 * S)
    assert block(recorder).window_ns == 9 * S


def test_a_window_whose_end_is_known_holds_nothing_behind_it_however_late_the_word_comes() -> None:
    """Of an open loop: the master says so a tenth of a second behind the end, and answers end meanwhile."""
    recorder = new()
    recorder.open_window(0, START_NS, START_NS + S)
    recorder.add(answer(500, (600, 700)))
    recorder.add(answer(800, (900, 1050)))
    got = block(recorder)  # a report behind the end, ahead of the word
    assert (got.window_ns, got.window_requests, got.window_tokens) == (S, 1, 3)
    recorder.close_window(0, START_NS + 3 * S)
    recorder.add(answer(950, (999, 1000)))
    got = block(recorder)
    assert (got.window_ns, got.window_requests, got.window_tokens) == (S, 1, 4)
    recorder.open_window(1, START_NS + 4 * S, START_NS + 9 * S)
    recorder.close_window(1, START_NS + 5 * S)  # the run was ended
    assert block(recorder, stage=1).window_ns == S


def test_a_window_that_is_told_ahead_is_none_until_it_opens() -> None:
    recorder = new()
    recorder.open_window(0, START_NS + S, START_NS + 2 * S)
    assert not recorder.snapshot(START_NS + S - 1).blocks
    recorder.add(answer(800, (900, 1050), phase="warmup"))
    steady = next(b for b in recorder.snapshot(START_NS + 1500 * MS).blocks if b.phase == "steady")
    assert (steady.window_start_ns, steady.window_ns, steady.window_requests) == (S, S // 2, 1)
    recorder = new()
    recorder.open_window(0, START_NS + S, START_NS + 2 * S)
    recorder.close_window(0, START_NS + S // 2)  # the run was ended in its warm-up
    recorder.add(answer(400, (900, 1500), phase="warmup"))
    assert [b.phase for b in recorder.snapshot(START_NS + 60 * S, final=True).blocks] == ["warmup"]


def test_batch_is_the_time_average_of_requests_in_flight() -> None:
    recorder = new()
    recorder.open_window(0, START_NS)
    recorder.close_window(0, START_NS + S)
    for at_ms in (0, 250, 500, 750, 900):  # five of 200 ms, the last one cut at 1000
        recorder.add(answer(at_ms, (at_ms + 100, at_ms + 200), tail_ms=0))
    recorder.add(answer(0, (100, 400), tail_ms=0, outcome=Outcome.RESET))  # a failed one held its place in the batch
    got = block(recorder)
    assert got.window_in_flight_ns / got.window_ns == pytest.approx(0.2 * 4 + 0.1 + 0.4)
    assert got.window_decoding_ns / got.window_ns == pytest.approx(0.1 * 4 + 0.3)


@pytest.mark.parametrize(
    ("slo", "met"),
    [
        (Slo(), 0),
        (Slo(ttft_s=0.1), 1),
        (Slo(ttft_s=0.0999), 0),
        (Slo(ttft_s=0.1, tpot_s=0.03, e2e_s=0.2, itl_s=0.04, stall_s=0.04), 1),
        (Slo(ttft_s=0.1, tpot_s=0.0299), 0),
        (Slo(ttft_s=0.1, itl_s=0.0399), 0),
        (Slo(stall_s=0.0399), 0),
        (Slo(e2e_s=0.16), 0),
        (Slo(ttft_intended_s=0.105), 0),
        (Slo(ttft_intended_s=0.11), 1),
        (Slo(ttfat_s=0.12), 1),
        (Slo(ttfat_s=0.119), 0),
    ],
)
def test_the_slo_is_every_limit(slo: Slo, met: int) -> None:
    recorder = new(slo)
    recorder.open_window(0, START_NS)
    first_answer_ns = START_NS + 130 * MS
    recorder.add(answer(10, (110, 130, 170), intended_ns=START_NS, first_answer_ns=first_answer_ns))
    got = block(recorder)
    limited = slo != Slo()
    assert (got.slo_judged, got.slo_met, got.window_slo_met) == (int(limited), met, met)
    assert sum(got.slo_missed_by.values()) == int(limited) - met


def test_slo_of_short_and_unanswered_requests() -> None:
    recorder = new(Slo(tpot_s=0.001, itl_s=0.001, stall_s=0.001))
    recorder.add(answer(0, (100,)))  # one token: no gap, nothing that could be late
    assert block(recorder).slo_met == 1
    recorder = new(Slo(ttfat_s=10))
    recorder.add(answer(0, (100,), first_answer_ns=0))  # thought, and never answered
    assert block(recorder).slo_missed_by == {"ttfat_s": 1}


def test_the_itl_limit_is_per_token_where_an_event_holds_several() -> None:
    recorder = new(Slo(itl_s=0.02))
    recorder.add(answer(0, (100, 160), gap_tokens=(3,), output_tokens=4))
    got = block(recorder)
    assert (got.slo_met, got.itl.n, got.itl.high) == (1, 3, 0.02)


def test_a_report_carries_what_changed_within_three_reports_and_the_final_one_all() -> None:
    recorder = new()
    recorder.add(answer(stage=0))
    seen = []
    for second in range(5):
        if second == 3:
            recorder.add(answer(stage=1))
        seen.append([b.stage for b in recorder.snapshot(START_NS + second * S).blocks])
    assert seen == [[0], [0], [0], [1], [1]]
    final = recorder.snapshot(START_NS + 9 * S, final=True)
    assert ([b.stage for b in final.blocks], final.seq, final.final) == ([0, 1], 6, True)


def test_a_snapshot_does_not_change_afterwards() -> None:
    recorder = new()
    recorder.add(answer())
    recorder.instrument.loop_lag.add(0.1)
    report = recorder.snapshot(START_NS + S)
    twin = msgspec.structs.replace(report)
    before = (repr(report), report.blocks[0].ttft.n)
    recorder.add(answer(outcome=Outcome.RESET))
    recorder.add(answer())
    recorder.instrument.loop_lag.add(0.2)
    assert (repr(report), report.blocks[0].ttft.n) == before
    assert report == twin


def test_stamps_are_counted_by_origin() -> None:
    recorder = new()
    for stamp in ("kernel", "kernel", "user"):
        recorder.add(answer(stamp=stamp))
    recorder.add(answer(outcome=Outcome.CONNECT, stamp="user", reads=0))  # no byte came: nothing was stamped
    recorder.add(answer(outcome=Outcome.TIMEOUT, stamp="kernel", reads=0))
    instrument = recorder.snapshot(START_NS).instrument
    assert (instrument.kernel_stamped, instrument.user_stamped) == (2, 1)


def correlated(recorder: Recorder, rho: float, n: int, seed: int = 1) -> Snapshot:
    rng, x = random.Random(seed), 0.0
    records = []
    for index in range(n):
        x = rho * x + rng.gauss(0, 1)
        at_ms = index * 10
        records.append(answer(at_ms, (at_ms + 100 * 2.0**x, at_ms + 100 * 2.0**x + 5)))
    rng.shuffle(records)  # requests end in another order than they begin: arrival order is what counts
    for record in records:
        recorder.add(record)
    return recorder.snapshot(START_NS + 60 * S, final=True)


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_the_final_report_knows_the_correlation_in_arrival_order(rho: float) -> None:
    got = correlated(new(), rho, 3000).blocks[0]
    assert got.rho("ttft") == pytest.approx(rho, abs=0.06)
    assert got.rho_n["ttft"] == 3000


def test_only_the_final_report_pays_for_the_order() -> None:
    recorder = new()
    recorder.add(answer())
    assert recorder.snapshot(START_NS).blocks[0].rho_n == {}


def test_the_order_of_a_bounded_number_of_requests_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series, "SERIES_MAX", 50)
    got = correlated(new(), 0.5, 80).blocks[0]
    assert (got.rho_n["ttft"], got.mser_n["ttft"], got.ttft.n) == (50, 50, 80)


def test_the_two_halves_of_a_window_that_drifts() -> None:
    recorder = new()
    for index in range(100):
        at_ms = index * 10
        recorder.add(answer(at_ms, (at_ms + (100 if index < 50 else 200), at_ms + 300)))
    got = block(recorder)
    assert (got.first_half["ttft"].n, got.second_half["ttft"].n) == (50, 50)
    assert (got.first_half["ttft"].quantile(0.5), got.second_half["ttft"].quantile(0.5)) == (0.1, 0.2)
    assert (got.mser_n["ttft"], got.mser_cut["ttft"]) == (100, 45)  # the cut is sought in the first half only


@pytest.mark.parametrize(("rho", "found"), [(0.0, 0.0), (0.8, 0.8)])
def test_correlation_of_gaps_within_requests(rho: float, found: float) -> None:
    recorder, rng = new(), random.Random(3)
    for index in range(400):
        x, stamps = rng.gauss(0, (1 - rho**2) ** -0.5), [index * 10 + 100.0]
        for _ in range(40):
            x = rho * x + rng.gauss(0, 1)
            stamps.append(stamps[-1] + 20 * 2.0 ** (x / 2))
        recorder.add(answer(index * 10, tuple(stamps)))
    got = block(recorder)
    assert got.rho("itl") == pytest.approx(found, abs=0.06)
    assert got.rho_n["itl"] == 400 // series.ITL_SAMPLE * 39


def test_gaps_that_are_all_alike_have_no_correlation() -> None:
    recorder = new()
    for index in range(400):  # of this gap, rounding alone would make a correlation of 1
        recorder.add(answer(index, tuple(index + 100 + 2.234567 * k for k in range(10))))
    assert block(recorder).rho("itl") == 0.0


def test_other_tools_definitions_of_one_stream() -> None:
    recorder = new()
    ms = {"first_event_ns": 60, "last_event_ns": 205}
    marks = {name: START_NS + value * MS for name, value in ms.items()}
    recorder.add(answer(10, (110, 130, 170, 170, 200), tail_ms=10, merged_events=1, **marks))
    got = block(recorder).conventions
    once = {
        "ttft_any_event": 0.05,
        "e2e_last_event": 0.195,
        "tpot_last_event": 0.145 / 4,
        "tpot_from_start": 0.19 / 5,
        "e2e_last_content": 0.19,
        "second_event": 0.02,
        "tokens_per_s_user": 4 / 0.09,
        "prefill_tokens_per_s": 100.0,
        "tpot_to_end": 0.1 / 4,
    }
    assert {name: getattr(got, name).sum for name in once} == pytest.approx(once)
    assert (got.itl_by_token.n, got.itl_by_token.low) == (4, 0.0225)
    assert (got.event_gap.n, got.event_gap.zero, got.event_gap.high) == (4, 1, 0.04)
    assert (got.edge_gap.n, got.edge_gap.low, got.edge_gap.high) == (2, 0.005, 0.05)


def test_reasons_of_many_choices_are_counted_whole() -> None:
    """The record cuts them after 64 characters: half a word is no reason."""
    counts: dict[str, int] = {}
    count_others(counts, ",".join(["length"] * 16)[:64])
    assert counts == {}
    count_others(counts, "content_filter,stop,content_filter")
    count_others(counts, "x" * 64)
    assert counts == {"content_filter": 2, "x" * 64: 1}
    for number in range(40):
        count_others(counts, f"reason {number}")
    assert len(counts) <= 17
    assert sum(counts.values()) == 43
