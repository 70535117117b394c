"""How runs end that do not end by themselves: signals, deaths, full disks; what is kept of them."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from running import (
    SAMPLES,
    Finished,
    Program,
    children,
    environ,
    eventually,
    free_port,
    locust,
    program,
    run,
    tokenswarm,
)
from simulator_process import Server, simulator

from tokenswarm.measure import snapshot

FILES = {"requests.jsonl", "summary.json", "manifest.json", "report.md", "junit.xml", "metrics.txt", "report.html"}
PROFILE = """
name: test
target: http://127.0.0.1:9
dataset: {path: %s, output_tokens: {max: 12}}
load: {stages: [{users: 4, duration: 300s}]}
phases: {warmup: 500ms, drain: 60s}
workers: 2
telemetry: {engine_metrics: []}
"""
LONG = (
    "--max-tokens",
    "4000",
    "--set",
    "dataset.output_tokens.max=4000",
)  # 20 s an answer: beyond a signal's wait, within the drain


@pytest.fixture(scope="module")
def engine() -> Iterator[Server]:
    with simulator("--preset", "paced", "--ttft-ms", "20", "--itl-ms", "5") as server:
        yield server


def words(home: Path, engine: Server, *more: str) -> list[str]:
    path = home / "profile.yaml"
    path.write_text(PROFILE % (SAMPLES / "sharegpt.json"), encoding="utf-8")
    return tokenswarm("run", str(path), "--host", engine.url, "--no-probe", *more)  # what the engine counts is the load


def results(home: Path) -> Path:
    (folder,) = (path for path in (home / "results").iterdir() if not path.is_symlink())
    return folder


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether the process has a handler for the signal by now."""
    status = Path(f"/proc/{pid}/status").read_text()
    mask = int(next(line for line in status.splitlines() if line.startswith("SigCgt:")).split()[1], 16)
    return bool(mask >> (number - 1) & 1)


def workers_of(pid: int) -> list[int]:
    """Its children but for those of another kind, and those that are not what they will be yet."""
    found = []
    for child in children(pid):
        with contextlib.suppress(OSError):
            if b"tokenswarm.cluster" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(child)
    return found


def remote(home: Path, engine: Server, *more: str) -> tuple[list[str], list[str]]:
    """(command of a master of two, command of a worker)."""
    port = str(free_port())
    bind = ("--expect-workers", "2", "--bind", f"127.0.0.1:{port}", *more)
    return words(home, engine, *bind), tokenswarm("worker", "--master-host", "127.0.0.1", "--master-port", port)


def probes(finished: Finished) -> int:
    """Requests that the preflight sent."""
    return sum(one["requests"] for one in finished.manifest["engine"]["probes"])


def check_nothing_is_lost(finished: Finished, sent: int) -> None:
    requests = finished.summary["requests"]
    assert len(finished.rows) == requests["sent"] == sent - probes(finished) > 0
    assert requests["sent"] == sum(requests[kind] for kind in ("ok", "failed", "cancelled", "censored"))


# A signal


def test_a_worker_that_is_ended_hands_everything_over_and_the_others_go_on(engine: Server, tmp_path: Path) -> None:
    before = engine.truth()["totals"]["received"]
    master, worker = remote(tmp_path, engine, "--set", "load.stages.0.duration=4s")
    with program(worker, tmp_path) as first, program(worker, tmp_path) as second:
        with program(master, tmp_path) as started:
            started.await_output("steady")
            assert eventually(lambda: engine.truth()["totals"]["received"] > before + 20)
            first.process.send_signal(signal.SIGTERM)
            left = first.finish(30)
            finished = started.finish(60)
        stayed = second.finish(30)

    assert (left.code, stayed.code, finished.code) == (13, 0, 11), (left.out, finished.out)
    assert "ended by a signal (SIGTERM)" in left.out
    assert "Traceback" not in left.out + stayed.out + finished.out
    check_nothing_is_lost(finished, engine.truth()["totals"]["received"] - before)
    assert {row["worker"] for row in finished.rows} == {0, 1}
    assert (finished.summary["partial"], finished.summary["verdict"]["status"]) == (True, "INVALID")
    assert not {"worker-lost", "rows-mismatch", "run-trouble"} & finished.doubts()
    (doubt,) = (d for d in finished.summary["verdict"]["doubts"] if d["code"] == "worker-left")
    assert "was ended by a signal (SIGTERM)" in doubt["message"]
    assert f"pid {first.process.pid}" in doubt["message"]


