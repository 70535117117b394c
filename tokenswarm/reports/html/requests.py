"""requests.jsonl -> what the charts draw, in one pass and bounded memory: bins, sketches and samples, never the rows.

Distributions are sketches (within 0.55 %), time is cut into at most BINS_MAX bins, single points are a random sample
of fixed size and seed. A line that is no row is counted, not an error: a run that was killed leaves a torn one.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import msgspec

from tokenswarm.measure.sketch import Sketch
from tokenswarm.reports.folder import ROWS_NAME

BINS_MAX = 600
BIN_S = (0.25, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600)
FINE_BELOW_S = 20.0  # below it, bins of a quarter of a second; else a second, which is what people expect of tokens/s
ROLLING_BINS = 60
POINTS_MAX = 2_000
POINTS_PER_STAGE_MAX = 250
FAILURES_MAX = 250
LINE_BYTES_MAX = 16 << 20  # rows with text hold an answer; more is no row of ours

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
    """At most `size` of all items offered, each equally likely (Vitter's algorithm R)."""

    def __init__(self, size: int, seed: int = 1) -> None:
        self.items: list[T] = []
        self.n = 0
        self._size, self._random = size, random.Random(seed).random

    def offer(self, item: T) -> None:
        self.n += 1
        if len(self.items) < self._size:
            self.items.append(item)
        elif (place := int(self._random() * self.n)) < self._size:
            self.items[place] = item


class Bins:
    """The integral of rates over time, by bin: an interval costs O(1) however long it is."""

    def __init__(self, width_s: float, n: int) -> None:
        self.width_s, self.n = width_s, n
        self._edges = [0.0] * (n + 1)
        self._whole = [0.0] * (n + 2)  # differences of what covers whole bins

    def add(self, start_s: float, end_s: float, rate: float) -> None:
        """`rate` from `start_s` to `end_s` (s); what lies outside of the bins is left out."""
        width_s = self.width_s
        start, end = max(start_s, 0.0) / width_s, min(end_s / width_s, float(self.n))
        if not end > start:
            return
        first, last = int(start), int(end)
        if first == last:
            self._edges[first] += rate * (end - start)
            return
        self._edges[first] += rate * (first + 1 - start)
        self._edges[last] += rate * (end - last)
        self._whole[first + 1] += rate
        self._whole[last] -= rate

    def means(self) -> list[float]:
        """The mean rate of each bin."""
        out, whole = [], 0.0
        for index in range(self.n):
            whole += self._whole[index]
            out.append(max(self._edges[index] + whole, 0.0))
        return out


class StageRows:
    """Successful requests that were intended in the steady window of a stage."""

    def __init__(self) -> None:
        self.sketches = {name: Sketch() for name in METRICS}
        self.points: dict[str, Sample[float]] = {name: Sample(POINTS_PER_STAGE_MAX) for name in METRICS}


class Drawn:
    """Everything that the charts take from the rows. `reason`: why there are none."""

    def __init__(self, duration_s: float) -> None:
        self.reason = ""
        self.n = self.unreadable = 0
        self.duration_s = duration_s if duration_s > 0 else 1.0
        self.bin_s = _bin_s(self.duration_s)
        n = max(1, -int(-self.duration_s // self.bin_s))
        self.in_flight, self.tokens = Bins(self.bin_s, n), Bins(self.bin_s, n)
        self.stages: dict[int, StageRows] = {}
        self.ttft: Sample[tuple[float, float, int]] = Sample(POINTS_MAX)  # (sent s, TTFT s, stage)
        self.rolling_s = self.duration_s / ROLLING_BINS
        self.rolling = [Sketch() for _ in range(ROLLING_BINS)]
        self.failures: Sample[tuple[float, str]] = Sample(FAILURES_MAX)  # (end s, what)

    def add(self, row: ChartRow) -> None:
        self.n += 1
        ended_s = row.done_s if row.done_s is not None else row.last_s
        if row.sent_s is not None:
            # A request without an end was still open when the run was cut.
            self.in_flight.add(row.sent_s, self.duration_s if ended_s is None else ended_s, 1.0)
        if row.outcome != "ok":
            if row.outcome not in ("cancelled", "censored"):
                at_s = ended_s if ended_s is not None else row.intended_s
                self.failures.offer((at_s, row.error_kind or row.outcome))
            return
        if row.first_s is not None and row.last_s is not None and row.output_tokens > 0:
            self._add_tokens(row.first_s, row.last_s, row.output_tokens)
        if row.ttft_s is not None and row.sent_s is not None:
            self.ttft.offer((row.sent_s, row.ttft_s, row.stage))
            place = int(row.sent_s / self.rolling_s)
            self.rolling[min(max(place, 0), ROLLING_BINS - 1)].add(row.ttft_s)
        if row.phase == "steady":
            self._add_steady(row)

    def _add_tokens(self, first_s: float, last_s: float, n: int) -> None:
        """The first token when it came, the others evenly up to the last: rows hold no stamp of each."""
        moment_s = self.bin_s * 1e-3
        if n == 1 or last_s - first_s < moment_s:
            self.tokens.add(first_s, first_s + moment_s, n / moment_s)
            return
        self.tokens.add(first_s, first_s + moment_s, 1 / moment_s)
        self.tokens.add(first_s, last_s, (n - 1) / (last_s - first_s))

    def _add_steady(self, row: ChartRow) -> None:
        stage = self.stages.get(row.stage)
        if stage is None:
            stage = self.stages[row.stage] = StageRows()
        for name in METRICS:
            value = getattr(row, name)
            if value is not None:
                stage.sketches[name].add(value)
                stage.points[name].offer(value)


def read(rows: Path | Iterable[Mapping[str, Any]] | None, duration_s: float) -> Drawn:
    """One pass over requests.jsonl (or over rows as dicts). Never raises for a file that is missing or damaged."""
    drawn = Drawn(duration_s)
    try:
        for row in _lines(rows) if isinstance(rows, Path) else _dicts(rows or ()):
            if row is None:
                drawn.unreadable += 1
            else:
                drawn.add(row)
    except OSError as error:
        drawn.reason = f"{ROWS_NAME} can't be read ({error.strerror})"
    if not drawn.n and not drawn.reason:
        drawn.reason = f"{ROWS_NAME} holds no request" if rows is not None else f"{ROWS_NAME} was not given"
    return drawn


def _lines(path: Path) -> Iterator[ChartRow | None]:
    decode = msgspec.json.Decoder(ChartRow).decode
    with path.open("rb") as file:
        while line := file.readline(LINE_BYTES_MAX):
            try:
                yield decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError):
                yield None


def _dicts(rows: Iterable[Mapping[str, Any]]) -> Iterator[ChartRow | None]:
    for row in rows:
        try:
            yield msgspec.convert(row, ChartRow)
        except msgspec.ValidationError:
            yield None


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
