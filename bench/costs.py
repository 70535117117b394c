"""What single calls cost, in this process: sketch insert, a gap of `add_gaps`, `recorder.add`, a row of requests.jsonl,
a look at ten engines; and what report.html takes for such a row, beside what decoding its line alone takes.

`python -m bench.costs CORE` prints one JSON line: a list of seconds a call for each, one a repetition.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from bench import pages
from tokenswarm.engines import Delta, Usage
from tokenswarm.measure.counting import Gaps
from tokenswarm.measure.recorder import Recorder
from tokenswarm.measure.sketch import Sketch
from tokenswarm.measure.timeline import Timeline
from tokenswarm.record import RequestRecord
from tokenswarm.reports.html.requests import ChartRow, read
from tokenswarm.reports.jsonl import row
from tokenswarm.telemetry import engines
from tokenswarm.telemetry.watch import EngineWatch

REPETITIONS = 5
TOKENS = 128
ROWS = 20_000
START_NS = 10**12
REPLICAS = 10
SERIES = 5_000


def timed(calls: int, function: Callable[[], object]) -> list[float]:
    """Seconds a call, for each repetition."""
    found = []
    for _ in range(REPETITIONS):
        began_ns = time.perf_counter_ns()
        for _ in range(calls):
            function()
        found.append((time.perf_counter_ns() - began_ns) / calls / 1e9)
    return found


def a_record(tokens: int = TOKENS) -> RequestRecord:
    """An answer of so many tokens, 20 ms apart and no two gaps alike."""
    timeline = Timeline()
    timeline.intended_ns = timeline.sent_ns = START_NS
    now_ns = START_NS + 100_000_000
    for token in range(tokens):
        now_ns += 16_000_000 + token * 7_919 % 8_000 * 1000
        timeline.mark(now_ns, Delta("a"))
    timeline.mark(now_ns, Delta(finished=((0, "length"),), usage=Usage(prompt_tokens=16, output_tokens=tokens)))
    timeline.done_ns = now_ns
    timeline.reads, timeline.stamp, timeline.status = tokens, "kernel", 200
    outcome, _ = timeline.judge()
    return timeline.finish(outcome, id="0-0", stage=0, phase="steady", conversation="0", turn=0)


def drawing(line: bytes) -> dict[str, list[float]]:
    """Seconds a row, of a file of ROWS: its lines decoded one by one, and the file read for the charts of a page."""
    decode = msgspec.json.Decoder(ChartRow).decode
    with tempfile.NamedTemporaryFile() as file:
        file.write(line * ROWS)
        file.flush()

        def decoded() -> None:
            with Path(file.name).open("rb") as lines:
                for one in lines:
                    decode(one)

        return {
            "report_decode": [s / ROWS for s in timed(1, decoded)],
            "report_row": [s / ROWS for s in timed(1, lambda: read(Path(file.name), 60.0))],
        }


def looks() -> list[float]:
    """CPU seconds of a look at REPLICAS pages of SERIES each, but for the first and for what HTTP takes."""
    watches = [EngineWatch("", 1.0, engines.Reader()) for _ in range(REPLICAS)]
    for watch in watches:
        watch.open(0, START_NS)
    found = []
    for look in range(REPETITIONS + 1):
        page = pages.page(look, SERIES)
        began_ns = time.process_time_ns()
        for watch in watches:
            if watch.page(page, START_NS + look * 10**9, 0) is not None:
                raise ValueError(watch.problem)
        found.append((time.process_time_ns() - began_ns) / 1e9)
    return found[1:]


def main() -> None:
    if len(sys.argv) > 1:
        os.sched_setaffinity(0, {int(sys.argv[1])})
    record, sketch, counted = a_record(), Sketch(), Gaps()
    recorder = Recorder("bench", 0, start_ns=START_NS)
    recorder.open_window(0, START_NS)
    gaps = timed(1_000, lambda: counted.add(record.gaps_ns))
    costs = {
        "insert": timed(50_000, lambda: sketch.add(0.0199)),
        "gap": [s / len(record.gaps_ns) for s in gaps],
        "recorder_add": timed(500, lambda: recorder.add(record)),
        "look": looks(),
        "row": timed(500, lambda: row(record, 0, START_NS, save_text=False)),
        **drawing(row(record, 0, START_NS, save_text=False)),
    }
    print(json.dumps(costs))


if __name__ == "__main__":
    main()
