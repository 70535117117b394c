"""A table of numbers that leaves out columns, the least telling first, where the terminal is narrow.

A number that lost its last digits would be another number.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text


class Narrowing:
    """`leave_out`: columns in the order in which they go; `left`: those of words. Names in the first one are words."""

    def __init__(
        self,
        head: Sequence[str],
        cells: Sequence[Sequence[str | Text]],
        leave_out: Sequence[int],
        left: Collection[int] = (),
    ) -> None:
        self._head, self._leave_out = head, leave_out
        self._cells = [[cell if isinstance(cell, Text) else Text(cell) for cell in row] for row in cells]
        self._left = {*left, *([0] if any(row[0].plain[:1].isalpha() for row in self._cells[:1]) else [])}

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        left_out: set[int] = set()
        for column in (None, *self._leave_out):
            if column is not None:
                left_out.add(column)
            table = self._draw([number for number in range(len(self._head)) if number not in left_out])
            if Measurement.get(console, options.update(max_width=1_000), table).maximum <= options.max_width:
                break
        yield table

    def _draw(self, columns: Sequence[int]) -> Table:
        table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, show_edge=False, header_style="bold")
        for column in columns:
            justify = "left" if column in self._left else "right"
            table.add_column(Text(self._head[column]), justify=justify, no_wrap=True)  # type: ignore[arg-type]
        for row in self._cells:
            table.add_row(*[row[column] for column in columns])
        return table
