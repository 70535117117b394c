"""`tokenswarm compare`: the statistics against brute force and simulation, the folders, the refusals, the codes."""

from __future__ import annotations

import itertools
import json
import random
import re
import statistics
from collections import Counter
from datetime import UTC, datetime
from math import comb
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sample_runs
from hypothesis import given
from hypothesis import strategies as st
from test_report_html import figure, parse

from bench.comparison import a_run
from tokenswarm import cli
from tokenswarm.errors import ExitCode
from tokenswarm.judge import alike, ranksum
from tokenswarm.judge.compare import METRICS, compare, measured
from tokenswarm.measure.snapshot import Merged
from tokenswarm.measure.statistics import holm, ranks
from tokenswarm.reports import comparison as comparison_table
from tokenswarm.reports import manifest as manifests
from tokenswarm.reports.html import comparison as comparison_page
from tokenswarm.result.comparison import Run
from tokenswarm.result.summary import to_json

VALUES = st.lists(st.integers(0, 6).map(float), min_size=1, max_size=5)


@given(VALUES, VALUES)
def test_the_rank_sum_test_is_exact_with_ties(a: list[float], b: list[float]) -> None:
    ranked = ranks([*a, *b])
    seen = sum(ranked[len(a) :])
    sums = [sum(chosen) for chosen in itertools.combinations(ranked, len(b))]
    assert ranksum.p_greater(a, b) == pytest.approx(sum(total >= seen - 1e-9 for total in sums) / len(sums))


@pytest.mark.parametrize(("runs", "p"), [(2, 1 / 6), (3, 0.05), (4, 1 / 70), (5, 1 / 252)])
def test_what_so_many_runs_can_show_at_all(runs: int, p: float) -> None:
    a, b = [float(i) for i in range(runs)], [float(i + runs) for i in range(runs)]
    assert ranksum.p_greater(a, b) == pytest.approx(p) == ranksum.smallest_p(runs, runs)
    assert ranksum.p_greater(b, a) == 1.0


def test_shift_and_interval() -> None:
    a, b = [1.0, 2.0, 4.0], [3.0, 5.0, 6.0]
    differences = sorted(y - x for x in a for y in b)
    assert ranksum.shift(a, b) == statistics.median(differences)
    assert ranksum.interval(a, b) == (differences[0], differences[-1], pytest.approx(1 - 2 / comb(6, 3)))


def test_the_interval_holds_the_shift_as_often_as_it_says() -> None:
    rng, held, said = random.Random(2), 0, 0.0
    for _ in range(2000):
        a, b = [rng.gauss(0, 1) for _ in range(5)], [rng.gauss(0.7, 1) for _ in range(5)]
        low, high, said = ranksum.interval(a, b)
        held += low <= 0.7 <= high
    assert said >= 0.9
    assert held / 2000 == pytest.approx(said, abs=0.025)


def test_holm_stops_at_the_first_that_falls() -> None:
    assert holm({"a": 0.004, "b": 0.03, "c": 0.026}, 0.05) == {"a": True, "c": False, "b": False}
    assert holm({"a": 0.004, "b": 0.03, "c": 0.02}, 0.05) == {"a": True, "c": True, "b": True}
    assert holm(dict(enumerate([0.004] * 3)), 0.01) == {0: False, 1: False, 2: False}, "the least: below a third"
    assert holm({}, 0.05) == {}


def words(shift: float, times: int) -> Counter[str]:
    rng = random.Random(1)
    return Counter(
        compare([a_run(rng, i, 0.0) for i in range(5)], [a_run(rng, 5 + i, shift) for i in range(5)]).word
        for _ in range(times)
    )


def test_a_thousand_times_the_same_server_is_called_worse_ten_times_at_most() -> None:
    found = words(0.0, 1000)
    assert found["worse"] <= 10
    assert found["worse"] + found["better"] <= 20


def test_ten_percent_is_found() -> None:
    assert words(0.0953, 200)["worse"] >= 195
    assert words(-0.0953, 200)["better"] + words(-0.0953, 200)["can't tell"] == 200


def test_a_small_shift_is_no_worse_and_tells_how_many_runs_would_tell() -> None:
    spread = (0.96, 0.98, 1.0, 1.02, 1.04)
    a = [Run(run_id=f"a{i}", values={"ttft_s.p50": 0.1 * x}) for i, x in enumerate(spread)]
    b = [Run(run_id=f"b{i}", values={"ttft_s.p50": 0.102 * x}) for i, x in enumerate(spread)]
    (finding,) = compare(a, b).findings
    assert finding.word == "can't tell"
    assert finding.runs_needed is not None
    assert finding.runs_needed > 5
    assert f"about {finding.runs_needed} runs a side" in finding.why


