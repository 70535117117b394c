"""What all clients share: the command line, the tally of one run, and the JSON line in the end.

A client starts `streams` users spread evenly over the time of one stream (at most `RAMP_S_MAX`), each sending one
request after another until `seconds` are over, and lets the last ones end. CPU and events of the window (ramp to end)
are read by `tick`, which the client calls about every `TICK_S` on its own loop.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import resource
import sys
import time
from array import array
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

TICK_S = 0.05
RAMP_S_MAX = 1.5
_PAGE_BYTES = resource.getpagesize()


class Options(NamedTuple):
    port: int
    path: str
    streams: int
    seconds: float  # 0: `requests` of each user
    requests: int
    stream_s: float
    tokens: int
    core: int | None
    stamps: bool
    profile: str | None
    without_bars: bool

    @property
    def ramp_s(self) -> float:
        return min(RAMP_S_MAX, self.stream_s)

    def start_s(self, user: int) -> float:
        """When this user begins, after the start of the run."""
        return self.ramp_s * user / self.streams

    @property
    def body(self) -> dict[str, object]:
        common = {"model": "bench", "max_tokens": self.tokens, "stream": True}
        if self.path.endswith("chat/completions"):
            return common | {"messages": [{"role": "user", "content": "hello"}]}
        return common | {"prompt": "hello"}


def options() -> Options:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", default="/v1/chat/completions")
    parser.add_argument("--streams", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--requests", type=int, default=1, help="of each user, with --seconds 0")
    parser.add_argument("--stream-s", type=float, default=2.64)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--core", type=int)
    parser.add_argument("--stamps", action="store_true", help="keep each stamp and its content: error of single stamps")
    parser.add_argument("--without-bars", action="store_true", help="no stamps of sends, no budgets: what they cost")
    parser.add_argument("--profile", help="write a cProfile here")
    chosen = Options(**vars(parser.parse_args()))
    if chosen.core is not None:
        os.sched_setaffinity(0, {chosen.core})
    return chosen


class Tally:
    """Counts and samples of one run, all times in ns."""

    def __init__(self, chosen: Options) -> None:
        self._options = chosen
        self.ttft_ns = array("q")
        self.itl_ns = array("q")
        self.error_ns = array("q")  # of single stamps, with --stamps
        self.events = self.requests = self.errors = 0
        self.open = 0  # requests sent and not ended
        self.extra: dict[str, Any] = {}
        # (now, CPU, the kernel's share of it, events) at its start and, so far, its end
        self._window: list[tuple[int, int, int, int]] = []
        self._rss_full = 0
        gc.collect()
        self._rss_base = rss_bytes()
        self._began_ns, self._cpu_ns = time.perf_counter_ns(), time.process_time_ns()
        self._waited_ns = waited_ns("self")

    def elapsed_s(self) -> float:
        return (time.perf_counter_ns() - self._began_ns) / 1e9

    def more(self, sent: int = 0) -> bool:
        """Tell whether a user that has sent so many requests sends another."""
        return self.elapsed_s() < self._options.seconds if self._options.seconds else sent < self._options.requests

    def tick(self) -> None:
        elapsed_s = self.elapsed_s()
        if self._options.ramp_s <= elapsed_s <= (self._options.seconds or math.inf):
            system_ns = int(os.times().system * 1e9)
            self._window[1:] = [(time.perf_counter_ns(), time.process_time_ns(), system_ns, self.events)]
        if self.open == self._options.streams:
            self._rss_full = max(self._rss_full, rss_bytes())

    def stream(self, sent_ns: int, stamps: Sequence[int]) -> None:
        """Take the stamps of one whole answer."""
        self.requests += 1
        if stamps:
            self.ttft_ns.append(stamps[0] - sent_ns)
            self.itl_ns.extend(after - before for before, after in pairwise(stamps))

    def report(self) -> None:
        """Print the JSON line."""
        wall_ns, cpu_ns = time.perf_counter_ns() - self._began_ns, time.process_time_ns() - self._cpu_ns
        window = {"s": 0.0, "cpu_s": 0.0, "system_s": 0.0, "events": 0}
        if len(self._window) == 2:
            s, cpu, system, events = (end - start for start, end in zip(*self._window, strict=True))
            window = {"s": s / 1e9, "cpu_s": cpu / 1e9, "system_s": system / 1e9, "events": events}
        result = {
            "events": self.events,
            "requests": self.requests,
            "errors": self.errors,
            "wall_s": wall_ns / 1e9,
            "cpu_s": cpu_ns / 1e9,
            "waited_s": (waited_ns("self") - self._waited_ns) / 1e9,
            "window": window,
            "ttft_ns": quantiles(self.ttft_ns),
            "itl_ns": quantiles(self.itl_ns),
            "error_ns": quantiles(self.error_ns),
            "rss_base_bytes": self._rss_base,
            "rss_full_bytes": self._rss_full,
            **self.extra,
        }
        print(json.dumps(result), file=sys.stdout, flush=True)


def quantiles(values: Sequence[int]) -> dict[str, int] | None:
    """Exact nearest ranks."""
    if not values:
        return None
    ordered = sorted(values)
    n = len(ordered)
    picked = {name: ordered[max(0, math.ceil(q * n) - 1)] for name, q in QUANTILES.items()}
    return {"n": n, **picked, "max": ordered[-1]}


QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}


def waited_ns(process: int | str) -> int:
    """How long a process was ready to run while something else had its core: what other programs disturbed."""
    return int(Path(f"/proc/{process}/schedstat").read_text(encoding="ascii").split()[1])


def rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * _PAGE_BYTES
