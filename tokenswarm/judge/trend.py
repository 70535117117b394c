"""A history by what was measured, and where its values changed for good. Pure.

Runs are held against the runs before them: up to WINDOW before a moment against up to WINDOW from it on, by the exact
rank-sum test at a level that a scan over many moments needs, and by the margin of a comparison. Four runs after ten are
the fewest that can show a change.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from math import exp, fsum, log, sqrt
from statistics import median

import msgspec

from tokenswarm.judge import ranksum
from tokenswarm.judge.compare import METRICS
from tokenswarm.result.comparison import MARGINS
from tokenswarm.result.history import Line

WINDOW = 10
LEAST = 4
ALPHA = 0.001
GAP = 5.0  # times the usual distance between runs: a hole in the history, over which no line is drawn


class Change(msgspec.Struct, frozen=True):
    """From `run_id` on the metric is `ratio` times what it was."""

    metric: str
    place: int  # in the points of the series
    run_id: str
    ratio: float
    worse: bool


class Series(msgspec.Struct):
    """The runs of one profile, load, model and target, by time. `left_out`: those whose numbers can't be believed."""

    profile: str
    load: str
    model: str
    host: str
    points: list[Line]
    left_out: list[Line]
    changes: list[Change]

    @property
    def name(self) -> str:
        return " · ".join(part for part in (self.profile, self.load, self.model, self.host) if part) or "unnamed"


def series(lines: Sequence[Line]) -> list[Series]:
    """Each thing that was measured, the one with the latest run first."""
    found: dict[tuple[str, str, str, str], Series] = {}
    for line in sorted((one for one in lines if one.kind == "run" and one.at is not None), key=_at):
        key = (line.profile, line.load, line.model, line.host)
        one = found.setdefault(key, Series(*key, [], [], []))
        (one.left_out if line.partial or line.status == "INVALID" else one.points).append(line)
    for one in found.values():
        one.changes = [
            change
            for metric in METRICS
            for change in changes(metric.name, one.points, MARGINS[metric.kind], metric.higher_is_better)
        ]
    return sorted(found.values(), key=lambda one: _at((one.points or one.left_out)[-1]), reverse=True)


def changes(metric: str, points: Sequence[Line], margin: float, higher_is_better: bool) -> list[Change]:
    """Where the metric changed for good, by time; of neighbouring moments the one that parts the values best."""
    known = [(place, log(value)) for place, line in enumerate(points) if (value := line.values.get(metric))]
    values = [value for _, value in known]
    found: list[Change] = []
    begin, at = 0, LEAST
    while at <= len(values) - LEAST:
        spot = _best(values, begin, at, margin)
        if spot is None:
            at += 1
            continue
        shift = ranksum.shift(values[max(begin, spot - WINDOW) : spot], values[spot : spot + WINDOW])
        place = known[spot][0]
        worse = (shift < 0) == higher_is_better
        found.append(Change(metric, place, points[place].run_id, exp(shift), worse))
        begin, at = spot, spot + LEAST
    return found


def _best(values: Sequence[float], begin: int, at: int, margin: float) -> int | None:
    """The moment at or within WINDOW after `at` that parts the values best, where `at` parts them; else None."""
    if not _parts(values, begin, at, margin):
        return None
    near = [spot for spot in range(at, at + WINDOW) if _parts(values, begin, spot, margin)]
    return max(near, key=lambda spot: _step(values, begin, spot))


def _parts(values: Sequence[float], begin: int, at: int, margin: float) -> bool:
    before, after = values[max(begin, at - WINDOW) : at], values[at : at + WINDOW]
    if min(len(before), len(after)) < LEAST or ranksum.smallest_p(len(before), len(after)) > ALPHA:
        return False
    if abs(ranksum.shift(before, after)) <= log(1 + margin):
        return False
    return min(ranksum.p_greater(before, after), ranksum.p_greater(after, before)) <= ALPHA


def _step(values: Sequence[float], begin: int, at: int) -> float:
    """How well `at` explains the values: the step between the means, weighed by how many stand on each side."""
    before, after = values[max(begin, at - WINDOW) : at], values[at : at + WINDOW]
    weight = len(before) * len(after) / (len(before) + len(after))
    return abs(fsum(after) / len(after) - fsum(before) / len(before)) * sqrt(weight)


def gap_s(points: Sequence[Line]) -> float:
    """A distance between two runs beyond which there is a hole (s); inf where there are too few to know."""
    times = [_at(line).timestamp() for line in points]
    apart = [later - earlier for earlier, later in pairwise(times) if later > earlier]
    return GAP * median(apart) if len(apart) >= 3 else float("inf")


def _at(line: Line) -> datetime:
    assert line.at is not None  # runs have one: reports/history.py
    return line.at