def test_one_run_a_side_tells_nothing() -> None:
    found = compare([Run(run_id="a", values={"ttft_s.p50": 1.0})], [Run(run_id="b", values={"ttft_s.p50": 9.0})])
    assert found.word == "can't tell"
    assert "make at least 3" in found.findings[0].why


@pytest.mark.parametrize(("n", "bounds"), [(1, False), (2, True)])
def test_an_interval_that_one_run_a_side_has_not_is_shown_nowhere(n: int, bounds: bool) -> None:
    a = [Run(run_id=f"a{i}", values={"ttft_s.p50": 1.0 + i / 10}) for i in range(n)]
    b = [Run(run_id=f"b{i}", values={"ttft_s.p50": 2.0 + i / 10}) for i in range(n)]
    found = compare(a, b)
    (finding,) = msgspec.json.decode(msgspec.json.encode(found))["findings"]
    assert [finding[name] is not None for name in ("low", "high", "confidence")] == [bounds] * 3
    shown = comparison_table.row(found.findings[0])
    assert (shown[4] == "–") != bounds
    assert shown[3] != "–"
    assert any("intervals hold" in text for text in comparison_table.why(found)) == bounds
    page = parse(comparison_page.render(found, a, b))
    effects = "".join(figure(page, "effects").itertext())
    assert ("+100% to" in effects or " to +1" in effects) == bounds
    assert "TTFT p50: +" in effects
    assert ("No bar" in "".join(page.itertext())) != bounds
    assert ("–, can't tell" in "".join(page.itertext())) != bounds


def test_a_percentile_that_one_run_lacks_is_not_told_from_the_others() -> None:
    a = [Run(run_id=f"a{i}", values={"ttft_s.p99": 1.0 + i / 100}) for i in range(5)]
    b = [Run(run_id=f"b{i}", values={"ttft_s.p99": None if i == 2 else 2.0}) for i in range(5)]
    (finding,) = compare(a, b).findings
    assert (finding.word, finding.ratio) == ("can't tell", None)
    assert finding.why.startswith("1 of 10 runs have no ttft_s.p99")


def test_a_sweep_is_the_geometric_mean_of_its_stages() -> None:
    summary = sample_runs.summary(Merged(run_id="x"))
    assert set(measured(summary)) == {metric.name for metric in METRICS}
    assert all(value is None for value in measured(summary).values())


# ---- folders and the command


