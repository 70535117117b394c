"""Who comes late, from elsewhere, or with other messages than a worker's takes nothing away and ends nothing."""

from __future__ import annotations

import contextlib
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import psutil
import pytest
import sample_runs
from hypothesis import given
from hypothesis import strategies as st
from peer import HEARTBEAT, Impostor, Peer, odd_frames
from running import LOCUST, SAMPLES, Finished, Program, free_port, locust, program, tokenswarm
from simulator_process import Server, simulator

from tokenswarm import __version__
from tokenswarm.cluster import messages
from tokenswarm.cluster.messages import FROM_MASTER, FROM_WORKER, ToMaster, ToWorker
from tokenswarm.cluster.strangers import SENTENCES_MAX, Strangers
from tokenswarm.measure import snapshot
from tokenswarm.measure.recorder import Recorder
from tokenswarm.profile import profile as profiles

PROFILE = """
name: test
target: http://127.0.0.1:9
dataset: {path: %s, output_tokens: {max: 32}, ignore_eos: true}
load: {stages: [{users: 4, duration: 3s}, {users: 8, duration: 10s}]}
phases: {warmup: 1s, settle: 1s, drain: 20s}
workers: 2
"""
FOREIGN = "from locust import User, task\nclass Other(User):\n    @task\n    def nothing(self): pass\n"
TOKEN = {"TOKENSWARM_RUN_TOKEN": "right"}
TOO_LARGE = 17 * 1024 * 1024 + 1  # bytes in one frame: the socket closes the connection before they are all there
NOBODY = ("users-differ", "users-idle", "cancelled-requests", "worker-lost", "run-trouble")


@pytest.fixture(scope="module")
def engine() -> Iterator[Server]:
    with simulator("--preset", "paced", "--ttft-ms", "50", "--itl-ms", "20") as server:
        yield server


def profile(home: Path, text: str = PROFILE) -> str:
    path = home / "profile.yaml"
    path.write_text(text % (SAMPLES / "sharegpt.json"), encoding="utf-8")
    return str(path)


def master(home: Path, engine: Server, at: str, workers: int, *more: str, text: str = PROFILE) -> list[str]:
    words = ("--host", engine.url, "--expect-workers", str(workers), "--bind", f"127.0.0.1:{at}")
    return tokenswarm("run", profile(home, text), *words, *more)


def joining(at: str) -> list[str]:
    return tokenswarm("worker", "--master-host", "127.0.0.1", "--master-port", at)


def play_along(peer: Peer) -> None:
    """What Locust needs to give somebody users."""
    peer.send("client_ready", "2.47.0")
    for state in ("ready", "running"):
        peer.send("heartbeat", {**HEARTBEAT, "state": state})
    for kind in ("Replay", "Chat"):
        peer.send("spawning_complete", {"user_classes_count": {kind: 4}, "user_count": 4})


def come_and_quit(at: int) -> None:
    for farewell in ("quit", "client_stopped"):
        with Peer(at) as peer:
            peer.send("client_ready", "2.47.0")
            peer.send("heartbeat", HEARTBEAT)
            peer.send(farewell)


@contextlib.contextmanager
def intruders(at: str, home: Path) -> Iterator[list[Program]]:
    """Five kinds at once: wrong token, right token but late, of another job, one that plays along, one that quits."""
    foreign = home / "foreign.py"
    foreign.write_text(FOREIGN, encoding="utf-8")
    other = [LOCUST, "-f", str(foreign), "--worker", "--master-host", "127.0.0.1", "--master-port", at]
    with (
        program(joining(at), home, TOKENSWARM_RUN_TOKEN="wrong") as wrong,
        program(joining(at), home, **TOKEN) as late,
        program(other, home),
        Peer(int(at)) as peer,
    ):
        play_along(peer)
        come_and_quit(int(at))
        yield [wrong, late]


