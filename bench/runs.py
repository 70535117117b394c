"""One run: a client process against a sender, each on its own core; what the client saw beside what was sent."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bench.clients.measure import waited_ns
from bench.sender import BenchError, Pace, started

REPO = Path(__file__).resolve().parent.parent
DISTURBED = 0.05  # share of the time that a process waited for its core, from which on a row says so
OVERLOAD_S = 60.0  # how much longer than planned a client that can't keep up may take


@contextlib.contextmanager
def at_revision(revision: str | None, *paths: str) -> Iterator[Path | None]:
    """A folder with the library, or with these parts of the repository, as they were at a revision."""
    if revision is None:
        yield None
        return
    command = ["git", "archive", revision, *(paths or ("tokenswarm",))]
    done = subprocess.run(command, capture_output=True, check=False, cwd=REPO)
    if done.returncode:
        raise BenchError(f"of revision {revision} there is nothing: {done.stderr.decode().strip()}")
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as packed:
            packed.extractall(folder, filter="data")
        yield Path(folder)


class Cores(NamedTuple):
    client: int
    sender: int


class Run(NamedTuple):
    client: str
    streams: int
    result: dict[str, Any]  # the client's JSON line
    truth: dict[str, Any]  # the sender's
    sender_waited_s: float

    def off_ms(self, metric: str, quantile: str) -> float:
        """What the client says − what was sent."""
        seen, sent = self.result[metric], self.truth[metric]
        return float(seen[quantile] - sent[quantile]) / 1e6 if seen else math.nan

    @property
    def lateness_ms(self) -> dict[str, float]:
        return {name: value / 1e6 for name, value in self.truth["lateness_ns"].items()}

    @property
    def events_per_s(self) -> float:
        return float(self.result["window"]["events"] / self.result["window"]["s"])

    @property
    def cpu_us(self) -> float:
        """CPU of an event, all that the client process did in the window."""
        return float(self.result["window"]["cpu_s"] / self.result["window"]["events"]) * 1e6

    @property
    def system_us(self) -> float:
        """What of that the kernel did for it."""
        return float(self.result["window"]["system_s"] / self.result["window"]["events"]) * 1e6

    @property
    def cpu_ratio(self) -> float:
        return float(self.result["window"]["cpu_s"] / self.result["window"]["s"])

    @property
    def disturbed(self) -> bool:
        return bool(max(self.result["waited_s"], self.sender_waited_s) > DISTURBED * self.result["wall_s"])

    @property
    def exact(self) -> bool:
        """Everything that was sent was received, and nothing went wrong."""
        seen, sent = self.result, self.truth
        return seen["events"] == sent["tokens"] and seen["requests"] == sent["finished"] and not seen["errors"]


def two_cores() -> Cores:
    cores = sorted(os.sched_getaffinity(0)) if sys.platform.startswith("linux") else []
    if len(cores) < 2:
        raise BenchError("bench needs Linux and two cores: one for the sender, one for the client")
    return Cores(cores[0], cores[1])


def run(client: str, pace: Pace, streams: int, seconds: float, *more: str) -> Run:
    """Run one client (`tokenswarm-python`: with that reader) from its start to its end. Raises BenchError if it fails
    or hangs."""
    cores = two_cores()
    with started(pace, cores.sender) as sender:
        words = {
            "--port": sender.port,
            "--streams": streams,
            "--seconds": seconds,
            "--stream-s": pace.stream_s,
            "--tokens": pace.tokens,
            "--core": cores.client,
        }
        name, _, reader = client.partition("-")
        command = [sys.executable, "-m", f"bench.clients.{name}_client"]
        command += [str(word) for pair in words.items() for word in pair] + list(more)
        limit_s = seconds + 3 * pace.stream_s + OVERLOAD_S
        waited = waited_ns(sender.pid)
        try:
            environ = {**os.environ, "TOKENSWARM_READER": reader} if reader else None
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, cwd=REPO, timeout=limit_s, env=environ
            )
        except subprocess.TimeoutExpired:
            raise BenchError(f"the {client} client with {streams} streams did not end in {limit_s:.0f} s") from None
        if done.returncode or not done.stdout.strip():
            raise BenchError(f"the {client} client failed:\n{done.stderr[-2000:]}")
        truth = sender.truth()
        return Run(client, streams, json.loads(done.stdout), truth, (waited_ns(sender.pid) - waited) / 1e9)
