"""Does a bar hold the truth? Random loads under random disturbance, each percentile's interval against the sender's.

Honest: nearly all intervals hold what was sent. Sharp: they are not wider than they must be. The sender runs ahead of
everything else (SCHED_FIFO, where that is allowed) and knows to within the time of a send when it sent.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any, NamedTuple

from bench.goals import Spread, met, spread
from bench.results import table
from bench.runs import REPO, two_cores
from bench.sender import BenchError, Pace, Sender, started

Say = Callable[[str], None]

SECONDS = 2.0
STREAM_S = 1.6  # a stream's length at the most
OVERTIME_S = 60.0
KINDS = ("nothing", "spinning", "stopped", "paused reader", "clock set", "merged writes")
SPINNERS = 3
SPIN = "while True: pass"
SENDER_BUCKET = 1 / 2048  # of its histograms: as far as the sender's own percentiles are known
HONEST = 0.99  # of the printed percentiles
SHARP = 0.01  # half an interval / the value; or 3 times the real error, if that is more
UNDISTURBED_TTFT_MS = 0.2


class Load(NamedTuple):
    """One random run."""

    number: int
    kinds: tuple[str, ...]
    streams: int
    pace: Pace


class Held(NamedTuple):
    """One percentile: what was sent, what was seen, and its interval, s."""

    load: Load
    metric: str
    which: str
    truth: float
    value: float
    low: float
    high: float
    withheld: bool
    known: float  # the truth itself is known to within so much

    @property
    def holds(self) -> bool:
        return self.low - self.known <= self.truth <= self.high + self.known

    @property
    def half(self) -> float:
        return (self.high - self.low) / 2

    @property
    def error(self) -> float:
        return abs(self.value - self.truth)


def loads(runs: int, seed: int) -> Iterator[Load]:
    """1 to 200 streams of 10 to 200 tokens/s each, at most what one core sends with ease; one or two disturbances."""
    dice = random.Random(seed)
    for number in range(runs):
        rate = dice.choice((10, 20, 50, 100, 200))
        streams = min(int(200 ** dice.random()) + dice.randrange(20), 200, max(1, 6000 // rate))
        tokens = max(8, min(100, int(rate * STREAM_S * dice.uniform(0.4, 1.0))))
        kinds = (KINDS[number % len(KINDS)],)
        if kinds != ("nothing",) and dice.random() < 0.3:
            kinds = tuple(dict.fromkeys((*kinds, dice.choice(KINDS[1:]))))
        merge = dice.choice((0.005, 0.02, 0.1)) if "merged writes" in kinds else 0.0
        pace = Pace(dice.choice((20.0, 50.0, 100.0)), 1000 / rate, tokens, 0.2, number + 1, merge)
        yield Load(number, kinds, max(1, streams), pace)


def run(runs: int, say: Say, seed: int = 11) -> list[Held]:
    """All runs, one after the other."""
    found: list[Held] = []
    began_s = time.monotonic()
    for load in loads(runs, seed):
        held = _one(load)
        found += held
        printed = [one for one in found if not one.withheld]
        missed = [f"{one.metric} {one.which}" for one in held if not one.holds]
        say(
            f"{load.number + 1:4} of {runs}, {time.monotonic() - began_s:.0f} s: {load.streams:3} streams of "
            f"{1000 / load.pace.itl_ms:3.0f}/s, {' and '.join(load.kinds)}: {len(held)} percentiles, "
            f"{'holds' if not missed else 'MISSED ' + ', '.join(missed)}; so far "
            f"{sum(one.holds for one in printed)} of {len(printed)} printed hold"
        )
    return found


def _one(load: Load) -> list[Held]:
    cores = two_cores()
    with started(load.pace, cores.sender) as sender, _spinning(load):
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(sender.pid, os.SCHED_FIFO, os.sched_param(10))
        result = _client(load, sender, cores.client)
        truth = sender.truth()
    if result["failed"] or result["ok"] != truth["finished"]:
        raise BenchError(f"run {load.number}: {result['ok']} answers of {truth['finished']}")
    found = []
    for metric, each in result["found"].items():
        for which, (value, low, high, withheld) in each.items():
            sent = truth[f"{metric}_ns"][which] / 1e9
            known = truth["send_ns"]["p50"] / 1e9 + sent * SENDER_BUCKET / 2
            most = float("inf") if high is None else high
            found.append(Held(load, metric, which, sent, value, low, most, withheld, known))
    return found


def _client(load: Load, sender: Sender, core: int) -> dict[str, Any]:
    dice = random.Random(load.number)
    words: dict[str, object] = {
        "--port": sender.port, "--streams": load.streams, "--tokens": load.pace.tokens, "--seed": load.number,
        "--core": core, "--seconds": SECONDS, "--stream-s": load.pace.stream_s,
    }  # fmt: skip
    if "paused reader" in load.kinds:
        words["--pauses-ms"] = dice.choice((20, 60, 200))
    if "clock set" in load.kinds:
        words["--step-ms"] = dice.choice((-3_600_000, -50, -3, 3, 50, 3_600_000))
    command = [
        sys.executable,
        "-m",
        "bench.clients.truth_client",
        *(f"{name}={value}" for name, value in words.items()),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPO)
    try:
        if "stopped" in load.kinds:
            _stop_now_and_then(process, dice)
        out, said = process.communicate(timeout=SECONDS + 3 * load.pace.stream_s + OVERTIME_S)
    except subprocess.TimeoutExpired:
        raise BenchError(f"run {load.number} did not end") from None
    finally:
        process.kill()
    if process.returncode:
        raise BenchError(f"run {load.number} failed:\n{said[-2000:]}")
    result: dict[str, Any] = json.loads(out)
    return result


def _stop_now_and_then(process: subprocess.Popen[str], dice: random.Random) -> None:
    """SIGSTOP for 20 to 300 ms, some times."""
    time.sleep(1.0)  # its start
    for _ in range(dice.randrange(2, 6)):
        time.sleep(dice.uniform(0.1, 0.5))
        if process.poll() is not None:
            return
        process.send_signal(signal.SIGSTOP)
        time.sleep(dice.uniform(0.02, 0.3))
        process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def _spinning(load: Load) -> Iterator[None]:
    """Busy neighbours on both cores, each in a session, so a scheduling group, of its own."""
    wanted = SPINNERS if "spinning" in load.kinds else 0
    spinners = [subprocess.Popen([sys.executable, "-c", SPIN], start_new_session=True) for _ in range(wanted)]
    try:
        yield
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()


class Told(NamedTuple):
    """The answers of one kind of disturbance."""

    kind: str
    runs: int
    printed: int
    held: int
    withheld: int
    withheld_held: int
    half_percent: float  # median over the printed
    error_percent: float
    sharp: float  # share of the printed with half ≤ max(1 %, 3 × error)


def told(kind: str, held: list[Held]) -> Told:
    printed = [one for one in held if not one.withheld]
    kept = [one for one in held if one.withheld]
    return Told(
        kind,
        len({one.load.number for one in held}),
        len(printed),
        sum(one.holds for one in printed),
        len(kept),
        sum(one.holds for one in kept),
        100 * median([one.half / one.value for one in printed] or [0.0]),
        100 * median([one.error / one.value for one in printed] or [0.0]),
        sum(one.half <= max(SHARP * one.value, 3 * one.error) for one in printed) / max(1, len(printed)),
    )


def undisturbed_ttft_ms(held: list[Held]) -> float | None:
    """Half the interval of TTFT's median where nothing disturbed, the median over runs."""
    halves = [
        1e3 * one.half for one in held if (one.metric, one.which) == ("ttft", "p50") and one.load.kinds == ("nothing",)
    ]
    return median(halves) if halves else None


