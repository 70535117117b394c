"""Long runs over real processes: windows, restarts that are survived, rows that rotate, a report while it goes on."""

from __future__ import annotations

import gzip
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from running import SAMPLES, children, eventually, free_port, locust, program, run, tokenswarm
from simulator_process import simulator

from tokenswarm.errors import ConfigError
from tokenswarm.profile import profile as profiles
from tokenswarm.reports.rows import Lines, row_files

pytestmark = pytest.mark.timeout(400)  # runs of real processes, on a machine that may do much else

PROFILE = """
target: http://127.0.0.1:9
dataset: {path: %s, output_tokens: {max: 8}}
load: {stages: [{users: 8, duration: 600s}]}
phases: {warmup: 500ms, drain: 10s}
workers: 2
soak: {window: 2s, rotate_mib: 1}
telemetry: {interval: 250ms}
"""
SLOW_S = 150  # on a machine that does much else
QUICK = ("--preset", "paced", "--ttft-ms", "4", "--itl-ms", "1")


def profile_in(home: Path) -> str:
    path = home / "soak.yaml"
    path.write_text(PROFILE % (SAMPLES / "sharegpt.json"), encoding="utf-8")
    return str(path)


def all_rows(folder: Path) -> list[dict[str, Any]]:
    found = []
    for path in row_files(folder):
        lines = Lines(path)
        found += [json.loads(line) for line in lines]
        assert not lines.problem
    return found


def results(home: Path) -> Path:
    (folder,) = (path for path in (home / "results").iterdir() if not path.is_symlink())
    return folder


def windows(folder: Path) -> int:
    """How many were written."""
    path = folder / "windows.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_an_engine_that_restarts_is_named_and_the_run_goes_on(tmp_path: Path) -> None:
    port = free_port()
    engine = (*QUICK, "--port", str(port))
    started = tokenswarm("simulate", *engine)
    with program(started, tmp_path) as first:
        first.await_output("simulating", SLOW_S)
        words = tokenswarm("run", profile_in(tmp_path), "--host", f"http://127.0.0.1:{port}")
        with program(words, tmp_path) as load:
            load.await_output("steady, 8 users", SLOW_S)
            folder = results(tmp_path)
            assert eventually(lambda: windows(folder) > 0, SLOW_S)

            partial = run(tokenswarm("report", str(folder), "--json"), tmp_path, SLOW_S)
            assert partial.code == 0, partial.out
            so_far = json.loads(partial.out[partial.out.index("{") :])
            assert so_far["partial"] is True
            assert "goes-on" in {doubt["code"] for doubt in so_far["verdict"]["doubts"]}
            assert so_far["requests"]["ok"] > 0
            seen = so_far["server"]["metrics"]
            assert seen["sources"][0]["good"] > 0
            assert seen["running"]["mean"] > 0
            assert so_far["stages"][0]["server"]["metrics"]["running"] == seen["running"]
            assert "The run has not ended" in (folder / "report.html").read_text("utf-8")
            assert not (folder / "summary.json").exists()

            os.kill(first.process.pid, signal.SIGKILL)
            first.process.wait()
            load.await_output(r"[1-9]\d* failed", SLOW_S)
            with program(started, tmp_path) as second:
                load.await_output("came back as another process", SLOW_S)
                load.await_output("restarted", SLOW_S)
                n = windows(folder)
                assert eventually(lambda: windows(folder) > n + 1, SLOW_S)
                load.process.send_signal(signal.SIGINT)
                finished = load.finish(SLOW_S)
                assert second.process.poll() is None
    summary, rows = finished.summary, all_rows(finished.folder or folder)
    assert finished.code == 13, finished.out
    (restart,) = summary["soak"]["restarts"]
    assert restart["url"] == f"http://127.0.0.1:{port}/metrics"
    assert 0 < restart["gone_s"] < restart["back_s"] < summary["duration_s"]
    assert restart["failed"] == summary["soak"]["failed_in_restarts"] > 0
    assert set(restart["by_outcome"]) <= {"connect", "reset", "truncated", "protocol"}
    after = [row for row in rows if row["outcome"] == "ok" and row["intended_s"] > restart["back_s"]]
    assert after, "the load went on once it was back"
    (doubt,) = (d for d in summary["verdict"]["doubts"] if d["code"] == "engine-restarted")
    assert f"{restart['failed']} requests failed in it" in doubt["message"]
    assert sum(window["ok"] for window in summary["soak"]["windows"]) <= summary["requests"]["ok"]
    assert {"worker 0", "worker 1", "master", f"engine 127.0.0.1:{port}"} <= set(
        summary["soak"]["windows"][0]["memory_bytes"]
    )
    counts = summary["requests"]
    assert len(rows) == sum(counts[kind] for kind in ("ok", "failed", "cancelled", "censored"))
    assert len({row["id"] for row in rows}) == len(rows)
    assert not (finished.folder / ".spool").exists()  # type: ignore[operator]


