"""Searches against an engine whose capacity is known: is the answer right, and what does it take beside a sweep?

The embedded engine carries 16 requests at a time. What it answers a second where it is overloaded is its capacity:
rates come at equal gaps, so up to it nothing waits, and beyond it a queue grows. Of users beyond 16 each one more waits
an answer's share longer (Little), which gives the number that meets a limit. A sweep as fine has a stage for each load
between the bounds; it can't know which ones need less time, so each is as long as the tries that passed.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bench.arrivals import ahead
from bench.results import table
from bench.sender import BenchError

Say = Callable[[str], None]

ENGINE = ("--preset", "laptop", "--max-num-seqs", "16", "--flops-per-s", "1e16", "--bytes-per-s", "1e14",
          "--step-overhead-ms", "25")  # fmt: skip
SLOTS, TOKENS = 16, 8
RESOLUTION = 0.05
BOUNDS = {"users": (2, 128), "rate": (8, 256)}
LIMITS = {"rate": {"ttft_intended_s": {"p50": 0.3}}, "users": {"ttft_s": {"p50": 0.5}}}
OVERLOAD = 150  # requests a second
USERS = 56  # near what keeps the limit
STEP_S = 12.0
SETTLE_S, SHORTEST_S, LONGEST_S = 2.0, 4.0, 15.0
SEARCH_S = 400.0
RIGHT, SHARE = 0.9, 1 / 3
PROFILE: dict[str, Any] = {
    "dataset": {
        "format": "synthetic",
        "synthetic": {"conversations": 100_000, "input_mean": 16},
        "output_tokens": {"fixed": TOKENS},
    },
    "load": {"kind": "constant", "stages": [{"rate": 8}]},
    "phases": {"warmup": SETTLE_S, "settle": SETTLE_S, "drain": 30},
}


class Found(NamedTuple):
    """One search: the answer's interval, the capacity that is known, and the time."""

    of: str
    known: float
    passed: float
    failed: float
    tries: list[dict[str, Any]]
    took_s: float

    @property
    def right(self) -> bool:
        """The capacity is one step away from the answer at most."""
        step = max(1.0, RESOLUTION * self.passed) if self.of == "users" else RESOLUTION * self.passed
        return abs(self.known - self.passed) <= step * 1.001

    @property
    def sweep_s(self) -> float:
        low, high = BOUNDS[self.of]
        stages = math.ceil(math.log(high / low) / math.log(1 + RESOLUTION)) + 1
        passed: list[float] = [one["seconds"] for one in self.tries if one["result"] == "pass"] or [SHORTEST_S]
        return stages * (SETTLE_S + sum(passed) / len(passed))


def measured(rounds: int, say: Say) -> str:
    """The section on searches: half of them of a number of users, half of a rate."""
    known = {of: _known(of) for of in BOUNDS}
    say(f"known: {known}")
    found = []
    for number in range(rounds):
        of = list(BOUNDS)[number % 2]
        one = _one(of, known[of])
        say(
            f"{one.of}: {one.passed:g} to {one.failed:g} in {len(one.tries)} tries and {one.took_s:.0f} s, known "
            f"{one.known:.1f}: {'right' if one.right else 'WRONG'}; a sweep {one.sweep_s:.0f} s"
        )
        found.append(one)
    return section(found)


def _known(of: str) -> float:
    """Answers a second to a rate that is too much; the users at which TTFT meets the limit: each adds 1 / capacity."""
    load = {"kind": "constant", "stages": [{"rate": OVERLOAD, "duration": STEP_S}]}
    if of == "users":
        load = {"stages": [{"users": USERS, "duration": STEP_S}]}
    with engine() as url, tempfile.TemporaryDirectory() as folder:
        summary = tokenswarm("run", folder, {**PROFILE, "target": url, "load": load})
    per_s = float(summary["throughput"]["requests_per_s"])
    if of == "rate":
        return per_s
    ttft_s = float(summary["latency"]["ttft_s"]["mean"])  # the median's neighbour in a queue, and never withheld
    return USERS + (LIMITS["users"]["ttft_s"]["p50"] - ttft_s) * per_s


def _one(of: str, known: float) -> Found:
    with engine() as url, tempfile.TemporaryDirectory() as folder:
        search = {of: BOUNDS[of], "resolution": RESOLUTION, "shortest": SHORTEST_S, "longest": LONGEST_S}
        began_s = time.monotonic()
        summary = tokenswarm("search", folder, {**PROFILE, "target": url, "slo": LIMITS[of], "search": search})
        took_s = time.monotonic() - began_s
    found = summary["search"]
    passed, failed = found["passed"] or 0.0, found["failed"] or math.inf
    return Found(of, known, passed, failed, found["probes"], took_s)


def tokenswarm(command: str, folder: str, profile: dict[str, Any]) -> dict[str, Any]:
    """Its summary. A profile is YAML, and JSON is."""
    file = Path(folder) / "p.yaml"
    file.write_text(json.dumps(profile), encoding="utf-8")
    line = [sys.executable, "-m", "tokenswarm.cli", command, str(file), "--json", "--quiet"]
    try:
        done = subprocess.run(
            [*line, "--results", folder], capture_output=True, text=True, check=False, timeout=SEARCH_S
        )
    except subprocess.TimeoutExpired:
        raise BenchError(f"`tokenswarm {command}` did not end in {SEARCH_S:g} s") from None
    if not done.stdout:
        raise BenchError(f"`tokenswarm {command}` failed:\n{done.stderr[-2000:]}")
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


@contextlib.contextmanager
def engine() -> Iterator[str]:
    command = [sys.executable, "-m", "tokenswarm.simulator", "--port", "0", *ENGINE]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if " on " not in line:
            raise BenchError("the embedded engine did not start")
        ahead(process.pid)
        yield line.split(" on ")[1].strip()
    finally:
        process.kill()
        process.wait()


def section(found: list[Found]) -> str:
    """What stands in RESULTS.md."""
    right = sum(one.right for one in found) / len(found)
    share = sum(one.took_s for one in found) / sum(one.sweep_s for one in found)
    rows = [
        [
            one.of, f"{one.known:.1f}", f"{one.passed:.4g}", f"{one.failed:.4g}", "yes" if one.right else "**no**",
            str(len(one.tries)), f"{one.took_s:.0f}", f"{one.sweep_s:.0f}", f"{one.took_s / one.sweep_s:.2f}",
        ]
        for one in found
    ]  # fmt: skip
    head = ("of", "known", "passed", "failed", "right", "tries", "s", "a sweep, s", "ratio")
    bounds = ", ".join(f"{name} {low} to {high}" for name, (low, high) in BOUNDS.items())
    return f"""\
## Searches

`python -m bench --searches {len(found)}`, load average {os.getloadavg()[1]:.1f}. The embedded engine with {SLOTS}
slots, steps of 25 ms and {TOKENS} tokens. Of a rate the limit is a TTFT p50 of 0.3 s as due, and known is what it
answers a second where {OVERLOAD} come; of users it is a TTFT p50 of 0.5 s, and known is where {USERS} users and
Little's law have it: each one more waits 1 / capacity longer. The resolution is {RESOLUTION:.0%}, the bounds are
{bounds}. A sweep: a stage for each load between them, as long as the tries that passed. Times of searches hold the
start and the end of the program.

* The answer is within one step of what is known in {RIGHT:.0%} of the searches. {right:.0%}: {_said(right >= RIGHT)}.
* It takes at most a third of a sweep's time. {share:.2f}: {_said(share <= SHARE)}.

{table(head, rows)}"""


def _said(kept: bool) -> str:
    return "yes" if kept else "**no**"
