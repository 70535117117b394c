"""requests.jsonl -> a sketch of each latency, quickly: of a large file, evenly spaced parts of it.

A comparison reads many runs, of 100 000 rows each perhaps. A cumulative distribution can't be seen to differ for more
than some 10 000 rows a run, so no more than BYTES_MAX of a file are read, and how many rows that were is said.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from tokenswarm.measure.sketch import Sketch

METRICS = ("ttft_s", "itl_mean_s", "tpot_s", "e2e_s")
PART_BYTES = 1 << 16
PARTS_MAX = 160
BYTES_MAX = PART_BYTES * PARTS_MAX

Seconds = Annotated[float, msgspec.Meta(ge=-1e12, le=1e12)]


class _Row(msgspec.Struct, gc=False):
    phase: str
    outcome: str
    ttft_s: Seconds | None = None
    itl_mean_s: Seconds | None = None
    tpot_s: Seconds | None = None
    e2e_s: Seconds | None = None


class Sampled(msgspec.Struct):
    """Of the successful requests of the steady windows. `whole`: every row was read; else a part of them."""

    run_id: str
    sketches: dict[str, Sketch]
    rows: int = 0  # that were read
    unreadable: int = 0
    whole: bool = True
    reason: str = ""  # why there is nothing


def sample(path: Path, run_id: str) -> Sampled:
    """One look at a run's rows. Never raises for a file that is missing or damaged."""
    found = Sampled(run_id, {name: Sketch() for name in METRICS})
    values: dict[str, list[float]] = {name: [] for name in METRICS}
    decode = msgspec.json.Decoder(_Row).decode
    try:
        for lines in _parts(path, found):
            for line in lines:
                try:
                    row = decode(line)
                except (msgspec.DecodeError, UnicodeDecodeError):
                    found.unreadable += 1
                    continue
                found.rows += 1
                if row.outcome == "ok" and row.phase == "steady":
                    for name, value in zip(METRICS, (row.ttft_s, row.itl_mean_s, row.tpot_s, row.e2e_s), strict=True):
                        if value is not None:
                            values[name].append(value)
    except OSError as error:
        found.reason = f"{path.name} of {run_id} can't be read ({error.strerror})"
    for name in METRICS:
        found.sketches[name] = Sketch(values[name])
    if not found.rows and not found.reason:
        found.reason = f"{path.name} of {run_id} holds no request"
    return found


def _parts(path: Path, found: Sampled) -> list[list[bytes]]:
    """The whole lines of the file's parts; the first and the last line of a part may be cut, and are left out."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if size <= BYTES_MAX:
            file.seek(0)
            return [[line for line in file.read().split(b"\n") if line]]
        found.whole = False
        parts = []
        for number in range(PARTS_MAX):
            file.seek(number * (size - PART_BYTES) // (PARTS_MAX - 1))
            parts.append(file.read(PART_BYTES).split(b"\n")[1:-1])
        return parts
