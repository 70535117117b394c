"""What people read: numbers that don't mislead, tables that fit, and foreign text that can do nothing."""

from __future__ import annotations

import io
import math
import re
from datetime import UTC, datetime

import pytest
import sample_runs
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from running import REPO

from tokenswarm.clock import FakeClock
from tokenswarm.judge.compare import METRICS, compare
from tokenswarm.judge.gates import evaluate
from tokenswarm.judge.search import Probe, Search, answer
from tokenswarm.judge.verdict import Evidence, judge
from tokenswarm.measure.snapshot import Block, Merged
from tokenswarm.profile.load import ENDLESS_S, Stage
from tokenswarm.profile.slo import Percentiles, Slo
from tokenswarm.record import Outcome
from tokenswarm.reports import cells, comparison, manifest, markdown
from tokenswarm.reports.console import Progress, report
from tokenswarm.reports.html import page, tables
from tokenswarm.reports.numbers import duration, harmless, of_limit, quantity, ratio
from tokenswarm.result.comparison import Run
from tokenswarm.result.summary import Summary, summarize

SLO = Slo(ttft_s=Percentiles(p50=0.5, p99=2.0), tpot_s=Percentiles(p95=0.001), failed_ratio=0.01)
EVIL = (
    "\x1b[31mred\x1b[0m [bold red]x[/] \x07\r\n\u202eright <script>alert(1)</script> |cell| [a](http://b) @you `tick`"
)


def judged(merged: Merged, *, partial: bool = False) -> Summary:
    summary = sample_runs.summary(merged, partial=partial)
    summary.gates = evaluate(SLO, summary, merged)
    evidence = Evidence(merged=merged, expected_workers=1, profile=sample_runs.profile(SLO), interrupted=partial)
    summary.verdict = judge(evidence, summary)
    return summary


def evil_run(stages: int = 3) -> Merged:
    merged = sample_runs.run(120, slo=SLO, stages=stages, window_s=10, ends={Outcome.HTTP_5XX: 3})
    merged.blocks[0].by_error[EVIL] = 1
    return merged


def written(summary: Summary, width: int = 80, *, color: bool = False) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=color, color_system="standard" if color else None)
    console.print(report(summary, "/some/where/results/x"))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def rendered(summary: Summary, command: list[str] | None = None) -> str:
    now = datetime(2026, 11, 24, tzinfo=UTC)
    built = manifest.build(
        run_id=summary.run_id, started=now, profile=sample_runs.profile(SLO), command=command or ["tokenswarm", "run"],
        versions={"tokenswarm": "0.1.0"}, git_revision="f" * 40, engine={"model": EVIL}, host={},
    )  # fmt: skip
    return markdown.render(summary, manifest.finish(built, ended=now, dataset={"sha256": "ab" * 32}, workers=[]))


def test_the_sample_of_the_readme_has_the_tables_of_a_run() -> None:
    """Of one with several stages: heads of columns, and rows, in their order; how many fit depends on the numbers."""
    sample = (REPO / "README.md").read_text("utf-8").partition("```text\n")[2].partition("```")[0]
    shown, sampled = (text.splitlines() for text in (written(judged(sample_runs.run(700, stages=4)), 100), sample))

    def outline(lines: list[str]) -> list[list[str]]:
        users = next(number for number, line in enumerate(lines) if line.startswith(" users"))
        whole = next(number for number, line in enumerate(lines) if line.startswith(" all stages"))
        rows = [re.split(r"\s{2,}", line.strip())[0] for line in lines[whole + 2 : lines.index("", whole)]]
        return [lines[users - 1].split(), lines[users].split(), lines[whole].split(), rows]

    of_run, of_sample = outline([line.rstrip() for line in shown]), outline(sampled)
    for there, told in zip(of_run, of_sample, strict=True):
        words = iter(there)
        assert all(word in words for word in told), (there, told)
    assert of_sample[3] == of_run[3]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"), (float("nan"), "–"), (0.0, "0.00ms"), (0.00085, "850µs"), (0.0123, "12.3ms"), (0.9994, "999ms"),
        (0.99951, "1.00s"), (1.2345, "1.23s"), (12.345, "12.3s"), (125.4, "125s"), (0.00099951, "1.00ms"),
    ],
)  # fmt: skip
def test_durations_have_three_digits_and_a_unit(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.0, "0.00"), (0.42, "0.42"), (9.996, "10.0"), (999.4, "999"), (999.6, "1.00k"), (45_678, "45.7k"),
     (1.2e6, "1.20M")],
)  # fmt: skip
def test_rates_have_si_prefixes(value: float | None, text: str) -> None:
    assert quantity(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.0, "0%"), (1.0, "100%"), (0.5, "50.0%"), (0.99999, "99.99%"), (0.999, "99.9%"), (1e-9, "0.01%")],
)
def test_a_ratio_is_all_or_nothing_only_if_it_is(value: float | None, text: str) -> None:
    assert ratio(value) == text


