"""A history: appended whole and one at a time, read with what is wrong named; and where its values changed for good."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from test_compare import told as compare_told
from test_compare import write

from tokenswarm import cli
from tokenswarm.commands import groups
from tokenswarm.errors import ConfigError, ExitCode, ResultsError
from tokenswarm.judge import trend
from tokenswarm.judge.compare import METRICS
from tokenswarm.reports import history
from tokenswarm.result.history import SCHEMA_VERSION, Line

START = datetime(2026, 11, 1, 3, tzinfo=UTC)


def a_line(number: int = 0, **changes: Any) -> Line:
    fields: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION, "kind": "run", "at": START + timedelta(days=number), "run_id": f"r-{number}",
        "profile": "nightly", "model": "m", "host": "http://a", "status": "VALID", "values": {"ttft_s.p50": 0.1},
    }  # fmt: skip
    return Line(**{**fields, **changes})


# ---- the file


def test_what_is_appended_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "h.jsonl"
    lines = [a_line(0, bars={"ttft_s.p50": (0.0, None)}), a_line(1, partial=True, setup={"target": "http://a"})]
    history.append(path, lines[:1])
    history.append(path, lines[1:])
    assert history.read(path) == (lines, [])
    assert path.read_bytes().count(b"\n") == 2


def test_many_that_append_at_once_lose_nothing_and_mix_nothing(tmp_path: Path) -> None:
    path = tmp_path / "h.jsonl"
    code = (
        "import sys; from pathlib import Path; from tokenswarm.reports import history; "
        "from test_history import a_line\n"
        "for i in range(40): history.append(Path(sys.argv[1]), [a_line(int(sys.argv[2]) * 100 + i, model='m' * 9000)])"
    )
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    started = [subprocess.Popen([sys.executable, "-c", code, str(path), str(n)], env=environ) for n in range(4)]
    assert [process.wait(60) for process in started] == [0] * 4
    lines, problems = history.read(path)
    assert problems == []
    assert sorted(line.run_id for line in lines) == sorted(f"r-{n * 100 + i}" for n in range(4) for i in range(40))


def test_a_torn_line_spoils_itself_alone(tmp_path: Path) -> None:
    path = tmp_path / "h.jsonl"
    history.append(path, [a_line(0), a_line(1)])
    path.write_bytes(path.read_bytes()[:-30])
    lines, problems = history.read(path)
    assert [line.run_id for line in lines] == ["r-0"]
    assert problems[0].startswith(f"{path}:2: is cut, it has no end of line")
    history.append(path, [a_line(2)])
    lines, problems = history.read(path)
    assert [line.run_id for line in lines] == ["r-0", "r-2"]
    assert len(problems) == 1
    assert f"{path}:2: is no line of a history" in problems[0]


RUN = b'{"schema_version": 1, "kind": "run", "run_id": "x", "at": "2026-11-01T00:00:00Z", "values": '
BAD = {
    b"nonsense": "is no line of a history",
    b"\xff\xfe": "is no line of a history",
    b'{"schema_version": 2, "kind": "run"}': "has schema version 2, this program reads 1",
    b"{}": "has schema version 0",
    b"[]": "is no line of a history",
    b'{"schema_version": 1, "kind": "run", "run_id": "x"}': "without its id, or without its time",
    b'{"schema_version": 1, "kind": "run", "run_id": "x", "at": "2026-11-01"}': "is no line of a history",
    RUN + b'{"a": -1}}': "> 0",
    RUN + b'{"a": 1e999}}': "is no line of a history",
    b"[" * 100_000: "is no line of a history",
    b"x" * (history.LINE_BYTES_MAX + 10): "is longer than a line of a history can be",
    msgspec.json.encode(a_line(0)): "run r-0 stands in line 1 already",
}


@pytest.mark.parametrize("data", BAD, ids=[text[:24] + str(n) for n, text in enumerate(BAD.values())])
def test_a_bad_line_is_named_and_the_others_are_read(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "h.jsonl"
    history.append(path, [a_line(0)])
    path.write_bytes(path.read_bytes() + data + b"\n\n" + msgspec.json.encode(a_line(1)) + b"\n")
    lines, problems = history.read(path)
    assert [line.run_id for line in lines] == ["r-0", "r-1"]
    assert len(problems) == 1
    assert problems[0].startswith(f"{path}:2: ")
    assert BAD[data] in problems[0]
    assert len(problems[0]) < 1000


def test_what_is_no_history_is_not_appended_to(tmp_path: Path) -> None:
    other = tmp_path / "requests.jsonl"
    other.write_text('{"id": "1", "worker": 0}\n')
    with pytest.raises(ConfigError, match="its first line is of no history"):
        history.check(other)
    with pytest.raises(ResultsError, match="can't be written"):
        history.check(tmp_path / "nowhere" / "h.jsonl")
    with pytest.raises(ResultsError, match="can't be written"):
        history.check(tmp_path)
    assert other.read_text() == '{"id": "1", "worker": 0}\n'


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_is_a_sentence() -> None:
    with pytest.raises(ResultsError, match="no line could be appended"):
        history.append(Path("/dev/full"), [a_line()])


def test_a_run_is_remembered_whatever_its_verdict(tmp_path: Path) -> None:
    path = tmp_path / "h.jsonl"
    for name, changes in (("good", {}), ("bad", {"status": "INVALID"}), ("cut", {"partial": True})):
        groups.remember_run(str(path), write(tmp_path, name, **changes))
    lines, _ = history.read(path)
    assert [(line.run_id, line.status, line.partial) for line in lines] == [
        ("good", "VALID", False), ("bad", "INVALID", False), ("cut", "VALID", True),
    ]  # fmt: skip
    assert (lines[0].profile, lines[0].model, lines[0].host) == ("run", "m", "http://127.0.0.1:8000")
    low, high = lines[0].bars["ttft_s.p50"]
    assert high is not None
    assert low <= lines[0].values["ttft_s.p50"] <= high  # type: ignore[operator]
    (one,) = trend.series(lines)
    assert [line.run_id for line in one.points] == ["good"]
    assert [line.run_id for line in one.left_out] == ["bad", "cut"]


def test_a_comparison_is_remembered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "h.jsonl"
    for number in range(3):
        write(tmp_path / "a", f"a-{number}", scale=1 + 0.003 * number)
        write(tmp_path / "b", f"b-{number}", scale=1 + 0.003 * number)
    words = [tmp_path / "a", "--against", tmp_path / "b", "--history", path]
    code, _, _ = compare_told(capsys, *words)
    assert code in (ExitCode.OK, ExitCode.CANT_TELL)
    ((line,), problems) = history.read(path)
    assert not problems
    assert (line.kind, line.a, line.b) == ("comparison", ("a-0", "a-1", "a-2"), ("b-0", "b-1", "b-2"))
    assert {told.metric for told in line.findings} >= {"ttft_s.p50", "itl_s.p50"}
    path.write_text("other\n")
    code, out, err = compare_told(capsys, *words)
    assert (code, out, path.read_text()) == (ExitCode.CONFIG, "", "other\n")
    assert "its first line is of no history" in err


# ---- what changed


def values_of(rng: random.Random, n: int, spread: float = 0.03) -> list[float]:
    return [rng.lognormvariate(0, spread) for _ in range(n)]


def found(values: list[float | None], margin: float = 0.05) -> list[trend.Change]:
    points = [a_line(i, values={"m": value}) for i, value in enumerate(values)]
    return trend.changes("m", points, margin, higher_is_better=False)


def test_noise_is_no_change() -> None:
    rng = random.Random(4)
    assert sum(bool(found([*values_of(rng, 60)])) for _ in range(100)) <= 3


def test_a_step_is_found_where_it_is() -> None:
    rng = random.Random(5)
    near = 0
    for _ in range(40):
        (change,) = found([*values_of(rng, 25), *(1.15 * v for v in values_of(rng, 15))])
        assert change.worse
        assert change.ratio == pytest.approx(1.15, rel=0.05)
        near += abs(change.place - 25) <= 1
    assert near >= 36


def test_four_runs_after_ten_show_a_change_and_three_do_not() -> None:
    before = [1.0, 1.01, 0.99, 1.02, 0.98, 1.0, 1.01, 0.99, 1.005, 0.995]
    assert [c.place for c in found([*before, 1.2, 1.21, 1.19, 1.2])] == [10]
    assert found([*before, 1.2, 1.21, 1.19]) == []
    assert found([*before, 1.02, 1.03, 1.025, 1.03]) == [], "within the margin"


def test_two_steps_and_a_way_back() -> None:
    rng = random.Random(6)
    parts = [values_of(rng, 15, 0.01), [1.2 * v for v in values_of(rng, 15, 0.01)], values_of(rng, 15, 0.01)]
    changes = found([value for part in parts for value in part])
    assert [(c.place, c.worse) for c in changes] == [(15, True), (30, False)]


def test_runs_without_the_value_are_passed_over() -> None:
    values: list[float | None] = [1.0, None, *[1.0, 1.01, 0.99] * 4, None, *[1.2, 1.21, 1.22, 1.23]]
    (change,) = found(values)
    assert values[change.place] == 1.2


def test_each_kind_of_run_is_a_series_of_its_own() -> None:
    lines = [a_line(i, model="ab"[i % 2]) for i in range(6)] + [a_line(9, profile="other")]
    assert [(one.profile, one.model, len(one.points)) for one in trend.series(lines)] == [
        ("other", "m", 1), ("nightly", "b", 3), ("nightly", "a", 3),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("load", "told"),
    [
        ({"stages": [{"users": 4}]}, "4 users"),
        ({"stages": [{"users": 1, "rate": None}, {"users": 8}]}, "1, 8 users"),
        ({"kind": "poisson", "stages": [{"users": None, "rate": [20.0]}]}, "20/s"),
        ({"kind": "constant", "stages": [{"rate": [5.0, 80.5]}, {"rate": 9}]}, "5–80.5, 9/s"),
        ({"kind": "trace", "trace": {"path": "/data/azure.csv"}, "stages": [{"rate": [1.0]}]}, "azure.csv"),
        ({"stages": "none"}, ""), ({"stages": [{"rate": ["x"]}]}, ""), ([], ""), (None, ""),
    ],
)  # fmt: skip
def test_runs_of_another_load_are_another_series(load: object, told: str, tmp_path: Path) -> None:
    """Options alone make runs of one name, whatever their load; compare refuses to hold these against each other."""
    first, second = write(tmp_path, "a"), write(tmp_path, "b")
    manifest = json.loads((second / "manifest.json").read_text("utf-8"))
    manifest["profile"]["load"] = load
    (second / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    path = tmp_path / "h.jsonl"
    for folder in (first, second):
        groups.remember_run(str(path), folder)
    lines, problems = history.read(path)
    assert not problems
    assert lines[1].load == told
    apart = trend.series([msgspec.structs.replace(lines[0], load="3 users"), lines[1]])
    assert len(apart) == 2
    assert (f" · {told} · " in "".join(one.name for one in apart)) == bool(told)


# ---- the command


def told(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = cli.main(["trend", *map(str, words)])
    out, err = capsys.readouterr()
    return code, out, err


def test_trend_tells_and_writes_its_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "h.jsonl"
    names = [metric.name for metric in METRICS]
    lines = [a_line(i, values=dict.fromkeys(names, 1.3 if i >= 12 else 1.0 + 0.001 * (i % 3))) for i in range(20)]
    history.append(path, [*lines, a_line(30, status="INVALID", model="\x1b[31m::error::x")])
    path.write_bytes(path.read_bytes() + b'nonsense\n{"schema_version": 1, "ki')
    code, out, err = told(capsys, path)
    assert code == ExitCode.OK
    assert f"{path}:22: is no line of a history" in err
    assert f"{path}:23: is cut" in err
    assert "nightly · m · http://a: 20 runs" in out
    assert re.search(r"\+(30|29.9)% from r-12 on", " ".join(out.split()))
    assert "\x1b" not in out + err
    page = (tmp_path / "trend.html").read_text("utf-8")
    assert "\x1b" not in page
    assert "+29.9%" in page or "+30%" in page
    assert told(capsys, path, "--to", tmp_path / "x.html", "--metric", "ttft_s.p50")[0] == ExitCode.OK
    assert "tokens/s over time" not in (tmp_path / "x.html").read_text("utf-8")
    code, out, err = told(capsys, path, "--to", tmp_path)
    assert code == ExitCode.RESULTS, "a folder is no page"
    assert "20 runs" in out, "and what there is is told"


@pytest.mark.parametrize(
    ("content", "words", "sentence"),
    [
        (b"", [], "holds no run yet"),
        (b"a\nb\n", [], "holds no run: none of its lines can be read"),
        (None, [], "can't be read"),
        (b"", ["--metric", "ttft"], "is not compared"),
        (json.dumps({"schema_version": 9}).encode(), [], "holds no run"),
    ],
)
def test_a_history_without_runs_is_one_sentence(
    content: bytes | None, words: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "h.jsonl").write_bytes(content)
    code, out, err = told(capsys, tmp_path / "h.jsonl", *words)
    assert (code, out) == (ExitCode.CONFIG, "")
    assert sentence in err
    assert not (tmp_path / "trend.html").exists()
