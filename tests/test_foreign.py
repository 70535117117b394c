"""Results of other tools in a comparison, under their definitions: each format, what can't be compared, broken files.

The samples of tests/data/foreign have the shape that each tool's own writer gives them; SGLang's, and
those of tests/data/peers, are what the versions that bench/loadgens pins wrote.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_compare import told, write

from tokenswarm.errors import ConfigError, ExitCode
from tokenswarm.judge.compare import metrics_of
from tokenswarm.reports.saved import read_summary
from tokenswarm.result.foreign import formats

SAMPLES = Path(__file__).parent / "data" / "foreign"
REAL = SAMPLES.parent / "peers"
TOOLS = {"vllm_python": "vllm_bench", "vllm_rust": "vllm_bench", "aiperf": "aiperf", "guidellm": "guidellm",
         "genai_bench": "genai_bench", "k6": "k6", "sglang": "sglang_bench"}  # fmt: skip


def sample(name: str) -> dict[str, Any]:
    return json.loads((SAMPLES / f"{name}.json").read_text())


def put(folder: Path, name: str, document: Any) -> str:
    path = folder / name
    path.write_text(document if isinstance(document, str) else json.dumps(document), "utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vllm_python", {"ttft_s.p50": 0.1025, "ttft_s.p99": 0.14025, "itl_s.p99": 0.0275, "e2e_s.p50": None,
                         "requests_per_s": 9.597, "output_tokens_per_s": 1228.4}),
        ("vllm_rust", {"ttft_s.p50": 0.101, "e2e_s.p50": 2.6, "e2e_s.p99": 2.9}),
        ("aiperf", {"ttft_s.p50": 0.1025, "tpot_s.p50": 0.020, "itl_s.p99": 0.0275, "requests_per_s": 9.6}),
        ("guidellm#2", {"ttft_s.p50": 0.205, "tpot_s.p50": 0.0208, "itl_s.p50": 0.0199, "e2e_s.p99": 5.8}),
        ("genai_bench", {"ttft_s.p50": 0.1025, "tpot_s.p50": 0.020, "e2e_s.p50": 2.6, "output_tokens_per_s": 1228.4}),
        ("sglang", {"ttft_s.p50": 0.1019102215, "itl_s.p99": 0.02859871748, "e2e_s.p50": 2.724686397,
                    "e2e_s.p99": 2.76946223536, "output_tokens_per_s": 961.92010832}),
        ("k6", {"e2e_s.p50": 2.6, "e2e_s.p95": 2.8, "e2e_s.p99": None, "requests_per_s": 9.6}),
    ],
)  # fmt: skip
def test_each_format_is_read_in_seconds(name: str, expected: dict[str, float | None]) -> None:
    stem, _, part = name.partition("#")
    run = formats.read(str(SAMPLES / f"{stem}.json") + (f"#{part}" if part else ""))
    assert run is not None
    assert run.tool == TOOLS[stem]
    for field, value in expected.items():
        assert run.values[field] == (None if value is None else pytest.approx(value)), field
    assert set(run.values) == {metric.name for metric in metrics_of(run.tool)}


MODELS: list[tuple[str, tuple[str, ...], Any]] = [
    # where each tool's own writers put the name, by version
    ("aiperf", ("input_config",), {"models": {"items": [{"name": "n"}], "strategy": "round_robin"}}),
    ("aiperf", ("input_config",), {"endpoint": {"model_names": ["n"]}}),
    ("aiperf", ("input_config",), {"model": "n"}),
    ("guidellm", ("config",), {"spec": {"backend": {"kind": "openai_http", "model": "n"}}}),
    ("guidellm", ("config",), {"backend": {"kind": "openai_http", "model": "n"}}),
    ("guidellm", ("args",), {"model": "n"}),
]


@pytest.mark.parametrize(("name", "path", "config"), MODELS)
def test_the_model_is_found_where_each_version_has_it(
    name: str, path: tuple[str, ...], config: Any, tmp_path: Path
) -> None:
    document = {key: value for key, value in sample(name).items() if key not in ("args", "config", "input_config")}
    run = formats.read(put(tmp_path, "one.json", {**document, path[0]: config}) + ("#1" if name == "guidellm" else ""))
    assert run is not None
    assert run.about["model"] == {"engine.model": "n"}


@pytest.mark.parametrize(
    ("name", "ttft_s", "model"),
    [
        ("aiperf", 0.123882475, "sim"),
        ("guidellm", 0.10106682777, "sim"),
        ("genai_bench", 0.25023655300, None),
        ("vllm_rs", 0.101106918, "sim"),
    ],
)
def test_what_a_tool_really_wrote_is_read(name: str, ttft_s: float, model: str | None) -> None:
    run = formats.read(str(REAL / f"{name}.json"))
    assert run is not None
    assert run.tool == {"vllm_rs": "vllm_bench"}.get(name, name)
    assert run.values["ttft_s.p50"] == pytest.approx(ttft_s)
    assert run.about.get("model") == ({"engine.model": model} if model else None)
    (load,) = run.about["load"].values()
    assert 20 in load.values(), "the number of streams"


@pytest.mark.parametrize("value", [0.0, -1.0, 10**400])
def test_a_number_that_is_none_is_not_held_against_another(
    value: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A TPOT of answers of one token is 0 in these files."""
    a = [put(tmp_path, f"a{n}.json", sample("vllm_python")) for n in range(3)]
    b = [put(tmp_path, f"b{n}.json", {**sample("vllm_python"), "median_tpot_ms": value}) for n in range(3)]
    code, out, err = told(capsys, *a, "--against", *b, "--save", str(tmp_path / "group.json"))
    assert code == ExitCode.CANT_TELL, err
    assert "tpot_s.p50: 3 of 6 runs have no tpot_s.p50" in " ".join(out.split())
    assert told(capsys, "--baseline", str(tmp_path / "group.json"), "--against", *a)[0] == ExitCode.CANT_TELL