@pytest.mark.parametrize(
    ("name", "limit", "text"),
    [
        ("ttft_s.p99", 2.0, "2s"), ("ttft_s.p99", 0.45, "450ms"), ("tpot_s.p99", 0.0125, "12.5ms"),
        ("e2e_s.max", 100, "100s"), ("failed_ratio", 0.01, "1%"), ("goodput_ratio", 0.999, "99.9%"),
        ("requests_per_s", 20, "20"), ("requests_per_s", 1500, "1.5k"),
    ],
)  # fmt: skip
def test_limits_read_as_they_were_written(name: str, limit: float, text: str) -> None:
    assert of_limit(name, limit) == text


@given(st.text(max_size=900))
def test_harmless_text_has_no_character_that_a_terminal_obeys(text: str) -> None:
    clean = harmless(text)
    assert clean.isprintable()
    assert len(clean) <= 401
    assert harmless(clean) == clean


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("stages", [1, 3])
def test_the_table_fits_the_terminal_and_no_number_is_cut(width: int, stages: int) -> None:
    text = written(judged(evil_run(stages)), width)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    assert not re.search(r"[\d.]…", text)
    assert "TTFT, as due" in text
    assert "TTFT" in text
    assert ("users" in text) == (stages > 1)


def test_colours_say_nothing_that_words_do_not() -> None:
    summary = judged(evil_run())
    ansi = re.compile(r"\x1b\[[0-9;]*m")
    assert ansi.sub("", written(summary, color=True)) == written(summary)


def test_foreign_text_can_not_paint_the_terminal() -> None:
    text = written(judged(evil_run()))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "\u202e" not in text
    assert "[bold red]x[/]" in text  # shown, not obeyed


def test_every_part_of_the_result_is_there() -> None:
    text = " ".join(written(judged(evil_run(), partial=True)).split())
    for part in (
        "verdict: DEGRADED (partial)",
        "degraded interrupted:",
        "degraded short-run:",
        "/some/where/results/x",
    ):
        assert part in text
    assert re.search(r"tpot_s.p95 ≤ 1ms 20\.\dms fail", text)
    assert "a p99 takes 662 requests" in text
    assert "errors: 9 × http_5xx: service unavailable" in text
    assert "results: /some/where/results/x report: /some/where/results/x/report.html" in text


def test_errors_of_a_warm_up_are_told_as_such() -> None:
    merged = evil_run()
    assert "warm-up" not in rendered(judged(merged))
    merged.blocks.insert(0, Block(stage=0, phase="warmup", intended=4, sent=4, failed=4, by_outcome={"http_5xx": 4}))
    merged.blocks[0].by_error["http 503"] = 4
    summary = judged(merged)
    for text in (written(summary), rendered(summary), tables.failures(summary)):
        assert "rrors, 4 of them of warm-up and drain" in text
    assert "9 of 369 requests" in page._tiles(summary), "as in the tables: of the windows"


def test_what_the_engine_says_of_a_ttft_stands_below_it() -> None:
    merged = sample_runs.run()
    for name, seconds in (("engine_queue", 0.9), ("engine_prefill", 0.05), ("engine_load", 0.005)):
        getattr(merged.block(0), name).add(seconds, 40)
    summary = summarize(merged)
    rows = [row[:2] for row in cells.latency_rows(summary)]
    first = next(i for i, row in enumerate(rows) if row[0] == "TTFT")
    assert rows[first + 1 : first + 3] == [["engine: queue", "40"], ["engine: prefill", "40"]]
    (stage,) = summary.stages
    assert stage.server["queue_s"].mean == summary.server["queue_s"].mean == pytest.approx(0.9)


