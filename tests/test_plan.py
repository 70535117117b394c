"""`tokenswarm plan`: the arithmetic against plain sums, the refusals by their sentence, and a live fleet of two."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sample_runs
from proxies import proxy
from running import program, run, tokenswarm
from simulator_process import simulator

from tokenswarm import cli
from tokenswarm.judge import fleet
from tokenswarm.judge.fleet import Columns
from tokenswarm.profile.slo import Percentiles, Slo
from tokenswarm.profile.telemetry import Telemetry
from tokenswarm.record import Outcome
from tokenswarm.reports import manifest as manifests
from tokenswarm.result.fleet import Kind, Level
from tokenswarm.result.summary import StagePlan, summarize, to_json

SLO = Slo(ttft_s=Percentiles(p95=0.5), failed_ratio=0.01)
RATES = (10.0, 20.0, 40.0, 80.0)


def measured(folder: Path, ttfts_s: tuple[float, ...] = (0.1, 0.2, 0.3, 0.9), slo: Slo = SLO, **changes: Any) -> Path:
    """The folder of a sweep over RATES, whose stages have these TTFTs; prompts of 40 tokens, answers of 9."""
    ok, calls = changes.get("ok", 200), itertools.count()
    merged = sample_runs.run(
        ok, slo=slo, stages=len(ttfts_s), ttft=lambda i: ttfts_s[next(calls) // ok] * (1 + i % 7 / 50),
        ends=changes.get("ends"), prompt_tokens=changes.get("prompt_tokens", 40),
    )  # fmt: skip
    for block in merged.blocks:
        block.rho_weighted = {}
    users = changes.get("users", False)
    plan = [
        StagePlan(stage=i, concurrency=int(rate)) if users else StagePlan(stage=i, rate=rate)
        for i, rate in enumerate(RATES[: len(ttfts_s)])
    ]
    summary = summarize(merged, plan=plan, partial=changes.get("partial", False))
    summary.run_id, summary.verdict.status = folder.name, changes.get("status", "VALID")
    for stage, power_w in zip(summary.stages, changes.get("power_w", ()), strict=False):
        stage.gpu = {"power_w_mean": power_w, "count": 2, "gpus": [{"backend": changes.get("backend", "nvml")}]}
    summary.search = changes.get("search", {})
    manifest = manifests.build(
        run_id=folder.name, started=datetime(2026, 11, 28, tzinfo=UTC), command=["tokenswarm"], versions={},
        profile=sample_runs.profile(slo, telemetry=changes.get("telemetry", Telemetry())),
        git_revision=None, engine={"model": changes.get("model", "m")}, host={},
    )  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "summary.json").write_bytes(to_json(summary))
    (folder / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    return folder


@pytest.fixture(scope="module")
def a(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return measured(tmp_path_factory.mktemp("plan") / "a")


def planned(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> dict[str, Any]:
    assert cli.main(["plan", *map(str, words), "--json"]) == code
    return json.loads(capsys.readouterr().out)


# -- what one carries --------------------------------------------------------------------------------------------------


def level(load: float, word: str, **more: Any) -> Level:
    fields = {"kind": "rate", "load": load, "carried": load, "word": word, "limit": "" if word == "pass" else "x"}
    return Level(**{**fields, **more})


CAPACITIES: list[tuple[list[Level], tuple[float, float | None, float | None, str] | None]] = [
    ([level(10, "pass"), level(20, "pass"), level(40, "fail")], (20, 20, 40, "x")),
    ([level(10, "pass"), level(20, "perhaps"), level(40, "fail")], (20, 10, 40, "x")),
    ([level(10, "perhaps"), level(20, "fail")], (10, None, 20, "x")),
    ([level(10, "pass"), level(20, "fail"), level(40, "pass")], (10, 10, 20, "x")),  # not by luck above a miss
    ([level(10, "pass"), level(20, "unknown"), level(40, "fail")], (10, 10, 40, "x")),
    ([level(10, "pass")], (10, 10, None, "")),
    ([level(10, "fail")], None),
    ([level(10, "unknown")], None),
    ([], None),
    (  # saturated: more users, fewer answers
        [
            level(8, "pass", kind="users", carried=50.0),
            level(16, "fail", kind="users", carried=45.0),
        ],
        (50, 50, 50, "x"),
    ),
    ([level(10, "pass"), level(4, "pass", kind="users", carried=12.0)], (12, 12, None, "")),
]


@pytest.mark.parametrize(("levels", "expected"), CAPACITIES)
def test_capacity(levels: list[Level], expected: tuple[float, ...] | None) -> None:
    found = fleet.capacity(levels)
    assert (None if found is None else (found.best, found.low, found.high, found.limit)) == expected


WORDS: list[tuple[dict[str, Any], dict[str, float], tuple[str, str]]] = [
    ({}, {"ttft_s.p95": 0.5}, ("pass", "")),
    ({}, {"ttft_s.p95": 0.111945}, ("perhaps", "ttft_s.p95")),  # the value is below it, its interval is not
    ({}, {"ttft_s.p95": 0.05, "failed_ratio": 0.01}, ("fail", "ttft_s.p95")),
    ({}, {"ttft_s.p999": 0.5}, ("unknown", "ttft_s.p999")),
    ({}, {"ttft_s.p999": 0.05}, ("fail", "ttft_s.p999")),  # the median is beyond it already
    ({}, {"ttft_s.max": 0.05}, ("fail", "ttft_s.max")),
    ({}, {"ttft_s.mean": 0.5}, ("pass", "")),
    ({Outcome.HTTP_5XX: 10}, {"failed_ratio": 0.01}, ("fail", "failed_ratio")),
    ({Outcome.HTTP_5XX: 10}, {"ttft_s.p99": 0.5}, ("fail", "ttft_s.p99")),  # 1.6 % failed: no p99 is within anything
    ({Outcome.HTTP_5XX: 10}, {"ttft_s.p90": 0.5}, ("pass", "")),
    ({Outcome.HTTP_5XX: 10}, {"ttft_s.p90": 0.111945}, ("perhaps", "ttft_s.p90")),
    ({Outcome.HTTP_5XX: 10}, {"ttft_s.max": 0.5}, ("fail", "ttft_s.max")),
]


@pytest.mark.parametrize(("ends", "limits", "expected"), WORDS)
def test_a_level_is_held_to_limits_by_its_intervals(
    ends: dict[Outcome, int], limits: dict[str, float], expected: tuple[str, str]
) -> None:
    merged = sample_runs.run(600, ttft=lambda i: 0.1 * (1 + i % 7 / 50), ends=ends)
    for block in merged.blocks:
        block.rho_weighted = {}
    assert fleet.judge(summarize(merged, plan=[StagePlan(stage=0, rate=6.0)]).stages[0], limits) == expected


# -- what is asked for -------------------------------------------------------------------------------------------------

KIND = Kind(name="k", model="m", levels=(level(10, "pass"),), input_tokens=100.0, output_tokens=50.0)


def test_the_busiest_window_decides_and_is_that_of_all_windows() -> None:
    draw = random.Random(5)
    at_s = sorted(draw.uniform(0, 600) for _ in range(400)) + [600 + i / 20 for i in range(100)]
    at_s += sorted(draw.uniform(605, 900) for _ in range(100))
    trace = Columns(at_s, [100] * 600, [50] * 600)
    demand = fleet.of_trace(trace, 900.0, 30.0, KIND, adjust=False)
    by_hand = max(sum(start <= at < start + 30 for at in at_s) for start in at_s)
    assert demand.peak == pytest.approx(by_hand / 30)
    assert demand.start_s is not None
    assert 570 < demand.start_s <= 600
    assert demand.mean == pytest.approx(600 / 900)
    assert demand.output_tokens_per_s == pytest.approx(600 * 50 / 900)
    assert fleet.apart(demand, KIND) == ""


def test_a_window_of_fewer_and_longer_requests_can_be_the_busiest() -> None:
    trace = Columns([float(i) for i in range(200)], [100] * 200, [50] * 150 + [500] * 50)
    demand = fleet.of_trace(trace, 200.0, 20.0, KIND, adjust=False)
    assert demand.start_s is not None
    assert demand.start_s >= 150
    assert "answers of 500 tokens, measured with 50" in fleet.apart(demand, KIND)
    adjusted = fleet.of_trace(trace, 200.0, 20.0, KIND, adjust=True)
    assert (adjusted.peak, adjusted.peak_low) == (pytest.approx(10.0), pytest.approx(1.0))


def test_a_trace_shorter_than_the_window_is_its_own_window() -> None:
    demand = fleet.of_trace(Columns([0.0, 1.0], [100, 100], [50, 50]), 2.0, 60.0, KIND, adjust=False)
    assert (demand.peak, demand.window_s) == (1.0, 2.0)


# -- the plan ----------------------------------------------------------------------------------------------------------


def test_replicas_cost_and_energy_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """40/s is kept, 80/s is not: 100/s take 3 replicas of two GPUs, 2 at least; each at 33.3/s draws 550 W."""
    telemetry = Telemetry(price_per_gpu_hour=3.0, currency="EUR", gpus=2)
    folder = measured(tmp_path / "a", telemetry=telemetry, power_w=(300.0, 350.0, 650.0, 700.0))
    plan = planned(capsys, folder, "--rate", 100)
    (one,) = plan["fleets"]
    assert plan["limits"] == {"ttft_s.p95": 0.5, "failed_ratio": 0.01}
    assert one["capacity"] == {"best": 40.0, "low": 40.0, "high": 80.0, "limit": "ttft_s.p95", "users": False}
    assert (one["replicas"], one["replicas_low"], one["replicas_high"], one["gpus"]) == (3, 2, 3, 6)
    assert one["used"] == pytest.approx(100 / 120)
    assert (one["cost_per_hour"], one["currency"]) == (18.0, "EUR")
    tokens_per_s = 100 * 9
    assert one["cost_per_million_output_tokens"] == pytest.approx(18 / (tokens_per_s * 3600) * 1e6)
    assert one["cost_low"] == pytest.approx(12 / (tokens_per_s * 3600) * 1e6)
    power_w = 3 * (350 + 300 * (100 / 3 - 20) / 20)
    assert one["power_w"] == pytest.approx(power_w)
    assert one["kwh_per_million_output_tokens"] == pytest.approx(power_w / tokens_per_s * 1e6 / 3.6e6)
    two_w = 2 * (650 + 50 * 10 / 40)
    ends = sorted(watts / tokens_per_s * 1e6 / 3.6e6 for watts in (power_w, two_w))
    assert [one["kwh_low"], one["kwh_high"]] == pytest.approx(ends)


def test_headroom_and_whole_replicas(a: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for rate, headroom, expected in ((40, "0", 1), (40.1, "0", 2), (40, "20%", 2), (64, "0.2", 2), (0.5, "0", 1)):
        plan = planned(capsys, a, "--rate", rate, "--headroom", headroom)
        assert plan["fleets"][0]["replicas"] == expected, (rate, headroom)


def test_kinds_stand_in_one_table_the_cheapest_first(
    a: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = measured(tmp_path / "slow", (0.1, 0.3, 0.9, 1.5))
    none = measured(tmp_path / "none", (0.9, 0.9, 0.9, 0.9))
    words = [f"{a},name=big,price=4", f"{slow},name=small,price=1,power=100", f"{none},price=1", "--rate", "100"]
    plan = planned(capsys, *words)
    assert [(one["name"], one["replicas"], one["cost_per_hour"]) for one in plan["fleets"]] == [
        ("small", 5, 5.0), ("big", 3, 12.0), ("none", None, None)
    ]  # fmt: skip
    assert plan["fleets"][0]["power_w"] == pytest.approx(500)
    assert "not even 10/s keeps ttft_s.p95" in plan["fleets"][2]["why"]
    assert cli.main(["plan", *words]) == 0
    text = capsys.readouterr().out
    assert "plan: 5 × small carry 100/s; ttft_s.p95 is what ends it" in text
    assert text.index("small") < text.index("big") < text.index("none")
    assert cli.main(["plan", *words, "--quiet"]) == 0
    line = capsys.readouterr().out
    assert re.fullmatch(r"plan: small replicas=5 low=3 high=5 gpus=5 carries=20 peak=100 cost_per_hour=5 .*\n", line)
    assert cli.main(["plan", str(none), "--rate", "1"]) == 10
    capsys.readouterr()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_number_is_cut_on_a_narrow_terminal(
    width: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Intervals stand below their values there; then columns go, the least telling first."""
    telemetry = Telemetry(price_per_gpu_hour=3.0, currency="EUR", gpus=2)
    folder = measured(tmp_path / "a", telemetry=telemetry, power_w=(300.0, 350.0, 650.0, 700.0))
    monkeypatch.setenv("COLUMNS", str(width))
    assert cli.main(["plan", str(folder), "--rate", "100"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = lines[: next(number for number, line in enumerate(lines) if line.startswith(" plan:"))]
    text = "\n".join(rows)
    assert max(map(len, rows)) <= width
    for cell in ("kind", "one carries", "40.0", "(40.0…80.0)", "replicas", "(2…3)", "1M tokens", "5.56 EUR"):
        assert cell in text, text
    assert ("kWh/1M" in text) == (width == 120)
    assert ("40.0 (40.0…80.0)/s" in text) == (width == 120)


def test_a_trace_with_a_peak_takes_what_the_peak_takes(a: Path, tmp_path: Path,
                                                      capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    at_s = [float(i) for i in range(300)] + [300 + i / 100 for i in range(1000)] + [310.0 + i for i in range(300)]
    path = tmp_path / "t.csv"
    path.write_text("timestamp,input_tokens,output_tokens\n" + "".join(f"{at},40,9\n" for at in at_s), "utf-8")
    one = planned(capsys, a, "--trace", path, "--window", "10s")["fleets"][0]
    assert one["demand"]["peak"] == pytest.approx(100, rel=0.01)
    assert 299 <= one["demand"]["start_s"] <= 301
    assert one["replicas"] == 3
    assert planned(capsys, a, "--trace", path, "--window", "1h")["fleets"][0]["replicas"] == 1
    assert planned(capsys, a, "--trace", path, "--window", "10s", "--time-scale", "2")["fleets"][0]["replicas"] == 2
    assert cli.main(["plan", str(a), "--trace", str(path), "--window", "10s"]) == 0
    assert "the busiest 10.0s of the trace, from 300 s to 310 s" in " ".join(capsys.readouterr().out.split())


def test_a_search_is_taken_at_its_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Under its own limits; under others its tries are levels as any."""
    probes = [
        {"stage": i, "load": rate, "result": result, "within": within, "reason": reason, "seconds": 9, "requests": 9}
        for i, (rate, result, within, reason) in enumerate(
            [(10.0, "pass", True, ""), (20.0, "pass", True, ""), (40.0, "undecided", True, "ttft_s.p95: few"),
             (80.0, "fail", False, "ttft_s.p95: 9 of 99 requests miss it")]
        )
    ]  # fmt: skip
    search = {"of": "rate", "passed": 40.0, "failed": 80.0, "probes": probes}
    folder = measured(tmp_path / "s", search=search)
    assert planned(capsys, folder, "--rate", "40")["fleets"][0]["capacity"] == {
        "best": 40.0, "low": 20.0, "high": 80.0, "limit": "ttft_s.p95", "users": False
    }  # fmt: skip
    (tmp_path / "strict.yaml").write_text("slo: {ttft_s: {p95: 0.25}}\n", "utf-8")
    strict = planned(capsys, folder, "--rate", "40", "--slo", tmp_path / "strict.yaml")["fleets"][0]
    assert (strict["capacity"]["best"], strict["capacity"]["high"]) == (20.0, 40.0)


@pytest.mark.parametrize("slo", ["", "slo: {ttft_s: {p95: 0.25}}"])
def test_a_try_in_which_the_server_was_away_is_no_level(
    slo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither under the search's own limits nor under others."""
    keys = {"reason": "the server was away", "seconds": 9, "requests": 9}
    probes = [
        {"stage": i, "load": 10.0 * 2**i, "result": result, "within": result == "pass", **keys}
        for i, result in enumerate(("pass", "pass", "gone", "gone"))
    ]
    folder = measured(tmp_path / "s", search={"of": "rate", "passed": 20.0, "failed": None, "probes": probes})
    (tmp_path / "slo.yaml").write_text(slo, "utf-8")
    words = ("--slo", tmp_path / "slo.yaml") if slo else ()
    (fleet,) = planned(capsys, folder, "--rate", "40", *words)["fleets"]
    assert (fleet["capacity"]["best"], fleet["capacity"]["high"]) == (20.0, None)


def test_several_runs_of_a_kind_are_pooled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measured(tmp_path / "k" / "one", (0.1, 0.2, 0.3))
    measured(tmp_path / "k" / "two", (0.1, 0.9))  # 20/s is too much in one of the two
    assert planned(capsys, tmp_path / "k", "--rate", "20")["fleets"][0]["capacity"]["best"] == 10.0


def test_it_says_what_is_not_sure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = measured(tmp_path / "few", (0.1,), ok=140, slo=Slo(ttft_s=Percentiles(p95=0.111945)))
    one = planned(capsys, few, "--rate", "5", code=12)["fleets"][0]
    assert one["replicas_high"] is None
    assert one["replicas_low"] == 1
    assert any("no load is sure" in note for note in one["notes"])
    assert any("nothing that was tried was too much" in note for note in one["notes"])
    users = measured(tmp_path / "users", users=True)
    assert any("closed loop" in note for note in planned(capsys, users, "--rate", "5")["fleets"][0]["notes"])
    replay = measured(tmp_path / "replay", power_w=(300.0,) * 4, backend="replay")
    assert planned(capsys, replay, "--rate", "5")["fleets"][0]["power_w"] is None
    tail = measured(tmp_path / "tail", ok=140, slo=Slo(ttft_s=Percentiles(p99=0.5)))
    assert "too few requests to tell ttft_s.p99" in planned(capsys, tail, "--rate", "5", code=12)["fleets"][0]["why"]


def test_lengths_that_were_not_measured_count_for_more(a: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [a, "--rate", 40, "--output-tokens", "18"]
    one = planned(capsys, *words, "--adjust-lengths")["fleets"][0]
    assert (one["replicas"], one["demand"]["adjusted"]) == (2, 2.0)
    assert one["demand"]["peak_low"] == pytest.approx(40)
    assert one["demand"]["output_tokens_per_s"] == pytest.approx(40 * 18)
    assert cli.main(["plan", *map(str, words), "--adjust-lengths"]) == 0
    said = capsys.readouterr().out
    assert "carry 40.0/s" in said, "a plan speaks of the requests that were asked for"
    assert re.search(r"asked for: 40.0 requests/s of .*, 18.0 tokens out", said)


# -- what it refuses ---------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "no limits": (lambda t: [str(measured(t / "x", slo=Slo())), "--rate", "1"], "has no limits.*--slo FILE"),
    "rates alone": (
        lambda t: [str(measured(t / "x", slo=Slo(requests_per_s=5.0))), "--rate", "1"], "has no limits.*--slo FILE"
    ),
    "no folder": (lambda t: [str(t / "nowhere"), "--rate", "1"], "no such file; name the folder of a finished run"),
    "an empty folder": (lambda t: [str(t), "--rate", "1"], "holds no runs"),
    "partial": (lambda t: [str(measured(t / "x", partial=True)), "--rate", "1"], "is partial.*run it again"),
    "invalid": (lambda t: [str(measured(t / "x", status="INVALID")), "--rate", "1"], "is INVALID.*run it again"),
    "price 0": (lambda t: [f"{measured(t / 'x')},price=0", "--rate", "1"], "price= 0: must be a number above 0"),
    "price −1": (lambda t: [f"{measured(t / 'x')},price=-1", "--rate", "1"], "price= -1: must be a number above 0"),
    "price NaN": (lambda t: [f"{measured(t / 'x')},price=nan", "--rate", "1"], "price= nan: must be a number above 0"),
    "price inf": (lambda t: [f"{measured(t / 'x')},price=1e999", "--rate", "1"], "must be a number above 0"),
    "power": (lambda t: [f"{measured(t / 'x')},power=many", "--rate", "1"], "power= many: must be a number above 0"),
    "gpus": (lambda t: [f"{measured(t / 'x')},gpus=0", "--rate", "1"], "gpus= 0: must be a whole number of 1 or more"),
    "gpus 1.5": (lambda t: [f"{measured(t / 'x')},gpus=1.5", "--rate", "1"], "must be a whole number of 1 or more"),
    "a key": (lambda t: [f"{measured(t / 'x')},prize=1", "--rate", "1"], "no key `prize`; did you mean `price`"),
    "rate 0": (lambda t: [str(measured(t / "x")), "--rate", "0"], "--rate 0: must be a number above 0"),
    "rate NaN": (lambda t: [str(measured(t / "x")), "--rate", "nan"], "--rate nan: must be a number above 0"),
    "headroom": (lambda t: [str(measured(t / "x")), "--rate", "1", "--headroom", "100%"], "--headroom 100%: must be a"),
    "window": (
        lambda t: [str(measured(t / "x")), "--trace", trace(t, "1,4,9\n"), "--window", "0.1s"], "0.1s: must be 1s"
    ),
    "rate 1e300": (lambda t: [str(measured(t / "x")), "--rate", "1e300"], "--rate 1e300: .*below 1e9"),
    "more than there are": (lambda t: [f"{measured(t / 'x')},gpus=90000", "--rate", "9e8"], "more than 10000000 GPUs"),
    "said twice": (lambda t: [f"{measured(t / 'x')},price=1,price=2", "--rate", "1"], "says one thing twice"),
    "tries that are none": (
        lambda t: [str(measured(t / "x", search={"of": "rate", "probes": [{"stage": 0}]})), "--rate", "1"],
        "summary.json: `search.probes` is no list of tries",
    ),
    "a manifest that is none": (lambda t: [manifest(t, "[]"), "--rate", "1"], "manifest.json: is no manifest of a run"),
    "limits that are none": (
        lambda t: [manifest(t, '{"profile": {"slo": {"ttft_s": 3}}}'), "--rate", "1"], "`profile.slo` is none"
    ),
    "GPUs that are none": (
        lambda t: [manifest(t, '{"profile": {"slo": {"failed_ratio": 1}, "telemetry": {"gpus": "b"}}}'), "--rate", "1"],
        "gpus= b: must be a whole number",
    ),
    "other model": (
        lambda t: [str(measured(t / "x")), str(measured(t / "y", model="n")), "--rate", "1"],
        "y was measured with the model n, x with m; measure that one, or if they are to differ: --differ model",
    ),
    "not the wanted model": (
        lambda t: [str(measured(t / "x")), "--rate", "1", "--model", "n"], "the model m, --model asks for n"
    ),
    "other limits": (
        lambda t: [str(measured(t / "x")), str(measured(t / "y", slo=Slo(failed_ratio=0.1))), "--rate", "1"],
        "were run with different limits.*--slo FILE",
    ),
    "other currency": (
        lambda t: [f"{measured(t / 'x')},price=1,currency=EUR", f"{measured(t / 'y')},price=1", "--rate", "1"],
        "prices in EUR and USD can't be compared",
    ),
    "twice": (lambda t: [str(measured(t / "x")), str(t / "x"), "--rate", "1"], "two kinds are called x"),
    "other lengths": (
        lambda t: [str(measured(t / "x")), str(measured(t / "y", prompt_tokens=80)), "--rate", "1"],
        "prompts of 40 tokens, measured with 80 .y.; measure it with these lengths, or say --adjust-lengths",
    ),
    "a trace of other lengths": (
        lambda t: [str(measured(t / "x")), "--trace", trace(t, "1,400,9\n2,400,9\n")],
        "t.csv: its busiest window has prompts of 400 tokens, measured with 40 .x.; measure it with --trace",
    ),
    "a trace without tokens": (
        lambda t: [str(measured(t / "x")), "--trace", trace(t, "1,0,0\n2,0,0\n")], "t.csv: no row of it has any tokens"
    ),
    "a trace without lengths": (
        lambda t: [str(measured(t / "x")), "--trace", trace(t, "1\n", head="timestamp\n")],
        "t.csv:1: the first line is not that of a trace",
    ),
    "a trace that is cut off": (
        lambda t: [str(measured(t / "x")), "--trace", trace(t, "1,40,9\n2,4\n")], "t.csv:3: 2 columns"
    ),
    "lengths of a trace": (
        lambda t: [str(measured(t / "x")), "--trace", trace(t, "1,40,9\n"), "--input-tokens", "5"], "go with --rate"
    ),
    "a window of a rate": (
        lambda t: [str(measured(t / "x")), "--rate", "1", "--window", "5s"], "^tokenswarm: --window goes with --trace:"
    ),
    "a scale of a rate": (
        lambda t: [str(measured(t / "x")), "--rate", "1", "--time-scale", "2"], "--time-scale goes with --trace:"
    ),
    "goodput of other limits": (
        lambda t: [str(measured(t / "x")), "--rate", "1", "--slo", slo(t, "{ttft_s: {p95: 1.0}, goodput_ratio: 0.9}")],
        "its goodput was counted under other limits",
    ),
    "a wrong SLO file": (
        lambda t: [str(measured(t / "x")), "--rate", "1", "--slo", slo(t, "{ttft_s: {p94: 1.0}}")], r"slo.yaml:1: .*p94"
    ),
    "no load": (lambda t: [str(measured(t / "x", ok=0)), "--rate", "1"], "holds no load that was measured"),
}  # fmt: skip


def trace(folder: Path, text: str, head: str = "timestamp,input_tokens,output_tokens\n") -> str:
    (folder / "t.csv").write_text(head + text, "utf-8")
    return str(folder / "t.csv")


def manifest(folder: Path, text: str) -> str:
    (measured(folder / "x") / "manifest.json").write_text(text, "utf-8")
    return str(folder / "x")


def slo(folder: Path, text: str) -> str:
    (folder / "slo.yaml").write_text(f"slo: {text}\n", "utf-8")
    return str(folder / "slo.yaml")


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_planned_is_one_sentence(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, sentence = REFUSED[case]
    assert cli.main(["plan", *make(tmp_path)]) == 15
    found = capsys.readouterr()
    assert re.search(sentence, found.err), found.err
    assert found.err.count("\n") == 1
    assert found.out == ""


def test_a_manifest_with_a_bad_price_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = measured(tmp_path / "x", telemetry=Telemetry(price_per_gpu_hour=2.0))
    text = (
        (folder / "manifest.json").read_text("utf-8").replace('"price_per_gpu_hour":2.0', '"price_per_gpu_hour":-2.0')
    )
    (folder / "manifest.json").write_text(text, "utf-8")
    assert cli.main(["plan", str(folder), "--rate", "1"]) == 15
    assert "`telemetry.price_per_gpu_hour` -2.0: must be a number above 0" in capsys.readouterr().err
    for price in (math.nan, math.inf, -1.0):
        with pytest.raises(ValueError, match="price_per_gpu_hour"):
            Telemetry(price_per_gpu_hour=price)


# -- a live fleet ------------------------------------------------------------------------------------------------------

PROFILE = """\
target: http://127.0.0.1:1
dataset: {format: synthetic, synthetic: {conversations: 100000, input_mean: 16}, output_tokens: {fixed: 8}}
load: {kind: poisson, stages: [{rate: 1}]}
phases: {warmup: 2s, settle: 1s, drain: 20s}
slo: {ttft_intended_s: {p50: 0.6}, failed_ratio: 0.1}
search: {rate: [4, 16], resolution: 0.5, shortest: 4s, longest: 10s}
"""
ENGINE = ("--preset", "laptop", "--max-num-seqs", "4", "--flops-per-s", "1e15", "--bytes-per-s", "1e13")


@pytest.mark.alone
@pytest.mark.timeout(600)
def test_the_planned_fleet_carries_the_load_and_one_less_does_not(tmp_path: Path) -> None:
    """Four at a time, nine steps of 50 ms each: 8.9 requests a second, so that 1.4 times as many take two."""
    (tmp_path / "p.yaml").write_text(PROFILE, "utf-8")
    with (
        simulator(*ENGINE, "--step-overhead-ms", "50") as first,
        simulator(*ENGINE, "--step-overhead-ms", "50") as other,
        simulator(*ENGINE, "--step-overhead-ms", "50") as single,
    ):
        found = run(tokenswarm("search", "p.yaml", "--host", first.url, "--results", "one"), tmp_path, 400)
        passed = found.summary["search"]["passed"]
        assert passed is not None, found.out
        rate = f"{1.4 * passed:.3f}"
        said = run(tokenswarm("plan", "one/latest", "--rate", rate, "--quiet"), tmp_path)
        assert said.code in (0, 12), said.out  # so short a search may not be sure
        assert " replicas=2 " in said.out
        assert re.search(r" limit=(ttft_intended_s\.p50|requests_under_way_grew)", said.out), said.out
        words = ("run", "p.yaml", "--duration", "10s")
        upstream = f"127.0.0.1:{first.address[1]}\n  server t 127.0.0.1:{other.address[1]}"
        more = f"{max(float(rate), 15.0):.3f}"  # a search beside other work may have found less than there is
        with (
            proxy("haproxy", tmp_path / "proxy", upstream) as balanced,
            program(tokenswarm(*words, "--rate", rate, "--host", balanced), tmp_path) as fleet,
            program(tokenswarm(*words, "--rate", more, "--host", single.url), tmp_path) as replica,
        ):
            two, one = fleet.finish(150), replica.finish(150)
        assert two.summary["gates"][0]["value"] < 0.6, two.out
        assert one.summary["gates"][0]["value"] > 0.6, one.out
