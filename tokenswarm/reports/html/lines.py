"""Lines over stages: a point a stage in its colour, a label at the end of each line."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tokenswarm.reports.html.figure import Data, Drawing, load_label, load_name, load_of
from tokenswarm.reports.html.svg import Axis, Frame, Text, at_values, dot, end_labels, frame, line, number
from tokenswarm.result.summary import Stage

LOG_FROM = 8.0  # a sweep over so large a range of users gets a logarithmic axis, or its first stages fall together

Series = tuple[str, str, list[tuple[float, float, Stage]]]
"""Label, classes, (x, y, stage)."""

Behind = Callable[[Frame], Sequence[str]]


def reason(data: Data, values: int) -> str:
    """Why there is no line over stages: a clause, "" where there is one."""
    if len(data.stages) < 2:
        return "the run has one stage, and this takes a sweep of two or more"
    return "" if values > 1 else "fewer than two stages have a value for it"


def nothing(_: Frame) -> Sequence[str]:
    return ()


def draw(
    data: Data,
    series: Sequence[Series],
    x: Axis,
    y: Axis,
    width: float,
    height: float,
    text: Text,
    behind: Behind = nothing,
) -> Drawing:
    """The lines in order, `behind` them other marks. `text` is a value in a tooltip."""
    f = frame(width, height, x, y, [label for label, *_ in series])
    marks = [*behind(f)]
    radius = 4.5 if len(series) < 3 else 3.6
    ends = []
    for label, style, points in series:
        marks.append(line(f, [(at, value) for at, value, _ in points], style))
        for at, value, stage in points:
            title = f"{load_name(stage)}: {f'{label} {text(value)}'.strip()}"
            marks.append(dot(f, at, value, title, data.colour(stage.stage), radius))
        at, value, _ = points[-1]
        ends.append((at, value, label, style))
    return f, [*marks, end_labels(f, ends)]


def over_load(data: Data, value: Callable[[Stage], float | None]) -> list[tuple[float, float, Stage]]:
    """(users or rate, value, stage) of the stages that have the value, from few users to many."""
    found = []
    for stage in data.stages:
        load, known = load_of(stage), value(stage)
        if load and known is not None:
            found.append((load, known, stage))
    return sorted(found, key=lambda point: point[0])


def load_axis(data: Data, loads: Sequence[float]) -> Axis:
    """A tick a stage; logarithmic where the loads are far apart."""
    return at_values(load_label(data.stages), loads, number, log=max(loads) / min(loads) >= LOG_FROM)