def test_the_footnote_says_what_the_samples_are_worth() -> None:
    """60 samples of a slow wave are no 60 samples: without that the missing median puzzles."""
    merged = sample_runs.run(60, ttft=lambda number: 0.1 + 0.05 * math.sin(number / 20))
    stat = sample_runs.summary(merged).latency.ttft_s
    assert stat.n_effective < 11
    assert f"TTFT 60 worth {stat.n_effective:.0f}" in " ".join(written(judged(merged)).split())


def test_the_footnote_names_what_the_reads_dont_carry() -> None:
    text = " ".join(written(judged(sample_runs.shared_reads(0.03))).split())
    assert "ITL p99 p999, worst gap p90 p95 p99 p999: withheld, the instrument's own error is too large" in text
    assert "too few samples" not in text


def test_there_is_no_footnote_where_nothing_is_missing() -> None:
    assert "too few samples" not in written(judged(sample_runs.run(8000)))


def test_an_empty_run_is_told_without_a_table() -> None:
    text = written(judged(Merged(run_id="x")))
    assert "no-success" in text
    assert "p99.9" not in text
    assert "– req/s" in text
    assert rendered(judged(Merged(run_id="x"))).startswith("## ❌ tokenswarm: INVALID")


def test_markdown_has_the_verdict_first_and_how_to_repeat_last() -> None:
    text = rendered(judged(evil_run(), partial=True), ["tokenswarm", "run", "my profile.yaml"])
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    assert headings == [
        "⚠️ tokenswarm: DEGRADED, partial", "Gates", "Stages", "Latency", "Errors", "Repeat it",
    ]  # fmt: skip
    assert "```sh\ntokenswarm run 'my profile.yaml'\n```" in text
    assert text.index("`short-run`") < text.index("### Gates")


def test_markdown_tables_have_as_many_cells_in_every_row() -> None:
    lines = [line for line in rendered(judged(evil_run())).splitlines() if line.startswith("|")]
    tables: dict[int, int] = {}
    for line in lines:
        tables[line.count("|")] = tables.get(line.count("|"), 0) + 1
    assert sorted(tables) == [6, 10, 12]  # gates, latency, stages


def test_foreign_text_is_only_text_in_markdown() -> None:
    text = rendered(judged(evil_run()))
    for danger in ("<script", "](http", "http://", "@you", "`tick`", "|cell|", "\x1b"):
        assert danger not in text, danger
    assert "&#60;script&#62;" in text


def test_a_command_can_not_close_its_fence() -> None:
    text = rendered(judged(evil_run()), ["tokenswarm", "```\n# owned"])
    assert "````sh\ntokenswarm '``` # owned'\n````" in text


class Screen:
    """A progress on a fake clock, and what it wrote."""

    def __init__(self, *, terminal: bool, stages: int | None = 2) -> None:
        self.file, self.clock = io.StringIO(), FakeClock()
        console = Console(file=self.file, width=80, force_terminal=terminal, color_system=None)
        self.progress = Progress(console, stages, self.clock)

    @property
    def lines(self) -> list[str]:
        return self.file.getvalue().splitlines()


def test_off_a_terminal_there_is_a_line_a_phase_and_one_every_five_seconds() -> None:
    screen = Screen(terminal=False)
    merged = sample_runs.run(50)
    with screen.progress as progress:
        progress.phase(0, "warmup", Stage(users=8), 5.0)
        progress.phase(0, "steady", Stage(users=8), 30.0)
        for _ in range(11):
            screen.clock.advance(1.0)
            progress.tick(merged)
        progress.phase(1, "drain", None, 60.0)
    assert [line.split(":")[0] for line in screen.lines] == [
        "stage 1/2 warmup, 8 users, 0/5 s",
        "stage 1/2 steady, 8 users, 0/30 s",
        "stage 1/2 steady, 8 users, 5/30 s",
        "stage 1/2 steady, 8 users, 10/30 s",
        f"draining, {sum(worker.in_flight for worker in merged.workers)} streams left, 0/60 s",
    ]
    assert "50 ok, 0 failed" in screen.lines[-1]
    assert "\x1b" not in screen.file.getvalue()