def test_plain_locust_rotates_rows_of_master_and_workers(tmp_path: Path) -> None:
    with simulator(*QUICK) as engine:
        port = str(free_port())
        common = ("--host", engine.url, "--run-profile", profile_in(tmp_path), "--no-probe")
        master = locust(
            "chat.py", "--headless", "--master", "--master-bind-port", port, "--expect-workers", "1", *common
        )
        worker = locust("chat.py", "--worker", "--master-port", port)
        with program(master, tmp_path) as first, program(worker, tmp_path) as second:
            first.await_output("steady", SLOW_S)
            folder = results(tmp_path)
            packed = folder / "requests.0001.jsonl.gz"
            assert eventually(packed.exists, SLOW_S), "rows come into the run's folder while it goes on"
            assert eventually(lambda: windows(folder) > 2, SLOW_S)
            first.process.send_signal(signal.SIGINT)
            finished = first.finish(SLOW_S)
            second.finish(SLOW_S)
    assert gzip.decompress(packed.read_bytes()).endswith(b"}\n")
    rows, summary = all_rows(folder), finished.summary
    assert len(rows) == summary["requests"]["ok"] + summary["requests"]["failed"] + summary["requests"]["censored"]
    assert "rows-mismatch" not in finished.doubts()
    assert len(summary["soak"]["windows"]) > 2
    assert "Windows of a long run" in (folder / "report.html").read_text("utf-8")

    packed.write_bytes(packed.read_bytes()[:-1000])
    told = run(tokenswarm("report", str(folder)), tmp_path, SLOW_S)
    assert told.code == 0
    assert f"{packed}:" in told.out.replace("\n", "")
    assert "ends too early" in told.out


def test_a_run_whose_master_was_killed_keeps_what_was_rotated(tmp_path: Path) -> None:
    with simulator(*QUICK) as engine:
        words = tokenswarm("run", profile_in(tmp_path), "--host", engine.url)
        with program(words, tmp_path) as load:
            load.await_output("steady, 8 users", SLOW_S)
            folder = results(tmp_path)
            assert eventually(lambda: len(row_files(folder)) > 0, SLOW_S), "rows are handed over while the load runs"
            assert eventually((folder / ".spool" / "told.part").exists, SLOW_S)
            workers = children(load.process.pid)
            os.kill(load.process.pid, signal.SIGKILL)
            load.process.wait()
            assert eventually(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() for pid in workers), SLOW_S)
    live = folder / ".spool" / "live.part"
    os.utime(live, (1, 1))
    dead = run(tokenswarm("report", str(folder)), tmp_path, SLOW_S)
    assert dead.code == 15
    assert "report --merge" in dead.out
    merged = run(tokenswarm("report", "--merge", str(folder)), tmp_path, SLOW_S)
    assert merged.code == 0, merged.out
    rows, summary = all_rows(folder), json.loads((folder / "summary.json").read_bytes())
    assert len({(row["worker"], row["id"]) for row in rows}) == len(rows)
    assert abs(len(rows) - summary["requests"]["ok"] - summary["requests"]["failed"]) <= 16
    assert summary["server"]["metrics"]["sources"][0]["good"] > 0, "what the engine told is kept, too"
    assert run(tokenswarm("report", "--merge", str(folder)), tmp_path, SLOW_S).code == 0
    assert len(all_rows(folder)) == len(rows)


@pytest.mark.parametrize(
    ("pair", "sentence"),
    [
        ("window: 0", "`soak.window: 0` must be 1s or more"),
        ("window: nan", "`soak.window: nan` is not a duration"),
        ("window: 15m", "`soak.window: 900` is longer than the longest stage, 600 s, so no window would ever close"),
        ("window: -3s", "`soak.window: -3s` is not a duration"),
        ("rotate_mib: 0", "`soak.rotate_mib: 0` must be between 1 and 4096 MiB"),
        ("rotate_mib: 1e12", "`soak.rotate_mib: 1e12` is not a whole number"),
        ("rotate_mib: 99999999", "`soak.rotate_mib: 99999999` must be between 1 and 4096 MiB"),
        ("rotate: 5", "unknown key `soak.rotate`; did you mean `rotate_mib`?"),
    ],
)
def test_settings_that_can_not_be_are_told_with_their_line(pair: str, sentence: str) -> None:
    text = PROFILE.replace("{window: 2s, rotate_mib: 1}", f"{{{pair}}}") % "none.json"
    with pytest.raises(ConfigError) as refused:
        profiles.load(text, "soak.yaml")
    assert str(refused.value).startswith("soak.yaml:7: ")
    assert sentence in str(refused.value)


def test_a_window_that_would_never_close_ends_before_any_load(tmp_path: Path) -> None:
    words = ("--users", "1", "--duration", "30s", "--set", "soak.window=1m")
    refused = run(tokenswarm("run", profile_in(tmp_path), *words), tmp_path, SLOW_S)
    assert refused.code == 15, refused.out
    assert "is longer than the longest stage, 30 s" in " ".join(refused.out.split())
    assert not (tmp_path / "results").exists()
