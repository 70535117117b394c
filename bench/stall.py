"""A server that stands still: 500 Poisson arrivals a second for a minute, the engine stopped (SIGSTOP) for 10 s of it.

Once with as many requests under way as there are descriptors, once with 1000 at most. What is told of it is held
against the rows: who was due meanwhile, who was dropped, and whether so many were under way then.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from bench.arrivals import ahead, worker_of
from bench.results import table
from bench.runs import two_cores
from bench.sender import BenchError, Pace, started
from tokenswarm.load.rate import Rate
from tokenswarm.load.schedule import schedule

Say = Callable[[str], None]

RATE, STALL_S, LEAD_S = 500, 10.0, 2.0
WINDOW_S = 60.0
STOP_AT_S = 20.0  # into the window
MOST = 1000
PACE = Pace(ttft_ms=30, itl_ms=5, tokens=8)
END_S = 120.0
AT_THE_EDGE_S = (
    0.25  # a request is under way until its end is counted, which takes a while where a thousand end at once
)


class Stalled(NamedTuple):
    """A run, as its rows have it; s."""

    most: int | None
    counts: dict[str, Any]
    dropped: int  # numbers of the schedule that no row has
    explained: int  # of these, while as many as may be were under way
    due: int  # answered requests that were due while nothing came
    as_due_s: list[float]  # their TTFT
    from_sent_s: list[float]
    before_s: list[float]  # TTFT from the send of those before
    connecting: list[tuple[float, float]]  # both, of those that had to wait for a connection for 0.5 s or longer


def measured(rounds: int, say: Say) -> str:
    """The section on a server that stands still."""
    runs = []
    for _ in range(rounds):
        for most in (None, MOST):
            one = _one(most)
            say(
                f"at most {most}: {one.counts}, {one.due} due in the stall, TTFT {median(one.as_due_s):.2f} s as due, "
                f"{median(one.from_sent_s):.2f} s from the send; {one.explained} of {one.dropped} drops explained"
            )
            runs.append(one)
    return section(runs)


def _one(most: int | None) -> Stalled:
    cores = two_cores()
    with started(PACE, cores.sender) as sender, tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tokenswarm.cli", "run", "--host", f"http://127.0.0.1:{sender.port}"]
        command += ["--rate", str(RATE), "--duration", f"{WINDOW_S}s", "--warmup", f"{LEAD_S}s", "--model", "bench"]
        command += ["--max-tokens", str(PACE.tokens), "--dataset-format", "synthetic", "--no-probe"]
        command += ["--set", "dataset.synthetic.conversations=1000000", "--results", folder]
        command += ["--max-in-flight", str(most)] if most else []
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            ahead(sender.pid)
            ahead(worker_of(process).pid)
            assert process.stderr is not None
            if not any("steady" in line for line in process.stderr):
                raise BenchError("the run had no steady window")
            time.sleep(STOP_AT_S)
            os.kill(sender.pid, signal.SIGSTOP)
            time.sleep(STALL_S)
            os.kill(sender.pid, signal.SIGCONT)
            process.communicate(timeout=END_S)
        except subprocess.TimeoutExpired:
            raise BenchError("the run did not end") from None
        finally:
            process.kill()
        (path,) = Path(folder).glob("2*/requests.jsonl")
        rows = [json.loads(line) for line in path.read_bytes().splitlines()]
        summary = json.loads((path.parent / "summary.json").read_bytes())
    arrivals = schedule("poisson", Rate(RATE, RATE), seed=1, stage=0)
    until = itertools.takewhile(lambda one: one.at_s < LEAD_S + WINDOW_S, arrivals)
    return told(most, {one.number: one.at_s for one in until}, rows, summary["requests"])


def told(
    most: int | None,
    plan: dict[int, float],
    rows: list[dict[str, Any]],
    counts: dict[str, Any],
    edge_s: float = AT_THE_EDGE_S,
) -> Stalled:
    """What the rows say, beside when each arrival was due: the stall is the longest time without a first token."""
    by_number = {int(row["id"].rpartition(".")[2]): row for row in rows}
    begin_s = next(row["intended_s"] - plan[number] for number, row in by_number.items())
    missing = [plan[number] + begin_s for number in plan.keys() - by_number.keys()]
    ok = [row for row in rows if row["ttft_s"] is not None]
    firsts = sorted(row["intended_s"] + row["ttft_intended_s"] for row in ok)
    stop_s, go_s = max(pairwise(firsts), key=lambda pair: pair[1] - pair[0])
    inside = [row for row in ok if stop_s < row["intended_s"] < go_s]
    return Stalled(
        most,
        {name: counts[name] for name in ("intended", "sent", "dropped", "ok", "failed", "censored")},
        len(missing),
        _explained(missing, rows, most, edge_s),
        len(inside),
        [row["ttft_intended_s"] for row in inside],
        [row["ttft_s"] for row in inside],
        [row["ttft_s"] for row in ok if row["intended_s"] + row["ttft_intended_s"] <= stop_s],
        [(row["ttft_intended_s"], row["ttft_s"]) for row in inside if (row["connect_s"] or 0.0) > 0.5],
    )


def _explained(missing: list[float], rows: list[dict[str, Any]], most: int | None, edge_s: float) -> int:
    """How many arrivals that were not sent found as many under way as may be."""
    begun = sorted(row["intended_s"] for row in rows)
    ended = sorted(row["intended_s"] + row["e2e_intended_s"] for row in rows if row["e2e_intended_s"] is not None)
    found = 0
    for at_s in missing:
        under_way = bisect_right(begun, at_s) - bisect_left(ended, at_s - edge_s)
        found += most is not None and under_way >= most
    return found


HEAD = (
    "under way at most", "due", "sent", "dropped", "of these explained", "ok", "failed", "TTFT before, p50, ms",
    "answered of those due in the stall", "TTFT as due, p50 / max, s", "from the send, s", "waited to connect",
    "their TTFT as due, from the send, p50, s",
)  # fmt: skip


def section(runs: list[Stalled]) -> str:
    """What stands in RESULTS.md."""
    return f"""\
## A server that stands still

`python -m bench --stall {len(runs) // 2}`: {RATE} Poisson arrivals a second for {WINDOW_S:g} s, the sender stopped for
{STALL_S:g} s of it, load average {os.getloadavg()[1]:.1f}. Dropped: numbers of the schedule that no row has; explained:
as many as may be were under way then, by the rows.

The kernel takes the bytes for a process that stands still, so what was sent on a connection shows the stall from the
send, too. It does not where the wait was for a connection, since the server's queue of 4096 was full.

{table(HEAD, [_row(one) for one in runs])}"""


def _row(one: Stalled) -> list[str]:
    failed = one.counts["failed"] + one.counts["censored"]
    both = [f"{median(values):.2f} / {max(values):.2f}" for values in (one.as_due_s, one.from_sent_s)]
    cells = [one.most or "–", *(one.counts[name] for name in ("intended", "sent", "dropped"))]
    cells += [f"{one.explained} of {one.dropped}", one.counts["ok"], failed, f"{1e3 * median(one.before_s):.0f}"]
    waited = [f"{median(values):.2f}" for values in zip(*one.connecting, strict=True)]
    return [str(cell) for cell in (*cells, one.due, *both, len(one.connecting), ", ".join(waited) or "–")]
