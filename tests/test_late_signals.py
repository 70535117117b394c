"""Signals where there is nothing to cut short: while rows are under way, and before there is load."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sample_runs
from peer import HEARTBEAT, Impostor, Peer
from running import SAMPLES, Program, eventually, free_port, locust, program, tokenswarm
from simulator_process import Server, simulator

from tokenswarm import __version__
from tokenswarm.cluster.messages import ToMaster, ToWorker
from tokenswarm.measure import snapshot
from tokenswarm.measure.recorder import Recorder
from tokenswarm.profile import profile as profiles

PROFILE = """
name: test
target: http://127.0.0.1:9
dataset: {path: %s, output_tokens: {max: 8}}
load: {stages: [{users: 4, duration: 2s}]}
phases: {warmup: 500ms, drain: 20s}
telemetry: {engine_metrics: []}
"""
UNBEGUN = "tokenswarm: interrupted before the load began: none was sent"
LATE = "the load had ended before this signal"


@pytest.fixture(scope="module")
def engine() -> Iterator[Server]:
    with simulator("--preset", "paced", "--ttft-ms", "20", "--itl-ms", "5") as server:
        yield server


def play_to_the_drain(peer: Peer, started: Program) -> None:
    """A second worker up to its final report, behind which it keeps the master waiting."""
    run_id, index = (order := peer.receive("tokenswarm-run", 90))["run_id"], order["index"]
    sha256 = hashlib.sha256((SAMPLES / "sharegpt.json").read_bytes()).hexdigest()
    peer.send("tokenswarm-prepared", {"dataset": {"sha256": sha256}})
    peer.receive("spawn", 90)
    peer.send("spawning_complete", {"user_classes_count": {"Replay": 2}, "user_count": 2})
    recorder, number = Recorder(run_id, index, start_ns=0, host="slow", pid=4711), 0
    while "draining" not in started.output:
        number += 1
        peer.send("heartbeat", {**HEARTBEAT, "state": "running"})
        peer.send("tokenswarm-report", snapshot.encode(recorder.snapshot(number * 200_000_000)))
        time.sleep(0.2)
    peer.receive("tokenswarm-drain")
    peer.send("tokenswarm-report", snapshot.encode(recorder.snapshot(number * 200_000_000, final=True)))


@pytest.mark.parametrize("told", ["master", "worker"])
def test_a_signal_behind_the_last_stream_cuts_nothing_short(told: str, engine: Server, tmp_path: Path) -> None:
    """One of two workers has handed over, the other one has its rows still: all was measured."""
    path, port = tmp_path / "profile.yaml", free_port()
    path.write_text(PROFILE % (SAMPLES / "sharegpt.json"), encoding="utf-8")
    words = ("--host", engine.url, "--no-probe", "--expect-workers", "2", "--bind", f"127.0.0.1:{port}")
    joining = tokenswarm("worker", "--master-host", "127.0.0.1", "--master-port", str(port))
    with program(tokenswarm("run", str(path), *words), tmp_path) as started, Peer(port) as peer:
        started.await_output("waiting for 2 workers on")
        peer.hello(__version__, "", host="slow")
        with program(joining, tmp_path) as worker:
            play_to_the_drain(peer, started)
            (folder,) = (tmp_path / "results").iterdir()
            assert eventually(lambda: not list(folder.glob(".spool/worker-*.jsonl"))), "it has handed over"
            (started if told == "master" else worker).process.send_signal(signal.SIGTERM)
            if told == "master":
                started.await_output(LATE)
            else:
                assert worker.finish(30).code == 13
            peer.send("tokenswarm-done", {"rows": 0, "seq": 1})
            finished = started.finish(60)

    assert finished.code != 13, finished.out
    assert finished.summary["partial"] is False
    assert not {"interrupted", "worker-left", "worker-lost", "run-trouble"} & finished.doubts()
    assert len(finished.rows) == finished.summary["requests"]["sent"] > 0


def test_a_worker_that_hands_over_does_not_leave(tmp_path: Path) -> None:
    """Its load is over and its rows are under way: a signal adds nothing, and it waits for the master's word."""
    plan = profiles.encode(sample_runs.profile())
    joining = ("--master-host", "127.0.0.1", "--master-port")
    with Impostor() as master, program(tokenswarm("worker", *joining, str(master.port)), tmp_path) as worker:
        master.receive(ToMaster.HELLO.value)
        master.send("ack", {"index": 0})
        master.send(ToWorker.RUN.value, {"run_id": "r", "profile": plan, "index": 0, "count": 1})
        master.receive(ToMaster.PREPARED.value)
        master.send(ToWorker.DRAIN.value, {"bound_s": 1})
        done = master.receive(ToMaster.DONE.value)
        worker.process.send_signal(signal.SIGTERM)
        for _ in range(3):  # it is still there, and no word of it came
            master.send("heartbeat")
            master.receive("heartbeat")
        master.send(ToWorker.ACK.value, {"seq": done["seq"]})
        ended = worker.finish(30)

    assert ToMaster.LEAVING.value not in master.kinds
    assert (ended.code, "its rows are in" in ended.out) == (13, False), ended.out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
