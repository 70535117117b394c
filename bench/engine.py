"""What a token costs the embedded engine: CPU of its process over its tokens, of streams out of step.

BENCH_AGAINST=REVISION: with that engine in turn; a machine that others use is as busy for both. The paced sender, C
that does little but send, is the floor: on loopback a send does the receiver's work in the kernel, too.
"""

from __future__ import annotations

import json
import os
import random
import select
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import psutil

from bench.goals import met, spread
from bench.results import table
from bench.runs import REPO, at_revision, two_cores
from bench.sender import BenchError, Pace, started

Say = Callable[[str], None]

STREAMS, ITL_MS, TOKENS = 500, 12.5, 240  # 40 000 tokens/s, for 3 s
RATIO = 0.15  # of the CPU a token of the engine before
TOKENS_PER_CORE_S = 40_000
TIMEOUT_S = 120.0
READ_BYTES = 1 << 18
FLOOR = "a send in C"
END = b"0\r\n\r\n"  # of a chunked answer


class Cost(NamedTuple):
    """One load against one engine."""

    engine: str
    streams: int
    cpu_us: float  # a token, all that the process did from the first request to the last token
    late_ms: tuple[float, float]  # of tokens, behind their due moments: p50, p99

    @property
    def per_core(self) -> float:
        return 1e6 / self.cpu_us


def measured(rounds: int, say: Say) -> str:
    """The section on the engine's cost a token."""
    began_s = time.monotonic()
    return section(run(rounds, os.environ.get("BENCH_AGAINST"), say), time.monotonic() - began_s)


def run(rounds: int, against: str | None, say: Say) -> list[Cost]:
    """`against`: a revision. The load of the goal, and a low one, engines in turn."""
    found = []
    with at_revision(against) as other:
        folders = {"this one": REPO} | ({against: other} if against is not None and other is not None else {})
        for _ in range(rounds):
            for streams, itl_ms in ((STREAMS, ITL_MS), (24, 20.0)):
                for name in (*folders, FLOOR):
                    cost = _floor(streams, itl_ms) if name == FLOOR else _one(name, folders[name], streams, itl_ms)
                    found.append(cost)
                    say(
                        f"{name:>10} {streams:4} streams: {cost.cpu_us:5.1f} µs a token, {cost.per_core:6.0f} tokens "
                        f"a core second, late {cost.late_ms[0]:.2f} / {cost.late_ms[1]:.2f} ms"
                    )
    return found


def _one(name: str, folder: Path, streams: int, itl_ms: float) -> Cost:
    cores = two_cores()
    command = [sys.executable, "-m", "tokenswarm.simulator", "--port", "0", "--preset", "paced", "--ttft-ms", "50"]
    command += ["--itl-ms", str(itl_ms)]
    environ = {**os.environ, "PYTHONPATH": str(folder)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder, env=environ) as process:
        try:
            os.sched_setaffinity(process.pid, {cores.sender})
            assert process.stdout is not None
            url = process.stdout.readline().partition(" on ")[2].strip()
            before_s = _cpu_s(process.pid)
            _read_all(int(url.rpartition(":")[2]), streams, itl_ms / 1e3)
            used_s = _cpu_s(process.pid) - before_s
            with urllib.request.urlopen(f"{url}/sim/truth?since=0", timeout=TIMEOUT_S) as page:
                totals: dict[str, Any] = json.load(page)["totals"]
        finally:
            process.kill()
    if totals["tokens_sent"] != streams * TOKENS:
        raise BenchError(f"{name}: {totals['tokens_sent']} tokens of {streams * TOKENS}")
    late = totals["lateness_s"]
    return Cost(name, streams, used_s / totals["tokens_sent"] * 1e6, (late["p50"] * 1e3, late["p99"] * 1e3))


def _floor(streams: int, itl_ms: float) -> Cost:
    pace = Pace(ttft_ms=50.0, itl_ms=itl_ms, tokens=TOKENS, jitter=0.0)
    with started(pace, two_cores().sender) as sender:
        before_s = _cpu_s(sender.pid)
        _read_all(sender.port, streams, itl_ms / 1e3)
        used_s = _cpu_s(sender.pid) - before_s
        late = sender.truth()["lateness_ns"]
    return Cost(FLOOR, streams, used_s / (streams * TOKENS) * 1e6, (late["p50"] / 1e6, late["p99"] / 1e6))


