"""The windows of a long run: exact differences of reports, a drift that is found, restarts that are named."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from sample_runs import MS, RUN_ID, failure, lognormal, profile, request

from bench.soak import Day
from tokenswarm.clock import NS_PER_S
from tokenswarm.cluster.soak import SoakWatch
from tokenswarm.judge import verdict
from tokenswarm.judge.rules import soak as rules
from tokenswarm.judge.rules.evidence import Evidence
from tokenswarm.measure.recorder import Recorder
from tokenswarm.measure.sketch import RELATIVE_ERROR, Sketch
from tokenswarm.measure.snapshot import Block, Inbox, Merged
from tokenswarm.measure.windows import Cutter, Restart, Window, difference
from tokenswarm.profile.load import Stage
from tokenswarm.record import Outcome
from tokenswarm.reports import markdown
from tokenswarm.reports.folder import ResultsFolder
from tokenswarm.reports.html import page as html
from tokenswarm.reports.windows import WINDOWS_NAME, encode, read_soak
from tokenswarm.result.soak import Soak, WindowTold, soak, told
from tokenswarm.result.summary import Summary, changing, plan_of, summarize

REPO = Path(__file__).resolve().parent.parent
Shape = Callable[[int], dict[str, float]]


def cut(seconds: int, width_s: float = 10.0, *, per_s: int = 20) -> tuple[list[Window], Block]:
    """(windows, the block) of a run of one worker that reports each second; every 50th request fails."""
    recorder, inbox, cutter = Recorder(RUN_ID, 0, None, start_ns=0, host="h", pid=1), Inbox(RUN_ID), Cutter(width_s)
    recorder.open_window(0, 2 * NS_PER_S)
    draw, found = lognormal(), list[Window | None]()
    for second in range(2, 2 + seconds):
        for part in range(per_s):
            number = second * per_s + part
            at_ns = second * NS_PER_S + part * NS_PER_S // per_s // 2
            recorder.intended(0, "steady")
            recorder.started(0, "steady")
            recorder.ended(decoding=False)
            bad = number % 50 == 0
            record = failure(number, at_ns, Outcome.HTTP_5XX, "503") if bad else request(number, at_ns, ttft_s=draw(0))
            recorder.add(record)
        inbox.put(recorder.snapshot((second + 1) * NS_PER_S))
        found.append(cutter.look(inbox.merged().block(0)))
    block = inbox.merged().block(0)
    found.append(cutter.look(block, over=True))
    return [window for window in found if window is not None], block


def test_windows_add_up_to_the_run() -> None:
    windows, block = cut(37)
    assert [round(window.length_s) for window in windows] == [10, 10, 10, 7]
    assert [window.number for window in windows] == [0, 1, 2, 3]
    assert windows[0].start_s == 2.0
    assert all(before.end_s == after.start_s for before, after in pairwise(windows))
    for name in ("ok", "failed"):
        assert sum(getattr(window, name) for window in windows) == getattr(block, name)
    assert sum(window.output_tokens for window in windows) == block.window_tokens
    for metric in ("ttft", "tpot", "itl", "e2e"):
        whole = Sketch()
        for window in windows:
            whole.merge(Sketch.from_wire(window.sketches[metric]))
        assert whole.counts == getattr(block, metric).counts
        assert whole.sum == pytest.approx(getattr(block, metric).sum)


def test_what_is_left_is_a_window_where_it_is_half_of_one() -> None:
    assert [round(window.length_s) for window in cut(24)[0]] == [10, 10]
    assert [round(window.length_s) for window in cut(26)[0]] == [10, 10, 6]
    assert cut(4)[0] == []


def test_a_new_stage_begins_a_new_window() -> None:
    cutter = Cutter(10)
    first = Block(stage=0, phase="steady", window_ns=25 * NS_PER_S, window_start_ns=0, ok=7)
    second = Block(stage=1, phase="steady", window_ns=10 * NS_PER_S, window_start_ns=30 * NS_PER_S, ok=3)
    a, b = cutter.look(first), cutter.look(second)
    assert a is not None
    assert b is not None
    assert (a.ok, b.ok, b.stage, b.start_s, b.number) == (7, 3, 1, 30.0, 1)


def test_a_difference_of_sketches_is_what_came_between() -> None:
    before, between = Sketch([0.1, 0.2, 0.3]), [0.05, 0.2, 0.0, 7.0]
    after = before.copy()
    for value in between:
        after.add(value)
    found = difference(after, before)
    assert (found.n, found.zero) == (4, 1)
    assert found.sum == pytest.approx(sum(between))
    assert found.quantile(1.0) == pytest.approx(7.0, rel=2 * RELATIVE_ERROR)
    assert found.quantile(0.5) == pytest.approx(0.05, rel=2 * RELATIVE_ERROR)
    assert difference(after, after).n == 0


def series(n: int, shape: Shape) -> list[WindowTold]:
    """`n` windows of five minutes; `shape` of a number gives what differs: ttft_s, failed, bytes."""
    windows, draw = [], lognormal(1.0, 0.01, seed=3)
    for number in range(n):
        own = {"ttft_s": 0.1, "failed": 0, "bytes": 100e6, **shape(number)}
        values = Sketch([own["ttft_s"] * draw(0) * spread for spread in (0.8, 0.9, 1.0, 1.1, 1.2) for _ in range(30)])
        windows.append(
            told(
                Window(
                    number=number,
                    stage=0,
                    start_s=300.0 * number,
                    end_s=300.0 * (number + 1),
                    ok=1000,
                    failed=int(own["failed"]),
                    requests=1000,
                    output_tokens=20_000,
                    sketches={"ttft": values.to_wire()},
                    memory_bytes={"worker 0": int(own["bytes"])},
                )
            )
        )
    return windows


def judged(
    windows: list[WindowTold], restarts: tuple[Restart, ...] = (), changing: frozenset[int] = frozenset()
) -> tuple[Soak, dict[str, str]]:
    """(the section, severity of each doubt of the rules here by code)."""
    merged = Merged(run_id=RUN_ID)
    summary = summarize(merged)
    summary.soak = soak(windows, restarts, 300.0, changing=changing)
    assert summary.soak is not None
    evidence = Evidence(merged=merged, expected_workers=0, profile=profile())
    found = [rule(evidence, summary) for rule in rules.RULES]
    return summary.soak, {doubt.code: doubt.severity for doubt in found if doubt is not None}


def test_a_day_without_a_drift_is_no_doubt() -> None:
    section, doubts = judged(series(288, lambda _: {}))
    assert doubts == {}
    assert {one.metric for one in section.drift} >= {"ttft_s.p50", "ttft_s.p99", "requests_per_s", "failed_ratio"}
    assert not [one for one in section.drift if one.drifts]


@pytest.mark.parametrize(
    ("shape", "codes"),
    [
        (lambda at: {"ttft_s": 0.1 + 0.005 * at / 287}, {"drift": "degraded"}),
        (lambda at: {"ttft_s": 0.1 - 0.005 * at / 287}, {"drift": "note"}),
        (lambda at: {"ttft_s": 0.1 + 0.001 * at / 287}, {}),
        (lambda at: {"failed": 20 * at // 287}, {"drift": "degraded"}),
        (lambda at: {"bytes": 100e6 + 60e6 * at / 287}, {"client-memory-grows": "degraded"}),
        (lambda at: {"bytes": 100e6 + 15e6 * at / 287}, {}),  # less than 20 MiB
        (lambda at: {"bytes": 1e9 + 60e6 * at / 287}, {}),  # less than a tenth
        (lambda at: {"bytes": 160e6 if at > 5 else 100e6}, {}),  # once, and then never more
    ],
    ids=["5 %", "5 % better", "1 %", "failures", "leak", "small leak", "small share", "a step"],
)
def test_what_grows_or_drifts_is_told_and_nothing_else(shape: Shape, codes: dict[str, str]) -> None:
    assert judged(series(288, shape))[1] == codes


def test_a_leak_that_begins_within_the_run_grows_however_alike_its_neighbours_are() -> None:
    """MiB of an engine by windows of 10 s, measured: it was restarted in the third, and leaked 20 MiB a minute."""
    mib = (41, 42, 43, 43, 46, 50, 55, 58, 63, 66, 70, 75, 78, 82, 86, 89, 92, 96, 99, 103, 106, 109, 114, 117, 120,
           125, 129, 132, 136, 139, 142, 146, 149, 153, 156, 159, 163, 166, 170, 174, 178, 182, 185)  # fmt: skip
    others = {f"worker {number}": 60 << 20 for number in range(8)}
    windows = [
        msgspec.structs.replace(window, memory_bytes={"engine e:1": at << 20, **others})
        for window, at in zip(series(len(mib), lambda _: {}), mib, strict=True)
    ]
    section, doubts = judged(windows)
    assert section.memory[0].rho > 0.7
    assert doubts == {"engine-memory-grows": "degraded"}


def test_what_drifts_or_grows_in_several_stages_is_told_of_each() -> None:
    first, second = (
        series(48, lambda at, by=by: {"ttft_s": 0.1 + by * at, "bytes": 100e6 + 1e7 * by / 0.002 * at})  # type: ignore[misc]
        for by in (0.001, 0.002)
    )
    later = [
        msgspec.structs.replace(one, stage=1, start_s=one.start_s + 14_400, end_s=one.end_s + 14_400) for one in second
    ]
    summary = summarize(Merged(run_id=RUN_ID))
    summary.soak = soak([*first, *later], (), 300.0)
    evidence = Evidence(merged=Merged(run_id=RUN_ID), expected_workers=0, profile=profile())
    drift, grows = rules.drift(evidence, summary), rules.client_memory(evidence, summary)
    assert drift is not None
    assert grows is not None
    for stage in (1, 2):
        assert re.search(rf"TTFT p50 in stage {stage} \+\d+\.\d%", drift.message)
        assert re.search(rf"worker 0 in stage {stage} by \d+ MiB", grows.message)
    assert {one["stage"] for one in drift.evidence["drifts"] if one["metric"] == "ttft_s.p50"} == {0, 1}
    assert [one["stage"] for one in grows.evidence["grows"]] == [1, 0], "the most first"


def test_a_load_that_changes_by_itself_is_no_drift_of_the_engine() -> None:
    """A ramp, or a trace: latency follows the load. Memory is tested all the same."""
    windows = series(288, lambda at: {"ttft_s": 0.1 + 0.05 * at / 287, "bytes": 100e6 + 60e6 * at / 287})
    assert {one.metric for one in judged(windows)[0].drift if one.drifts} >= {"ttft_s.p50"}
    section, doubts = judged(windows, changing=frozenset({0}))
    assert (section.drift, doubts) == ([], {"client-memory-grows": "degraded"})
    assert judged(windows, changing=frozenset({1}))[1].keys() == {"drift", "client-memory-grows"}

    stages = [Stage(users=8), Stage(rate=(5.0,)), Stage(rate=(5.0, 80.0)), Stage()]
    plan = [plan_of(number, stage) for number, stage in enumerate(stages)]
    blocks = [Block(stage=number, phase="steady", ok=1) for number in range(len(stages))]
    summary = summarize(Merged(run_id=RUN_ID, blocks=blocks), plan=plan)
    assert changing(summary) == {2, 3}


def test_failures_of_restarts_stand_apart_in_their_windows_and_are_no_drift() -> None:
    """An engine that restarts more and more often: that has a name of its own."""
    restarts = tuple(
        Restart(url="http://e/metrics", gone_s=300.0 * at + 290, back_s=300.0 * at + 310, failed=20 * at // 287)
        for at in range(287)
    )
    windows = series(288, lambda at: {"failed": 20 * at // 287})
    section, doubts = judged(windows, restarts)
    assert doubts == {}
    assert [window.failed_in_restarts for window in section.windows[:287]] == [20 * at // 287 for at in range(287)]
    assert section.windows[100].failed_ratio == 0.0
    assert judged(windows)[1] == {"drift": "degraded"}


def test_the_page_draws_the_windows_and_tells_what_drifts_grows_and_restarted() -> None:
    windows = series(40, lambda at: {"ttft_s": 0.1 + 0.003 * at, "failed": at % 3, "bytes": 100e6 + 3e6 * at})
    restart = Restart(url="http://e:1/metrics", gone_s=900.0, back_s=930.0, failed=2, by_outcome={"connect": 2})
    summary = summarize(Merged(run_id=RUN_ID))
    summary.duration_s, summary.soak = 12_000.0, soak(windows, [restart], 300.0)
    text = html.render(summary, {}, [])
    charts = text[text.index('<section id="windows"') :]
    charts = charts[: charts.index("</section>")]
    for name in ("windows-ttft", "windows-requests", "windows-tokens", "windows-failed", "windows-memory"):
        assert f'<figure id="{name}"' in charts
    assert charts.count('class="band p50"') == 2, "a band, at both sizes"
    assert "It drifts: p50 by +" in charts
    assert "Not shown: TPOT, by window; ITL, by window; E2E, by window, because fewer than two windows" in charts
    assert charts.count(">restart</text>") == 2 * 5
    told_ = text[text.index('<section id="soak"') :]
    assert "http://e:1/metrics" in told_
    assert "2 connect" in told_
    shown = markdown.render(summary, {})
    assert "40 windows of" in shown
    assert "1 restart of the engine, 2 requests failed in it" in shown
    assert 'id="windows"' not in html.render(summarize(Merged(run_id=RUN_ID)), {}, [])


def test_a_run_of_few_windows_is_not_tested() -> None:
    section, doubts = judged(series(5, lambda at: {"ttft_s": 0.1 * (1 + at)}))
    assert (section.drift, doubts) == ([], {})
    assert len(section.windows) == 5


def test_stages_shorter_than_a_window_have_a_line_each_and_one_alone_has_none(tmp_path: Path) -> None:
    for stages in (1, 3):
        folder = ResultsFolder.create(tmp_path, f"{RUN_ID}-{stages}")
        watch = SoakWatch(folder, 10.0, list, lambda _: b"", str)
        blocks = [
            Block(
                stage=number, phase="steady", window_ns=6 * NS_PER_S, window_start_ns=number * 10 * NS_PER_S, ok=number
            )
            for number in range(stages)
        ]
        for number in range(stages):
            watch.tick(Merged(run_id=RUN_ID, blocks=blocks[: number + 1]))
            watch.phase(number, "drain", None, 1.0)
        told_ = watch.finish(Merged(run_id=RUN_ID, blocks=blocks))
        kept = read_soak(folder.path, 10.0)
        assert (told_ is None) == (kept is None) == (stages == 1)
        if told_ is not None and kept is not None:
            assert [window.ok for window in kept.windows] == [window.ok for window in told_.windows] == [0, 1, 2]


def test_windows_come_back_from_their_file_and_damage_is_told_with_its_line(tmp_path: Path) -> None:
    windows, _ = cut(40)
    restart = Restart(url="http://e/metrics", gone_s=4.0, back_s=9.0, failed=3, by_outcome={"connect": 3})
    lines = [encode(windows[0]), b'{"number": "x"}\n', encode(windows[1]), b'{"numb']
    (tmp_path / WINDOWS_NAME).write_bytes(b"".join(lines))
    found = read_soak(tmp_path, 10.0)
    assert found is not None
    assert found.windows == [told(windows[0]), told(windows[1])]
    assert found.note.startswith(f"{tmp_path / WINDOWS_NAME}:2: is no window")
    assert read_soak(tmp_path / "none", 10.0) is None
    section = soak(found.windows, [restart], 10.0)
    assert section is not None
    assert [window.failed_in_restarts for window in section.windows] == [3, 0]
    assert (section.restarts, section.failed_in_restarts) == ([restart], 3)


def test_failures_of_a_restart_are_the_restarts_and_no_others() -> None:
    """1 % and more failed, all in one outage; named as a restart, the other doubt has nothing left to say."""
    recorder, inbox = Recorder(RUN_ID, 0, None, start_ns=0, host="h", pid=1), Inbox(RUN_ID)
    recorder.open_window(0, 0)
    for number in range(2000):
        at_ns = number * 50 * MS
        recorder.intended(0, "steady")
        recorder.started(0, "steady")
        recorder.ended(decoding=False)
        away = 40 <= at_ns / NS_PER_S < 50
        recorder.add(failure(number, at_ns, Outcome.CONNECT, "refused") if away else request(number, at_ns))
    recorder.close_window(0, 100 * NS_PER_S)
    inbox.put(recorder.snapshot(101 * NS_PER_S, final=True))
    merged = inbox.merged()

    def codes(*restarts: Restart) -> set[str]:
        summary: Summary = summarize(merged)
        summary.soak = soak([], restarts, 300.0)
        evidence = Evidence(merged=merged, expected_workers=1, profile=profile(), rows=2000)
        return {doubt.code for doubt in verdict.judge(evidence, summary).doubts}

    restart = Restart(url="http://e/metrics", gone_s=39.5, back_s=50.5, failed=200, by_outcome={"connect": 200})
    assert "failures" in codes()
    assert codes(restart) & {"failures", "engine-restarted"} == {"engine-restarted"}
    few = Restart(url="http://e/metrics", gone_s=9.5, back_s=10.5, failed=3)
    assert codes(few) >= {"failures", "engine-restarted"}


@pytest.mark.timeout(400)
def test_a_day_in_virtual_time_drifts_where_the_engine_does(tmp_path: Path) -> None:
    found = {}
    for drift in (0.0, 0.05):
        day = Day(9000, tmp_path / f"{drift}", drift=drift, window_s=900.0, every_s=100)
        for _ in day.play():
            pass
        section = day.finish()
        assert (len(section.windows), sum(window.ok + window.failed for window in section.windows)) == (96, 9000)
        found[drift] = {one.metric for one in section.drift if one.drifts}
    assert found[0.0] == set()
    assert found[0.05] >= {"tpot_s.p50", "itl_s.p50"}


@pytest.mark.timeout(400)
def test_a_day_in_virtual_time_grows_nothing() -> None:
    """Fewer requests, and in a process of its own; `make long` plays ten million."""
    command = [sys.executable, "-m", "bench.soak", "40000", "100"]
    played = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=300, check=False)
    assert played.returncode == 0, played.stdout + played.stderr
    result = json.loads(played.stdout)
    assert (result["requests"], result["windows"], result["drifts"]) == (40_000, 288, [])
    assert result["growth_mib"] <= 20
