"""requests.jsonl -> a sketch of each latency, quickly: of a large file, evenly spaced parts of it.

A comparison reads many runs, of 100 000 rows each perhaps. A cumulative distribution can't be seen to differ for more
than some 10 000 rows a run, so no more than BYTES_MAX of a file are read, and how many rows that were is said.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec

from tokenswarm.errors import MALFORMED
from tokenswarm.measure.sketch import Sketch
from tokenswarm.reports.rows import ROWS_NAME, missing_files

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
    reason: str = ""  # why there is nothing, or a file less


def sample(paths: Sequence[Path], run_id: str) -> Sampled:
    """One look at a run's rows, in all its files. Never raises for one that is missing or damaged."""
    found = Sampled(run_id, {name: Sketch() for name in METRICS})
    values: dict[str, list[float]] = {name: [] for name in METRICS}
    decode = msgspec.json.Decoder(_Row).decode
    if missing := missing_files(paths):
        found.reason = f"{run_id}: {missing}"
    parts_max = max(2, PARTS_MAX // max(1, len(paths)))
    for path in paths:
        for lines in _read(path, parts_max, found):
            for line in lines:
                try:
                    row = decode(line)
                except MALFORMED:
                    found.unreadable += 1
                    continue
                found.rows += 1
                if row.outcome == "ok" and row.phase == "steady":
                    for name, value in zip(METRICS, (row.ttft_s, row.itl_mean_s, row.tpot_s, row.e2e_s), strict=True):
                        if value is not None:
                            values[name].append(value)
    for name in METRICS:
        found.sketches[name] = Sketch(values[name])
    if not found.rows and not found.reason:
        found.reason = f"{ROWS_NAME} of {run_id} holds no request"
    return found


def _read(path: Path, parts_max: int, found: Sampled) -> list[list[bytes]]:
    """The lines of `parts_max` parts of the file, or of all of it. Where it can't be read, `found` says so."""
    try:
        return _begin(path, parts_max, found) if path.suffix == ".gz" else _parts(path, parts_max, found)
    except (OSError, EOFError, zlib.error) as error:
        said = getattr(error, "strerror", None) or "it is cut off, or damaged"
        found.reason = found.reason or f"{path.name} of {found.run_id} can't be read ({said})"
        return []


def _begin(path: Path, parts_max: int, found: Sampled) -> list[list[bytes]]:
    """The first lines of a compressed file, which can't be read from its middle: it holds a part of the run anyway."""
    with gzip.open(path, "rb") as file:
        data = file.read(parts_max * PART_BYTES + 1)
    whole = len(data) <= parts_max * PART_BYTES
    found.whole = found.whole and whole
    return [[line for line in (data if whole else data[: data.rfind(b"\n")]).split(b"\n") if line]]


def _parts(path: Path, parts_max: int, found: Sampled) -> list[list[bytes]]:
    """The whole lines of the file's parts; the first and the last line of a part may be cut, and are left out."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if size <= parts_max * PART_BYTES:
            file.seek(0)
            return [[line for line in file.read().split(b"\n") if line]]
        found.whole = False
        parts = []
        for number in range(parts_max):
            file.seek(number * (size - PART_BYTES) // (parts_max - 1))
            parts.append(file.read(PART_BYTES).split(b"\n")[1:-1])
        return parts
