"""What is counted of every answer, token by token and value by value: in C where that was built (_counting.c) and the
reader in C may be, too. What is not plain C leaves to Python, which does all of it elsewhere, with the same result.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from math import log2
from operator import sub

from tokenswarm.clock import NS_PER_S
from tokenswarm.compiled import compiled
from tokenswarm.measure.sketch import Sketch
from tokenswarm.profile.environment import wanted_reader

IN_C = compiled("tokenswarm.measure._counting") if wanted_reader() != "python" else None


def between(stamps: tuple[int, ...]) -> tuple[int, ...] | None:
    """Gaps between these stamps, ns; None where one of them is not above 0."""
    if IN_C is not None:
        found: tuple[int, ...] | None = IN_C.between(stamps)
        if found is not None:
            return found
    gaps = tuple(map(sub, stamps[1:], stamps))
    return gaps if not gaps or min(gaps) > 0 else None


class Gaps:
    """Gaps between events, a token each, on their way to sketches: `add` those of an answer, then `move`."""

    __slots__ = ("_sketch", "_table")

    def __init__(self) -> None:
        self._sketch = Sketch()  # of what is in the table all but the counts
        self._table = array("I", bytes(4 * IN_C.KEYS)) if IN_C is not None else None

    def add(self, gaps_ns: tuple[int, ...]) -> None:
        """What `Sketch.add_gaps` does."""
        sketch = self._sketch
        counted = IN_C.count(gaps_ns, self._table) if IN_C is not None and gaps_ns else None
        if counted is None:
            sketch.add_gaps(gaps_ns)
            return
        sum_ns, least_ns, most_ns = counted
        sketch.n += len(gaps_ns)
        sketch.sum += sum_ns / NS_PER_S
        sketch.min = min(sketch.min, least_ns / NS_PER_S)
        sketch.max = max(sketch.max, most_ns / NS_PER_S)

    def move(self, sketches: Iterable[Sketch]) -> None:
        """Count them in each of these, and begin anew."""
        if not self._sketch.n:
            return
        if IN_C is not None:
            IN_C.move(self._table, self._sketch.counts)
        for sketch in sketches:
            sketch.merge(self._sketch)
        self._sketch = Sketch()


def add_values(sketch: Sketch, values: list[float]) -> None:
    """What `Sketch.add_all` does."""
    if IN_C is None or not values or not IN_C.count_values(values, sketch.counts):
        sketch.add_all(values)
        return
    sketch.n += len(values)
    sketch.sum = sum(values, sketch.sum)
    sketch.min, sketch.max = min(sketch.min, min(values)), max(sketch.max, max(values))


def spread(numbers: tuple[int, ...]) -> tuple[int, int, int]:
    """(sum, lower median, most) of at least one number."""
    found: tuple[int, int, int] | None = IN_C.spread(numbers) if IN_C is not None else None
    if found is None:
        ordered = sorted(numbers)
        found = sum(ordered), ordered[(len(ordered) - 1) // 2], ordered[-1]
    return found


def log_sums(gaps_ns: tuple[int, ...]) -> tuple[int, float, float, float, float, float]:
    """(pairs, Σx, Σy, Σx², Σy², Σxy) of the logarithms of successive gaps above 0, up to float rounding."""
    if IN_C is not None:
        found: tuple[int, float, float, float, float, float] | None = IN_C.log_sums(gaps_ns)
        if found is not None:
            return found
    logs = [log2(gap_ns) for gap_ns in gaps_ns if gap_ns > 0]
    xs, ys = logs[:-1], logs[1:]
    squares, products = [value * value for value in logs], [a * b for a, b in zip(xs, ys, strict=True)]
    return len(xs), sum(xs), sum(ys), sum(squares[:-1]), sum(squares[1:]), sum(products)
