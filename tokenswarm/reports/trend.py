"""A history on a terminal: of each thing that was measured, its latest values against the usual ones, and changes."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tokenswarm.reports.comparison import percent
from tokenswarm.reports.html.trend import Drawn, latest
from tokenswarm.reports.numbers import MISSING, harmless

HEAD = ("metric", "runs", "latest", "usual", "against it", "changed for good")


def report(drawn: Sequence[Drawn], metrics: Sequence[str]) -> RenderableType:
    """A table a series. `usual`: the median of up to ten runs before the latest."""
    parts: list[RenderableType] = []
    for one in drawn:
        runs = len(one.points)
        bad = f", {len(one.left_out)} left out as INVALID or cut short" if one.left_out else ""
        parts += [Text(""), Text(f" {harmless(one.name)}: {runs} run{'s' * (runs != 1)}{bad}", style="bold")]
        shown = Table(box=box.SIMPLE_HEAD, show_edge=False, collapse_padding=True, header_style="bold")
        for name in HEAD:
            shown.add_column(name, justify="left" if name in (HEAD[0], HEAD[-1]) else "right")
        for row in latest(one.points, metrics):
            marks = [mark for mark in one.marks if mark.metric == row[0]]
            told = "; ".join(f"{percent(m.ratio)} from {harmless(one.points[m.place].run_id)} on" for m in marks[-3:])
            style = "bold red" if marks and marks[-1].worse else "green" if marks else ""
            shown.add_row(*map(Text, row), Text(told or MISSING, style=style))
        parts.append(shown)
    return Group(*parts, Text(""))
