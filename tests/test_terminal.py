"""A run whose terminal closes, whose reader leaves, whose stdout is full: what it measured is on disk all the same."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import PATIENCE, SAMPLES, environ, eventually, free_port, locust, program, run, tokenswarm
from simulator_process import Server, simulator
from test_ends import results

from tokenswarm.terminal import end_signals

PROFILE = """
name: test
purpose: smoke
target: http://127.0.0.1:9
dataset: {path: %s, output_tokens: {max: 4}}
load: {stages: [{users: 2, duration: %s}]}
phases: {warmup: 0s, drain: 5s}
telemetry: {engine_metrics: []}
"""
FILES = {"summary.json", "manifest.json", "requests.jsonl", "report.html", "report.md", "junit.xml", "metrics.txt"}


@pytest.fixture(scope="module")
def engine() -> Iterator[Server]:
    with simulator("--preset", "paced", "--ttft-ms", "20", "--itl-ms", "5") as server:
        yield server


def words(home: Path, engine: Server, duration: str = "2s") -> list[str]:
    path = home / "profile.yaml"
    path.write_text(PROFILE % (SAMPLES / "sharegpt.json", duration), encoding="utf-8")
    return tokenswarm("run", str(path), "--host", engine.url)


def all_there(home: Path) -> bool:
    folder = results(home)
    return {path.name for path in folder.iterdir()} == FILES and (folder / "requests.jsonl").stat().st_size > 0


@pytest.mark.parametrize("left", ["stdout", "stderr"])
def test_who_reads_a_pipe_may_leave(left: str, engine: Server, tmp_path: Path) -> None:
    """As in `tokenswarm run … 2>&1 | head -1`."""
    reader, writer = os.pipe()
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL} | {left: writer}
    with subprocess.Popen(words(tmp_path, engine), cwd=tmp_path, env=environ(tmp_path), **streams) as started:  # type: ignore[call-overload]
        os.close(writer)
        if left == "stderr":
            os.read(reader, 1)  # it has begun
        os.close(reader)
        code = started.wait(60 * PATIENCE)

    assert (code in (0, 11), all_there(tmp_path)) == (True, True), code


def test_a_terminal_that_closes_ends_the_run_in_order(engine: Server, tmp_path: Path) -> None:
    """The kernel sends SIGHUP to what stands in its foreground, and takes no more words."""
    command, home = words(tmp_path, engine, "300s"), environ(tmp_path)
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.execvpe(command[0], command, home)
    shown = b""
    while b" ok, 0 failed" not in shown:
        shown += os.read(terminal, 4096)
    os.close(terminal)
    watch = threading.Timer(60 * PATIENCE, os.kill, (pid, signal.SIGKILL))
    watch.start()
    _, status = os.waitpid(pid, 0)
    watch.cancel()

    assert (os.waitstatus_to_exitcode(status), all_there(tmp_path)) == (13, True)
    assert b'"partial": true' in (results(tmp_path) / "summary.json").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGQUIT])
def test_plain_locust_hears_of_it_too(number: signal.Signals, engine: Server, tmp_path: Path) -> None:
    command = locust("chat.py", "--headless", "--host", engine.url, "--users", "2", "--run-time", "300s")
    with program([*command, "--dataset", str(SAMPLES / "sharegpt.json")], tmp_path) as started:
        started.await_output(r"steady, 2 users")
        started.process.send_signal(number)
        finished = started.finish()

    assert (finished.code, finished.summary["partial"]) == (13, True), finished.out


def test_nohup_is_kept(engine: Server, tmp_path: Path) -> None:
    with program(["nohup", *words(tmp_path, engine, "4s")], tmp_path) as started:
        started.await_output(r"steady, 2 users")
        started.process.send_signal(signal.SIGHUP)
        finished = started.finish()

    assert (finished.went_well, finished.summary["partial"]) == (True, False), finished.out


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_that_is_ignored_asks_for_nothing(number: signal.Signals) -> None:
    before = signal.signal(number, signal.SIG_IGN)
    try:
        ignored = end_signals()
        signal.signal(number, signal.SIG_DFL)
        heard = end_signals()
    finally:
        signal.signal(number, before)
    assert set(heard) == {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT}
    assert set(heard) - set(ignored) == {number}


def test_a_full_disk_under_stdout_is_16_and_the_files_are_there(engine: Server, tmp_path: Path) -> None:
    with Path("/dev/full").open("wb") as full, (tmp_path / "said").open("wb") as said:
        code = subprocess.run(
            words(tmp_path, engine), cwd=tmp_path, env=environ(tmp_path), stdout=full, stderr=said, check=False
        ).returncode

    told = (tmp_path / "said").read_text("utf-8")
    assert (code, all_there(tmp_path)) == (16, True)
    assert f"tokenswarm: stdout can't be written: {os.strerror(errno.ENOSPC)}\n" in told
    assert "Traceback" not in told


@pytest.fixture
def full_pipe() -> Iterator[int]:
    """The end to write to of a pipe that nobody reads and that takes no more."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while os.write(writer, bytes(65_536)):
            pass
    with contextlib.suppress(BlockingIOError):
        while os.write(writer, bytes(1)):
            pass
    os.set_blocking(writer, True)
    yield writer
    os.close(writer)
    os.close(reader)