def check_load(finished: Finished, users: list[int]) -> None:
    """All users really sent: about as many requests were in flight as there were users, and none was cut off."""
    assert finished.went_well, finished.out  # five programs start meanwhile: on a busy machine the loop stalls
    assert not finished.doubts() & set(NOBODY), finished.out
    requests = finished.summary["requests"]
    assert requests["cancelled"] == 0
    for stage, asked in zip(finished.summary["stages"], users, strict=True):
        assert 0.8 * asked < stage["batch_mean"] <= 1.01 * asked
    knocked = next(doubt for doubt in finished.summary["verdict"]["doubts"] if doubt["code"] == "worker-refused")
    assert knocked["severity"] == "note"
    assert knocked["evidence"]["workers"] == 2
    assert knocked["evidence"]["messages"] >= 8
    told = " ".join(knocked["evidence"]["refused"])
    for words in ("does not know this run's token", "already begun", "is no worker of this run", "'client_ready'"):
        assert words in told


def test_late_and_foreign_workers_take_no_users(engine: Server, tmp_path: Path) -> None:
    at = str(free_port())
    with program(master(tmp_path, engine, at, 2), tmp_path, **TOKEN) as started:
        started.await_output(f"waiting for 2 workers on 127.0.0.1:{at}")
        with program(joining(at), tmp_path, **TOKEN) as one, program(joining(at), tmp_path, **TOKEN) as two:
            started.await_output("stage 1.*steady")
            before = engine.truth()["totals"]
            with intruders(at, tmp_path) as refused:
                codes = [worker.finish(30) for worker in refused]
                started.await_output("stage 2.*steady")
                finished = started.finish(60)
            assert (one.process.wait(60), two.process.wait(60)) == (0, 0)

    check_load(finished, [4, 8])
    assert [worker.code for worker in codes] == [15, 15]
    assert "does not know this run's token" in codes[0].out
    assert "already begun" in codes[1].out
    assert before["max_concurrent"] <= 4
    assert engine.truth()["totals"]["max_concurrent"] == 8


def test_plain_locust_is_as_particular(engine: Server, tmp_path: Path) -> None:
    at = str(free_port())
    words = ("--master", "--master-bind-host", "127.0.0.1", "--master-bind-port", at, "--expect-workers", "2")
    words += ("--headless", "-u", "8", "-r", "8", "-t", "16s", "--warmup", "1s", "--host", engine.url)
    words += ("--dataset", str(SAMPLES / "sharegpt.json"), "--max-tokens", "32", "--set", "dataset.ignore_eos=true")
    worker = locust("chat.py", "--worker", "--master-host", "127.0.0.1", "--master-port", at)
    with program(worker, tmp_path, **TOKEN) as one, program(worker, tmp_path, **TOKEN) as two:
        with program(locust("chat.py", *words), tmp_path, **TOKEN) as started:
            started.await_output("warmup|steady")
            with intruders(at, tmp_path) as refused:
                codes = [stray.finish(30).code for stray in refused]
                finished = started.finish(60)
        assert (one.process.wait(60), two.process.wait(60)) == (0, 0)

    check_load(finished, [8])
    assert codes == [15, 15]


def test_nothing_that_is_sent_to_the_port_ends_a_run(engine: Server, tmp_path: Path) -> None:
    """Each odd message, floods, and frames larger than any message; what is kept of them is bounded."""
    at, text = str(free_port()), PROFILE.replace("duration: 3s}, {users: 8, duration: 10s", "duration: 5s")
    with program(master(tmp_path, engine, at, 1, text=text), tmp_path, **TOKEN) as started:
        started.await_output("waiting for 1 worker on")
        with Peer(int(at)) as old, program(joining(at), tmp_path, **TOKEN) as worker:
            old.hello("0.0.1", "right")
            refusal = old.receive("tokenswarm-refused")["sentence"]
            started.await_output("steady")
            with contextlib.ExitStack() as stack:
                peers = [stack.enter_context(Peer(int(at))) for _ in range(5)]
                for frames in odd_frames(peers[0].identity):
                    peers[0].frames(*frames)
                for number in range(3000):
                    peers[1].send("client_ready", "2.47.0")
                    peers[2].hello(__version__, "wrong", host=f"\x1b[31m{number}")
                peers[3].frames(bytes(TOO_LARGE))
                peers[4].frames(b"id", bytes(TOO_LARGE))
                finished = started.finish(60)
            assert worker.process.wait(60) == 0

    assert finished.went_well, finished.out
    assert f"runs tokenswarm 0.0.1, the master {__version__}: install the same version" in refusal
    requests = finished.summary["requests"]
    assert requests["ok"] == requests["sent"] > 0
    assert not finished.doubts() & set(NOBODY)
    assert "Traceback" not in finished.out, finished.out
    assert "\x1b[31m" not in finished.out
    (knocked,) = [doubt for doubt in finished.summary["verdict"]["doubts"] if doubt["code"] == "worker-refused"]
    evidence = knocked["evidence"]
    assert evidence["workers"] == 3001
    assert evidence["messages"] == 3000 + len(odd_frames("x"))
    assert len(evidence["refused"]) == SENTENCES_MAX
    assert finished.folder is not None
    assert (finished.folder / "summary.json").stat().st_size < 60_000


