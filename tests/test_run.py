"""Whole runs of the real programs against the embedded engine: totals, percentiles, gates, exit codes, endings."""

from __future__ import annotations

import json
import math
import re
import sys
from collections import Counter
from pathlib import Path

import pytest
from running import REPO, SAMPLES, Finished, children, eventually, free_port, locust, program, run, tokenswarm
from simulator_process import Server, simulator

PROFILE = """
name: test
target: http://127.0.0.1:9
dataset: {path: %s, output_tokens: {max: 12}}
load: {stages: [{users: 4, duration: 2s}, {users: 8, duration: 2s}]}
phases: {warmup: 1s, settle: 500ms, drain: 20s}
workers: 2
"""
LATENCIES = ("ttft", "tpot", "e2e")


@pytest.fixture(scope="module")
def engine() -> Server:
    with simulator("--preset", "paced", "--ttft-ms", "20", "--itl-ms", "5") as server:
        yield server


def profile(home: Path, text: str = PROFILE) -> str:
    path = home / "profile.yaml"
    path.write_text(text % (SAMPLES / "sharegpt.json"), encoding="utf-8")
    return str(path)


def served(server: Server) -> dict[str, int]:
    return server.truth()["totals"]


def check_totals(finished: Finished, before: dict[str, int], after: dict[str, int]) -> None:
    """Our counts, and those of the first request before the load, equal the engine's own."""
    requests, probes = finished.summary["requests"], finished.manifest["engine"]["probes"]
    assert requests["sent"] == after["received"] - before["received"] - sum(one["requests"] for one in probes)
    assert requests["ok"] == after["completed"] - before["completed"] - len(probes)
    assert len(finished.rows) == requests["sent"] == requests["ok"] + requests["failed"] + requests["censored"]
    tokens = sum(row["output_tokens"] for row in finished.rows if row["outcome"] == "ok")
    assert tokens == after["tokens_sent"] - before["tokens_sent"] - sum(one["output_tokens"] for one in probes)


def nearest_rank(values: list[float], p: float) -> float:
    return sorted(values)[max(0, math.ceil(p * len(values)) - 1)]


def test_a_sweep_over_two_workers(engine: Server, tmp_path: Path) -> None:
    before = served(engine)
    finished = run(tokenswarm("run", profile(tmp_path), "--host", engine.url), tmp_path)

    assert finished.went_well, finished.out
    check_totals(finished, before, served(engine))
    summary = finished.summary
    assert [(s["stage"], s["concurrency"]) for s in summary["stages"]] == [(0, 4), (1, 8)]
    assert (
        summary["stages"][1]["throughput"]["output_tokens_per_s"]
        > summary["stages"][0]["throughput"]["output_tokens_per_s"]
    )
    assert 0.5 < summary["stages"][1]["batch_mean"] / 8 <= 1.01
    assert {row["worker"] for row in finished.rows} == {0, 1}
    assert len({row["id"] for row in finished.rows}) == len(finished.rows)
    assert summary["tokens"]["source"] == "server"
    assert {w["index"] for w in finished.manifest["workers"]} == {0, 1}
    assert finished.manifest["dataset"]["sha256"]
    assert (tmp_path / "results" / "latest" / "summary.json").exists()
    assert not list((tmp_path / "results").glob("*/.spool/*"))


def test_merged_percentiles_equal_those_of_the_pooled_rows(engine: Server, tmp_path: Path) -> None:
    """Within the sketch's stated error of 0.55 %; TTFT also agrees with the engine's pace."""
    finished = run(tokenswarm("run", profile(tmp_path), "--host", engine.url), tmp_path)

    steady = [row for row in finished.rows if row["phase"] == "steady" and row["outcome"] == "ok"]
    latency = finished.summary["latency"]
    for name in LATENCIES:
        values = [row[f"{name}_s"] for row in steady if row[f"{name}_s"] is not None]
        block = latency[f"{name}_s"]
        assert block["n"] == len(values)
        for key, p in (("p50", 0.5), ("p90", 0.9), ("p95", 0.95)):
            if block[key] is not None:
                assert abs(block[key] / nearest_rank(values, p) - 1) <= 0.0056, (name, key)
    assert latency["ttft_s"]["p50"] >= 0.020
    assert min(row["ttft_s"] for row in steady) / 0.020 < 2  # noise only adds; one of hundreds has little of it


