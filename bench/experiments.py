"""The experiments: which clients run against which load, in which order. Each returns runs; results.py judges them.

Clients take turns within a round, so that what drifts on the machine drifts for all of them.
"""

from __future__ import annotations

import json
import pstats
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from bench import replay
from bench.goals import CAPACITY_TTFT_P99_MS, CLIENTS, FLOOR_RATIO, OURS
from bench.runs import REPO, Run, run, two_cores
from bench.sender import BenchError, Pace
from tokenswarm.client.which_reader import reader_name

Say = Callable[[str], None]

STAMP_STREAMS = 400
PROFILE_LINES = 12
WAITING = ("sleep", "_attempt", "get", "wait", "joinall")  # where greenlets switch away: their time is the hub's


class Plan(NamedTuple):
    """How much is run. The quick one shows that all works; its figures rest on too little."""

    name: str
    rounds: int
    seconds: float
    pace: Pace
    levels: tuple[int, ...]
    capacity_steps: dict[str, tuple[int, ...]]
    open_streams: int
    open_pace: Pace


FULL = Plan(
    name="full",
    rounds=3,
    seconds=4.0,
    pace=Pace(),
    levels=(100, 400, 1000),
    capacity_steps={
        "tokenswarm": (1000, 1200, 1400, 1600, 1800, 2000, 2250, 2500, 2750, 3000, 3500, 4000),
        "tokenswarm-python": (700, 850, 1000, 1100, 1200, 1300, 1400, 1500, 1650, 1800),
        "locust": (10, 25, 50, 100),
        "aiohttp": (25, 50, 100, 200, 400),
    },
    open_streams=1000,
    open_pace=Pace(ttft_ms=1000, itl_ms=30),
)

QUICK = Plan(
    name="quick",
    rounds=1,
    seconds=2.0,
    pace=Pace(tokens=40),
    levels=(100, 400),
    capacity_steps={"tokenswarm": (400, 800)},
    open_streams=300,
    open_pace=Pace(ttft_ms=500, itl_ms=15),
)


def accuracy(plan: Plan, say: Say) -> list[Run]:
    """Each client at each number of streams, in turn; the floor only where CPU is compared."""
    turns = [
        (client, streams)
        for _ in range(plan.rounds)
        for streams in plan.levels
        for client in CLIENTS
        if client != "epoll" or streams in FLOOR_RATIO
    ]
    return list(_each(turns, plan, say))


def _each(turns: Iterable[tuple[str, int]], plan: Plan, say: Say, *more: str) -> Iterable[Run]:
    for client, streams in turns:
        done = run(client, plan.pace, streams, plan.seconds, *more)
        say(
            f"{client:>10} {streams:5} streams: {done.events_per_s:6.0f} events/s, {done.cpu_us:5.1f} µs each, "
            f"TTFT {done.off_ms('ttft_ns', 'p50'):+.2f} / {done.off_ms('ttft_ns', 'p99'):+.2f} ms, "
            f"sender late {done.lateness_ms['p99']:.2f} ms" + (", disturbed" if done.disturbed else "")
        )
        yield done


def stamps(plan: Plan, say: Say) -> list[Run]:
    """Error of each single receive stamp."""
    return list(_each([("tokenswarm", STAMP_STREAMS)] * plan.rounds, plan, say, "--stamps"))


class Climb(NamedTuple):
    """What a client held, what it did not (None: it held all), and whether the sender gave up before it."""

    held: Run | None
    broke: Run | None
    sender_limited: bool


def capacity(plan: Plan, say: Say) -> dict[str, Climb]:
    return {client: _climb(client, steps, plan, say) for client, steps in plan.capacity_steps.items()}


def _climb(client: str, steps: tuple[int, ...], plan: Plan, say: Say) -> Climb:
    """More streams until TTFT p99 is off in two tries of the same step."""
    held = None
    for streams in steps:
        tries = []
        for tried in _each([(client, streams)] * 2, plan, say):
            tries.append(tried)
            if tried.exact and abs(tried.off_ms("ttft_ns", "p99")) <= CAPACITY_TTFT_P99_MS:
                held = tried
                break
        else:
            late_ms = min(tried.lateness_ms["p99"] for tried in tries)
            return Climb(held, tries[-1], late_ms > CAPACITY_TTFT_P99_MS)
    return Climb(held, None, False)


def memory(plan: Plan, say: Say) -> list[Run]:
    """All streams open at once, one request each."""
    runs = []
    for _ in range(min(plan.rounds, 2)):
        for client in CLIENTS[:-1]:
            done = run(client, plan.open_pace, plan.open_streams, 0.0)
            say(f"{client:>10} {plan.open_streams:5} streams open: {mb_per_1000(done):.1f} MB per 1 000")
            runs.append(done)
    return runs


def mb_per_1000(done: Run) -> float:
    """RSS above its base while all streams were open, MB per 1 000 streams."""
    if not done.result["rss_full_bytes"]:
        raise BenchError(f"the {done.client} client never had all {done.streams} streams open")
    grown_bytes: int = done.result["rss_full_bytes"] - done.result["rss_base_bytes"]
    return grown_bytes / 1e6 / done.streams * 1000


def costs(_plan: Plan, say: Say) -> dict[str, list[float]]:
    command = [sys.executable, "-m", "bench.costs", str(two_cores().client)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPO)
    if done.returncode:
        raise BenchError(f"bench.costs failed:\n{done.stderr[-2000:]}")
    found: dict[str, list[float]] = json.loads(done.stdout)
    say(", ".join(f"{name} {min(values) * 1e6:.2f} µs" for name, values in found.items()))
    return found


class Profiled(NamedTuple):
    streams: int
    lines: list[tuple[str, float, float]]  # function, share of all, calls an event


def profile(plan: Plan, streams: int, say: Say) -> Profiled:
    """Where the client's Python time goes. The profiler more than doubles it, so only shares are told."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "profile"
        done = run("tokenswarm", plan.pace, streams, plan.seconds, "--profile", str(path))
        entries = pstats.Stats(str(path)).stats.items()  # type: ignore[attr-defined]  # documented, not typed
    say(f"profiled {streams} streams")
    busy = [(place, calls, own) for place, (_, calls, own, _, _) in entries if place[2] not in WAITING]
    whole_s = sum(own for _, _, own in busy)
    busy.sort(key=lambda entry: -entry[2])
    events = done.result["events"]
    return Profiled(
        streams, [(_name(place), own / whole_s, calls / events) for place, calls, own in busy[:PROFILE_LINES]]
    )


def _name(place: tuple[str, int, str]) -> str:
    file, line, function = place
    return function if file == "~" else f"{Path(file).name}:{line} {function}"


def instructions(_plan: Plan, say: Say) -> dict[str, float]:
    """Of an event of the replayed hot path, by reader; {} where there is no valgrind."""
    if shutil.which("valgrind") is None:
        say("not counted: there is no valgrind")
        return {}
    found = {client: replay.instructions("python" if client == OURS[1] else reader_name()) for client in OURS}
    say(", ".join(f"{name}: {count:.0f} instructions an event" for name, count in found.items()))
    return found


EXPERIMENTS = {
    "accuracy": accuracy,
    "stamps": stamps,
    "capacity": capacity,
    "memory": memory,
    "costs": costs,
    "instructions": instructions,
}