def test_a_member_that_goes_mad_is_one_lost_worker(engine: Server, tmp_path: Path) -> None:
    """Admitted before the start, it answers as a worker does; then reports as another, rows that inflate, its end."""
    at = str(free_port())
    with program(master(tmp_path, engine, at, 1), tmp_path, **TOKEN) as started, Peer(int(at)) as peer:
        started.await_output("waiting for 1 worker on")
        peer.hello(__version__, "right", host="mad")
        peer.receive("ack")
        order = peer.receive("tokenswarm-run", 90)
        peer.send("tokenswarm-prepared", {"dataset": {"sha256": "x"}})
        peer.receive("spawn", 90)
        peer.send("spawning_complete", {"user_classes_count": {"Replay": 4}, "user_count": 4})
        started.await_output("stage 1.*steady")
        process = psutil.Process(started.process.pid)
        before = process.memory_info().rss
        bomb = zlib.compress(bytes(300_000_000), 9)
        for frames in odd_frames(peer.identity):
            if _kind(frames) not in ("quit", "client_stopped"):
                peer.frames(*frames)
        peer.send("tokenswarm-report", b"no report")
        for data in (bomb, b"no zlib", zlib.compress(b"a row\n")[:-2]):
            peer.send("tokenswarm-rows", {"seq": 1, "data": data})
            peer.receive("tokenswarm-ack")
        grown = process.memory_info().rss - before
        peer.send("quit")
        finished = started.finish(60)

    assert order["index"] == 0
    assert finished.code == 11, finished.out
    assert {"worker-lost", "run-trouble"} <= finished.doubts()
    assert "(mad, pid 4711): it left the run" in " ".join(finished.out.split())
    assert "rows came that can't be read" in " ".join(finished.out.split())
    assert grown < 150_000_000
    assert "Traceback" not in finished.out, finished.out
    assert finished.rows == []


def test_a_member_with_too_few_users_is_found_out(engine: Server, tmp_path: Path) -> None:
    """It says that all users are there, and reports three of four; a report under another's number does not count."""
    at, text = str(free_port()), PROFILE.replace("duration: 3s}, {users: 8, duration: 10s", "duration: 5s")
    with program(master(tmp_path, engine, at, 1, text=text), tmp_path, **TOKEN) as started, Peer(int(at)) as peer:
        started.await_output("waiting for 1 worker on")
        peer.hello(__version__, "right", host="liar")
        run_id = peer.receive("tokenswarm-run", 90)["run_id"]
        peer.send("tokenswarm-prepared", {"dataset": {"sha256": "x"}})
        peer.receive("spawn", 90)
        peer.send("spawning_complete", {"user_classes_count": {"Replay": 4}, "user_count": 4})
        recorders = [Recorder(run_id, index, start_ns=0, host="liar", pid=4711) for index in (0, 5)]
        recorders[1].users = 1000
        number = 0
        while "drain" not in started.output:
            number += 1
            recorders[0].users = 3 if "steady" in started.output else 4
            peer.send("heartbeat", {**HEARTBEAT, "state": "running"})
            for recorder in recorders:
                peer.send("tokenswarm-report", snapshot.encode(recorder.snapshot(number * 200_000_000)))
            time.sleep(0.2)
        for recorder in recorders:
            peer.send("tokenswarm-report", snapshot.encode(recorder.snapshot(number * 200_000_000, final=True)))
        peer.send("tokenswarm-done", {"rows": 0, "seq": 1})
        finished = started.finish(60)

    assert finished.code == 11, finished.out
    doubts = {doubt["code"]: doubt for doubt in finished.summary["verdict"]["doubts"]}
    assert doubts["users-differ"]["severity"] == "invalid"
    assert doubts["users-differ"]["evidence"]["stages"] == ["stage 1 asked for 4, 3 were there (mean 3)"]
    assert "reports as worker 5; that is not counted" in doubts["run-trouble"]["message"]
    assert "worker-lost" not in doubts