def measured(runs: int, say: Say) -> str:
    """The section on bars."""
    began_s = time.monotonic()
    return section(run(runs, say), time.monotonic() - began_s)


def section(held: list[Held], took_s: float) -> str:
    """What stands in RESULTS.md."""
    runs = len({one.load.number for one in held})
    every = told("all", held)
    rows = [told(kind, [one for one in held if kind in one.load.kinds]) for kind in KINDS] + [every]
    half_ms = undisturbed_ttft_ms(held)
    cells = [
        [
            row.kind, str(row.runs), f"{row.held} of {row.printed}", f"{row.withheld_held} of {row.withheld}",
            f"{row.half_percent:.2f}", f"{row.error_percent:.2f}", f"{row.sharp:.0%}",
        ]
        for row in rows
    ]  # fmt: skip
    share = every.held / every.printed if every.printed else 0.0
    head = ("disturbance", "runs", "printed that hold", "withheld that hold", "± %, median", "error %, median", "sharp")
    honest = met(Spread(share, share, share), HONEST, at_least=True)
    still = "not usable" if half_ms is None else f"{half_ms:.3f} ms, {met(spread([half_ms]), UNDISTURBED_TTFT_MS)}"
    sharp = "yes" if every.sharp >= 0.5 else "**no**"
    return (
        f"## Do the bars hold the truth?\n\n`python -m bench --truth {runs}`, {took_s:.0f} s, load average "
        f"{os.getloadavg()[1]:.1f}. Random loads (1 to 200 streams, 10 to 200 tokens/s each), one or two disturbances: "
        f"{SPINNERS} spinning processes in sessions of their own, SIGSTOP of the worker for 20 to 300 ms, a loop that "
        "stands still for up to 200 ms, a wall clock that is set by 3 ms to an hour, tokens that share a write. "
        "Percentiles of TTFT, ITL and E2E, each interval against what was sent.\n\n"
        f"* Honest: {HONEST:.0%} of the printed ones hold it. {share:.2%}: {honest}.\n"
        f"* Sharp: half the interval is at most {SHARP:.0%} of the value, or three times its real error, in the "
        f"median: {sharp}.\n"
        f"* TTFT p50, undisturbed: at most ± {UNDISTURBED_TTFT_MS} ms. {still}.\n\n" + table(head, cells)
    )