def test_one_file_by_two_names_is_one_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    put(tmp_path, "a.json", sample("vllm_python"))
    code, _, err = told(capsys, "a.json", "--against", "./a.json")
    assert code == ExitCode.CONFIG
    assert "stands on both sides" in err


FAILED: list[tuple[str, tuple[str, ...], dict[str, Any]]] = [
    ("vllm_python", (), {"completed": 300, "failed": 200}),
    ("vllm_python", (), {"completed": 300, "failed": None}),  # before it was there: of 500 prompts
    ("vllm_rust", (), {"completed": 300, "failed": 200}),
    ("aiperf", (), {"request_count": {"avg": 300}, "error_request_count": {"unit": "requests", "avg": 200}}),
    ("guidellm#1", ("benchmarks", "0", "metrics"), {"request_totals": {"successful": 300, "errored": 200}}),
    ("genai_bench", ("aggregated_metrics",), {"num_completed_requests": 300, "num_error_requests": 200}),
    ("k6", ("metrics",), {"http_reqs": {"count": 500, "rate": 9}, "http_req_failed": {"value": 0.4}}),
    ("sglang", (), {}),
]


@pytest.mark.parametrize(("name", "path", "edit"), FAILED)
def test_how_many_failed_is_read_where_the_tool_tells(
    name: str, path: tuple[str, ...], edit: dict[str, Any], tmp_path: Path
) -> None:
    stem, _, part = name.partition("#")
    document = sample(stem)
    inner: Any = document
    for key in path:
        inner = inner[int(key) if key.isdigit() else key]
    inner.update(edit)
    run = formats.read(put(tmp_path, "one.json", document) + (f"#{part}" if part else ""))
    assert run is not None
    assert run.values.get("ok_ratio") == (pytest.approx(0.6) if edit else None)
    assert ("ok_ratio" in run.values) == bool(edit)


def test_an_aiperf_file_of_another_load_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads((REAL / "aiperf.json").read_text())
    (phase,) = document["input_config"]["phases"]
    other = put(tmp_path, "other.json", {**document, "input_config": {"phases": [{**phase, "concurrency": 21}]}})
    code, _, err = told(capsys, str(REAL / "aiperf.json"), "--against", other)
    assert code == ExitCode.CONFIG
    assert "differ in load" in err
    several = put(tmp_path, "several.json", {**document, "input_config": {"phases": [phase, 7, {**phase, "rate": 3}]}})
    run = formats.read(several)
    assert run is not None
    assert [each.get("rate") for each in run.about["load"]["aiperf"]["phases"]] == [None, 3]


def test_each_tool_has_one_row_and_its_own_sample() -> None:
    assert set(formats.FORMATS) == set(TOOLS.values())
    for name in TOOLS:
        assert [tool for tool, row in formats.FORMATS.items() if row.matches(sample(name))] == [TOOLS[name]]


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("ours")
    for number in range(3):
        write(home / "main", f"main-{number}", scale=1 + 0.003 * number)
    return home / "main"


@pytest.mark.parametrize("tool", formats.FORMATS)
def test_a_run_of_ours_has_each_number_by_the_tools_definition(tool: str, ours: Path) -> None:
    summary = read_summary(next(ours.iterdir()))
    values = formats.translated(summary, tool)
    tree = json.loads((next(ours.iterdir()) / "summary.json").read_text())
    if tool == "vllm_bench":
        assert values["ttft_s.p99"] == pytest.approx(tree["conventions"]["vllm_bench"]["ttft_ms"]["p99"] / 1000)
    assert values["e2e_s.p50"] is not None
    assert set(values) == {metric.name for metric in metrics_of(tool)}


