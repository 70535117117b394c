"""Results that somebody edited, cut, or wrote with another version: a sentence with its file, or what is still true."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_compare import write

from tokenswarm import cli
from tokenswarm.errors import ExitCode

GONE = object()
OTHERS = (None, "x", -1, 1e308, [1], {"a": {}}, True, GONE)
DEEP = b'{"deep":' + b"[" * 5000 + b"]" * 5000 + b"}"
Key = str | int


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("base"), "base")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write(tmp_path, "edited")


def commands(base: Path, run: Path) -> dict[str, list[str]]:
    return {
        "report": ["report", str(run)],
        "compare": ["compare", str(base), "--against", str(run)],
        "plan": ["plan", "--rate", "3", str(run), "--slo", "batch"],
    }


def keys(document: Any, above: tuple[Key, ...] = ()) -> Iterator[tuple[Key, ...]]:
    """Of each key, and of the first of each list, the way to it."""
    inner = document.items() if isinstance(document, dict) else enumerate(document[:1])
    for name, value in inner:
        yield (*above, name)
        if isinstance(value, dict | list):
            yield from keys(value, (*above, name))


def edited(document: Any, way: tuple[Key, ...], value: object) -> bytes:
    whole = copy.deepcopy(document)
    part = whole
    for name in way[:-1]:
        part = part[name]
    if value is GONE:
        del part[way[-1]]
    else:
        part[way[-1]] = value
    return json.dumps(whole).encode()


@pytest.mark.parametrize(("name", "every"), [("manifest.json", 13), ("summary.json", 43)])
def test_no_value_of_any_key_is_a_traceback(
    name: str, every: int, base: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`every`: so many edits apart, so that each kind of value comes to each kind of key."""
    path = run / name
    document = json.loads(path.read_bytes())
    edits = [(way, value) for way in keys(document) for value in OTHERS][::every]
    assert len(edits) > 100
    for way, value in edits:
        path.write_bytes(edited(document, way, value))
        for command in commands(base, run).values():
            code = cli.main(command)
            said = capsys.readouterr().err
            assert code in (*ExitCode,), (way, value)
            assert code != ExitCode.INTERNAL
            assert code != ExitCode.CONFIG or len(said.strip().splitlines()) == 1, (way, value, said)


@pytest.mark.parametrize("key", ["low", "sample_high"])
def test_an_end_of_an_interval_that_is_missing_is_an_interval_less(
    key: str, base: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = json.loads((run / "summary.json").read_bytes())
    (run / "summary.json").write_bytes(edited(document, ("latency", "ttft_s", key), {}))
    codes = [cli.main(command) for command in commands(base, run).values()]
    assert codes[:2] == [ExitCode.OK, ExitCode.CANT_TELL]
    assert "TTFT" in capsys.readouterr().out


def test_a_number_that_no_run_has_is_refused_with_its_place(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads((run / "summary.json").read_bytes())
    (run / "summary.json").write_bytes(edited(document, ("latency", "ttft_s", "p50"), 1e308))
    assert cli.main(["report", str(run)]) == ExitCode.CONFIG
    said = capsys.readouterr().err
    assert f"tokenswarm: {run / 'summary.json'}: is no summary of a run: Expected `float` <= 1e15" in said.replace(
        "1000000000000000.0", "1e15"
    )
    assert "$.latency.ttft_s.p50" in said


@pytest.mark.parametrize("name", ["manifest.json", "summary.json", "group.json"])
def test_nesting_without_an_end_is_a_sentence(
    name: str, base: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / name).write_bytes(DEEP)
    words = commands(base, run)["compare"]
    if name == "group.json":
        words = ["compare", "--baseline", str(run / name), "--against", str(base)]
    assert cli.main(words) == ExitCode.CONFIG
    said = capsys.readouterr().err
    assert said.startswith(f"tokenswarm: {run / name}: is no ")
    assert said.count("\n") == 1


def test_a_row_without_an_end_is_one_row_less(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "requests.jsonl").write_bytes(DEEP + b"\n")
    assert cli.main(["report", str(run)]) == ExitCode.OK
    capsys.readouterr()
    assert "1 lines of requests.jsonl are no rows and are not drawn" in (run / "report.html").read_text("utf-8")


def test_an_older_summary_is_read(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Version 1 had no intervals."""
    document = json.loads((run / "summary.json").read_bytes())
    document["schema_version"] = 1
    for stat in document["latency"].values():
        for name in ("low", "high", "sample_low", "sample_high", "withheld"):
            stat.pop(name, None)
    (run / "summary.json").write_text(json.dumps(document), "utf-8")
    assert cli.main(["report", str(run)]) == ExitCode.OK
    assert "TTFT" in capsys.readouterr().out


def test_a_key_that_another_version_has_and_leaves_open_is_no_difference(
    base: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = json.loads((run / "manifest.json").read_bytes())
    del document["profile"]["load"]["requests"]
    (run / "manifest.json").write_text(json.dumps(document), "utf-8")
    assert cli.main(commands(base, run)["compare"]) == ExitCode.CANT_TELL

    document["profile"]["load"]["think_time"] = 3.0
    (run / "manifest.json").write_text(json.dumps(document), "utf-8")
    capsys.readouterr()
    assert cli.main(commands(base, run)["compare"]) == ExitCode.CONFIG
    assert "the two sides differ in load: `load.think_time` is 0.0 in base and 3.0 in edited" in capsys.readouterr().err


def test_a_path_that_the_system_refuses_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    endless = "x" * 300
    profile = tmp_path / "p.yaml"
    profile.write_text(
        f"target: http://127.0.0.1:9\ndataset: {{path: {endless}}}\nload: {{stages: [{{users: 1}}]}}\n", "utf-8"
    )
    for words in (["run", str(profile)], ["run", endless], ["report", endless], ["data", "info", endless]):
        assert cli.main(words) == ExitCode.CONFIG
        said = capsys.readouterr().err
        assert said.startswith("tokenswarm: xxxx")
        assert ("no such file" if words == ["run", endless] else "File name too long") in said


@pytest.mark.parametrize("name", ["requests.jsonl", "report.md", "manifest.json"])
def test_a_file_of_a_folder_stands_for_it(name: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(run / name), "--quiet"]) == ExitCode.OK
    assert capsys.readouterr().out.startswith("VALID")


@pytest.mark.parametrize(("words", "said"), [((), "verdict: VALID"), (("--csv",), "run_id,"), (("--quiet",), "VALID")])
def test_a_folder_that_takes_no_page_is_told_all_the_same(
    words: tuple[str, ...], said: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It may be an archive, or somebody else's."""
    (run / "report.html").unlink(missing_ok=True)
    (run / "report.html").mkdir()  # in its way, for root as well
    assert cli.main(["report", str(run), *words]) == ExitCode.RESULTS
    told = capsys.readouterr()
    assert said in told.out
    assert "report:" not in told.out, "there is none"
    assert told.err.count("report.html: could not be written") == 1
