"""`tokenswarm run --repeat`, `--against-host`, `--baseline`, `--history`: real runs in turn, and their ends."""

from __future__ import annotations

import json
import os
import re
import signal
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from running import SAMPLES, Finished, program, run, tokenswarm
from simulator_process import simulator
from test_compare import write

from tokenswarm import cli
from tokenswarm.commands import groups, repeat
from tokenswarm.errors import ExitCode
from tokenswarm.profile.bars import Bars
from tokenswarm.reports import history

pytestmark = pytest.mark.timeout(600)  # a group is several runs, each with processes that start
LONG_S = 300.0

PROFILE = """
name: short
dataset: {path: %s, output_tokens: {fixed: 4}}
load: {stages: [{users: 2, duration: 1s}]}
phases: {warmup: 200ms, drain: 5s}
engine: {probe: false}
telemetry: {engine_metrics: off}
bars: {%s}
"""
WIDE = ", ".join(f"{name}: {{degraded: 1000, invalid: 1000}}" for name in Bars.__struct_fields__)
"""On a busy machine the runs of these tests are no good, and count all the same."""


def short(folder: Path) -> str:
    path = folder / "p.yaml"
    path.write_text(PROFILE % (SAMPLES / "sharegpt.json", WIDE), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def engine() -> Iterator[str]:
    with simulator("--preset", "paced", "--ttft-ms", "20", "--itl-ms", "5") as server:
        yield server.url


@pytest.fixture(scope="module")
def pair(engine: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Finished]:
    """Two runs a side, both of the same engine, with a history."""
    home = tmp_path_factory.mktemp("pair")
    words = ["--host", engine, "--against-host", f"{engine}/", "--against-name", "again <b>", "--repeat", "2"]
    return home, run(tokenswarm("run", short(home), *words, "--history", "h.jsonl"), home, LONG_S)


def group_of(home: Path) -> Path:
    (found,) = (home / "results").glob("group-*")
    return found


def runs_of(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob("2*/summary.json"))


def test_runs_take_turns_and_each_has_a_folder(pair: tuple[Path, Finished]) -> None:
    home, done = pair
    group = group_of(home)
    made = {side: runs_of(group / side) for side in "ab"}
    assert [len(made[side]) for side in "ab"] == [2, 2], done.out
    order = sorted((path.name, side) for side in "ab" for path in made[side])
    assert [side for _, side in order] == ["a", "b", "b", "a"]
    for path in made["a"]:
        command = json.loads((path / "manifest.json").read_bytes())["command"]
        assert command[:3] == ["tokenswarm", "run", str(home / "p.yaml")]
        assert "--repeat" not in command
    assert (home / "results" / "latest").resolve() == (group / "a" / order[-1][0]).resolve()


def test_the_plan_is_said_before_and_that_both_are_the_same(pair: tuple[Path, Finished]) -> None:
    _, done = pair
    said = " ".join(done.out.split())
    planned = re.search(r"plan: 4 runs, in turn \(A B B A\), each: 2 users, 1.2 s with warm-up.*?at most", said)
    assert planned is not None
    assert planned.end() < said.index("run 1/4, A: about")
    assert "A and B are the same target" in said
    assert re.search(r"run 4/4, A: (VALID|DEGRADED), exit 0", said)


def test_the_comparison_is_made_by_itself(pair: tuple[Path, Finished]) -> None:
    home, done = pair
    assert done.code == ExitCode.CANT_TELL, done.out
    found = json.loads((group_of(home) / "comparison.json").read_bytes())
    assert sum(len(found[side]["runs"]) for side in "ab") + len(found["left_out"]) == 4
    assert found["b"]["name"] == "again <b>"
    page = (group_of(home) / "comparison.html").read_text("utf-8")
    assert "again &lt;b&gt;" in page
    assert "again <b>" not in page
    assert (group_of(home) / "comparison.md").exists()
    assert "the new runs: can't tell" in done.out


def test_the_history_has_every_run_and_the_comparison(pair: tuple[Path, Finished]) -> None:
    home, _ = pair
    found = json.loads((group_of(home) / "comparison.json").read_bytes())
    lines, problems = history.read(home / "h.jsonl")
    assert problems == []
    assert [line.kind for line in lines] == ["run"] * 4 + ["comparison"]
    assert {line.profile for line in lines[:4]} == {"short"}
    assert {line.run_id for line in lines[:4]} == {p.name for side in "ab" for p in runs_of(group_of(home) / side)}
    assert [list(lines[4].a), list(lines[4].b)] == [found[side]["runs"] for side in "ab"]


def test_one_run_against_a_stored_group(pair: tuple[Path, Finished], engine: str, tmp_path: Path) -> None:
    """The folder of a side is a baseline; the comparison is all that is on stdout."""
    home, _ = pair
    words = ["--host", engine, "--baseline", str(group_of(home) / "a"), "--json", "--quiet", "--history", "h.jsonl"]
    done = run(tokenswarm("run", short(tmp_path), *words), tmp_path, LONG_S)
    assert done.code == ExitCode.CANT_TELL, done.out
    found = json.loads(done.out)
    assert len(found["b"]["runs"]) == 1
    assert [line.kind for line in history.read(tmp_path / "h.jsonl")[0]] == ["run", "comparison"]


def test_a_folder_that_is_called_latest_stays_and_is_told(engine: str, tmp_path: Path) -> None:
    (tmp_path / "results" / "latest").mkdir(parents=True)
    done = run(tokenswarm("run", short(tmp_path), "--host", engine, "--repeat", "1"), tmp_path, LONG_S)
    (last,) = runs_of(group_of(tmp_path))
    assert f"latest is no link, and stays what it is: this run is in {last}" in done.out


def test_a_group_that_is_named_otherwise_says_how(
    pair: tuple[Path, Finished], capsys: pytest.CaptureFixture[str]
) -> None:
    group = group_of(pair[0])
    for name, mend in ((group, f"name its sides, {group}/a and {group}/b"), (group / "a" / "group.json", "--baseline")):
        assert cli.main(["compare", str(name), "--against", str(group / "b")]) == ExitCode.CONFIG
        assert mend in capsys.readouterr().err


def test_ctrl_c_keeps_what_is_done_and_says_so(engine: str, tmp_path: Path) -> None:
    command = tokenswarm(
        "run", short(tmp_path), "--host", engine, "--repeat", "3", "--set", "load.stages.0.duration=2s"
    )
    with program(command, tmp_path) as started:
        started.await_output("run 1/3: (VALID|DEGRADED)", LONG_S)
        started.await_output(r"run 2/3: about [\s\S]*stage 1 steady", LONG_S)
        os.kill(started.process.pid, signal.SIGINT)
        done = started.finish(LONG_S)
    assert done.code == ExitCode.INTERRUPTED, done.out
    assert "2 of 3 runs were made: interrupted; what is done is kept in results/group-" in done.out
    assert re.search(r"left out: run 2/3: .* is partial", done.out)
    assert "run 3/3" not in done.out
    assert "Traceback" not in done.out
    assert len(groups.read_group(group_of(tmp_path))) == 1, "what is done is a baseline"
    assert len(runs_of(group_of(tmp_path))) == 2, "the partial one is there, too"


def test_a_run_does_not_outlive_its_killed_group(engine: str, tmp_path: Path) -> None:
    more = ("--repeat", "2", "--set", "load.stages.0.duration=1h")
    command = tokenswarm("run", short(tmp_path), "--host", engine, *more)
    with program(command, tmp_path) as started:
        started.await_output(r"run 1/2: about [\s\S]*stage 1 steady", LONG_S)
        runs = psutil.Process(started.process.pid).children(recursive=True)
        started.process.kill()
        _, alive = psutil.wait_procs(runs, LONG_S)
    assert len(runs) >= 2, "a run and its worker"
    assert not alive


def test_a_server_that_goes_away_loses_no_other_run(tmp_path: Path) -> None:
    with simulator("--preset", "paced", "--ttft-ms", "20", "--itl-ms", "5") as server:
        command = tokenswarm("run", short(tmp_path), "--host", server.url, "--repeat", "2")
        with program(command, tmp_path) as started:
            started.await_output("run 1/2: (VALID|DEGRADED)", LONG_S)
            server.process.kill()
            done = started.finish(LONG_S)
    assert done.code in (ExitCode.TARGET, ExitCode.INVALID), done.out
    assert "left out: run 2/2" in done.out
    assert "Traceback" not in done.out
    assert len(groups.read_group(group_of(tmp_path))) == 1


def test_a_server_that_is_not_there_ends_it_at_once(tmp_path: Path) -> None:
    words = ["--host", "http://127.0.0.1:9", "--repeat", "5", "--set", "timeouts.ready=100ms"]
    done = run(tokenswarm("run", short(tmp_path), *words), tmp_path, LONG_S)
    assert done.code == ExitCode.TARGET, done.out
    assert "1 of 5 runs were made" in done.out
    assert "run 2/5" not in done.out


@pytest.mark.parametrize(
    ("host", "code", "sentence"),
    [
        ("http://127.0.0.1:9", ExitCode.TARGET, "tokenswarm: http://127.0.0.1:9: can't connect"),
        ("127.0.0.1:9", ExitCode.CONFIG, "tokenswarm: --against-host: `target: 127.0.0.1:9` must look like"),
    ],
)
def test_a_second_side_that_is_not_there_ends_it_before_the_first_is_measured(
    host: str, code: int, sentence: str, engine: str, tmp_path: Path
) -> None:
    words = ["--host", engine, "--against-host", host, "--set", "timeouts.ready=100ms"]
    done = run(tokenswarm("run", short(tmp_path), *words), tmp_path, LONG_S)
    assert done.code == code, done.out
    assert done.out.startswith(sentence)
    assert not (tmp_path / "results").exists()


DIFFERENT = [
    (["--users", "3"], "differ in load: `load.stages.0.users` is 2 in "),
    (["--model", "other"], "differ in model: `engine.model` is sim in 2"),
    (["--max-tokens", "5"], "differ in lengths"),
]


@pytest.mark.parametrize(("words", "sentence"), DIFFERENT)
def test_a_profile_that_is_not_that_of_the_baseline_is_refused_before_the_load(
    words: list[str], sentence: str, pair: tuple[Path, Finished], tmp_path: Path
) -> None:
    home, _ = pair
    more = ["--host", "http://127.0.0.1:9", "--baseline", str(group_of(home) / "a"), *words]
    done = run(tokenswarm("run", short(tmp_path), *more), tmp_path, LONG_S)
    assert done.code == ExitCode.CONFIG, done.out
    assert f"the two sides {sentence}" in done.out
    assert "in this profile; if that is the point: --differ" in done.out
    assert not (tmp_path / "results").exists()


def test_a_single_run_is_remembered(engine: str, tmp_path: Path) -> None:
    done = run(tokenswarm("run", short(tmp_path), "--host", engine, "--history", "h.jsonl"), tmp_path, LONG_S)
    assert done.code == ExitCode.OK, done.out
    ((line,), problems) = history.read(tmp_path / "h.jsonl")
    assert not problems
    assert (line.run_id, line.host, line.status) == (done.summary["run_id"], engine, done.summary["verdict"]["status"])


def test_a_run_that_left_no_summary_is_16_and_no_line(engine: str, tmp_path: Path) -> None:
    """It is no mistake in the command: that would be 15, before any load."""
    words = tokenswarm("run", short(tmp_path), "--host", engine, "--history", "h.jsonl")
    with program(words, tmp_path) as started:
        started.await_output("stage 1")
        (folder,) = (tmp_path / "results").glob("2*")
        (folder / "summary.json").mkdir()  # in its way, for root as well
        done = started.finish(LONG_S)
    assert done.code == ExitCode.RESULTS, done.out
    assert "Traceback" not in done.out
    assert "h.jsonl has no line of it" in done.out
    assert not (tmp_path / "h.jsonl").exists()


# ---- before any load


def told(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = cli.main(["run", *words])
    out, err = capsys.readouterr()
    return code, out, err


REFUSED = [
    (["--repeat", "0"], "--repeat 0: takes 1 to 40 runs"),
    (["--repeat", "-1"], "--repeat -1: takes 1 to 40 runs"),
    (["--repeat", "41"], "--repeat 41: takes 1 to 40 runs"),
    (["--repeat", "two"], "--repeat two: takes 1 to 40 runs"),
    (["--repeat", "²"], "takes 1 to 40 runs"),
    (["--repeat", "2", "--against-host", "http://b", "--baseline", "b.json"], "give one of them"),
    (["--repeat", "2", "--expect-workers", "1"], "no --expect-workers"),
    (["--repeat", "2", "--csv"], "--csv is of one run"),
    (["--against-name", "x"], "--against-name goes with --against-host or --baseline"),
    (["--margin", "tail=0.2"], "--margin goes with"),
    (["--repeat", "2", "--differ", "model"], "--differ goes with"),
    (["--baseline", "nowhere.json"], "nowhere.json: can't be read"),
    (["--baseline", "empty"], "holds no summary.json"),
    (["--baseline", "edited.json"], "`ttft_s.p50` is no positive number; was it edited?"),
    (["--baseline", "cut.json"], "is no group of runs"),
    (["--baseline", "newer.json"], "has schema version 9"),
    (["--baseline", "tool.json"], "there is no tool `curl`"),
    (["--baseline", "about.json"], "is no group of runs"),
    (["--against-host", "http://b", "--margin", "tail=x"], "write KIND=SHARE"),
    (["--against-host", "http://b", "--metric", "ttft.p50"], "`ttft.p50` is not compared; did you mean `ttft_s.p50`?"),
    (["--against-host", "http://b", "--differ", "modell"], "there is no subject `modell`"),
    (["--against-host", ""], "--against-host is empty: is a variable unset?"),
    (["--repeat", ""], "--repeat is empty"),
    (["--repeat", "2", "--history", "p.yaml"], "its first line is of no history"),
    (["--history", "p.yaml"], "its first line is of no history"),
    (["--repeat", "2", "--set", "load.stages.0.duration=3650d"], "can't be repeated"),
    (["--repeat", "2", "--set", "load.nonsense=1"], "load.nonsense"),
]


@pytest.fixture(scope="module")
def corner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corner")
    short(folder)
    (folder / "empty").mkdir()
    good = json.loads(groups.encoded([groups.read_run(write(folder, "one"))]))

    def changed(name: str, **changes: Any) -> None:
        document = json.loads(json.dumps(good))
        document.update({key: value for key, value in changes.items() if key == "schema_version"})
        document["runs"][0].update({key: value for key, value in changes.items() if key != "schema_version"})
        (folder / name).write_text(json.dumps(document))

    changed("edited.json", values={"ttft_s.p50": -0.1})
    changed("newer.json", schema_version=9)
    changed("tool.json", tool="curl")
    changed("about.json", about={"load": [1]})
    (folder / "cut.json").write_text(json.dumps(good)[:-40])
    return folder


@pytest.mark.parametrize(("words", "sentence"), REFUSED, ids=[" ".join(words) for words, _ in REFUSED])
def test_what_makes_no_group_is_one_sentence_before_any_load(
    words: list[str], sentence: str, corner: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(corner)
    code, out, err = told(capsys, "p.yaml", "--host", "http://127.0.0.1:9", *words)
    assert (code, out) == (ExitCode.CONFIG, ""), err
    assert sentence in err
    assert err.count("\n") == 1
    assert not (corner / "results").exists()


def test_results_that_can_not_be_written_are_16(
    corner: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(corner)
    code, _, err = told(capsys, "p.yaml", "--host", "http://127.0.0.1:9", "--repeat", "2", "--results", "p.yaml")
    assert code == ExitCode.RESULTS
    assert "can't make the results folder" in err


def test_the_words_of_a_run_are_the_users_without_those_of_the_group() -> None:
    words = ["p.yaml", "--repeat=3", "--host", "http://a", "--against-host", "http://b", "--set", "a=b", "--json",
             "--results=x", "--users", "4", "--history", "h", "--metric", "m", "--metric=n",
             "--slo", "chat"]  # fmt: skip
    assert repeat.passed_on(words, {"dataset": None}) == ["p.yaml", "--set", "a=b", "--users", "4", "--slo", "chat"]
    assert repeat.passed_on(["--users", "4"], {"dataset": "d"}) == [
        "--set", "dataset.rounds=distinct", "--users", "4", "--dataset", "d",
    ]  # fmt: skip
    assert repeat.passed_on(["--dataset=d"], {"dataset": "d"}) == ["--dataset=d"]


@pytest.mark.parametrize(("n", "order"), [(1, "AB"), (2, "ABBA"), (5, "ABBAABBAAB")])
def test_the_order_is_abba(n: int, order: str) -> None:
    assert "".join("AB"[side] for side in repeat.in_turn(n)) == order


def test_a_group_of_no_run_is_called_no_baseline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    group = types.SimpleNamespace(given={"json": False}, folder=tmp_path)
    repeat._tell_group(group, [])  # type: ignore[arg-type]
    told = capsys.readouterr()
    assert not told.out
    assert "no run of these counts" in told.err