@pytest.mark.parametrize("deaf", ["stdout", "stderr", "all of plain Locust"])
def test_who_reads_a_pipe_may_stand_still(deaf: str, full_pipe: int, engine: Server, tmp_path: Path) -> None:
    """As a pager, or a log collector that hangs. Words wait or are lost; the load, the files and signals do not."""
    command = words(tmp_path, engine)
    if deaf == "all of plain Locust":
        command = locust("chat.py", "--headless", "--host", engine.url, "--users", "2", "--run-time", "3s")
        command += ["--warmup", "1s", "--dataset", str(SAMPLES / "sharegpt.json")]
    streams = {"stdout": full_pipe, "stderr": full_pipe}
    if deaf in streams:
        streams = dict.fromkeys(streams, subprocess.DEVNULL) | {deaf: full_pipe}
    with subprocess.Popen(command, cwd=tmp_path, env=environ(tmp_path), **streams) as started:  # type: ignore[call-overload]
        try:
            if deaf != "stderr":  # stdout may be the result, so it is waited for; whoever has had enough says so
                assert eventually(lambda: (tmp_path / "results" / "latest").exists())
                time.sleep(1)
                started.send_signal(signal.SIGTERM)
            code = started.wait(15 * PATIENCE)
        finally:
            started.kill()

    assert (code in ((13,) if deaf == "stdout" else (0, 11, 13)), all_there(tmp_path)) == (True, True), code


def test_a_character_that_the_terminal_lacks_costs_nothing(engine: Server, tmp_path: Path) -> None:
    """Nor does a folder whose name is no text there: in the locale C an umlaut is two halves of something."""
    command = [*words(tmp_path, engine), "--results", "müller"]
    surroundings = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    done = run(command, tmp_path, COLUMNS="0", **surroundings)
    assert "verdict:" in done.out, "a width of 0 shows nothing"
    command = json.loads((tmp_path / "müller" / "latest" / "manifest.json").read_bytes())["command"]
    assert (done.code in (0, 11), "Traceback" in done.out, command[-1]) == (True, False, "müller"), done.out


@pytest.mark.parametrize(
    ("module", "where"),
    [
        ("exporters.load", "a full disk"),
        ("exporters.load", "a pipe that nobody reads"),
        ("exporters.gpu", "closed"),
        ("exporters.ollama", "a full disk"),
        ("tokenswarm.cli", "a full disk"),
    ],
)
def test_an_exporter_serves_whatever_becomes_of_its_words(module: str, where: str) -> None:
    reader, writer = os.pipe()
    if where == "a pipe that nobody reads":
        os.close(reader)
    stream = os.open("/dev/full", os.O_WRONLY) if where == "a full disk" else writer
    port = free_port()
    listen = ("simulate", "--port", str(port)) if module == "tokenswarm.cli" else ("--listen", f"127.0.0.1:{port}")
    exporter = [sys.executable, "-m", module, *listen]
    command = ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *exporter] if where == "closed" else exporter
    with subprocess.Popen(command, stdout=stream, stderr=stream) as started:
        assert eventually(lambda: started.poll() is not None or listens(port))
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
            assert answer.status == 200
        started.send_signal(signal.SIGTERM)
        assert started.wait(60 * PATIENCE) == 0


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


def test_no_disk_under_stderr_and_no_stdout_at_all_cost_nothing(engine: Server, tmp_path: Path) -> None:
    command = ["sh", "-c", 'exec "$@" >&- 2>/dev/full', "sh", *words(tmp_path, engine)]
    code = subprocess.run(command, cwd=tmp_path, env=environ(tmp_path), check=False).returncode
    assert (code in (0, 11), all_there(tmp_path)) == (True, True), code
