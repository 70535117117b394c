"""Runs of the real programs in processes of their own: `tokenswarm run`, plain `locust`, master and workers."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
LOCUST = str(Path(sys.executable).parent / "locust")
SAMPLES = REPO / "configs" / "samples"
LINUX = sys.platform.startswith("linux")
PATIENCE = 4  # times as long as a free machine needs: a busy one is slow, and what hangs hangs for ever
BUSY = {"loop-stall", "receive-lag", "send-lag", "cpu-saturated", "cpu-throttled", "error-bar", "users-idle"}
"""Doubts that a busy machine raises."""


@dataclass
class Finished:
    """A program that ended: its exit code, what it printed, and its results folder if it made one."""

    code: int
    out: str
    folder: Path | None

    @property
    def summary(self) -> dict[str, Any]:
        assert self.folder is not None, self.out
        return json.loads((self.folder / "summary.json").read_bytes())

    @property
    def manifest(self) -> dict[str, Any]:
        assert self.folder is not None, self.out
        return json.loads((self.folder / "manifest.json").read_bytes())

    @property
    def rows(self) -> list[dict[str, Any]]:
        assert self.folder is not None, self.out
        return [json.loads(line) for line in (self.folder / "requests.jsonl").read_bytes().splitlines()]

    def doubts(self) -> set[str]:
        return {doubt["code"] for doubt in self.summary["verdict"]["doubts"]}

    @property
    def went_well(self) -> bool:
        """0; or a verdict that says no more than how busy this machine was."""
        invalid = {doubt["code"] for doubt in self.summary["verdict"]["doubts"] if doubt["severity"] == "invalid"}
        return self.code == 0 or (self.code == 11 and invalid <= BUSY)


def environ(home: Path, **more: str) -> dict[str, str]:
    """A clean environment: a HOME of its own, nothing of the user's configuration."""
    kept = {key: os.environ[key] for key in ("PATH", "LANG", "LC_ALL") if key in os.environ}
    return {**kept, "HOME": str(home), "COLUMNS": "100", "PYTHONUNBUFFERED": "1", **more}


class Program:
    """A started program; `finish` waits for it, `kill` and `signal` go to its process id."""

    def __init__(self, command: list[str], home: Path, **more: str) -> None:
        self._home = home
        self._log = (home / f"log-{time.monotonic_ns()}.txt").open("w+", encoding="utf-8")
        self.process = subprocess.Popen(
            command,
            cwd=home,
            env=environ(home, **more),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    @property
    def output(self) -> str:
        return Path(self._log.name).read_text(encoding="utf-8")

    def await_output(self, pattern: str, seconds: float = 30) -> re.Match[str]:
        deadline = time.monotonic() + PATIENCE * seconds
        while time.monotonic() < deadline:
            if found := re.search(pattern, self.output):
                return found
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        raise AssertionError(f"no {pattern!r} in:\n{self.output}")

    def finish(self, seconds: float = 90) -> Finished:
        try:
            code = self.process.wait(timeout=PATIENCE * seconds)
        except subprocess.TimeoutExpired:
            self.stop()
            raise AssertionError(f"still running after {seconds} s:\n{self.output}") from None
        found = re.findall(r"results: (\S+)", self.output)
        return Finished(code, self.output, self._home / found[-1] if found else None)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._log.close()


@contextlib.contextmanager
def program(command: list[str], home: Path, **more: str) -> Iterator[Program]:
    started = Program(command, home, **more)
    try:
        yield started
    finally:
        started.stop()


def tokenswarm(*words: str) -> list[str]:
    return [sys.executable, "-m", "tokenswarm.cli", *words]


def locust(file: str, *words: str) -> list[str]:
    return [LOCUST, "-f", str(REPO / "locustfiles" / file), *words]


def run(command: list[str], home: Path, seconds: float = 90, **more: str) -> Finished:
    with program(command, home, **more) as started:
        return started.finish(seconds)


def free_port() -> int:
    """A port that nobody listens on. Below those that the kernel gives out by itself, where it may be taken again
    before it is bound: by a connection, or by a server of another test."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0]) if LINUX else 0
    for port in random.SystemRandom().sample(range(12_000, max(first, 12_000)), min(100, max(first - 12_000, 0))):
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def children(pid: int) -> list[int]:
    """Process ids of direct children, oldest first."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid:
                found.append(int(stat.parent.name))
    return sorted(found)


def eventually(holds: Callable[[], bool], seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if holds():
            return True
        time.sleep(0.05)
    return holds()