@pytest.mark.parametrize("first", ["workers", "master"])
def test_one_stop_that_reaches_all_keeps_every_row_whoever_hears_first(
    first: str, engine: Server, tmp_path: Path
) -> None:
    before = engine.truth()["totals"]["received"]
    master, worker = remote(tmp_path, engine)
    with program(worker, tmp_path) as one, program(worker, tmp_path) as two, program(master, tmp_path) as started:
        started.await_output("steady")
        assert eventually(lambda: engine.truth()["totals"]["received"] > before + 20)
        order = [one, two, started] if first == "workers" else [started, one, two]
        for told in order:
            told.process.send_signal(signal.SIGTERM)
        finished = started.finish(60)
        codes = [one.finish(30).code, two.finish(30).code]

    assert (finished.code, codes) == (13, [13, 13]), finished.out
    check_nothing_is_lost(finished, engine.truth()["totals"]["received"] - before)
    assert finished.summary["partial"] is True
    assert "interrupted" in finished.doubts()
    assert not {"worker-lost", "worker-left"} & finished.doubts()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_a_signal_does_not_wait_for_long_answers_and_counts_them(
    number: signal.Signals, engine: Server, tmp_path: Path
) -> None:
    with program(words(tmp_path, engine, *LONG), tmp_path) as started:
        started.await_output("steady")
        started.process.send_signal(number)
        finished = started.finish(60)

    assert finished.code == 13, finished.out
    assert finished.summary["requests"]["by_outcome"] == {"censored": 4}
    assert Counter(row["outcome"] for row in finished.rows) == {"censored": 4}
    assert eventually(lambda: engine.truth()["totals"]["in_flight"] == 0)


def test_a_signal_in_the_drain_shortens_it(engine: Server, tmp_path: Path) -> None:
    rate = ("--set", "load.kind=constant", "--set", "load.stages=[{rate: 4, duration: 1s}]", "--warmup", "0s")
    more = (*LONG, *rate)  # of users the window would go on until one begins another request in it
    with program(words(tmp_path, engine, *more), tmp_path) as started:
        started.await_output("drain")
        started.process.send_signal(signal.SIGTERM)
        finished = started.finish(60)

    assert finished.code == 13, finished.out
    assert finished.summary["requests"]["by_outcome"] == {"censored": 4}
    assert len(finished.rows) == 4
    waited = re.match(r"still running (\d+)", finished.rows[0]["error"])
    assert waited is not None, finished.rows[0]
    assert 4 < int(waited[1]) < 30, "a signal's 5 s, and not the drain's 60"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
def test_a_second_signal_ends_it_at_once(number: signal.Signals, engine: Server, tmp_path: Path) -> None:
    with program(words(tmp_path, engine, *LONG), tmp_path) as started:
        started.await_output("steady")
        workers = children(started.process.pid)
        started.process.send_signal(number)
        started.await_output("interrupted: open streams")
        started.process.send_signal(number)
        finished = started.finish(30)

    assert finished.code == 13, finished.out
    assert "interrupted twice: stopping at once" in finished.out
    assert not (results(tmp_path) / "summary.json").exists()
    assert eventually(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() for pid in workers))


def while_the_page_is_made(started: Program) -> int:
    """The process that makes report.html, behind all other files: found, and stopped."""
    found: list[int] = []

    def is_there() -> bool:
        for child in children(started.process.pid):
            with contextlib.suppress(OSError):
                if b"tokenswarm.reports.html" in Path(f"/proc/{child}/cmdline").read_bytes():
                    os.kill(child, signal.SIGSTOP)
                    found.append(child)
        return found != []

    deadline = time.monotonic() + 60
    while not is_there() and time.monotonic() < deadline:
        time.sleep(0.01)
    return found[0]


