"""What report.html of a million rows takes: CPU and peak memory of the process that draws, above what its imports take.

`python -m bench --report ROUNDS`; BENCH_AGAINST=REVISION: with that revision's in turn. The rows are those of a run of
the demo against the embedded engine, many times over, each a little later, quicker or slower, some of them failed.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from bench.goals import met, spread
from bench.results import table
from bench.runs import REPO, at_revision
from bench.sender import BenchError

ROWS = 1_000_000
RATIO = 0.5  # of the one before, CPU and memory
DRAW = """
import json, resource, sys
from pathlib import Path
from tokenswarm.reports.html import page
from tokenswarm.reports.saved import read_summary, write_page
def now():
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return sum(resource.getrusage(resource.RUSAGE_SELF)[:2]), int(peak.split()[1]) * 1024
cpu, peak = now()
folder = Path(sys.argv[1])
write_page(folder, read_summary(folder))
print(json.dumps([after - before for after, before in zip(now(), (cpu, peak))]))
"""
MOMENTS = ("intended_s", "sent_s", "first_s", "last_s", "done_s")
DURATIONS = ("ttft_s", "tpot_s", "e2e_s", "itl_mean_s")

Say = Callable[[str], None]


class Cost(NamedTuple):
    """One drawing: CPU (s) and bytes of memory at most."""

    build: str
    cpu_s: float
    peak: float


def measured(rounds: int, say: Say) -> str:
    """The section on what a large report costs."""
    began_s, against = time.monotonic(), os.environ.get("BENCH_AGAINST")
    found = []
    with at_revision(against) as other, tempfile.TemporaryDirectory() as name:
        run = Path(name) / "run"
        multiply(_a_run(Path(name)), run, ROWS)
        builds = {"this one": REPO} | ({against: other} if against is not None and other is not None else {})
        for folder in builds.values():  # as installed: drawing would use up unseen what compiling has freed
            subprocess.run(
                [sys.executable, "-m", "compileall", "-q", str(folder / "tokenswarm")], check=True, timeout=300
            )
        for _ in range(rounds):
            for build, folder in builds.items():
                found.append(cost := _drawn(build, folder, run))
                say(f"{build:>10}: {cost.cpu_s:.2f} s of CPU, {cost.peak / 1e6:.2f} MB above its imports")
    return section(found, rounds, time.monotonic() - began_s)


def _a_run(folder: Path) -> Path:
    command = [sys.executable, "-m", "tokenswarm.cli", "demo", "--results", str(folder / "demo")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPO, timeout=600)
    run = folder / "demo" / "latest"
    if not (run / "requests.jsonl").exists():
        raise BenchError(f"the demo ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return run


def multiply(run: Path, to: Path, rows: int) -> None:
    """A run like that one with so many rows, in the order of their ends."""
    to.mkdir()
    for name in ("summary.json", "manifest.json"):
        shutil.copy(run / name, to / name)
    some = [json.loads(line) for line in (run / "requests.jsonl").read_bytes().splitlines()]
    some.sort(key=lambda row: row["done_s"] or row["intended_s"])
    rng = random.Random(1)
    with (to / "requests.jsonl").open("w", encoding="utf-8") as file:
        for number in range(rows):
            row = dict(some[number * len(some) // rows], id=f"{number % 2}-{number}")
            later_s, slower = rng.uniform(0, 0.5), rng.lognormvariate(0, 0.3)
            row |= {name: round(row[name] + later_s, 6) for name in MOMENTS if row[name] is not None}
            row |= {name: round(row[name] * slower, 9) for name in DURATIONS if row[name] is not None}
            if number % 97 == 0:
                row |= {"outcome": "http_5xx", "error_kind": f"HTTP {500 + number % 4}"}
            file.write(json.dumps(row, separators=(",", ":")) + "\n")


def _drawn(build: str, folder: Path, run: Path) -> Cost:
    environ = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, "-c", DRAW, str(run)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=environ, timeout=300)
    if done.returncode:
        raise BenchError(f"{build}: the page was not drawn:\n{done.stderr[-2000:]}")
    cpu_s, peak = json.loads(done.stdout)
    return Cost(build, cpu_s, peak)


def section(found: list[Cost], rounds: int, took_s: float) -> str:
    """What stands in RESULTS.md."""
    builds = list(dict.fromkeys(cost.build for cost in found))
    of = {build: [cost for cost in found if cost.build == build] for build in builds}
    rows, kept = [], []
    for build in builds:
        cpu, peak = spread([cost.cpu_s for cost in of[build]]), spread([cost.peak / 1e6 for cost in of[build]])
        rows.append([build, cpu.show(2) if cpu else "", peak.show(2) if peak else ""])
    if len(builds) > 1:
        pairs = list(zip(of[builds[0]], of[builds[1]], strict=True))
        for what, ratios in (
            ("CPU", spread([a.cpu_s / b.cpu_s for a, b in pairs])),
            ("Memory", spread([a.peak / b.peak for a, b in pairs])),
        ):
            kept.append(
                f"* {what} at most {RATIO:g} of the one before: {ratios.show(2) if ratios else ''}, "
                f"{met(ratios, RATIO)}."
            )
    command = (f"BENCH_AGAINST={builds[1]} " if len(builds) > 1 else "") + f"python -m bench --report {rounds}"
    return (
        f"## What a large report costs\n\n`{command}`, {took_s:.0f} s, load average {os.getloadavg()[1]:.1f}. "
        f"report.html of {ROWS:,} rows, in turn; CPU, and memory at its peak, above what the imports take.\n\n"
        + "".join(f"{line}\n" for line in kept)
        + "\n" * bool(kept)
        + table(("build", "CPU, s", "memory, MB"), rows)
    )
