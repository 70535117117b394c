"""An engine that stands still: told by when and for how long, where all answers waited at once, and never by chance."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from running import SAMPLES, program, tokenswarm
from simulator_process import simulator

from tokenswarm.clock import NS_PER_S
from tokenswarm.measure.snapshot import Instrument, Merged, WorkerState
from tokenswarm.measure.stills import Stills


def told(worker: int, seq: int, at_s: float, events: int, decoding: int) -> WorkerState:
    """What a worker says in its report number `seq`."""
    return WorkerState(
        worker=worker, host="h", pid=worker, seq=seq, final=False, missing=[], sent_ns=0,
        elapsed_ns=int(at_s * NS_PER_S), in_flight=decoding, decoding=decoding, users=1, live_output_tokens=events,
        wraps=0, instrument=Instrument(),
    )  # fmt: skip


def watched(*looks: tuple[WorkerState, ...], phase: str = "steady") -> Stills:
    it = Stills()
    it.phase(0, phase, None, 60.0)
    for workers in looks:
        it.tick(Merged(run_id="r", workers=list(workers)))
    return it


def alone(*events: int, step_s: float = 1.0) -> list[tuple[WorkerState, ...]]:
    return [(told(0, at + 1, step_s * at, n, 8),) for at, n in enumerate(events)]


def test_a_pause_is_told_with_what_was_due() -> None:
    (still,) = watched(*alone(0, 100, 200, 200, 200, 200, 300)).found()
    assert (still.start_s, still.end_s, still.decoding, still.phase) == (2.0, 5.0, 8, "steady")
    assert still.due == pytest.approx(300)


@pytest.mark.parametrize(
    "looks",
    [
        alone(0, 100, 100, 200, 300),  # one second is what lies between two reports
        alone(0, 100, 101, 102, 103, 200),  # slow is not still
        alone(0, 100, 100, 100, 200, step_s=2.0),  # the worker itself was late
        [(told(0, 1, 0.0, 9, 8),)] * 9,  # no report came meanwhile
        [(told(0, at, at, 100, 8), told(1, at, at, 9 * at, 8)) for at in range(1, 9)],  # the other one's answers go on
        [(told(0, 1, 1, 100, 8), told(1, at, at, 0, 8)) for at in range(1, 9)],  # nothing is heard of the other one
        [(told(0, at, at, 100, 0),) for at in range(1, 9)],  # nothing was under way
    ],
)  # fmt: skip
def test_what_is_no_pause(looks: list[tuple[WorkerState, ...]]) -> None:
    assert watched(*looks).found() == ()


def test_a_search_hears_of_its_newest_stage_alone_and_of_what_goes_on() -> None:
    it = watched(*alone(0, 100, 100, 100, 100))
    assert [(one.start_s, one.end_s) for one in it.silences()] == [(1.0, 4.0)]
    it.phase(1, "warmup", None, 1.0)
    assert it.silences() == []


PROFILE = """
target: http://127.0.0.1:1
engine: {model: sim}
dataset: {path: %s, output_tokens: {fixed: 200}}
load: {stages: [{users: 4, duration: 12s}]}
phases: {warmup: 1s, drain: 10s}
"""


def test_an_engine_that_is_stopped_for_seconds(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(PROFILE % (SAMPLES / "sharegpt.json"), encoding="utf-8")
    with (
        simulator("--preset", "paced", "--ttft-ms", "20", "--itl-ms", "10") as server,
        program(tokenswarm("run", "p.yaml", "--host", server.url), tmp_path) as started,
    ):
        started.await_output("steady")
        time.sleep(3)
        os.kill(server.process.pid, signal.SIGSTOP)
        time.sleep(6)
        os.kill(server.process.pid, signal.SIGCONT)
        finished = started.finish(60)
    (doubt,) = (d for d in finished.summary["verdict"]["doubts"] if d["code"] == "engine-stood-still")
    assert doubt["severity"] == "note"
    longest = doubt["evidence"]["longest"]
    worst_s = finished.summary["latency"]["stall_s"]["max"]
    assert 2 <= longest["end_s"] - longest["start_s"] <= worst_s + 1
    assert 2 <= longest["decoding"] <= 4
