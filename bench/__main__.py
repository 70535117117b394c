"""`python -m bench [--quick] [--only NAME]`: run the experiments, write bench/RESULTS.md. At most 10 minutes.

`python -m bench --truth 200`, and each other of OWN_SECTIONS, with a number of rounds: write that section alone.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from bench import arrivals, bars, clean, comparison, drawing, engine, panels, replicas, searches, stall, truth
from bench.experiments import EXPERIMENTS, FULL, QUICK, profile
from bench.results import missed_at, own_sections, render, with_section
from bench.runs import two_cores
from bench.sender import BenchError, build
from tokenswarm import descriptors

RESULTS = Path(__file__).parent / "RESULTS.md"
PROFILES_MAX = 2
OWN_SECTIONS = {
    "truth": truth,
    "arrivals": arrivals,
    "stall": stall,
    "searches": searches,
    "bars": bars,
    "compare": comparison,
    "clean": clean,
    "engine": engine,
    "report": drawing,
    "replicas": replicas,
    "panels": panels,
}
"""By option: a module whose `measured(rounds, say)` is a section of RESULTS.md, made by itself."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="less than a minute: shows that everything works")
    parser.add_argument("--only", choices=list(EXPERIMENTS), help="this experiment alone, printed and not written")
    for name, section in OWN_SECTIONS.items():
        parser.add_argument(f"--{name}", type=int, metavar="ROUNDS", help=(section.__doc__ or "").partition("\n")[0])
    chosen = parser.parse_args(arguments)
    plan = QUICK if chosen.quick else FULL
    began_s = time.monotonic()
    descriptors.raise_limit()  # sender and clients inherit it: a thousand streams need more than the usual 1 024
    try:
        two_cores()
        build()
        for name, sections in OWN_SECTIONS.items():
            if rounds := getattr(chosen, name):
                section = sections.measured(rounds, _say)
                _write(with_section(_written(), section))
                return 0
        found = {}
        for name in [chosen.only] if chosen.only else EXPERIMENTS:
            _say(f"{name}:")
            found[name] = EXPERIMENTS[name](plan, _say)
        profiles = (
            [] if chosen.quick else [profile(plan, streams, _say) for streams in missed_at(found)[-PROFILES_MAX:]]
        )
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    text = render(plan, found, profiles, time.monotonic() - began_s)
    if chosen.only:
        print(text)
    else:
        _write(f"{text.rstrip()}\n\n{own_sections(_written())}")
    return 0


def _written() -> str:
    return RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else ""


def _write(text: str) -> None:
    RESULTS.write_text(text, encoding="utf-8")
    _say(f"written: {RESULTS}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