@pytest.mark.parametrize("waits_for", ["workers", "target", "master"])
def test_plain_locust_that_waits_is_13_with_a_word(waits_for: str, number: signal.Signals, tmp_path: Path) -> None:
    stalls = ("--fault", "stall:1:1") if waits_for == "target" else ()
    port = str(free_port())
    with simulator("--preset", "instant", *stalls) as server:
        run = ("--headless", "--host", server.url, "--dataset", str(SAMPLES / "sharegpt.json"), "-t", "60s")
        words = {
            "workers": (*run, "--master", "--master-bind-port", port, "--expect-workers", "2"),
            "target": run,
            "master": ("--worker", "--master-port", port),
        }[waits_for]
        with program(locust("chat.py", *words), tmp_path) as started:
            started.await_output("Starting Locust")
            if waits_for == "workers":
                assert eventually(lambda: (tmp_path / "results").is_dir()), "the target was asked"
                started.await_output("Waiting for workers to be ready")
            elif waits_for == "target":
                assert eventually(lambda: server.truth()["totals"]["received"] == 1)
            started.process.send_signal(number)
            finished = started.finish(30)

    assert finished.code == 13, finished.out
    assert finished.out.count(UNBEGUN) == 1
    assert "Traceback" not in finished.out


def test_a_worker_that_waits_is_one_sentence(tmp_path: Path) -> None:
    waiting = tokenswarm("worker", "--master-host", "127.0.0.1", "--master-port", str(free_port()))
    with program(waiting, tmp_path) as started:
        started.await_output("waiting for the master at")
        started.process.send_signal(signal.SIGINT)
        finished = started.finish(30)

    assert finished.code == 13
    assert finished.out.splitlines()[1:] == ["tokenswarm: worker was interrupted"]


@pytest.mark.parametrize("command", ["path", "calibrate"])
def test_a_measurement_that_is_given_up_is_one_sentence(command: str, tmp_path: Path) -> None:
    path = ("--via", f"http://127.0.0.1:{free_port()}", "--upstream-port", str(free_port()))
    words, begun = (path, "waiting: ") if command == "path" else (("--seconds", "0.5"), "25 streams alone")
    with program(tokenswarm(command, *words), tmp_path) as started:
        started.await_output(begun, 60)
        started.process.send_signal(signal.SIGINT)
        finished = started.finish(30)

    assert finished.code == 13
    assert finished.out.splitlines()[-1] == f"tokenswarm: {command} was interrupted"
    assert "KeyboardInterrupt" not in finished.out


def test_a_master_of_plain_locust_that_gives_up_waiting_is_14(engine: Server, tmp_path: Path) -> None:
    few = ("--expect-workers", "2", "--expect-workers-max-wait", "1", "--master-bind-port", str(free_port()))
    run = ("--headless", "--host", engine.url, "--dataset", str(SAMPLES / "sharegpt.json"), "--master", *few)
    with program(locust("chat.py", *run), tmp_path) as started:
        finished = started.finish(60)

    assert finished.code == 14, finished.out
    assert "tokenswarm: only 0 of 2 workers came within 1 s; start the others, or fewer" in finished.out


def test_who_makes_the_page_hears_of_no_end_but_its_masters(tmp_path: Path) -> None:
    """As from systemd, which sends SIGTERM to all processes of a service at once."""
    os.mkfifo(tmp_path / "summary.json")
    command = [sys.executable, "-P", "-m", "tokenswarm.reports.html", str(tmp_path)]
    with program(command, tmp_path) as started, (tmp_path / "summary.json").open("wb") as summary:  # opened by it, too
        started.process.send_signal(signal.SIGTERM)
        summary.write(b"no summary")
        summary.close()
        finished = started.finish(30)

    assert finished.code > 0, finished.out
    assert "summary.json" in finished.out


@pytest.mark.parametrize("token", ["x" * 2001, "\udcff"])
def test_a_token_that_can_not_be_said_is_15_everywhere(token: str, tmp_path: Path) -> None:
    port = str(free_port())
    commands = [
        tokenswarm("worker", "--master-host", "127.0.0.1", "--master-port", port),
        tokenswarm("run", "smoke", "--host", "http://127.0.0.1:9", "--expect-workers", "1"),
        locust("chat.py", "--worker", "--master-port", port),
    ]
    for command in commands:
        with program(command, tmp_path, TOKENSWARM_RUN_TOKEN=token) as started:
            finished = started.finish(30)
        assert (finished.code, "Traceback" in finished.out) == (15, False), finished.out
        assert "TOKENSWARM_RUN_TOKEN has more than 2000 characters, or some that are no UTF-8" in finished.out