def test_an_impossible_slo_fails_the_gate_and_the_exit_code(engine: Server, tmp_path: Path) -> None:
    slo = tmp_path / "slo.yaml"
    slo.write_text("ttft_s: {p99: 0.0001}\nfailed_ratio: 0.5\n", encoding="utf-8")
    finished = run(tokenswarm("run", profile(tmp_path), "--host", engine.url, "--slo", str(slo)), tmp_path)

    assert finished.code == 10, finished.out
    results = {gate["metric"]: gate["result"] for gate in finished.summary["gates"]}
    assert sorted(results.values()) == ["fail", "pass"]
    assert finished.summary["throughput"]["goodput_ratio"] == 0
    assert "ttft_s" in finished.out


def test_a_dying_master_leaves_no_load_behind(engine: Server, tmp_path: Path) -> None:
    text = PROFILE.replace("duration: 2s", "duration: 300s")
    with program(tokenswarm("run", profile(tmp_path, text), "--host", engine.url), tmp_path) as started:
        started.await_output("steady")
        workers = children(started.process.pid)
        started.process.kill()
        started.process.wait()

        assert len(workers) >= 2
        assert eventually(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() for pid in workers), 15)
    assert eventually(lambda: served(engine)["in_flight"] == 0)


def test_failures_are_named_outcomes_and_the_run_ends_on_time(tmp_path: Path) -> None:
    faults = ("http_500:0.1", "reset_mid:0.1", "truncate:0.1", "error_mid:0.1", "empty:0.1", "stall:0.05")
    options = [word for fault in faults for word in ("--fault", fault)]
    more = (
        "--set",
        "timeouts.idle_token=1s",
        "--set",
        "timeouts.first_token=3s",
        "--set",
        "load.stages=[{users: 16, duration: 4s}]",
    )
    with simulator("--preset", "paced", "--ttft-ms", "5", "--itl-ms", "2", *options) as server:
        finished = run(tokenswarm("run", profile(tmp_path), "--host", server.url, *more), tmp_path, 60)

    outcomes = finished.summary["requests"]["by_outcome"]
    assert {"ok", "http_5xx", "reset", "truncated", "error_object", "empty", "stalled"} <= set(outcomes), outcomes
    assert sum(outcomes.values()) == finished.summary["requests"]["sent"]
    assert Counter(row["outcome"] for row in finished.rows) == Counter(outcomes)
    failed = [row for row in finished.rows if row["outcome"] not in ("ok", "censored")]
    assert all(row["error"] for row in failed)
    steady_ok = [r for r in finished.rows if r["outcome"] == "ok" and r["phase"] == "steady"]
    assert finished.summary["latency"]["e2e_s"]["n"] == len(steady_ok)


def test_an_engine_that_dies_in_the_run(tmp_path: Path) -> None:
    text = PROFILE.replace("duration: 2s", "duration: 3s")
    with (
        simulator("--preset", "paced") as server,
        program(tokenswarm("run", profile(tmp_path, text), "--host", server.url), tmp_path) as started,
    ):
        started.await_output("steady")
        server.process.kill()
        finished = started.finish(60)

    assert finished.code in (10, 11), finished.out
    outcomes = finished.summary["requests"]["by_outcome"]
    assert outcomes.get("connect", 0) > 0
    assert finished.summary["requests"]["sent"] < 2000  # users step back; they don't spin on a dead port


def test_streams_that_never_end_are_censored_at_the_drain_bound(tmp_path: Path) -> None:
    more = ("--drain", "1s", "--set", "load.stages=[{users: 4, duration: 2s}]", "--max-tokens", "4000")
    more += ("--set", "dataset.output_tokens.max=4000")
    with simulator("--preset", "paced", "--itl-ms", "50") as server:
        finished = run(tokenswarm("run", profile(tmp_path), "--host", server.url, *more), tmp_path, 40)

    assert finished.summary["requests"]["censored"] == finished.summary["requests"]["sent"] == 4
    assert finished.code == 11