def test_runs_of_a_tool_against_ours(ours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = []
    for n in range(3):
        slow = {key: value * (3 + n / 100) for key, value in sample("vllm_rust").items() if key.endswith("_ms")}
        files.append(put(tmp_path, f"v{n}.json", {**sample("vllm_rust"), **slow, "model_id": "m"}))
    code, out, err = told(
        capsys, str(ours), "--against", *files, "--metric", "ttft_s.p50", "--differ", "model,load", "--json"
    )
    assert code in (ExitCode.WORSE, ExitCode.CANT_TELL, ExitCode.OK), err
    found = json.loads(out)
    assert found["definitions"] == "vllm_bench"
    assert "lengths" in found["apart"]
    values = [formats.translated(read_summary(folder), "vllm_bench")["ttft_s.p50"] for folder in sorted(ours.iterdir())]
    assert sorted(found["findings"][0]["a"]) == pytest.approx(sorted(values))
    assert found["findings"][0]["b"] == pytest.approx([0.101 * (3 + n / 100) for n in range(3)])
    code, out, err = told(capsys, str(ours), "--against", *files, "--differ", "model")
    assert "under the definitions of vllm_bench" in " ".join(out.split())
    code, _, err = told(
        capsys, str(ours), "--against", *files[:1], "--save", str(tmp_path / "g.json"), "--differ", "model"
    )
    assert code in (ExitCode.WORSE, ExitCode.CANT_TELL, ExitCode.OK), err
    code, _, err = told(capsys, "--baseline", str(tmp_path / "g.json"), "--against", *files[1:])
    assert code in (ExitCode.WORSE, ExitCode.CANT_TELL, ExitCode.OK), err  # a stored group keeps whose words it has
    code, _, err = told(capsys, *files, "--against", str(ours), "--differ", "model", "--save", str(tmp_path / "h.json"))
    assert (code, (tmp_path / "h.json").exists()) == (ExitCode.CONFIG, False)


def test_two_tools_are_not_held_against_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = told(capsys, str(SAMPLES / "aiperf.json"), "--against", str(SAMPLES / "vllm_rust.json"))
    assert (code, out) == (ExitCode.CONFIG, "")
    assert "aiperf and vllm_bench mean different things by the same names" in err


def test_loads_of_one_tool_that_differ_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = put(tmp_path, "faster.json", {**sample("vllm_rust"), "max_concurrency": 64})
    code, _, err = told(capsys, str(SAMPLES / "vllm_rust.json"), "--against", other)
    assert code == ExitCode.CONFIG
    assert "differ in load" in err
    assert "32" in err
    assert "64" in err


WHOLE = json.dumps({"request_throughput": 1.0, "num_prompts": 5, "completed": 5, "mean_ttft_ms": 1.0})
BROKEN: list[tuple[str, Any, str]] = [
    ("cut", WHOLE[:40], "is no whole JSON"),
    ("empty", "", "is no JSON object"),
    ("list", "[1]", "is no JSON object"),
    ("deep", "[" * 100_000, "is no whole JSON"),
    ("strange", {"hello": 1}, "is of no format that compare reads"),
    ("renamed", {"request_throughput": "9", "num_prompts": 5, "completed": 5}, "has none of the numbers"),
    ("all failed", {**sample("vllm_python"), "completed": 0}, "says of no request that it succeeded"),
    ("truth", {**sample("vllm_python"), "completed": True}, "says of no request that it succeeded"),
    ("cancelled", {**sample("aiperf"), "was_cancelled": True}, "is no whole run (it was cancelled)"),
    (
        "part",
        {**sample("aiperf"), "is_complete": False, "incomplete_reason": "\x1b[31m" + "x" * 500},
        "is no whole run",
    ),
    ("sweep", sample("guidellm"), "holds 2 runs; name one"),
    ("no runs", {"benchmarks": []}, "holds no run"),
    ("wrong runs", {"benchmarks": [7]}, "holds something else"),
]


@pytest.mark.parametrize(("name", "document", "sentence"), BROKEN, ids=[name for name, _, _ in BROKEN])
def test_a_broken_file_is_one_sentence(name: str, document: Any, sentence: str, tmp_path: Path,
                                       capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    path = put(tmp_path, f"{name}.json", document)
    code, out, err = told(
        capsys, path, "--against", str(SAMPLES / "vllm_python.json"), "--markdown", str(tmp_path / "m")
    )
    assert (code, out) == (ExitCode.CONFIG, "")
    assert sentence in err
    assert "Traceback" not in err
    assert "\x1b" not in err
    assert not (tmp_path / "m").exists()


def test_appended_results_are_runs_by_number(tmp_path: Path) -> None:
    path = put(tmp_path, "many.json", json.dumps(sample("vllm_python")) + "\n" + json.dumps(sample("vllm_rust")))
    run = formats.read(f"{path}#2")
    assert run is not None
    assert run.values["ttft_s.p50"] == pytest.approx(0.101)
    for word in ("#0", "#3", "#x"):
        with pytest.raises(ConfigError, match="it holds 2 runs"):
            formats.read(path + word)


def test_not_a_number_is_none(tmp_path: Path) -> None:
    text = json.dumps({**sample("vllm_python"), "median_ttft_ms": float("nan"), "p99_ttft_ms": float("inf")})
    run = formats.read(put(tmp_path, "nan.json", text))
    assert run is not None
    assert (run.values["ttft_s.p50"], run.values["ttft_s.p99"]) == (None, None)
