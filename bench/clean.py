"""Does a rule cry wolf? Clean short runs of random shape against the embedded engine, half of them beside a busy loop.

Nothing stands between and nothing else runs in the engine, so no doubt may say so. What the machine itself does (a
client that reads late), and what follows from being short, is no false alarm.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bench import replay
from bench.results import table
from bench.runs import REPO
from bench.sender import BenchError
from tokenswarm.client.which_reader import reader_name
from tokenswarm.commands.services import Service

Say = Callable[[str], None]

SPIN = "while True: pass"
TIMEOUT_S = 180.0
SIGNS_PERCENT = 1.0  # of a worker's instructions: what rules may add
CPU_ANSWERS, CPU_PAIRS = 1000, 20  # replayed, and the signs of as many alone
APIS = ("openai-chat", "openai-completions", "openai-responses", "openai-messages", "ollama-chat", "ollama-generate")
THE_MACHINES = frozenset({
    "clock-step", "cpu-saturated", "cpu-throttled", "loop-stall", "merged-events", "receive-lag", "send-lag",
    "user-stamps", "error-bar", "worker-silent", "reports-missing",
})  # fmt: skip
BEING_SHORT = frozenset({"short-run", "few-samples", "dataset-wrapped", "not-steady"})
PROFILE = """
name: clean
purpose: smoke
target: {url}
engine: {{kind: {kind}, api: {api}}}
dataset: {{path: {data}, output_tokens: {{fixed: {tokens}}}}}
load: {{kind: {loop}, stages: [{{{load}, duration: 3s}}]}}
phases: {{warmup: 1s, settle: 0s, drain: 30s}}
telemetry: {{engine_metrics: auto}}
workers: {workers}
"""


class Shape(NamedTuple):
    """One random run."""

    number: int
    engine: tuple[str, ...]
    profile: dict[str, object]
    busy: bool


def shapes(runs: int, seed: int) -> Iterator[Shape]:
    """Closed and open loops, each API, paced and batching engines; every second one beside a busy loop."""
    dice = random.Random(seed)
    for number in range(runs):
        kind, api = APIS[number % len(APIS)].split("-")
        pace = ("--ttft-ms", str(dice.choice((10, 50, 150))), "--itl-ms", str(dice.choice((4, 10, 25))))
        engine = ("--preset", "paced", *pace) if dice.random() < 0.7 else ("--preset", "h200-8b")
        closed, users, rate = dice.random() < 0.6, dice.randrange(1, 9), dice.randrange(4, 13)
        profile = {
            "kind": kind,
            "api": api,
            "tokens": dice.choice((8, 16, 32)),
            "loop": "closed" if closed else "poisson",
            "load": f"users: {users}" if closed else f"rate: {rate}",
            "workers": dice.choice((1, 1, 2)),
        }
        yield Shape(number, engine, profile, number % 2 == 1)


class Judged(NamedTuple):
    """What a run said."""

    shape: Shape
    ok: int
    doubts: tuple[tuple[str, str], ...]  # code, sentence

    @property
    def alarms(self) -> list[tuple[str, str]]:
        return [doubt for doubt in self.doubts if doubt[0] not in THE_MACHINES | BEING_SHORT]


def measured(rounds: int, say: Say) -> str:
    """The section on false alarms, of so many runs."""
    began_s = time.monotonic()
    return section(run(rounds, say), signs(say), signs_cpu(say), time.monotonic() - began_s)


def run(runs: int, say: Say, seed: int = 13) -> list[Judged]:
    """All runs, one after the other. Raises BenchError where one gives no verdict."""
    found = []
    for shape in shapes(runs, seed):
        found.append(judged := _one(shape))
        told = ", ".join(code for code, _ in judged.doubts) or "no doubt"
        alarms = "".join(f"\n  FALSE ALARM {code}: {said}" for code, said in judged.alarms)
        say(f"{shape.number + 1:4} of {runs}: {judged.ok} answers{', busy' * shape.busy}: {told}{alarms}")
    return found


def _one(shape: Shape) -> Judged:
    with tempfile.TemporaryDirectory() as folder, Service("tokenswarm.simulator", "--port", "0", *shape.engine) as url:
        data = REPO / "configs" / "samples" / "sharegpt.json"
        path = Path(folder) / "clean.yaml"
        path.write_text(PROFILE.format(url=url, data=data, **shape.profile), encoding="utf-8")
        command = [sys.executable, "-m", "tokenswarm.cli", "run", str(path), "--results", folder]
        environ = {**os.environ, "PYTHONPATH": str(REPO)}
        with _spinning(shape.busy):
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, cwd=folder, timeout=TIMEOUT_S, env=environ
            )
        summaries = sorted(Path(folder).glob("*/summary.json"))
        if not summaries:
            raise BenchError(f"run {shape.number} has no result:\n{done.stdout[-1000:]}{done.stderr[-2000:]}")
        summary: dict[str, Any] = json.loads(summaries[0].read_bytes())
    doubts = tuple((doubt["code"], doubt["message"]) for doubt in summary["verdict"]["doubts"])
    return Judged(shape, sum(stage["requests"]["ok"] for stage in summary["stages"]), doubts)


@contextlib.contextmanager
def _spinning(busy: bool) -> Iterator[None]:
    spinner = subprocess.Popen([sys.executable, "-c", SPIN], start_new_session=True) if busy else None
    try:
        yield
    finally:
        if spinner is not None:
            spinner.kill()
            spinner.wait()


def signs(say: Say) -> float | None:
    """Instructions of an answer that are there for rules alone, in percent; None where there is no valgrind."""
    try:
        whole, alone = replay.instructions(reader_name()), replay.signs_instructions(reader_name())
    except FileNotFoundError:
        return None
    say(f"{whole:.0f} instructions an event, {alone:.0f} of them for the signs that rules look for")
    return 100 * alone / whole


def signs_cpu(say: Say) -> str:
    """CPU of what is done for rules alone, of that of the hot path, in words."""
    found = [100 * share for share in replay.cpu_shares(reader_name(), CPU_ANSWERS, CPU_PAIRS)]
    said = f"{statistics.median(found):.2f} % ({found[0]:.2f}..{found[-1]:.2f})"
    say(f"CPU of the signs that rules look for, of that of the hot path, in {CPU_PAIRS} pairs: {said}")
    return said


def section(found: list[Judged], percent: float | None, cpu: str, took_s: float) -> str:
    """What stands in RESULTS.md."""
    alarms = sum(bool(one.alarms) for one in found)
    counts = Counter(code for one in found for code, _ in one.doubts)
    verdict = "yes" if not alarms else "**no**"
    cost = "not counted (no valgrind)" if percent is None else f"{percent:.2f} %"
    kept = "" if percent is None else f": {'yes' if percent <= SIGNS_PERCENT else '**no**'}"
    rows = [
        [code, str(n), "the machine" if code in THE_MACHINES else "short" if code in BEING_SHORT else "**false alarm**"]
        for code, n in counts.most_common()
    ]
    return (
        f"## Does a rule cry wolf?\n\n`python -m bench --clean {len(found)}`, {took_s:.0f} s, load average "
        f"{os.getloadavg()[1]:.1f}. Runs of 3 s, random in shape, against the embedded engine; every second one beside "
        f"a busy loop.\n\n* No false alarm. {alarms} of {len(found)} runs have one: {verdict}.\n"
        f"* What a worker does for rules alone is at most {SIGNS_PERCENT:g} % of its instructions. {cost}{kept}.\n"
        f"* Of the CPU of the hot path, {CPU_PAIRS} pairs of runs in turn: {cpu}.\n\n"
        + table(("doubt", "runs", "of"), rows)
    )
