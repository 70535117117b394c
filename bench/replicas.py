"""Does a plan hold? What one replica carries, times two, against what two carry, and a run at the plan's own rate.

The engine and its limit are those of the searches (searches.py). Two of them get requests in turn, from a profile with
two addresses, as a balancer would give them.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from bench.results import table
from bench.searches import BOUNDS, LIMITS, LONGEST_S, PROFILE, SHORTEST_S, engine, tokenswarm
from bench.sender import BenchError

Say = Callable[[str], None]

RESOLUTION = 0.02  # finer than what is asked
OFF_MAX = 0.05
RUN_S = 20.0
SHARE = 0.97  # of what two should carry: more is within the resolution of a search


class Held(NamedTuple):
    """Rates, requests a second."""

    one: float
    two: float
    replicas: int | None  # that the plan gives for SHARE of twice what one carries
    run: str  # how a run of that many at this rate ended

    @property
    def off(self) -> float:
        """What two carry against what the plan says of two."""
        return self.two / (2 * self.one) - 1


def measured(rounds: int, say: Say) -> str:
    """The section on plans."""
    found = []
    for _ in range(rounds):
        held = _one(say)
        say(f"one {held.one:.1f}/s, two {held.two:.1f}/s: {held.off:+.1%}; {held.replicas} replicas: {held.run}")
        found.append(held)
    return section(found)


def _one(say: Say) -> Held:
    low, high = BOUNDS["rate"]
    with tempfile.TemporaryDirectory() as folder, _engines(2) as urls:
        summary = tokenswarm("search", folder, _profile(urls[:1], (low, high)))
        one = float(summary["search"]["passed"] or 0.0)
        say(f"one replica carries {one:.1f}/s")
        if not one:
            raise BenchError("one replica did not carry even the least rate")
        rate = SHARE * 2 * one
        replicas = _planned(Path(folder) / summary["run_id"], rate)
        load = {"kind": "constant", "stages": [{"rate": round(rate, 3), "duration": RUN_S}]}
        run = tokenswarm("run", folder, {**_profile(urls, (low, high)), "load": load})
        gates = {gate["result"] for gate in run["gates"]}
        two = float(tokenswarm("search", folder, _profile(urls, (2 * low, 2 * high)))["search"]["passed"] or 0.0)
    return Held(one, two, replicas, "within its limits" if gates == {"pass"} else ", ".join(sorted(gates)))


def _profile(urls: list[str], bounds: tuple[float, float]) -> dict[str, Any]:
    search = {"rate": bounds, "resolution": RESOLUTION, "shortest": SHORTEST_S, "longest": LONGEST_S}
    return {**PROFILE, "target": urls, "slo": LIMITS["rate"], "search": search}


def _planned(results: Path, rate: float) -> int | None:
    command = [sys.executable, "-m", "tokenswarm.cli", "plan", f"{results},name=sim", "--rate", f"{rate:.3f}", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if not done.stdout:
        raise BenchError(f"`tokenswarm plan` failed:\n{done.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return next((fleet["replicas"] for fleet in answer["fleets"]), None)


@contextlib.contextmanager
def _engines(count: int) -> Iterator[list[str]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(engine()) for _ in range(count)]


def section(found: list[Held]) -> str:
    """What stands in RESULTS.md."""
    off = median(held.off for held in found)
    rows = [
        [f"{held.one:.1f}", f"{2 * held.one:.1f}", f"{held.two:.1f}", f"{held.off:+.1%}", str(held.replicas), held.run]
        for held in found
    ]
    head = (
        "one carries, /s",
        "two should",
        "two carry",
        "off",
        f"replicas for {SHARE:.0%} of that",
        "a run at that rate",
    )
    kept = "yes" if abs(off) <= OFF_MAX else "**no**"
    return f"""\
## Does a plan hold?

`python -m bench --replicas {len(found)}`, load average {os.getloadavg()[1]:.1f}. The engine and the limit of the
searches, resolution {RESOLUTION:.0%}; two engines get requests in turn. A run of {RUN_S:.0f} s at {SHARE:.0%} of what
two should carry.

* What two replicas carry is within {OFF_MAX:.0%} of what a plan counts on. {off:+.1%}: {kept}.

{table(head, rows)}"""