def test_a_worker_survives_what_its_master_sends(tmp_path: Path) -> None:
    meant = ("ack", "stop", "reconnect", "heartbeat", "quit")  # with no data, these are a master's words
    with Impostor() as impostor, program(joining(str(impostor.port)), tmp_path) as worker:
        hello = impostor.receive(ToMaster.HELLO.value)
        for frames in odd_frames(impostor.worker.decode()):
            if _kind(frames) not in meant:
                impostor.frames(*frames)
        impostor.send("ack", {"index": 0})
        impostor.receive("heartbeat")
        for frames in odd_frames(impostor.worker.decode()):
            if _kind(frames) not in meant:
                impostor.frames(*frames)
        impostor.send("heartbeat")
        impostor.receive("heartbeat")
        impostor.send("quit")
        ended = worker.finish(30)

    assert hello["version"] == __version__
    assert (ended.code, "the master ended before its run began" in ended.out) == (14, True), ended.out
    assert "Traceback" not in ended.out


def test_a_run_that_begins_in_the_breath_of_the_hello_is_not_missed(tmp_path: Path) -> None:
    """The last worker that was waited for: the master's answer and the run's first message come in one go."""
    plan = profiles.encode(sample_runs.profile())
    with Impostor() as impostor, program(joining(str(impostor.port)), tmp_path) as worker:
        impostor.receive(ToMaster.HELLO.value)
        impostor.send("ack", {"index": 0})
        impostor.send(ToWorker.RUN.value, {"run_id": "r", "profile": plan, "index": 0, "count": 1})
        impostor.receive(ToMaster.PREPARED.value)
        assert "Unknown message type" not in worker.output
        worker.process.kill()  # it would wait for its master


def _kind(frames: tuple[bytes, ...]) -> Any:
    try:
        return msgpack.loads(frames[0], strict_map_key=False)[0] if len(frames) == 1 else None
    except (ValueError, TypeError, LookupError, RecursionError, msgpack.UnpackException):
        return None


# -- in one process ------------------------------------------------------------------------------------------------


def test_every_message_of_ours_has_a_shape() -> None:
    assert {kind.value for kind in ToMaster} <= set(FROM_WORKER)
    assert {kind.value for kind in ToWorker} <= set(FROM_MASTER)


_SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text() | st.binary()
_DATA = st.recursive(_SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner))


@given(kind=st.sampled_from(sorted({*FROM_WORKER, *FROM_MASTER, "x"})) | _SCALARS, data=_DATA, tail=st.binary())
def test_reading_frames_raises_malformed_and_nothing_else(kind: Any, data: Any, tail: bytes) -> None:
    with contextlib.suppress(OverflowError):  # msgpack has no larger integers
        frame = msgpack.dumps((kind, data, "me"))
        odd = ([b"me", frame + tail], [b"me", tail], [tail, frame], [b"me", frame, b""])
        for frames in ([b"me", frame], [frame], *odd):
            for read in (messages.from_worker, messages.from_master):
                with contextlib.suppress(messages.Malformed):
                    assert read(frames, ("x",)).kind == kind


def test_a_message_under_another_id_is_none() -> None:
    with pytest.raises(messages.Malformed) as error:
        messages.from_worker([b"me", msgpack.dumps(("quit", None, "you"))])
    assert str(error.value) == "a message 'quit' under another's id"
    assert messages.from_worker([b"me", msgpack.dumps(("quit", None, "me"))]).node_id == "me"


def test_what_is_known_of_strangers_is_bounded() -> None:
    strangers = Strangers()
    for number in range(1000):
        strangers.refuse(f"worker {number} was refused")
        strangers.drop(f"peer {number}", "'quit'")
        strangers.drop("one", "'quit'")
    assert (strangers.workers, strangers.messages) == (1000, 2000)
    assert len(strangers.sentences) == SENTENCES_MAX
    assert len(strangers.named) <= SENTENCES_MAX
    assert strangers.refusal == "worker 0 was refused"
