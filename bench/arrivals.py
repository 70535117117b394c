"""An open loop at full speed: one worker of `tokenswarm run` against the paced sender, short answers, on a core each.

How late are arrivals sent, is any lost, and what does a request cost beside one of a closed loop of as many a second?
Runs of both kinds take turns. Sender and worker run before other groups of processes, where that is allowed.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from bench.goals import met, spread
from bench.results import table
from bench.runs import two_cores
from bench.sender import BenchError, Pace, Sender, started

Say = Callable[[str], None]

RATE, SLOWER = 2000, (1500, 1000)
PACE = Pace(ttft_ms=20, itl_ms=2, tokens=4, jitter=0.2)
USERS = round(RATE * PACE.stream_s)
WARMUP_S, WINDOW_S, EDGE_S = 3.0, 10.0, 1.0
START_S, END_S = 60.0, 90.0
LATE_MS = 1.0
RATIO = 1.2


class Run(NamedTuple):
    """One run: how many answers a second, what each cost its worker, how late arrivals were."""

    kind: str
    asked: int  # users, or a second
    per_s: float
    cpu_us: float
    late_ms: dict[str, float]  # p50, p99, max
    lost: int  # due, and neither answered nor told of
    failed: int
    waited: float  # of the time, for a core


def measured(rounds: int, say: Say) -> str:
    """The section on arrivals: closed and open loops in turn, then slower ones."""
    turns = [*(("closed", USERS), ("open", RATE)) * rounds, *(("open", rate) for rate in SLOWER)]
    runs = []
    for kind, asked in turns:
        one = _one(kind, asked)
        say(
            f"{kind:>6} {asked:5}: {one.per_s:.0f} a second, {one.cpu_us:.0f} µs of CPU each, late "
            f"{one.late_ms['p50']:.3f} / {one.late_ms['p99']:.3f} / {one.late_ms['max']:.3f} ms, {one.lost} lost, "
            f"waited {one.waited:.0%}"
        )
        runs.append(one)
    return section(runs)


def section(runs: list[Run]) -> str:
    """What stands in RESULTS.md."""
    pairs = dict.fromkeys((one.kind, one.asked) for one in runs)
    by_load = {pair: [one for one in runs if (one.kind, one.asked) == pair] for pair in pairs}
    closed, open_ = by_load["closed", USERS], by_load["open", RATE]
    ratio = spread([ours.cpu_us / theirs.cpu_us for ours, theirs in zip(open_, closed, strict=True)])
    late = spread([one.late_ms["p99"] for one in open_])
    head = ("load", "answers/s", "CPU a request, µs", "late p50, ms", "p99", "max", "lost, failed", "waited")
    return (
        f"## Arrivals at {RATE} a second\n\n`python -m bench --arrivals {len(open_)}`, load average "
        f"{os.getloadavg()[1]:.1f}. One worker of `tokenswarm run` on a core, the paced sender on another: "
        f"{PACE.tokens} tokens, the first after {PACE.ttft_ms:g} ms, then {PACE.itl_ms:g} ms apart. Late: sent − due. "
        "Waited: the share of the time that the worker was ready and something else had its core; where that is not "
        "small, lateness is the machine's.\n\n"
        f"* Late p99 at {RATE} a second: at most {LATE_MS:g} ms. {met(late, LATE_MS)}.\n"
        f"* CPU a request, of that of a closed loop of as many: at most {RATIO:g}. "
        f"{ratio.show(2) if ratio else '–'}: {met(ratio, RATIO)}.\n\n"
        + table(head, [_row(kind, asked, same) for (kind, asked), same in by_load.items()])
    )


def _row(kind: str, asked: int, same: list[Run]) -> list[str]:
    columns = [([one.per_s for one in same], 0), ([one.cpu_us for one in same], 0)]
    columns += [([one.late_ms[name] for one in same], 2) for name in ("p50", "p99", "max")]
    shown = [found.show(digits) for values, digits in columns if (found := spread(values))]
    lost = f"{sum(one.lost for one in same)}, {sum(one.failed for one in same)}"
    return [
        f"{asked} users" if kind == "closed" else f"{asked}/s",
        *shown,
        lost,
        f"{max(one.waited for one in same):.0%}",
    ]


def _one(kind: str, asked: int) -> Run:
    cores, words = two_cores(), ("--users" if kind == "closed" else "--rate", str(asked))
    with started(PACE, cores.sender) as sender, tempfile.TemporaryDirectory() as folder:
        ahead(sender.pid)
        process = _start(sender, words, folder)
        try:
            worker = worker_of(process)
            os.sched_setaffinity(worker.pid, {cores.client})
            ahead(worker.pid)
            cpu_s, seconds = _measured(worker, process)
            out, _ = process.communicate(timeout=END_S)
        except (subprocess.TimeoutExpired, psutil.Error) as error:
            raise BenchError(f"the run did not go as it should: {error}\n{process.communicate()[1][-2000:]}") from None
        finally:
            process.kill()
        return _told(kind, asked, json.loads(out), sender.truth(), cpu_s / seconds)


def _start(sender: Sender, words: tuple[str, ...], folder: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tokenswarm.cli", "run", "--host", f"http://127.0.0.1:{sender.port}"]
    command += [*words, "--duration", f"{WINDOW_S}s", "--warmup", f"{WARMUP_S}s", "--max-tokens", str(PACE.tokens)]
    command += [
        "--dataset-format",
        "synthetic",
        "--set",
        "dataset.synthetic.input_mean=16",
        "--no-probe",
        "--model",
        "bench",
    ]
    command += ["--set", "dataset.synthetic.conversations=1000000", "--json", "--results", folder]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def worker_of(process: subprocess.Popen[str]) -> psutil.Process:
    """Its one worker, once it is there."""
    deadline_s = time.monotonic() + START_S
    while time.monotonic() < deadline_s and process.poll() is None:
        found = [one for one in psutil.Process(process.pid).children() if "tokenswarm.cluster" in one.cmdline()]
        if found:
            return found[0]
        time.sleep(0.05)
    raise BenchError(f"no worker began:\n{process.communicate()[1][-2000:] if process.poll() is not None else ''}")


def _measured(worker: psutil.Process, process: subprocess.Popen[str]) -> tuple[float, float]:
    """(CPU, seconds) of the worker inside the steady window."""
    assert process.stderr is not None
    if not any("steady" in line for line in process.stderr):
        raise BenchError("the run had no steady window")
    time.sleep(EDGE_S)
    began_s, before = time.monotonic(), worker.cpu_times()
    time.sleep(WINDOW_S - 2 * EDGE_S)
    after = worker.cpu_times()
    return after.user + after.system - before.user - before.system, time.monotonic() - began_s


def _told(kind: str, asked: int, summary: dict[str, Any], truth: dict[str, Any], cores: float) -> Run:
    counts, late = summary["requests"], summary["instrument"]["send_lag_s"]
    per_s = summary["stages"][0]["throughput"]["requests_per_s"]
    lost = counts["intended"] - counts["ok"] - counts["failed"] - counts["censored"]
    if truth["finished"] != counts["ok"]:
        raise BenchError(f"{counts['ok']} answers were counted, {truth['finished']} were sent")
    late_ms = {name: 1e3 * (late[name] or 0.0) for name in ("p50", "p99", "max")}
    waited = summary["instrument"]["workers"][0]["waited_ratio"]
    return Run(kind, asked, per_s, 1e6 * cores / per_s, late_ms, lost, counts["failed"] + counts["censored"], waited)


def ahead(pid: int) -> None:
    """Before everything else that wants its core, but for the kernel's own threads, which a real-time class starves."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text("-20", encoding="ascii")
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, -20)