def _cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def _read_all(port: int, streams: int, itl_s: float) -> None:
    """Ask for an answer on each stream, at random moments within two gaps, and read until all have ended."""
    asked = {"model": "sim", "stream": True, "messages": [{"role": "user", "content": "hi"}], "max_tokens": TOKENS}
    body = json.dumps({**asked, "ignore_eos": True}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n"
    question = head + b"content-length: %d\r\n\r\n" % len(body) + body
    dice, poll, open_ = random.Random(streams), select.epoll(), dict[int, socket.socket]()
    room = bytearray(READ_BYTES)
    deadline_s = time.monotonic() + TIMEOUT_S

    def drain(wait_s: float) -> None:
        for fd, _ in poll.poll(wait_s):
            got = open_[fd].recv_into(room)
            if not got or room[max(0, got - len(END)) : got] == END:
                poll.unregister(fd)
                open_.pop(fd).close()

    for _ in range(streams):
        sock = socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
        sock.sendall(question)
        open_[sock.fileno()] = sock
        poll.register(sock.fileno(), select.EPOLLIN)
        until_s = time.monotonic() + dice.uniform(0, 2 * 2 * itl_s / streams + 0.001)
        while time.monotonic() < until_s:
            drain(0.0005)
    while open_:
        if time.monotonic() > deadline_s:
            raise BenchError(f"{len(open_)} of {streams} answers did not end in {TIMEOUT_S:.0f} s")
        drain(0.1)


def section(found: list[Cost], took_s: float) -> str:
    """What stands in RESULTS.md."""
    names = list(dict.fromkeys(cost.engine for cost in found))
    rows, kept = [], []
    for streams in dict.fromkeys(cost.streams for cost in found):
        of = {name: [one for one in found if (one.engine, one.streams) == (name, streams)] for name in names}
        for name in names:
            us = spread([one.cpu_us for one in of[name]])
            late = [median(one.late_ms[n] for one in of[name]) for n in (0, 1)]
            mine = [one.cpu_us for one in of[names[0]]]
            ratios = [a / one.cpu_us for a, one in zip(mine, of[name], strict=True)]
            per_core = f"{median(one.per_core for one in of[name]):,.0f}"
            cells = [str(streams), name, us.show(1) if us else "", per_core, f"{late[0]:.2f} / {late[1]:.2f}"]
            rows.append([*cells, f"{median(ratios):.2f}" if name != names[0] else ""])
        if streams == STREAMS:
            capacity = spread([one.per_core for one in of[names[0]]])
            verdict = met(capacity, TOKENS_PER_CORE_S, at_least=True)
            kept.append(f"* {TOKENS_PER_CORE_S:,} tokens of {streams} streams a second of one core: {verdict}.")
            floor = spread([a.cpu_us / b.cpu_us for a, b in zip(of[names[0]], of[FLOOR], strict=True)])
            kept.append(f"* Its CPU a token is {floor.show(2) if floor else '–'} times that of a send in C.")
            if len(names) > 2:
                ratio = spread([a.cpu_us / b.cpu_us for a, b in zip(of[names[0]], of[names[1]], strict=True)])
                kept.append(f"* CPU a token at most {RATIO} of the one before: {met(ratio, RATIO)}.")
    head = ("streams", "engine", "µs a token", "tokens a core second", "late, p50 / p99, ms", "this / that")
    rounds = len(found) // (2 * len(names))
    command = (f"BENCH_AGAINST={names[1]} " if len(names) > 2 else "") + f"python -m bench --engine {rounds}"
    return (
        f"## What a token costs the embedded engine\n\n`{command}`, {took_s:.0f} s, load average "
        f"{os.getloadavg()[1]:.1f}. {TOKENS} tokens a "
        f"stream, {STREAMS} streams of {1000 / ITL_MS:.0f} tokens/s and 24 of 50, engines in turn; "
        "CPU of the process from the first request to the last token.\n\n"
        + "\n".join(kept)
        + "\n\n"
        + table(head, rows)
    )