@pytest.mark.parametrize("program_of", ["run", "locust"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_behind_the_load_changes_nothing(
    program_of: str, number: signal.Signals, engine: Server, tmp_path: Path
) -> None:
    short = words(tmp_path, engine, "--set", "load.stages.0.duration=1s", "--workers", "1")
    command = short if program_of == "run" else plain(engine, "-t", "3s")
    with program(command, tmp_path) as started:
        page = while_the_page_is_made(started)
        started.process.send_signal(number)
        started.await_output("the load had ended before this signal")
        os.kill(page, signal.SIGCONT)
        finished = started.finish(30)

    assert finished.went_well, finished.out
    assert finished.summary["partial"] is False
    assert "interrupted" not in finished.doubts() | set(finished.out.split())
    assert {path.name for path in results(tmp_path).iterdir()} == FILES


def test_a_second_signal_behind_the_load_names_what_is_missing(engine: Server, tmp_path: Path) -> None:
    with program(words(tmp_path, engine, "--set", "load.stages.0.duration=1s"), tmp_path) as started:
        page = while_the_page_is_made(started)
        started.process.send_signal(signal.SIGINT)
        started.await_output("the load had ended before this signal")
        started.process.send_signal(signal.SIGINT)
        finished = started.finish(30)

    folder = results(tmp_path)
    assert finished.code == 13, finished.out
    told = f"lacks report.html: `tokenswarm report results/{folder.name}` makes it"
    assert told in " ".join(finished.out.split())
    assert not Path(f"/proc/{page}").exists(), "nobody goes on with it"
    assert run(tokenswarm("report", f"results/{folder.name}"), tmp_path).code == 0
    assert {path.name for path in folder.iterdir()} == FILES


@pytest.mark.parametrize("name", ["run", "worker"])
def test_a_signal_before_there_is_load_is_13_with_a_word(name: str, engine: Server, tmp_path: Path) -> None:
    nobody = ("--master-host", "127.0.0.1", "--master-port", str(free_port()))
    command = words(tmp_path, engine) if name == "run" else tokenswarm("worker", *nobody)
    with program(command, tmp_path) as started:
        pid = started.process.pid
        assert eventually(lambda: catches(pid, signal.SIGTERM) or started.process.poll() is not None)
        started.process.send_signal(signal.SIGTERM)
        finished = started.finish(30)

    assert finished.code == 13, finished.out
    assert "interrupted" in finished.out
    assert "Traceback" not in finished.out


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_that_dies_before_the_load_is_14_by_its_id(
    number: signal.Signals, engine: Server, tmp_path: Path
) -> None:
    before = engine.truth()["totals"]["received"]
    with program(words(tmp_path, engine, "--set", "load.stages.0.duration=2s"), tmp_path) as started:
        assert eventually(lambda: workers_of(started.process.pid) != [])
        victim = workers_of(started.process.pid)[0]
        os.kill(victim, number)
        finished = started.finish(30)

    assert finished.code == 14, finished.out
    told = f"a worker process (pid {victim}) ended with signal {number.value}, before the load began: none was sent"
    assert told in finished.out
    assert "Traceback" not in finished.out
    assert engine.truth()["totals"]["received"] == before


def test_a_worker_that_is_ended_before_the_run_may_be_replaced(engine: Server, tmp_path: Path) -> None:
    master, worker = remote(tmp_path, engine, "--set", "load.stages.0.duration=2s")
    with program(master, tmp_path) as started, program(worker, tmp_path) as first:
        started.await_output("waiting for 2 workers")
        joined = psutil.Process(first.process.pid)
        assert eventually(lambda: any(c.status == psutil.CONN_ESTABLISHED for c in joined.net_connections("tcp")))
        time.sleep(1.0)  # its hello and the answer
        first.process.send_signal(signal.SIGTERM)
        assert first.finish(30).code == 13
        with program(worker, tmp_path), program(worker, tmp_path):
            finished = started.finish(60)

    assert finished.went_well, finished.out
    assert not {"worker-refused", "worker-lost", "worker-left"} & finished.doubts()
    assert "no worker of this run" not in finished.out
    phases = Counter(row["phase"] for row in finished.rows)
    assert phases["warmup"] < phases["steady"], "of 0.5 s and of 2 s: nobody waited for users of the one that left"


@pytest.mark.parametrize("keys", [("key", ""), ("key", "key")], ids=["not begun", "whole"])
def test_a_worker_afar_tells_what_became_of_its_run_and_leaves_nothing_behind(
    keys: tuple[str, str], engine: Server, tmp_path: Path
) -> None:
    """One that lacks what the profile names says so itself, with its code; the others speak of no rows."""
    header = ("--set", "engine.headers_from_env={X-Key: KEY_OF_TEST}", "--set", "load.stages.0.duration=1s")
    master, worker = remote(tmp_path, engine, *header)
    afar, temporary = tmp_path / "afar", tmp_path / "tmp"
    for folder in (afar, temporary):
        folder.mkdir()
    with contextlib.ExitStack() as stack:
        started = stack.enter_context(program(master, tmp_path, KEY_OF_TEST="key"))
        given = [{"TMPDIR": str(temporary), **({"KEY_OF_TEST": key} if key else {})} for key in keys]
        joined = [stack.enter_context(program(worker, afar, **one)) for one in given]
        finished, ended = started.finish(60), [one.finish(30) for one in joined]

    assert list(temporary.iterdir()) == []
    if all(keys):
        assert [one.code for one in ended] == [0, 0]
        return
    assert (finished.code, [one.code for one in ended]) == (15, [14, 15]), finished.out
    assert "says why" in ended[0].out
    assert "rows are in" not in ended[0].out
    assert "KEY_OF_TEST (for header X-Key) is not set" in ended[1].out


def test_a_signal_while_the_target_is_asked_is_one_sentence(tmp_path: Path) -> None:
    with simulator("--preset", "instant", "--fault", "stall:1:1") as server:
        command = [word for word in words(tmp_path, server) if word != "--no-probe"]
        with program(command, tmp_path) as started:
            assert eventually(lambda: server.truth()["totals"]["received"] == 1)
            started.process.send_signal(signal.SIGTERM)
            finished = started.finish(30)

    assert finished.code == 13, finished.out
    assert finished.out == "tokenswarm: interrupted before the load began: none was sent\n"


@pytest.mark.parametrize("load", ["users", "rate", "locust", "edited"])
def test_a_data_set_that_is_changed_under_a_run_ends_it_by_name(load: str, engine: Server, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("".join(f'{{"prompt": "Tell me of number {n}.", "output_tokens": 12}}\n' for n in range(200)))
    rate = ("--set", "load.kind=constant", "--set", "load.stages=[{rate: 20, duration: 15s}]")
    short = ("--set", "load.stages.0.duration=15s")
    command = [*words(tmp_path, engine, *(rate if load == "rate" else short)), "--dataset", str(data)]
    if load == "locust":
        command = [word if word != str(SAMPLES / "sharegpt.json") else str(data) for word in plain(engine, "-t", "15s")]
    with program(command, tmp_path) as started:
        started.await_output("steady")
        with data.open("r+") as file:
            file.write(data.read_text().replace("Tell", "Told") if load == "edited" else "")
            file.truncate()
        finished = started.finish(60)

    assert finished.code == 11, finished.out
    assert "Traceback" not in finished.out
    (doubt,) = (d for d in finished.summary["verdict"]["doubts"] if d["code"] == "worker-left")
    assert "lost its data set: " in doubt["message"]
    assert "the file was changed while it was in use" in doubt["message"]
    assert finished.summary["partial"] is True
    assert len(finished.rows) == finished.summary["requests"]["sent"] > 0


def test_a_folder_that_is_called_latest_stays_and_is_told(engine: Server, tmp_path: Path) -> None:
    (tmp_path / "results" / "latest").mkdir(parents=True)
    finished = run(words(tmp_path, engine, "--set", "load.stages.0.duration=1s"), tmp_path)

    assert finished.went_well, finished.out
    assert finished.folder is not None
    told = f"results/latest is no link, and stays what it is: this run is in results/{finished.folder.name}"
    assert told in " ".join(finished.out.split())
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == [finished.folder.name, "latest"]


# Plain Locust


def plain(engine: Server, *more: str) -> list[str]:
    words = (
        "--headless",
        "--no-probe",
        "-u",
        "4",
        "-r",
        "4",
        "--host",
        engine.url,
        "--dataset",
        str(SAMPLES / "sharegpt.json"),
    )
    return locust("chat.py", *words, *more)


def on_a_terminal(command: list[str], home: Path) -> tuple[int, str]:
    """(exit code, what is on a terminal of 100 columns)."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command, cwd=home, env=environ(home, TERM="xterm"), stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    read = b""
    try:
        while block := os.read(ours, 65536):
            read += block
    except OSError:  # Linux says EIO when the last writer has gone
        pass
    finally:
        os.close(ours)
        process.kill()
    return process.wait(), read.decode()


def test_on_a_terminal_locusts_tables_stay_whole_and_the_verdict_is_last(engine: Server, tmp_path: Path) -> None:
    code, screen = on_a_terminal(plain(engine, "-t", "4s", "--max-tokens", "8"), tmp_path)

    assert code in (0, 11), screen  # the verdict of seconds on a busy machine
    assert "━" not in screen, "no bar where Locust's tables are"
    heads = [line for line in screen.splitlines() if "# reqs" in line]
    assert len(heads) >= 3
    assert all(line.startswith("Type ") for line in heads), heads
    assert "No run time limit set" not in screen
    assert "Run time limit set to 4 seconds" in screen
    assert screen.index("verdict: ") > screen.rindex("Aggregated")


def test_with_only_its_summary_the_bar_is_there(engine: Server, tmp_path: Path) -> None:
    code, screen = on_a_terminal(plain(engine, "-t", "2s", "--max-tokens", "8", "--only-summary"), tmp_path)
    assert (code in (0, 11), "━" in screen) == (True, True), screen
    assert screen.index("verdict: ") > screen.rindex("Aggregated")


def test_a_mistake_stands_below_locusts_empty_tables(engine: Server, tmp_path: Path) -> None:
    told = run(plain(engine, "-t", "2s", "--dataset", "absent.json"), tmp_path)
    assert told.code == 15
    assert "absent.json" in told.out.splitlines()[-1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGQUIT])
def test_two_signals_end_plain_locust_at_once(number: signal.Signals, engine: Server, tmp_path: Path) -> None:
    with program(plain(engine, *LONG), tmp_path) as started:
        started.await_output("steady")
        started.process.send_signal(number)
        started.await_output("drain")
        started.process.send_signal(number)
        finished = started.finish(30)

    assert finished.code == 13, finished.out
    assert "interrupted twice" in finished.out
    assert "Traceback" not in finished.out
    assert not (results(tmp_path) / "summary.json").exists()


SLOW_END = """
import time
from locust import events
from tokenswarm.cluster import plugin
from tokenswarm.cluster.users import ReplayUser

class Chat(ReplayUser):
    pass

@events.quit.add_listener
def linger(**_):
    print("the run is over", flush=True)
    for _ in range(300):
        time.sleep(0.1)
    print("nobody heard it", flush=True)
"""


def test_a_ctrl_c_behind_a_run_that_one_has_ended_is_heard_again(engine: Server, tmp_path: Path) -> None:
    (tmp_path / "slow_end.py").write_text(SLOW_END, encoding="utf-8")
    command = [*locust("chat.py")[:2], str(tmp_path / "slow_end.py"), *plain(engine, "-t", "60s")[3:]]
    with program(command, tmp_path) as started:
        started.await_output("steady")
        started.process.send_signal(signal.SIGINT)
        started.await_output("the run is over")
        started.process.send_signal(signal.SIGINT)
        finished = started.finish(20)

    assert (results(tmp_path) / "summary.json").exists()
    assert "nobody heard it" not in finished.out
    assert finished.code != 0


BROKEN = """
from tokenswarm.cluster import plugin, probes
from tokenswarm.cluster.users import ReplayUser

class Chat(ReplayUser):
    pass

def sample(self):
    raise KeyError("a bug of ours")

probes.Probes.sample = sample
"""


def test_a_bug_in_a_worker_ends_the_run_at_once_and_by_name(engine: Server, tmp_path: Path) -> None:
    """Silence would be waited for: through the window, and two minutes for a final report."""
    (tmp_path / "broken.py").write_text(BROKEN, encoding="utf-8")
    command = [*locust("chat.py")[:2], str(tmp_path / "broken.py"), *plain(engine, "-t", "300s")[3:]]
    with program(command, tmp_path) as started:
        finished = started.finish(15)

    assert finished.code == 11, finished.out
    assert "a bug in tokenswarm stopped this worker" in finished.out
    assert "worker-lost" in finished.doubts()
    assert (results(tmp_path) / "summary.json").exists()


def test_a_worker_of_plain_locust_hands_over_too(engine: Server, tmp_path: Path) -> None:
    before, port = engine.truth()["totals"]["received"], str(free_port())
    worker = locust("chat.py", "--worker", "--master-host", "127.0.0.1", "--master-port", port)
    bind = ("--master", "--master-bind-host", "127.0.0.1", "--master-bind-port", port, "--expect-workers", "2")
    with program(worker, tmp_path) as first, program(worker, tmp_path) as second:
        with program(plain(engine, *bind, "-t", "4s", "--warmup", "1s", "--max-tokens", "8"), tmp_path) as m:
            m.await_output("steady")
            first.process.send_signal(signal.SIGTERM)
            left = first.finish(30)
            finished = m.finish(60)
        stayed = second.finish(30)

    assert (left.code, stayed.code, finished.code) == (13, 0, 11), left.out + finished.out
    check_nothing_is_lost(finished, engine.truth()["totals"]["received"] - before)
    assert "worker-left" in finished.doubts()


# A death


def merge(home: Path, *folders: Path) -> Finished:
    return run(tokenswarm("report", "--merge", *map(str, folders)), home, 60)


def eventually_rows(home: Path) -> Path:
    assert eventually(lambda: len(list((home / "results").glob("*/.spool/worker-*.jsonl"))) == 2, 30)
    spool = results(home) / ".spool"
    full = [spool / f"worker-{index}.jsonl" for index in (0, 1)]
    assert eventually(lambda: all(path.stat().st_size for path in full) and all(map(counted, full)), 20)
    return spool


def counted(path: Path) -> int:
    """Successful requests of the window in the newest report beside the rows."""
    try:
        blocks = snapshot.decode(path.with_suffix(".live-0.part").read_bytes()).blocks
    except (OSError, snapshot.SnapshotError):  # not yet, or being written
        return 0
    return sum(block.ok for block in blocks if block.phase == "steady")


def test_rows_of_a_killed_worker_are_on_disk_and_come_back(engine: Server, tmp_path: Path) -> None:
    with program(words(tmp_path, engine, "--set", "load.stages.0.duration=5s"), tmp_path) as started:
        started.await_output("steady")
        spool = eventually_rows(tmp_path)
        victim = children(started.process.pid)[0]
        dead = json.loads(next(p for p in spool.glob("*.json") if f'"pid":{victim}' in p.read_text()).read_text())
        os.kill(victim, signal.SIGKILL)
        finished = started.finish(60)

    assert finished.code == 11, finished.out
    assert f"pid {victim}" in finished.out
    (lost,) = (d for d in finished.summary["verdict"]["doubts"] if d["code"] == "worker-lost")
    assert "its process ended with signal 9" in lost["message"], "known at once, and not by its silence"
    assert {row["worker"] for row in finished.rows} == {1 - dead["worker"]}
    assert f"tokenswarm report --merge results/{finished.folder.name}" in finished.out
    left = rows_of(spool / f"worker-{dead['worker']}.jsonl")
    with (spool / f"worker-{dead['worker']}.jsonl").open("ab") as file:
        file.write(b'{"id": "torn')
    told = merge(tmp_path, finished.folder)
    again = merge(tmp_path, finished.folder)

    assert (told.code, again.code) == (0, 0), told.out
    assert "1 line was torn and is left out" in told.out
    by_worker = Counter(row["worker"] for row in finished.rows)
    assert by_worker[dead["worker"]] == len(left) > 0
    assert len({row["id"] for row in finished.rows}) == len(finished.rows)
    ended = sum(finished.summary["requests"][kind] for kind in ("ok", "failed", "cancelled", "censored"))
    assert abs(len(finished.rows) - ended) <= 4, "counts and rows are of the same second"
    assert finished.summary["partial"] is True


def test_a_worker_that_was_lost_for_a_while_hands_its_rows_over(engine: Server, tmp_path: Path) -> None:
    before = engine.truth()["totals"]["received"]
    with program(words(tmp_path, engine, "--set", "load.stages.0.duration=14s"), tmp_path) as started:
        started.await_output("steady")
        eventually_rows(tmp_path)
        victim = children(started.process.pid)[0]
        os.kill(victim, signal.SIGSTOP)
        try:
            started.await_output("was lost during the run")
        finally:
            os.kill(victim, signal.SIGCONT)
        finished = started.finish(60)

    assert finished.code == 11, finished.out
    (doubt,) = (d for d in finished.summary["verdict"]["doubts"] if d["code"] == "worker-lost")
    assert "it came back, and handed its rows over" in doubt["message"]
    check_nothing_is_lost(finished, engine.truth()["totals"]["received"] - before)
    assert {row["worker"] for row in finished.rows} == {0, 1}
    assert not (finished.folder / ".spool").exists()


@pytest.fixture(scope="module")
def dead_run(engine: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results folder of a run whose master was killed."""
    home = tmp_path_factory.mktemp("dead")
    with program(words(home, engine), home) as started:
        started.await_output("steady")
        eventually_rows(home)
        early = merge(home, results(home))
        assert (early.code, "is still at work" in early.out) == (15, True), early.out
        workers = children(started.process.pid)
        os.kill(started.process.pid, signal.SIGKILL)
        started.process.wait()
        assert eventually(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() for pid in workers), 20)
    return results(home)


@pytest.fixture
def dead(dead_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dead_run, tmp_path / dead_run.name))


def test_a_run_whose_master_was_killed_comes_back_as_a_partial_one(dead: Path, tmp_path: Path) -> None:
    left = [row for index in (0, 1) for row in rows_of(dead / ".spool" / f"worker-{index}.jsonl")]
    told = merge(tmp_path, dead)
    first = (dead / "summary.json").read_bytes(), (dead / "requests.jsonl").read_bytes()

    assert told.code == 0, told.out
    assert json.loads((dead / "manifest.json").read_bytes())["command"][:2] == ["tokenswarm", "run"]
    rows = rows_of(dead / "requests.jsonl")
    assert Counter(row["worker"] for row in rows) == Counter(row["worker"] for row in left)
    assert len(rows) == len(left) > 0
    summary = json.loads(first[0])
    assert (summary["partial"], summary["verdict"]["status"]) == (True, "INVALID")
    codes = {doubt["code"] for doubt in summary["verdict"]["doubts"]}
    assert "never-ended" in codes
    assert not {"worker-missing", "reports-missing", "final-report-missing", "accounting-mismatch"} & codes
    assert summary["stages"][0]["concurrency"] == 4
    ok = sum(row["outcome"] == "ok" for row in rows)
    assert abs(summary["requests"]["ok"] - ok) <= 4
    assert summary["latency"]["ttft_s"]["n"] == summary["requests_steady"]["ok"] > 0
    assert json.loads((dead / "manifest.json").read_bytes())["ended"]
    assert "never-ended" in (dead / "report.html").read_text(encoding="utf-8")
    assert merge(tmp_path, dead).code == 0
    assert ((dead / "summary.json").read_bytes(), (dead / "requests.jsonl").read_bytes()) == first


def test_folders_of_remote_workers_are_added_one_after_the_other(dead: Path, tmp_path: Path) -> None:
    far = tmp_path / "far"
    far.mkdir()
    for path in list((dead / ".spool").glob("worker-1.*")):
        path.rename(far / path.name)
    alone = merge(tmp_path, dead)
    n = len(rows_of(dead / "requests.jsonl"))
    both = merge(tmp_path, dead, far)

    assert (alone.code, both.code) == (0, 0), both.out
    assert "nothing of worker 1 is here" in " ".join(alone.out.split())
    assert "nothing of worker" not in both.out
    assert len(rows_of(dead / "requests.jsonl")) == n + len(rows_of(far / "worker-1.jsonl")) > n
    assert {
        worker["worker"] for worker in json.loads((dead / "summary.json").read_bytes())["instrument"]["workers"]
    } == {
        0,
        1,
    }


def test_what_can_not_be_merged_is_refused(dead: Path, tmp_path: Path) -> None:
    other = tmp_path / "20200101-000000-aaaa"
    shutil.copytree(dead, other)
    manifest = json.loads((other / "manifest.json").read_bytes())
    (other / "manifest.json").write_text(json.dumps({**manifest, "run_id": other.name}))
    empty = tmp_path / "empty"
    empty.mkdir()
    refusals = {
        "are different runs": merge(tmp_path, dead, other),
        f"belongs to run {dead.name}, not to {other.name}": merge(tmp_path, other),
        "neither a run nor what a worker left": merge(tmp_path, dead, empty),
        "none of them holds a manifest.json": merge(tmp_path, empty),
    }
    for sentence, told in refusals.items():
        assert told.code == 15, told.out
        assert sentence in told.out
        assert told.out.count("\n") == 1
    assert not (dead / "requests.jsonl").exists()


# A disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    mount = tmp_path / "results"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(mount)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(command, check=False).returncode:
        pytest.skip("a tmpfs needs root and the right to mount")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True)


