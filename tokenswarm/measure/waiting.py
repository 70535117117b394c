"""Values of requests that wait to be counted: some requests at once, by sketch, which costs a third of one by one.

Each sketch gets its values in the order in which their requests ended, so what it holds afterwards is the same.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenswarm.measure.counting import Gaps, add_values
from tokenswarm.measure.sketch import Sketch

ROWS_MAX = 16  # then they are counted: 0.1 ms, which whoever is due may wait


class Waiting:
    """`add` a value for each of the sketches, None where there is none; `count` them before a sketch is read.

    `gaps`: those between events, of requests whose events have a token each, on their way to each of `of_gaps`.
    """

    __slots__ = ("_of_gaps", "_rows", "_sketches", "gaps")

    def __init__(self, sketches: Sequence[Sketch], of_gaps: Sequence[Sketch]) -> None:
        self._sketches, self._of_gaps = sketches, of_gaps
        self._rows: list[tuple[float | None, ...]] = []
        self.gaps = Gaps()

    def add(self, row: tuple[float | None, ...]) -> None:
        self._rows.append(row)
        if len(self._rows) >= ROWS_MAX:
            self.count()

    def count(self) -> None:
        rows, self._rows = self._rows, []
        if rows:
            for sketch, column in zip(self._sketches, zip(*rows, strict=True), strict=True):
                add_values(sketch, [value for value in column if value is not None])
        self.gaps.move(self._of_gaps)
