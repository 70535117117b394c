"""Who falls silent: workers cut off for a while or for good, a master that dies, clocks that step meanwhile."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from network import WAYS
from running import SAMPLES, Program, children, eventually, free_port, program, tokenswarm
from simulator_process import Server, simulator

PROFILE = """
name: test
target: http://127.0.0.1:9
dataset: {path: %s, output_tokens: {max: 12}}
load: {stages: [{users: 6, duration: %s}, {users: 9, duration: %s}]}
phases: {warmup: 1s, settle: 1s, drain: 20s}
"""
STEPS = str(Path(__file__).resolve().parent / "stepped_clock")
SET_CHILD_SUBREAPER = 36  # prctl(2)


@pytest.fixture(scope="module")
def engine() -> Iterator[Server]:
    with simulator("--preset", "paced", "--ttft-ms", "50", "--itl-ms", "20") as server:
        yield server


def master(home: Path, engine: Server, at: int, workers: int, *stages: str) -> list[str]:
    path = home / "profile.yaml"
    path.write_text(PROFILE % (SAMPLES / "sharegpt.json", *stages), encoding="utf-8")
    words = ("--host", engine.url, "--expect-workers", str(workers), "--bind", f"127.0.0.1:{at}")
    return tokenswarm("run", str(path), *words)


def joining(at: int, host: str = "127.0.0.1") -> list[str]:
    return tokenswarm("worker", "--master-host", host, "--master-port", str(at))


def stepping(home: Path, name: str) -> dict[str, str]:
    """Environment of a program whose wall clock steps by what is written into home/name."""
    return {"PYTHONPATH": STEPS, "STEPPED_CLOCK": str(home / name)}


def pid_of(worker: Program) -> str:
    return f"pid {worker.process.pid}"


@pytest.mark.parametrize("way", WAYS)
def test_a_worker_that_is_cut_off(way: str, tmp_path: Path) -> None:
    """For 5 s, or stopped for so long: nothing is lost, and it says so. For good: its load ends, the run is INVALID."""
    with ExitStack() as stack:
        net = WAYS[way](stack, afar=2)
        path = tmp_path / "profile.yaml"
        path.write_text(PROFILE % (SAMPLES / "sharegpt.json", "12s", "3s"), encoding="utf-8")
        words = ("--host", net.engine, "--expect-workers", "3", "--bind", f"{net.host}:{net.port}")
        command = net.at_home(tokenswarm("run", str(path), *words))
        started = stack.enter_context(program(command, tmp_path, **net.environment))
        started.await_output("waiting for 3 workers on")
        still = stack.enter_context(program(net.at_home(joining(net.port)), tmp_path, **net.environment))
        away, gone = (
            stack.enter_context(program(net.afar(n, joining(*reversed(net.address(n)))), tmp_path, **net.environment))
            for n in range(2)
        )
        started.await_output("stage 1.*steady")
        for place in range(2):
            net.cut(place)
        still.process.send_signal(signal.SIGSTOP)
        time.sleep(5)
        still.process.send_signal(signal.SIGCONT)
        net.heal(0)
        left = gone.finish(40)
        assert not eventually(lambda: away.process.poll() is not None, 1)
        finished = started.finish(60)
        codes = (still.process.wait(60), away.process.wait(60))

    assert (codes, left.code) == ((0, 0), 11), finished.out
    assert "no word from the master for 10 s" in left.out
    assert finished.code == 11
    doubts = {doubt["code"]: doubt for doubt in finished.summary["verdict"]["doubts"]}
    (name,) = doubts["worker-lost"]["evidence"]["lost"]
    assert pid_of(gone) in name
    assert doubts["worker-lost"]["evidence"]["lost"][name] == "nothing came from it for 10 s"
    silent_s = doubts["worker-silent"]["evidence"]["silent_s"]
    assert len(silent_s) == 2
    assert min(silent_s.values()) > 3
    assert "loop-stall" in doubts  # of the one that stood still
    assert not set(doubts) & {"rows-mismatch", "run-trouble"}
    listed = {entry["pid"]: entry for entry in finished.manifest["workers"]}
    for worker in (still, away):
        entry = listed[worker.process.pid]
        assert any(pid_of(worker) in name for name in silent_s)
        assert entry["lost"] == ""
        assert entry["rows"] == sum(row["worker"] == entry["index"] for row in finished.rows) > 30


def test_steps_of_wall_clocks_end_no_load(engine: Server, tmp_path: Path) -> None:
    """One worker's clock goes ahead again and again, another's back by an hour, the master's by a day, in a window."""
    at = free_port()
    with ExitStack() as stack:
        command = master(tmp_path, engine, at, 3, "5s", "3s")
        started = stack.enter_context(program(command, tmp_path, **stepping(tmp_path, "master")))
        started.await_output("waiting for 3 workers on")
        workers = [stack.enter_context(program(joining(at), tmp_path, **stepping(tmp_path, n))) for n in "abc"]
        started.await_output("stage 1.*steady")
        for name, seconds in {"b": -3600, "master": -86400}.items():
            (tmp_path / name).write_text(str(seconds), encoding="ascii")
        for number in range(1, 6):  # 100 s each time: whoever compares wall clocks thinks that the master is gone
            (tmp_path / "a").write_text(str(100 * number), encoding="ascii")
            time.sleep(0.37)
        started.await_output("stage 2.*steady")
        assert eventually(lambda: engine.truth()["totals"]["in_flight"] > 6), "each of three workers has three users"
        finished = started.finish(60)
        codes = [worker.process.wait(60) for worker in workers]

    assert codes == [0, 0, 0], finished.out
    assert not finished.doubts() & {"worker-lost", "worker-silent", "users-differ", "run-trouble"}, finished.out
    doubt = next(doubt for doubt in finished.summary["verdict"]["doubts"] if doubt["code"] == "clock-step")
    assert doubt["evidence"]["step_s"] == pytest.approx(86400, abs=60)
    assert "The wall clock of the master stepped" in doubt["message"]
    assert finished.summary["instrument"]["clock_step_s_max"] == pytest.approx(3600, abs=60)
    assert finished.summary["requests"]["cancelled"] == 0