def rows_on(disk: Path) -> set[bytes]:
    """Whole rows, wherever they are: a worker for whose first ones there was no room has an empty file, or none."""
    files = [path.read_bytes() for path in disk.rglob("*.jsonl")]
    return {line for file in files for line in file.splitlines(keepends=True) if line.endswith(b"\n")}


def test_of_a_folder_that_was_removed_the_rows_alone_are_lost(engine: Server, tmp_path: Path) -> None:
    command = words(tmp_path, engine, "--set", "load.stages.0.duration=3s")
    with program(command, tmp_path) as started:
        started.await_output("steady")
        shutil.rmtree(tmp_path / "results")
        finished = started.finish(60)

    assert (finished.code, "Traceback" in finished.out) == (16, False), finished.out
    assert (
        "No such file or directory; requests are still sent and counted, but requests.jsonl will lack" in finished.out
    )
    assert "rows-mismatch" in finished.doubts()
    assert finished.summary["requests"]["ok"] > 0
    assert {path.name for path in results(tmp_path).iterdir()} >= {"summary.json", "manifest.json", "report.md"}


def test_a_full_disk_is_one_sentence_and_16_and_nothing_is_miscounted(
    small_disk: Path, engine: Server, tmp_path: Path
) -> None:
    before = engine.truth()["totals"]
    more = ("--set", "load.stages=[{users: 24, duration: 3s}]")
    with program(words(tmp_path, engine, *more), tmp_path) as started:
        started.await_output("rows can't be written any more")
        kept = rows_on(small_disk)
        spare = shutil.disk_usage(small_disk).free - 90_000  # room for the reports, none for a second's rows
        (small_disk / "other").write_bytes(bytes(max(0, spare)))
        finished = started.finish(60)
    after = engine.truth()["totals"]

    assert finished.code == 16, finished.out
    assert "Traceback" not in finished.out
    plain = " ".join(finished.out.split())
    assert plain.count("rows can't be written any more: No space left on device; requests are still") >= 1
    assert "worker-lost" not in finished.out
    assert f"rows for {after['received'] - before['received'] - probes(finished)} requests that ended" in plain
    assert not re.search(r"wrote \d+ rows, \d+ arrived", plain), "that they are not there was said"
    assert kept, "the disk holds a second's rows of one worker"
    assert kept <= rows_on(small_disk), "what the master could not write is not deleted"
    for path in small_disk.rglob("*.jsonl"):
        assert path.read_bytes()[-1:] in (b"\n", b""), "no row is cut in half"
