"""Can a comparison be believed? Equal servers that are called worse, slower ones that are found, and what it costs.

`python -m bench --compare PAIRS`: simulated groups of runs; so many live pairs of five runs a side, in turn, against
the embedded engine and one that is 10 % slower; and a comparison of ten runs of 100 000 requests.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from math import exp, log
from pathlib import Path
from typing import NamedTuple

from bench.goals import (
    COMPARE_CPU_S,
    COMPARE_FALSE_RED,
    COMPARE_FOUND,
    COMPARE_SLOWER,
    Spread,
    met,
    spread,
)
from bench.results import table
from bench.runs import REPO
from bench.sender import BenchError
from tokenswarm.judge.compare import METRICS, compare
from tokenswarm.result.comparison import Run

HEAD = "## Does a comparison tell the truth?"
SIMULATED = 1000
RUNS = 5
ROWS = 100_000
SPREAD = {"median": 0.03, "tail": 0.05, "throughput": 0.01}
"""How much runs of the same thing vary, by kind of metric: standard deviation of the logarithm."""

PROFILE = """
name: compare
dataset: {path: %s, output_tokens: {fixed: 24}, ignore_eos: true}
load: {stages: [{users: 8, duration: 4s}]}
phases: {warmup: 500ms, drain: 5s}
telemetry: {engine_metrics: off}
"""

Say = Callable[[str], None]


class Simulated(NamedTuple):
    """What groups that are this much slower were called, out of SIMULATED comparisons. `a`, `b`: runs a side."""

    a: int
    b: int
    slower: float
    words: Counter[str]

    @property
    def worse(self) -> float:
        return self.words["worse"] / sum(self.words.values())


class Cost(NamedTuple):
    """CPU (s) of a comparison and of a Python that does nothing, a round each."""

    compare_s: list[float]
    nothing_s: list[float]
    rows: int
    runs: int


def a_run(rng: random.Random, number: int, shift: float) -> Run:
    """A run as they come: half of the spread moves all metrics of a run together, half each by itself; none fails."""
    common, values = rng.gauss(0, 1), {}
    for metric in METRICS:
        if metric.kind not in SPREAD:
            continue
        sign = -1 if metric.higher_is_better else 1
        noise = SPREAD[metric.kind] * (0.5**0.5 * common * sign + 0.5**0.5 * rng.gauss(0, 1))
        values[metric.name] = exp(noise + sign * shift)
    return Run(run_id=f"r{number}", values=dict(values))


def simulated(a: int, b: int, slower: float, times: int = SIMULATED) -> Simulated:
    rng = random.Random(1)
    words: Counter[str] = Counter()
    for _ in range(times):
        sides = [a_run(rng, i, 0.0) for i in range(a)], [a_run(rng, a + i, log(1 + slower)) for i in range(b)]
        words[compare(*sides).word] += 1
    return Simulated(a, b, slower, words)


@contextlib.contextmanager
def _engine(speed: float) -> Iterator[str]:
    command = [sys.executable, "-m", "tokenswarm.simulator", "--port", "0", "--speed", str(speed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPO) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split(" on ")[1].strip()
        finally:
            process.terminate()


def live(pairs: int, folder: Path, say: Say) -> list[str]:
    """What each live pair of groups was called: B is COMPARE_SLOWER slower."""
    (folder / "profile.yaml").write_text(PROFILE % (REPO / "configs/samples/sharegpt.json"), encoding="utf-8")
    words = []
    with _engine(1.0) as a, _engine(1 / (1 + COMPARE_SLOWER)) as b:
        for number in range(pairs):
            command = [sys.executable, "-m", "tokenswarm.cli", "run", str(folder / "profile.yaml"), "--host", a]
            command += ["--against-host", b, "--repeat", str(RUNS), "--results", str(folder), "--json", "--quiet"]
            done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPO, timeout=1200)
            if not done.stdout.strip():
                raise BenchError(f"pair {number + 1} of groups ended with {done.returncode}:\n{done.stderr[-2000:]}")
            words.append(str(json.loads(done.stdout)["word"]))
            say(f"  pair {number + 1} of {pairs}: {words[-1]}")
    return words


def cost(folder: Path, say: Say, rounds: int = 3, rows: int = ROWS) -> Cost:
    """What comparing ten runs of so many requests takes, with the page, beside a Python that does nothing."""
    sides = [folder / "cost" / side for side in "ab"]
    first = next(iter(sorted(folder.glob("**/2*/summary.json")))).parent
    rng = random.Random(2)
    for number in range(2 * RUNS):
        _copy(first, sides[number % 2] / f"run-{number}", rng, rows)
    words = ["compare", str(sides[0]), "--against", str(sides[1]), "--to", str(folder / "cost"), "--json"]
    found = Cost([], [], rows, 2 * RUNS)
    for _ in range(rounds):
        found.nothing_s.append(_cpu_s([sys.executable, "-c", "pass"]))
        found.compare_s.append(_cpu_s([sys.executable, "-m", "tokenswarm.cli", *words]))
        say(f"  compared in {found.compare_s[-1]:.2f} s of CPU")
    return found


def _copy(run: Path, to: Path, rng: random.Random, rows: int) -> None:
    """A run like that one under another name, with so many requests."""
    to.mkdir(parents=True)
    for name in ("summary.json", "manifest.json"):
        text = (run / name).read_text(encoding="utf-8").replace(run.name, to.name)
        (to / name).write_text(text, encoding="utf-8")
    row = json.loads((run / "requests.jsonl").read_text(encoding="utf-8").splitlines()[0]) | {"phase": "steady"}
    with (to / "requests.jsonl").open("w", encoding="utf-8") as file:
        before, after = json.dumps(row | {"ttft_s": "@"}, separators=(",", ":")).split('"@"')
        for _ in range(rows):
            file.write(f"{before}{rng.lognormvariate(-2, 0.5)!r}{after}\n")


def _cpu_s(command: list[str]) -> float:
    def spent() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    before = spent()
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPO, timeout=300)
    if done.returncode not in (0, 20, 21):
        raise BenchError(f"{' '.join(command[:5])} failed:\n{done.stderr[-2000:]}")
    return spent() - before


def measured(pairs: int, say: Say) -> str:
    """All of it; the section for RESULTS.md."""
    began_s = time.monotonic()
    say("simulated:")
    rows = [simulated(a, b, slower) for a, b in ((5, 5), (5, 1), (10, 1)) for slower in (0.0, COMPARE_SLOWER)]
    with tempfile.TemporaryDirectory() as name:
        say("live:")
        words = live(pairs, Path(name), say)
        say("cost:")
        costs = cost(Path(name), say)
    return section(rows, words, costs, pairs, time.monotonic() - began_s)


def section(rows: list[Simulated], words: list[str], costs: Cost, pairs: int, took_s: float) -> str:
    """What stands in RESULTS.md."""
    said = ("worse", "better", "same", "can't tell")
    cells = [
        [f"{row.a} and {row.b}", f"{row.slower:.0%}", *(f"{row.words[w] / sum(row.words.values()):.1%}" for w in said)]
        for row in rows
    ]
    red = max(row.worse for row in rows if not row.slower)
    found = words.count("worse") / len(words)
    cpu = spread(costs.compare_s)
    nothing = spread(costs.nothing_s)
    assert cpu is not None
    assert nothing is not None
    return "\n".join(
        [
            HEAD,
            "",
            f"`python -m bench --compare {pairs}`, {took_s:.0f} s, load average {os.getloadavg()[1]:.1f}. Simulated: "
            f"{SIMULATED} comparisons a row, runs that vary by 3 % (medians), 5 % (tails) and 1 % (throughput).",
            "",
            table(("runs a side", "B slower by", *said), cells).rstrip(),
            "",
            f"* Equal sides called worse: at most {COMPARE_FALSE_RED:.0%}. {red:.1%}: "
            f"{met(Spread(red, red, red), COMPARE_FALSE_RED)}.",
            f"* Live, {pairs} pairs of {RUNS} runs of 4 s a side in turn, B {COMPARE_SLOWER:.0%} slower: worse in at "
            f"least {COMPARE_FOUND:.0%}. {words.count('worse')} of {len(words)}: "
            f"{met(Spread(found, found, found), COMPARE_FOUND, at_least=True)}.",
            f"* {costs.runs} runs of {costs.rows} requests compared, page and all: at most {COMPARE_CPU_S:g} s of CPU. "
            f"{cpu.show(2)} s, a Python that does nothing {nothing.show(2)}: {met(cpu, COMPARE_CPU_S)}.",
        ]
    )
