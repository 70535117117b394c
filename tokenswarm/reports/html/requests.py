"""requests.jsonl -> what the charts draw, in one pass and bounded memory: bins, sketches and samples, never the rows.

Distributions are sketches (within 0.55 %), time is cut into at most BINS_MAX bins, single points are a random sample
of fixed size and seed. A line that is no row is counted, not an error: a run that was killed leaves a torn one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, groupby, islice
from math import log, log1p
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import msgspec

from tokenswarm.errors import MALFORMED
from tokenswarm.measure.sketch import Sketch, Tally
from tokenswarm.reports.rows import LINE_BYTES_MAX, ROWS_NAME, Lines, missing_files

BINS_MAX = 600
BIN_S = (0.25, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600)
FINE_BELOW_S = 20.0  # below it, bins of a quarter of a second; else a second, which is what people expect of tokens/s
ROLLING_BINS = 60
POINTS_MAX = 2_000
POINTS_PER_STAGE_MAX = 250
FAILURES_MAX = 250
BLOCK_BYTES = 256 << 10  # read at a time, about 250 rows: more is no quicker
BLOCK_LINES = 250  # of a compressed file, or of rows that are none

METRICS = ("ttft_s", "itl_mean_s", "tpot_s", "e2e_s")

T = TypeVar("T")

Seconds = Annotated[float, msgspec.Meta(ge=-1e12, le=1e12)]
"""Neither NaN nor so large that a coordinate overflows: a damaged row is refused here, not drawn."""


class ChartRow(msgspec.Struct, gc=False):
    """The fields of a row (reports/jsonl.py) that are drawn."""

    stage: int
    phase: str
    outcome: str
    intended_s: Seconds
    sent_s: Seconds | None = None
    first_s: Seconds | None = None
    last_s: Seconds | None = None
    done_s: Seconds | None = None
    ttft_s: Seconds | None = None
    tpot_s: Seconds | None = None
    e2e_s: Seconds | None = None
    itl_mean_s: Seconds | None = None
    output_tokens: Annotated[int, msgspec.Meta(ge=0, le=10**12)] = 0
    error_kind: str | None = None


class Sample(Generic[T]):
    """At most `size` of all items offered, each equally likely (Li's algorithm L: the work is in the few it takes)."""

    def __init__(self, size: int, seed: int = 1) -> None:
        self.items: list[T] = []
        self.n = 0
        self._size, self._random = size, random.Random(seed).random
        self._weight, self._next = 1.0, 0  # number of the next item that replaces one, once there are `size`

    def offer(self, items: Sequence[Any], kept: Callable[[Any], T] = lambda item: item) -> None:
        """`kept`: what is kept of an item that is taken."""
        free = self._size - len(self.items)
        if free > 0:
            self.items += map(kept, items[:free])
            if len(self.items) == self._size:
                self._next = self._size - 1
                self._skip()
        if len(self.items) == self._size:
            while self._next < self.n + len(items):
                self.items[int(self._random() * self._size)] = kept(items[self._next - self.n])
                self._skip()
        self.n += len(items)

    def _skip(self) -> None:
        self._weight *= (1.0 - self._random()) ** (1.0 / self._size)
        some = log(1.0 - self._random()) / log1p(-self._weight) if self._weight < 1.0 else 0.0
        self._next += int(some) + 1


class Bins:
    """A quantity over time as its mean in each bin. What lies outside of the bins is left out."""

    def __init__(self, width_s: float, n: int) -> None:
        self.width_s, self.n = width_s, n
        self._edges = [0.0] * n  # of each bin, what is there in part of it
        self._whole = [0.0] * (n + 1)  # how much more is there from this bin on, in all of it

    def step(self, moments_s: Iterable[float], rate: float) -> None:
        """From each of these moments on there is `rate` more: an interval is a step up, and one down."""
        width_s, n = self.width_s, self.n
        for index, moments in groupby(sorted([at_s / width_s for at_s in moments_s]), int):
            if index < n:
                ats = list(moments)
                if ats[0] < 0:
                    ats = [max(at, 0.0) for at in ats]
                    index = 0
                self._edges[index] += rate * ((index + 1) * len(ats) - sum(ats))
                self._whole[index + 1] += rate * len(ats)

    def spread(self, answers: Iterable[ChartRow]) -> None:
        """The tokens of answers: of each the first when it came, the others evenly up to the last."""
        width_s, bins, edges, whole = self.width_s, self.n, self._edges, self._whole
        for answer in answers:
            first_s, last_s, n = answer.first_s, answer.last_s, answer.output_tokens
            if first_s is None or last_s is None or n < 1:
                continue
            index, end = int(first := first_s / width_s), int(last := last_s / width_s)
            if first < 0 or end >= bins:  # seldom: in part outside
                if 0 <= index < bins:
                    edges[index] += (1 if last_s > first_s else n) / width_s
                if last_s > first_s:
                    self.step([first_s], (n - 1) / (last_s - first_s))
                    self.step([last_s], (1 - n) / (last_s - first_s))
            elif last > first:
                rate = (n - 1) / (last_s - first_s)
                edges[index] += rate * (index + 1 - first) + 1 / width_s
                index += 1
                whole[index] += rate
                edges[end] -= rate * (end + 1 - last)
                whole[end + 1] -= rate
            else:
                edges[index] += n / width_s

    def means(self) -> list[float]:
        """The mean of each bin."""
        return [max(part + whole, 0.0) for part, whole in zip(self._edges, accumulate(self._whole), strict=False)]


class Counted:
    """Sketches of some values at a time; of the same values once more, the one before: TTFT is drawn twice, and where
    each event is one token, TPOT is the mean ITL."""

    def __init__(self) -> None:
        self._values: list[float] = []
        self._sketch = Sketch()

    def sketch(self, values: list[float]) -> Sketch:
        """To be read only."""
        if values != self._values:
            self._values, self._sketch = values, Sketch()
            self._sketch.add_all(values)
        return self._sketch


class StageRows:
    """Successful requests that were intended in the steady window of a stage."""

    def __init__(self) -> None:
        self.tallies = {name: Tally() for name in METRICS}
        self.points: dict[str, Sample[float]] = {name: Sample(POINTS_PER_STAGE_MAX) for name in METRICS}

    def add(self, rows: Sequence[ChartRow], counted: Counted) -> None:
        for name in METRICS:
            values = [value for value in map(attrgetter(name), rows) if value is not None]
            self.tallies[name].add(counted.sketch(values))
            self.points[name].offer(values)


class Drawn:
    """Everything that the charts take from the rows. `reason`: why there are none."""

    def __init__(self, duration_s: float) -> None:
        self.reason = ""
        self.problems: list[str] = []  # files that could not be read to their end, in sentences
        self.n = self.unreadable = 0
        self.duration_s = duration_s if duration_s > 0 else 1.0
        self.bin_s = _bin_s(self.duration_s)
        n = max(1, -int(-self.duration_s // self.bin_s))
        self.in_flight, self.tokens = Bins(self.bin_s, n), Bins(self.bin_s, n)
        self.stages: dict[int, StageRows] = {}
        self.ttft: Sample[tuple[float, float, int]] = Sample(POINTS_MAX)  # (sent s, TTFT s, stage)
        self.rolling_s = self.duration_s / ROLLING_BINS
        self.rolling = [Tally() for _ in range(ROLLING_BINS)]
        self.failures: Sample[tuple[float, str]] = Sample(FAILURES_MAX)  # (end s, what)
        self._counted = Counted()

    def add(self, rows: Sequence[ChartRow]) -> None:
        """Take some rows, column by column: calls for each row and value would be most of the work."""
        self.n += len(rows)
        sent = [row for row in rows if row.sent_s is not None and (row.done_s is None or row.done_s > row.sent_s)]
        self.in_flight.step([row.sent_s for row in sent], 1.0)  # type: ignore[misc]
        self.in_flight.step([row.done_s or _ended_s(row, self.duration_s) for row in sent], -1.0)
        ok = [row for row in rows if row.outcome == "ok"]
        if len(ok) < len(rows):
            failed = [row for row in rows if row.outcome not in ("ok", "cancelled", "censored")]
            self.failures.offer([(_ended_s(row, row.intended_s), row.error_kind or row.outcome) for row in failed])
        # The first token when it came, the others evenly up to the last: rows hold no stamp of each.
        self.tokens.spread(ok)
        self._add_ttft([row for row in ok if row.sent_s is not None and row.ttft_s is not None])
        steady = [row for row in ok if row.phase == "steady"]
        for number in (numbers := {row.stage for row in steady}):
            of_stage = steady if len(numbers) == 1 else [row for row in steady if row.stage == number]
            self.stages.setdefault(number, StageRows()).add(of_stage, self._counted)

    def _add_ttft(self, rows: Sequence[ChartRow]) -> None:
        self.ttft.offer(rows, lambda row: (row.sent_s or 0.0, row.ttft_s or 0.0, row.stage))
        sent_s, ttft_s = [row.sent_s or 0.0 for row in rows], [row.ttft_s or 0.0 for row in rows]
        places = [int(at_s / self.rolling_s) for at_s in (min(sent_s), max(sent_s))] if rows else []
        by_bin: dict[int, list[float]] = {}
        if len(set(places)) == 1:
            by_bin[places[0]] = ttft_s
        else:
            for at_s, value_s in zip(sent_s, ttft_s, strict=True):
                by_bin.setdefault(int(at_s / self.rolling_s), []).append(value_s)
        for place, values in by_bin.items():
            self.rolling[min(max(place, 0), ROLLING_BINS - 1)].add(self._counted.sketch(values))


def _ended_s(row: ChartRow, else_s: float) -> float:
    """When the request ended; `else_s` where it was still open as the run was cut."""
    return row.done_s if row.done_s is not None else row.last_s if row.last_s is not None else else_s


Rows = Path | Sequence[Path] | Iterable[Mapping[str, Any]] | None
"""The file of requests.jsonl, the files of a run in order, rows as dicts, or nothing."""


def read(rows: Rows, duration_s: float) -> Drawn:
    """One pass over the rows. Never raises for a file that is missing or damaged: what can't be read is told."""
    drawn, paths = Drawn(duration_s), _paths(rows)
    drawn.problems = [missing] if (missing := missing_files(paths)) else []
    for found in _files(paths, drawn.problems) if paths or rows is None else _dicts(rows):  # type: ignore[arg-type]
        good = [row for row in found if row is not None]
        drawn.unreadable += len(found) - len(good)
        drawn.add(good)
    if not drawn.n:
        drawn.reason = drawn.problems[0] if drawn.problems else f"{ROWS_NAME} holds no request"
        if rows is None:
            drawn.reason = f"{ROWS_NAME} was not given"
    return drawn


def _paths(rows: Rows) -> list[Path]:
    if isinstance(rows, Path):
        return [rows]
    return [row for row in rows if isinstance(row, Path)] if isinstance(rows, Sequence) else []


def _files(paths: Sequence[Path], problems: list[str]) -> Iterator[Sequence[ChartRow | None]]:
    """The rows of all files, some at a time; what of a file can't be read goes to `problems`."""
    for path in paths:
        lines = Lines(path)
        try:
            yield from _packed(lines) if path.suffix == ".gz" else _blocks(path)
        except OSError as error:
            problems.append(f"{path.name} can't be read ({error.strerror})")
        if lines.problem:
            problems.append(lines.problem)


def _packed(lines: Lines) -> Iterator[Sequence[ChartRow | None]]:
    """The rows of a compressed file, up to where it is damaged."""
    decoder, each = msgspec.json.Decoder(ChartRow), iter(lines)
    while block := b"".join(islice(each, BLOCK_LINES)):
        yield _decoded(decoder, memoryview(block))


def _blocks(path: Path) -> Iterator[Sequence[ChartRow | None]]:
    """The rows of some lines at a time, read into one buffer; None for a line that is no row."""
    decoder, buffer, kept = msgspec.json.Decoder(ChartRow), bytearray(BLOCK_BYTES), 0
    with path.open("rb", buffering=0) as file:
        while (view := memoryview(buffer)) and (got := file.readinto(view[kept:])):
            kept += got
            end = buffer.rfind(b"\n", 0, kept) + 1
            if end:
                yield _decoded(decoder, view[:end])
                kept -= end
                view[:kept] = view[end : end + kept]
            elif kept == LINE_BYTES_MAX:
                kept = 0
                yield [None]
            elif kept == len(buffer):
                view.release()
                buffer += bytes(len(buffer))
    if kept:
        yield _decoded(decoder, view[:kept])


def _decoded(decoder: msgspec.json.Decoder[ChartRow], lines: memoryview) -> Sequence[ChartRow | None]:
    try:
        return decoder.decode_lines(lines)
    except MALFORMED:
        return [_row(decoder, line) for line in bytes(lines).splitlines()]


def _row(decoder: msgspec.json.Decoder[ChartRow], line: bytes) -> ChartRow | None:
    try:
        return decoder.decode(line)
    except MALFORMED:
        return None


def _dicts(rows: Iterable[Mapping[str, Any]]) -> Iterator[Sequence[ChartRow | None]]:
    given = iter(rows)
    while some := list(islice(given, BLOCK_LINES)):
        yield [_converted(row) for row in some]


def _converted(row: Mapping[str, Any]) -> ChartRow | None:
    try:
        return msgspec.convert(row, ChartRow)
    except msgspec.ValidationError:
        return None


def _bin_s(duration_s: float) -> float:
    for width_s in BIN_S:
        if duration_s / width_s <= BINS_MAX and (width_s >= 1 or duration_s < FINE_BELOW_S):
            return width_s
    return duration_s / BINS_MAX


def cdf(sketch: Sketch, points_max: int = 160) -> list[tuple[float, float]]:
    """(value, share of samples ≤ value) from the smallest value to the largest, thinned to at most so many points."""
    if sketch.low is None:
        return []
    points = [(sketch.low, 0.0), *sketch.cdf()]
    stride = -(-len(points) // points_max)
    return points if stride == 1 else [*points[:-1:stride], points[-1]]