def test_what_has_no_length_shows_none() -> None:
    """Before the first stage nothing is under way, and a warm-up of no time is over before it could be read."""
    screen = Screen(terminal=False, stages=1)
    for _ in range(6):
        screen.clock.advance(1.0)
        screen.progress.tick(sample_runs.run(50))
    assert [line.split(":")[0] for line in screen.lines] == ["starting"]
    screen.progress.phase(0, "warmup", Stage(), 0.0)
    screen.progress.phase(0, "steady", Stage(), 60.0)
    assert [line.split(":")[0] for line in screen.lines] == ["starting", "stage 1 steady, 0/60 s"]
    screen.progress.phase(0, "warmup", Stage(users=8), 0.0)  # and its users take a while to be there
    for _ in range(6):
        screen.clock.advance(1.0)
        screen.progress.tick(sample_runs.run(50))
    assert screen.lines[-1].startswith("stage 1 warmup, 8 users, ")
    assert "/0 s" not in screen.file.getvalue()


def test_rates_are_those_of_the_last_seconds() -> None:
    screen = Screen(terminal=False)
    screen.progress.phase(0, "steady", Stage(users=8), 60.0)
    for second in range(1, 21):
        screen.clock.advance(1.0)
        screen.progress.tick(sample_runs.run(10 * second if second <= 10 else 100 + 2 * (second - 10), window_s=50))
    assert "10.0 req/s, 90.0 tok/s" in screen.lines[2]  # at 10 s
    assert "2.00 req/s, 18.0 tok/s" in screen.lines[-1]


def test_a_phase_without_an_end_shows_the_time_gone_by() -> None:
    screen = Screen(terminal=False, stages=None)
    for seconds in (ENDLESS_S, float("inf")):
        screen.progress.phase(0, "steady", Stage(users=1), seconds)
        assert screen.lines[-1].startswith("stage 1 steady, 1 user, 0 s:")


def test_on_a_terminal_two_lines_fit_and_go_away() -> None:
    screen = Screen(terminal=True)
    with screen.progress as progress:
        progress.phase(0, "steady", Stage(users=1000), 30.0)
        screen.clock.advance(15.0)
        progress.tick(sample_runs.run(50))
        shown = screen.file.getvalue()
        progress.note(EVIL)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    last = [line for line in plain.replace("\r", "\n").splitlines() if line.strip()][-2:]
    assert last[0].startswith("stage 1/2 steady, 1000 users  ━━━━━━━━━━━━────────────  15/30 s")
    assert "50 ok" in last[1]
    assert all(len(line) <= 80 for line in last)
    assert "\x1b[31m" not in screen.file.getvalue()
    assert "[bold red]x[/]" in screen.file.getvalue()
    assert screen.file.getvalue().rstrip().endswith("\x1b[2K")  # erased: the tables come next


def test_a_note_stays_whole_off_a_terminal() -> None:
    screen = Screen(terminal=False)
    screen.progress.note("word " * 40)
    assert screen.lines == [("word " * 40).strip()]


def test_a_search_that_was_interrupted_before_its_first_try_was_decided_has_a_table() -> None:
    summary = summarize(sample_runs.run())
    summary.search = answer(Search(2.0, 4.0, 0.05, whole=False), "rate")
    assert "results/x" in written(summary)


@pytest.mark.parametrize("width", [46, 60, 80])
def test_the_tries_of_a_search_and_a_comparison_cut_no_number(width: int) -> None:
    summary, search = summarize(sample_runs.run()), Search(2.0, 4.0, 0.05, whole=False)
    told = {"within": True, "reason": "ttft_intended_s.p99: 80 of 209 requests miss it", "seconds": 12.25}
    search.put(Probe(stage=0, load=38.0546, result="undecided", requests=20_900, **told))
    summary.search = answer(search, "rate")
    values = {"output_tokens_per_s": 1716.4, "requests_per_s": 59.2, "ttft_s.p50": 0.0105}
    sides = [[Run(run_id=f"{side}{n}", values=values) for n in range(3)] for side in "ab"]
    console = Console(file=io.StringIO(), width=width)
    console.print(comparison.report(compare(*sides, metrics=[one for one in METRICS if one.name in values])))
    assert isinstance(console.file, io.StringIO)
    told_sides, tries = console.file.getvalue(), written(summary, width).partition(" try")[2].partition(" search:")[0]
    assert "…" not in tries
    assert "38.1/s" in tries
    assert not re.search(r"[\d.]…(?! *[+−])", told_sides), "an interval alone has dots"
    assert "ttft_s.p50" in told_sides
    alone = comparison.why(compare(*[side[:1] for side in sides], metrics=METRICS))
    assert sum("a side of one run has no spread" in sentence for sentence in alone) == 1, "a reason is told once"
    assert "+0%" in told_sides