def write(folder: Path, name: str, **changes: Any) -> Path:
    """A finished run's folder, with the numbers of a sample run moved by `scale`."""
    scale, status, model = changes.get("scale", 1.0), changes.get("status", "VALID"), changes.get("model", "m")
    merged = sample_runs.run(ttft=lambda i: 0.1 * scale * (1 + 0.1 * (i % 7)), itl_s=0.02 * scale)
    summary = sample_runs.summary(merged)
    summary.run_id, summary.partial, summary.verdict.status = name, changes.get("partial", False), status
    manifest = manifests.build(
        run_id=name,
        started=datetime(2026, 11, 28, tzinfo=UTC),
        profile=sample_runs.profile(),
        command=["tokenswarm"],
        versions={},
        git_revision=None,
        engine={"model": model},
        host={},
    )
    path = folder / name
    path.mkdir(parents=True)
    (path / "summary.json").write_bytes(to_json(summary))
    (path / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """main-0…4 and branch-0…4 (12 % slower), a bit apart from each other, and some that can't be compared."""
    folder = tmp_path_factory.mktemp("runs")
    for number in range(5):
        write(folder / "main", f"main-{number}", scale=1 + 0.003 * number)
        write(folder / "branch", f"branch-{number}", scale=1.12 + 0.003 * number)
        write(folder / "again", f"again-{number}", scale=1.0005 + 0.003 * number)
    write(folder, "invalid", status="INVALID")
    write(folder, "partial", partial=True)
    write(folder, "other-model", model="n")
    write(folder, "naked")
    (folder / "naked" / "manifest.json").unlink()
    write(folder, "old")
    old = folder / "old" / "summary.json"
    old.write_text(re.sub(r'"schema_version": \d+', '"schema_version": 99', old.read_text(), count=1))
    return folder


def told(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = cli.main(["compare", *map(str, words)])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_slower_group_is_worse(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = told(capsys, runs / "main", "--against", runs / "branch", "--json")
    found = {finding["metric"]: finding for finding in json.loads(out)["findings"]}
    assert code == ExitCode.WORSE
    assert found["ttft_s.p50"]["word"] == "worse"
    assert found["ttft_s.p50"]["ratio"] == pytest.approx(1.12, rel=0.01)
    assert found["ttft_s.p50"]["low"] < 1.12 < found["ttft_s.p50"]["high"]
    assert found["output_tokens_per_s"]["word"] == "same"


def test_the_other_way_round_it_is_better(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = told(capsys, runs / "branch", "--against", runs / "main")
    assert code == ExitCode.OK
    assert "the new runs: better" in out


def test_the_same_server_again_is_the_same(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = told(capsys, runs / "main", "--against", *(runs / "again" / f"again-{i}" for i in range(5)))
    assert code == ExitCode.OK
    assert "the new runs: same" in out


def test_a_stored_baseline_gives_the_same_answer(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    group = tmp_path / "main.json"
    assert told(capsys, runs / "again", "--against", runs / "main", "--save", group)[0] == ExitCode.OK
    direct = told(capsys, runs / "main", "--against", runs / "branch", "--json")
    stored = told(capsys, "--baseline", group, "--against", runs / "branch", "--json")
    assert stored == direct


def test_the_markdown_of_it(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "c.md"
    told(capsys, runs / "main", "--against", runs / "branch", "--markdown", page)
    assert page.read_text().startswith("## ❌ tokenswarm: the new runs are worse")
    assert "ttft&#95;s.p50" in page.read_text() or "ttft_s.p50" in page.read_text()


REFUSED = [
    (["invalid", "--against", "main"], "is INVALID"),
    (["partial", "--against", "main"], "is partial"),
    (["naked", "--against", "main"], "has no manifest.json"),
    (["old", "--against", "main"], "has schema version 99, this program reads"),
    (["main", "--against", "main"], "run main-0 stands on both sides"),
    (
        ["main", "--against", "other-model"],
        "the two sides differ in model: `engine.model` is m in main-0 and n in",
    ),
    (["main", "other-model", "--against", "branch"], "the runs of BASE differ in model"),
    (["nowhere", "--against", "main"], "no such file; name the folder of a finished run"),
    (["main"], "the following arguments are required: --against"),
    (["--against", "main"], "give the baseline once"),
    (["main", "--baseline", "main/main-0/summary.json", "--against", "branch"], "give the baseline once"),
    (["--baseline", "main/main-0/summary.json", "--against", "branch"], "is no group of runs"),
    (["main", "--against", "branch", "--differ", "modell"], "there is no subject `modell`; did you mean `model`"),
    (["main", "--against", "branch", "--metric", "ttft"], "--metric: `ttft` is not compared"),
    (["main", "--against", "branch", "--margin", "tail=nan"], "write KIND=SHARE"),
    (["main", "--against", "branch", "--margin", "speed=0.1"], "write KIND=SHARE"),
    (["main", "--against", "branch", "--margin", "tail=5"], "below 1, such as tail=0.15 or tail=15%"),
    (["main", "--against", "branch", "--margin", "tail=150%"], "below 1"),
]


@pytest.mark.parametrize(("words", "sentence"), REFUSED, ids=[" ".join(words) for words, _ in REFUSED])
def test_what_can_not_be_compared_is_one_sentence(
    runs: Path, words: list[str], sentence: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs)
    code, out, err = told(capsys, *words)
    assert (code, out) == (ExitCode.CONFIG, "")
    assert sentence in err
    assert err.count("\n") == 1


def test_another_model_is_compared_where_that_is_the_point(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, runs / "main", "--against", runs / "other-model", "--differ", "model")[0] == ExitCode.OK


def test_every_subject_names_keys_that_a_manifest_has(runs: Path) -> None:
    about = alike.about(json.loads((runs / "main" / "main-0" / "manifest.json").read_text()), {"m": 9})
    empty = {key for keys in about.values() for key, value in keys.items() if value is None}
    assert empty <= {"dataset.sha256", "profile.engine.temperature", "profile.engine.top_p", "profile.engine.seed"}


def test_what_changes_no_load_does_not_keep_runs_apart() -> None:
    def run(name: str, **load: Any) -> Run:
        timeouts = {"connect": 5.0, "ready": load.pop("ready", 60.0), "total": load.pop("total", 600.0)}
        manifest = {"profile": {"load": {"kind": "closed", **load}, "timeouts": timeouts}}
        return Run(run_id=name, values={}, about=alike.about(manifest, {}))

    plain = run("a", abort_on_fail={"after": 50})
    assert alike.differences([plain, run("b", abort_on_fail={"after": 0}, ready=5.0)]) == {}
    assert "600.0 in a and 60.0 in c" in alike.differences([plain, run("c", abort_on_fail={}, total=60.0)])["load"]
    assert "load" in alike.differences([plain, run("d", abort_on_fail={}, think_time=2.0)])


def of_shares(*shares: float | None, slower: float = 0.0) -> list[Run]:
    return [
        Run(run_id=f"{shares}-{i}", values={"e2e_s.p50": (1 + i / 1000) * (1 + slower), "ok_ratio": share})
        for i, share in enumerate(shares)
    ]


@pytest.mark.parametrize(
    ("a", "b", "word"),
    [
        ((1.0,) * 5, (0.6, 0.7, 0.62, 0.97, 0.66), "worse"),
        ((0.9, 0.91, 0.92, 0.9, 0.93), (1.0,) * 5, "better"),
        ((1.0,) * 5, (1.0, 1.0, 0.999, 1.0, 1.0), "same"),
        ((0.999, 1.0, 0.998, 1.0, 1.0), (1.0, 0.999, 0.999, 1.0, 0.998), "same"),
        ((1.0,) * 3, (0.6, 0.7, 0.62), "can't tell"),  # so few runs tell one metric, and there are two
        ((1.0,) * 5, (0.6,), "worse"),
        ((1.0,) * 5, (0.999,), "same"),
        ((None,) * 5, (0.6, 0.7, 0.62, 0.97, 0.66), "can't tell"),  # of a baseline stored before it was kept
    ],
)
def test_requests_that_fail_on_one_side_are_told_however_fast_the_others_are(
    a: tuple[float | None, ...], b: tuple[float | None, ...], word: str
) -> None:
    found = compare(of_shares(*a), of_shares(*b, slower=-0.2))
    assert {finding.metric: finding.word for finding in found.findings}["ok_ratio"] == word
    assert found.word == (word if word in ("worse", "can't tell") else found.findings[0].word)


def test_where_no_request_failed_there_is_nothing_to_test() -> None:
    a, b = of_shares(1.0, 1.0, 1.0), of_shares(1.0, 1.0, None, slower=0.2)
    (finding,) = compare(a, b).findings
    assert (finding.metric, finding.word) == ("e2e_s.p50", "worse"), "three runs a side tell one metric"
    alone = [metric for metric in METRICS if metric.name == "ok_ratio"]
    assert compare(of_shares(1.0, 1.0, 1.0), of_shares(1.0, 1.0, 1.0, slower=0.1), metrics=alone).word == "same"


def test_the_share_that_succeeds_counts_what_hung_on() -> None:
    summary = sample_runs.summary(Merged(run_id="x"))
    assert summary.requests_steady.ok_ratio is None
    counts = msgspec.structs.replace(summary.requests_steady, ok=90, failed=6, censored=4)
    assert counts.ok_ratio == 0.9


def test_rounds_that_differ_are_other_data_and_a_group_of_before_the_key_is_compared() -> None:
    key = "profile.dataset.rounds"
    same, distinct, before = (
        Run(run_id=f"r{n}", values={}, about={"data": about})
        for n, about in enumerate(({key: "same"}, {key: "distinct"}, {}))
    )
    assert "`dataset.rounds` is same in r0 and distinct in r1" in alike.differences([same, distinct])["data"]
    assert alike.differences([before, distinct]) == {} == alike.differences([distinct, before])


def test_what_differs_is_named_by_its_own_key_however_long_what_is_alike() -> None:
    stages = [{"users": users, "duration": 60.0} for users in (1, 2, 4, 8, 16, 32)]
    later = [*stages[:-1], {"users": 33, "duration": 60.0}]
    a, b, c = (
        Run(run_id=name, values={}, about={"load": {"profile.load": {"kind": "closed", "stages": told}}})
        for name, told in (("a", stages), ("b", later), ("c", stages[:-1]))
    )
    assert alike.differences([a, b])["load"] == "`load.stages.5.users` is 32 in a and 33 in b"
    said = alike.differences([a, c])["load"]
    assert said.startswith("`load.stages` is [{'users': 1, ")
    assert "… in a and [" in said, "a value that is cut says so"


@pytest.mark.parametrize(
    ("ratio", "said"),
    [(1.0000000000000002, "+0%"), (0.9999999999999998, "+0%"), (1.0345, "+3.45%"), (0.5, "−50%"), (11.84, "+1084%")],
)
def test_a_change_is_told_in_plain_digits(ratio: float, said: str) -> None:
    assert comparison_table.percent(ratio) == said


@pytest.mark.parametrize("odd", [5, ["m"], {"a": 1}, True])
def test_an_answered_model_that_is_no_name_is_told(odd: object) -> None:
    a, b = (Run(run_id=name, values={}, about={"model": {alike.ANSWERED: m}}) for name, m in (("a", odd), ("b", "m")))
    assert "model" in alike.differences([a, b])
