"""What a chart of the report is: a title, a sentence on how to read it, a drawing or the reason why there is none.

A drawing is made twice, for a desk and for a phone, each at its own size in pixels, so that text is never scaled to
something unreadable; the style sheet shows one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from tokenswarm.reports.cells import load_cell
from tokenswarm.reports.html.requests import Drawn
from tokenswarm.reports.html.svg import Frame, escape, svg
from tokenswarm.result.stat import Stat
from tokenswarm.result.summary import Stage, Summary

HALF, WIDE, PHONE = (560.0, 320.0), (1000.0, 240.0), (350.0, 270.0)
"""Width and height (px) of a chart of half the page, of the whole page, and on a phone."""

COLOURS = 12
"""Stage colours in the style sheet, from few users to many."""

Drawing = tuple[Frame, Sequence[str]]
Draw = Callable[[float, float], Drawing]


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """`draw` for a width and height in pixels; None with the `reason` (a clause: "the run has one stage")."""

    name: str
    title: str
    caption: str = ""
    draw: Draw | None = None
    reason: str = ""
    wide: bool = False


def left_out(name: str, title: str, reason: str) -> Figure:
    return Figure(name=name, title=title, reason=reason)


def render(figure: Figure) -> str:
    """The figure as HTML: both sizes and the caption. It must have a drawing."""
    assert figure.draw is not None
    drawings = []
    for variant, (width, height) in (("desk", WIDE if figure.wide else HALF), ("phone", PHONE)):
        frame, marks = figure.draw(width, height)
        drawings.append(svg(frame, marks, f"{figure.title}. {figure.caption}", variant))
    style = ' class="wide"' if figure.wide else ""
    return (
        f'<figure id="{figure.name}"{style}><h3>{escape(figure.title)}</h3>{"".join(drawings)}'
        f"<figcaption>{escape(figure.caption, 1_000)}</figcaption></figure>"
    )


class Data(msgspec.Struct, frozen=True):
    """What all figures are drawn from."""

    summary: Summary
    rows: Drawn

    @property
    def stages(self) -> list[Stage]:
        """The stages, in order of their number."""
        return self.summary.stages

    def colour(self, stage: int) -> str:
        """The class of a stage's colour: few users to many take the whole range of colours."""
        numbers = [item.stage for item in self.stages]
        if len(numbers) < 2 or stage not in numbers:
            return "k4"
        return f"k{round(numbers.index(stage) * (COLOURS - 1) / (len(numbers) - 1))}"


def load_of(stage: Stage) -> float | None:
    """What a stage asked for: users, or requests a second, of a ramp the mean."""
    if stage.concurrency is not None:
        return float(stage.concurrency)
    return stage.rate if stage.rate is None or stage.rate_end is None else (stage.rate + stage.rate_end) / 2


def load_name(stage: Stage) -> str:
    """8 users; 20/s; 5→80/s; stage 3 where neither is known."""
    if stage.concurrency is not None:
        return f"{stage.concurrency} user{'s' * (stage.concurrency != 1)}"
    return load_cell(stage) if stage.rate is not None else f"stage {stage.stage + 1}"


def load_label(stages: Sequence[Stage]) -> str:
    return "users" if all(stage.concurrency is not None for stage in stages) else "requests per second, offered"


PERCENTILE_NAMES = {"p999": "p99.9", "p99": "p99", "p95": "p95", "p90": "p90", "p50": "p50", "mean": "mean"}


def best_percentile(stats: Sequence[Stat], least: int = 1, among: Sequence[str] = ("p99", "p95", "p90")) -> str | None:
    """The first of `among` that at least `least` of the stats have enough samples for."""
    return next((name for name in among if sum(getattr(stat, name) is not None for stat in stats) >= least), None)