def test_users_that_a_stage_has_no_more_get_their_answers_before_its_window_begins(
    engine: Server, tmp_path: Path
) -> None:
    """Else the long answers of the window before were missing, and the engine had made tokens for nobody."""
    stages = "load.stages=[{users: 6, duration: 1500ms}, {users: 1, duration: 1s}]"
    more = ("--set", stages, "--set", "phases.settle=0s", "--set", "workers=1", "--max-tokens", "200")
    more += ("--set", "dataset.output_tokens.max=200", "--warmup", "200ms")
    finished = run(tokenswarm("run", profile(tmp_path), "--host", engine.url, *more), tmp_path)
    assert finished.summary["requests"]["cancelled"] == 0, finished.out
    windows = [stage["steady_window"] for stage in finished.summary["stages"]]
    ends = [row["done_s"] for row in finished.rows if (row["stage"], row["phase"]) == (0, "steady")]
    assert len(ends) >= 6
    assert windows[0]["end_s"] < max(ends) <= windows[1]["start_s"]


@pytest.mark.parametrize(("file", "dataset"), [("chat.py", "sharegpt.json"), ("completions.py", "alpaca.json")])
def test_plain_locust(engine: Server, tmp_path: Path, file: str, dataset: str) -> None:
    before = served(engine)
    words = ("--headless", "-u", "8", "-r", "8", "-t", "5s", "--host", engine.url, "--dataset", str(SAMPLES / dataset))
    finished = run(locust(file, *words, "--max-tokens", "8"), tmp_path)

    assert finished.went_well, finished.out
    check_totals(finished, before, served(engine))
    counts = re.findall(r"^\s+Aggregated\s+(\d+)\s+(\d+)\(", finished.out, re.MULTILINE)
    assert counts[-1] == (str(finished.summary["requests"]["sent"]), "0")  # Locust's own last table
    assert finished.out.count(f"{file.removesuffix('.py')}  ") > 0
    turns = {row["turn"] for row in finished.rows}
    assert turns == {0} if file == "completions.py" else len(turns) > 1


def test_plain_locust_with_master_and_workers(engine: Server, tmp_path: Path) -> None:
    """Nothing of the end is lost, though Locust alone would lose it."""
    before, port = served(engine), str(free_port())
    worker = locust("chat.py", "--worker", "--master-host", "127.0.0.1", "--master-port", port)
    words = ("--master", "--master-bind-host", "127.0.0.1", "--master-bind-port", port, "--expect-workers", "2")
    words += ("--headless", "-u", "10", "-r", "10", "-t", "5s", "--host", engine.url, "--max-tokens", "40")
    with program(worker, tmp_path) as first, program(worker, tmp_path) as second:
        finished = run(locust("chat.py", *words, "--dataset", str(SAMPLES / "sharegpt.json")), tmp_path)
        codes = (first.process.wait(60), second.process.wait(20))

    assert finished.went_well, finished.out
    assert codes == (0, 0)
    check_totals(finished, before, served(engine))
    assert {row["worker"] for row in finished.rows} == {0, 1}


def test_a_worker_of_another_run_gets_no_load(engine: Server, tmp_path: Path) -> None:
    port = str(free_port())
    words = ("run", profile(tmp_path), "--host", engine.url, "--expect-workers", "1", "--bind", f"127.0.0.1:{port}")
    stray = tokenswarm("worker", "--master-host", "127.0.0.1", "--master-port", port)
    with program(tokenswarm(*words), tmp_path, TOKENSWARM_RUN_TOKEN="right") as master:
        with program(stray, tmp_path, TOKENSWARM_RUN_TOKEN="wrong") as worker:
            refused = worker.finish(30)
        with program(stray, tmp_path, TOKENSWARM_RUN_TOKEN="right"):
            finished = master.finish(60)

    assert refused.code == 15
    assert "token" in refused.out
    assert finished.went_well, finished.out
    assert "was refused: it does not know this run's token" in finished.out
    assert {row["worker"] for row in finished.rows} == {0}


def test_remote_workers(engine: Server, tmp_path: Path) -> None:
    before, port = served(engine), str(free_port())
    words = ("run", profile(tmp_path), "--host", engine.url, "--expect-workers", "2", "--bind", f"127.0.0.1:{port}")
    join = tokenswarm("worker", "--master-host", "127.0.0.1", "--master-port", port)
    with program(join, tmp_path) as first, program(join, tmp_path) as second:
        finished = run(tokenswarm(*words), tmp_path)
        codes = (first.process.wait(60), second.process.wait(20))

    assert finished.went_well, finished.out
    assert codes == (0, 0)
    check_totals(finished, before, served(engine))