def test_a_run_that_stood_still_as_a_whole_has_lost_nobody(engine: Server, tmp_path: Path) -> None:
    """A container that was paused: master and workers, for longer than a silence may last. What waits is read first."""
    path = tmp_path / "profile.yaml"
    path.write_text(PROFILE % (SAMPLES / "sharegpt.json", "16s", "2s"), encoding="utf-8")
    command = tokenswarm("run", str(path), "--host", engine.url, "--set", "workers=2")
    with program(command, tmp_path) as started:
        started.await_output("stage 1.*steady")
        all_of_it = [started.process.pid, *children(started.process.pid)]
        for pid in all_of_it:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(12)
        for pid in reversed(all_of_it):
            os.kill(pid, signal.SIGCONT)
        finished = started.finish(60)

    assert not finished.doubts() & {"worker-lost", "rows-mismatch", "run-trouble"}, finished.out
    doubt = next(doubt for doubt in finished.summary["verdict"]["doubts"] if doubt["code"] == "worker-silent")
    assert len(doubt["evidence"]["silent_s"]) == 2
    assert "The master itself stood still for 1" in doubt["message"]


def test_the_dead_mans_switch(engine: Server, tmp_path: Path) -> None:
    """No worker loads the target for long after its master, not even one whose clock went back by an hour."""
    at = free_port()
    with ExitStack() as stack:
        started = stack.enter_context(program(master(tmp_path, engine, at, 2, "300s", "1s"), tmp_path))
        started.await_output("waiting for 2 workers on")
        workers = [stack.enter_context(program(joining(at), tmp_path, **stepping(tmp_path, n))) for n in "ab"]
        started.await_output("stage 1.*steady")
        (tmp_path / "b").write_text("-3600", encoding="ascii")
        time.sleep(2)
        started.process.kill()
        started.process.wait()
        ended = [worker.finish(50) for worker in workers]

    assert [worker.code for worker in ended] == [11, 11]
    assert all("no word from the master for 10 s" in worker.out for worker in ended)
    assert eventually(lambda: engine.truth()["totals"]["in_flight"] == 0)


def test_workers_die_with_their_parent(engine: Server, tmp_path: Path) -> None:
    """At once and by the kernel's signal, not by the switch. Orphans come to us, so that we see what they died of."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(SET_CHILD_SUBREAPER, 1) == 0
    try:
        path = tmp_path / "profile.yaml"
        path.write_text(PROFILE % (SAMPLES / "sharegpt.json", "300s", "1s"), encoding="utf-8")
        command = tokenswarm("run", str(path), "--host", engine.url, "--set", "workers=2")
        with program(command, tmp_path) as started:
            started.await_output("steady")
            workers = children(started.process.pid)
            started.process.kill()
            started.process.wait()
            statuses = [os.waitpid(pid, 0)[1] for pid in workers]
    finally:
        libc.prctl(SET_CHILD_SUBREAPER, 0)

    assert [os.WTERMSIG(status) for status in statuses] == [signal.SIGKILL, signal.SIGKILL]
    assert eventually(lambda: engine.truth()["totals"]["in_flight"] == 0)
