"""Runs of an open loop: the schedule that was planned is the load that comes, whatever the server does."""

from __future__ import annotations

import itertools
import json
import os
import signal
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import LOCUST, REPO, SAMPLES, Finished, eventually, free_port, locust, program, run, tokenswarm
from simulator_process import Server, simulator
from test_web_ui import post, reached

from bench.stall import told
from tokenswarm.load.rate import Rate
from tokenswarm.load.schedule import schedule

LEAD_S, LENGTH_S = 1.0, 3.0
SHORT = ("--warmup", "1s", "--duration", "3s", "--max-tokens", "4", "--drain", "20s")


@pytest.fixture(scope="module")
def engine() -> Iterator[Server]:
    with simulator("--preset", "paced", "--ttft-ms", "40", "--itl-ms", "5") as server:
        yield server


@pytest.fixture(scope="module")
def one_worker(engine: Server, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """No profile and no data set: options say it all."""
    return run(tokenswarm("run", "--host", engine.url, "--rate", "30", *SHORT), tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def three_workers(engine: Server, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    words = ("--host", engine.url, "--rate", "30", "--workers", "3", *SHORT)
    return run(tokenswarm("run", *words), tmp_path_factory.mktemp("three"))


def planned(rate: float, stage: int = 0, kind: str = "poisson") -> dict[int, float]:
    arrivals = schedule(kind, Rate(rate, rate), seed=1, stage=stage)
    return {a.number: a.at_s for a in itertools.takewhile(lambda a: a.at_s < LEAD_S + LENGTH_S, arrivals)}


def as_planned(finished: Finished) -> None:
    """Whatever a busy machine makes of the times: the load that was planned is the one that came."""
    assert finished.code in (0, 11), finished.out
    assert not finished.doubts() & {"accounting-mismatch", "arrivals-missing", "dropped-arrivals", "run-trouble"}


def numbers(finished: Finished, stage: int = 0) -> list[int]:
    mark = f"-{stage}."
    return sorted(int(row["id"].rpartition(mark)[2]) for row in finished.rows if mark in row["id"])


def test_any_number_of_workers_sends_the_one_schedule(one_worker: Finished, three_workers: Finished) -> None:
    plan = planned(30.0)
    for finished, workers in ((one_worker, 1), (three_workers, 3)):
        as_planned(finished)
        assert numbers(finished) == sorted(plan)
        for row in finished.rows:
            assert row["worker"] == int(row["id"].rpartition(".")[2]) % workers
            assert row["phase"] == ("warmup" if plan[int(row["id"].rpartition(".")[2])] < LEAD_S else "steady")
        for worker in range(workers):
            mine = [row for row in finished.rows if row["worker"] == worker]
            begins = [row["intended_s"] - plan[int(row["id"].rpartition(".")[2])] for row in mine]
            assert max(begins) - min(begins) < 1e-6  # each is due by the schedule, from one moment on


def test_all_is_told_from_when_it_was_due(one_worker: Finished) -> None:
    summary = one_worker.summary
    steady = [row for row in one_worker.rows if row["phase"] == "steady"]
    assert summary["stages"][0]["rate"] == 30.0
    assert summary["stages"][0]["concurrency"] is None
    assert summary["requests_steady"]["intended"] == len(steady)
    for row in steady:
        for name in ("ttft", "e2e"):
            assert row[f"{name}_intended_s"] == pytest.approx(row[f"{name}_s"] + row["send_lag_s"], abs=1e-9)
    for name in ("ttft_intended_s", "e2e_intended_s"):
        assert summary["latency"][name]["max"] == pytest.approx(max(row[name] for row in steady))
    assert "E2E, as due" in one_worker.out
    assert "30/s" in one_worker.out
    assert "the bundled samples are sent" in one_worker.out
    assert one_worker.manifest["profile"]["dataset"]["rounds"] == "distinct", "43 conversations are soon sent"


def test_what_finds_too_many_under_way_is_dropped_and_counted(tmp_path: Path) -> None:
    profile = tmp_path / "p.yaml"
    profile.write_text(
        f"target: http://127.0.0.1:1\ndataset: {{path: {SAMPLES}/sharegpt.json, output_tokens: {{fixed: 2}}}}\n"
        "load: {kind: constant, max_in_flight: 5, stages: [{rate: 20, duration: 2s}]}\n"
        "phases: {warmup: 0s, drain: 20s}\n",
        encoding="utf-8",
    )
    with simulator("--preset", "paced", "--ttft-ms", "6000", "--itl-ms", "1") as slow:
        finished = run(tokenswarm("run", str(profile), "--host", slow.url, "--no-probe", "--workers", "2"), tmp_path)
    assert finished.code == 11, finished.out
    counts = finished.summary["requests"]
    assert (counts["intended"], counts["sent"], counts["dropped"], counts["ok"]) == (40, 5, 35, 5)
    assert finished.doubts() >= {"dropped-arrivals"}
    assert numbers(finished) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("most", [None, 20])
def test_a_server_that_stands_still_is_seen_by_every_request_that_was_due(tmp_path: Path, most: int | None) -> None:
    """Whoever was due waited to its end, from the send as well: the kernel takes the bytes. Or it was dropped."""
    with simulator("--preset", "paced", "--ttft-ms", "40", "--itl-ms", "5") as server:
        words = ("--host", server.url, "--rate", "40", "--arrivals", "constant", *SHORT)
        with program(tokenswarm("run", *words, *(["--max-in-flight", str(most)] if most else [])), tmp_path) as started:
            started.await_output("steady, 40/s")
            time.sleep(0.5)
            os.kill(server.process.pid, signal.SIGSTOP)
            time.sleep(1.5)
            os.kill(server.process.pid, signal.SIGCONT)
            finished = started.finish()
    plan, counts = planned(40.0, kind="constant"), finished.summary["requests"]
    stalled = told(most, plan, finished.rows, counts, edge_s=1.0)  # ends are counted late on a busy machine
    assert counts["intended"] == len(plan) == 160
    assert counts["dropped"] == stalled.dropped == stalled.explained == 160 - len(finished.rows)
    assert max(stalled.as_due_s) > 1.4
    assert max(stalled.from_sent_s) > 1.0
    if most:
        assert stalled.due <= most
        assert stalled.dropped > 0
        assert "dropped-arrivals" in finished.doubts()
    else:
        assert stalled.dropped == 0
        assert stalled.due > 40  # a closed loop would have sent no more than its users


def test_a_server_slower_than_the_rate_ends_on_time_and_is_named(tmp_path: Path) -> None:
    words = ("--rate", "60", "--warmup", "1s", "--duration", "4s", "--max-tokens", "60", "--drain", "1s")
    with simulator("--preset", "laptop") as server:
        finished = run(tokenswarm("run", "--host", server.url, *words), tmp_path, 40)
    assert "rate-not-kept" in finished.doubts(), finished.out
    counts = finished.summary["requests"]
    assert counts["censored"] > 0
    assert counts["intended"] == counts["ok"] + counts["failed"] + counts["censored"]
    assert finished.summary["duration_s"] < 5 + 1 + 8


def test_a_signal_ends_it_in_order(engine: Server, tmp_path: Path) -> None:
    words = ("--host", engine.url, "--rate", "30", "--duration", "1h", "--max-tokens", "4")
    with program(tokenswarm("run", *words), tmp_path) as started:
        started.await_output("steady, 30/s")
        started.process.send_signal(signal.SIGINT)
        finished = started.finish()
    assert finished.code == 13
    assert not finished.doubts() & {"arrivals-missing", "rate-not-kept", "accounting-mismatch", "cancelled-requests"}
    assert len(finished.rows) == finished.summary["requests"]["intended"] > 0


def test_a_ramp_and_a_change_of_rate_are_stages(engine: Server, tmp_path: Path) -> None:
    stages = "[{rate: [10, 50], duration: 3s}, {rate: 20, duration: 2s}]"
    words = ("--host", engine.url, "--set", "load.kind=constant", "--set", f"load.stages={stages}", "--max-tokens", "4")
    finished = run(tokenswarm("run", *words, "--warmup", "1s", "--set", "phases.settle=1s"), tmp_path)
    as_planned(finished)
    ramp, flat = finished.summary["stages"]
    assert (ramp["rate"], ramp["rate_end"], flat["rate"], flat["rate_end"]) == (10, 50, 20, None)
    assert ramp["requests_steady"]["intended"] == pytest.approx(90, abs=1)
    assert flat["requests"]["intended"] == 60
    assert "10.0→50.0/s" in finished.out
    for stage in (ramp, flat):
        window, per_s = stage["steady_window"], stage["throughput"]["requests_per_s"]
        ended = sum(window["start_s"] <= row["done_s"] < window["end_s"] for row in finished.rows)
        assert round(per_s * window["length_s"]) == ended, "all that ended in the window, and nothing else"


def test_plain_locust_master_and_workers(engine: Server, tmp_path: Path) -> None:
    port = str(free_port())
    worker = locust("arrivals.py", "--worker", "--master-host", "127.0.0.1", "--master-port", port)
    master = ("--master", "--master-bind-host", "127.0.0.1", "--master-bind-port", port, "--expect-workers", "2")
    load = ("--headless", "--host", engine.url, "--dataset", str(SAMPLES / "sharegpt.json"), "-t", "4s")
    load = (*load, "--warmup", "1s", "--max-tokens", "4", "--rate", "30")
    with program(worker, tmp_path), program(worker, tmp_path):
        finished = run(locust("arrivals.py", *master, *load), tmp_path)
    as_planned(finished)
    assert numbers(finished) == sorted(planned(30.0))
    assert {row["worker"] for row in finished.rows} == {0, 1}


def test_the_web_ui_shows_and_changes_the_rate(engine: Server, tmp_path: Path) -> None:
    port = str(free_port())
    base = f"http://127.0.0.1:{port}"
    words = ("--web-port", port, "--host", engine.url, "--max-tokens", "4", "--warmup", "1s", "--rate", "20")
    command = [LOCUST, "-f", str(REPO / "locustfiles" / "chat.py"), *words]
    with program([*command, "--dataset", str(SAMPLES / "sharegpt.json")], tmp_path) as started:
        started.await_output("Starting web interface")
        assert eventually(lambda: reached(base), 20)
        post(f"{base}/swarm", user_count="20", spawn_rate="20", host=engine.url)
        started.await_output("steady, 20/s")
        post(f"{base}/swarm", user_count="45", spawn_rate="45", host=engine.url)
        started.await_output("stage 2 steady, 45/s")
        time.sleep(1.0)
        post(f"{base}/stop")
        started.await_output("verdict: ")
    (path,) = (tmp_path / "results").glob("2*/summary.json")
    summary = json.loads(path.read_bytes())
    assert [stage["rate"] for stage in summary["stages"]] == [20.0, 45.0]
    assert "users-changed" not in {doubt["code"] for doubt in summary["verdict"]["doubts"]}
    assert summary["requests"]["intended"] == summary["requests"]["ok"]


def test_the_web_ui_takes_a_rate_that_is_no_whole_number(engine: Server, tmp_path: Path) -> None:
    """The form's field of its own; left empty, a closed loop is what it was."""
    port = str(free_port())
    base = f"http://127.0.0.1:{port}"
    words = ("--web-port", port, "--host", engine.url, "--max-tokens", "4", "--warmup", "0s")
    command = [LOCUST, "-f", str(REPO / "locustfiles" / "chat.py"), *words]
    with program([*command, "--dataset", str(SAMPLES / "sharegpt.json")], tmp_path) as started:
        started.await_output("Starting web interface")
        assert eventually(lambda: reached(base), 20)
        with urllib.request.urlopen(base, timeout=10) as page:
            assert '"rate"' in page.read().decode()
        for number, (rate, said) in enumerate((("2.5", "steady, 2.5/s"), ("", "steady, 3 users"))):
            post(f"{base}/swarm", user_count="3", spawn_rate="3", host=engine.url, rate=rate)
            started.await_output(said)
            post(f"{base}/stop")
            assert eventually(lambda n=number: started.output.count("the run is over") > n, 30), started.output


TRACE = "timestamp,input_tokens,output_tokens\n" + "".join(f"{n * 0.05:.2f},40,4\n" for n in range(160))


@pytest.mark.parametrize(("kind", "comes_back"), [("rate", True), ("trace", False)])
def test_a_server_that_is_killed_costs_its_answers_and_no_arrival(kind: str, comes_back: bool, tmp_path: Path) -> None:
    """8 s at 20/s; the server is killed in the third, and comes back 2 s later, or never."""
    (tmp_path / "trace.csv").write_text(TRACE, encoding="utf-8")
    rate = ("--rate", "20", "--arrivals", "constant", "--max-tokens", "4")
    load = rate if kind == "rate" else ("--trace", "trace.csv")
    port = str(free_port())
    server = tokenswarm("simulate", "--preset", "paced", "--ttft-ms", "20", "--itl-ms", "5", "--port", port)
    words = ("--host", f"http://127.0.0.1:{port}", *load, "--warmup", "0s", "--no-probe")
    words = (*words, "--duration", "8s") if kind == "rate" else words
    with program(server, tmp_path) as first:
        first.await_output("simulating")
        with program(tokenswarm("run", *words), tmp_path) as started:
            started.await_output("steady")
            time.sleep(2.5)
            os.kill(first.process.pid, signal.SIGKILL)
            if comes_back:
                time.sleep(1.5)
                with program(server, tmp_path):
                    finished = started.finish(60)
            else:
                finished = started.finish(60)

    counts, doubts = finished.summary["requests"], finished.doubts()
    assert len(finished.rows) == counts["sent"] == counts["intended"] == 160, "each arrival was sent, and has a row"
    assert counts["dropped"] == counts["cancelled"] == counts["censored"] == 0
    assert counts["ok"] > 20
    assert counts["by_outcome"]["connect"] > 20
    assert not {"accounting-mismatch", "arrivals-missing", "rows-mismatch", "foreign-load"} & doubts
    if comes_back:
        assert {"engine-restarted", "failures"} & doubts, finished.out
        assert any(row["outcome"] == "ok" and row["intended_s"] > 7 for row in finished.rows)
    else:
        assert "mostly-failed" in doubts
        assert finished.code == 11