def test_files_of_the_folder_we_stand_in_are_none_of_ours(engine: Server, tmp_path: Path) -> None:
    """A module of the user's own that is called as one that a worker, a report or an engine beside a run takes in."""
    for name in ("yaml", "locust", "random", "tokenswarm/__init__", "exporters/__init__"):
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text("raise SystemExit('not yours')\n", encoding="utf-8")
    command = [str(Path(sys.executable).parent / "tokenswarm"), "run", profile(tmp_path), "--host", engine.url]
    finished = run(command, tmp_path)

    assert finished.went_well, finished.out
    assert "not yours" not in finished.out


def test_ollama_and_generate(engine: Server, tmp_path: Path) -> None:
    for api in ("chat", "generate"):
        more = ("--engine", "ollama", "--api", api, "--set", "load.stages=[{users: 4, duration: 2s}]")
        finished = run(tokenswarm("run", profile(tmp_path), "--host", engine.url, *more), tmp_path)
        assert finished.went_well, finished.out
        assert finished.summary["server"]
        assert finished.rows[0]["engine"]["prefill_s"] is not None


def test_multi_turn_history_from_the_model(engine: Server, tmp_path: Path) -> None:
    more = (
        "--set",
        "dataset.history=model",
        "--set",
        "load.stages=[{users: 4, duration: 3s}]",
        "--set",
        "save_text=true",
    )
    finished = run(tokenswarm("run", profile(tmp_path), "--host", engine.url, *more), tmp_path)

    assert finished.went_well, finished.out
    assert max(row["turn"] for row in finished.rows) >= 1
    assert any(row["text"] for row in finished.rows)


def test_the_report_can_be_printed_again(engine: Server, tmp_path: Path) -> None:
    finished = run(
        tokenswarm("run", profile(tmp_path), "--host", engine.url, "--set", "load.stages.1.duration=1s"), tmp_path
    )
    page = (tmp_path / "results/latest/report.html").read_text(encoding="utf-8")
    (tmp_path / "results/latest/report.html").unlink()
    again = run(tokenswarm("report", "results/latest"), tmp_path)

    assert again.code == 0, again.out
    assert (tmp_path / "results/latest/report.html").read_text(encoding="utf-8") == page
    by_file = run(tokenswarm("report", "results/latest/summary.json"), tmp_path)
    assert by_file.out == again.out, "a file of the folder stands for it"
    table = [line for line in again.out.splitlines() if "TTFT" in line]
    assert table
    assert all(line in finished.out for line in table)


def test_no_secret_appears_anywhere(engine: Server, tmp_path: Path) -> None:
    canary = "canary-4f2b9c"
    more = (
        "--set",
        "engine.headers_from_env={Authorization: KEY_OF_TEST}",
        "--set",
        "load.stages=[{users: 2, duration: 1s}]",
    )
    with program(
        tokenswarm("run", profile(tmp_path), "--host", engine.url, *more), tmp_path, KEY_OF_TEST=f"Bearer {canary}"
    ) as started:
        started.await_output("warmup")
        pids = [started.process.pid, *children(started.process.pid)]
        commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids]
        finished = started.finish()

    assert finished.went_well, finished.out
    assert not any(canary.encode() in command for command in commands)
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or canary.encode() not in path.read_bytes(), path


def test_results_that_can_not_be_written(engine: Server, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file", encoding="utf-8")
    finished = run(tokenswarm("run", profile(tmp_path), "--host", engine.url, "--results", "taken"), tmp_path, 20)

    assert finished.code == 16
    assert finished.out.count("\n") <= 2
    assert "taken" in finished.out


def test_the_documented_schema_is_stable(engine: Server, tmp_path: Path) -> None:
    finished = run(
        tokenswarm("run", profile(tmp_path), "--host", engine.url, "--set", "load.stages.1.duration=1s"), tmp_path
    )
    summary = finished.summary

    assert summary["schema_version"] == 2
    for key in (
        "run_id",
        "partial",
        "verdict",
        "requests",
        "duration_s",
        "steady_window",
        "throughput",
        "latency",
        "tokens",
        "stages",
        "server",
        "gpu",
        "instrument",
        "gates",
        "conventions",
    ):
        assert key in summary, key
    assert {"vllm_bench", "guidellm", "aiperf"} <= set(summary["conventions"])
    assert "NaN" not in json.dumps(summary)
    assert (finished.folder / "report.md").read_text(encoding="utf-8").startswith("#")
    assert str(REPO) not in (finished.folder / "requests.jsonl").read_text(encoding="utf-8")
