"""What a comparison says, on a terminal and in Markdown: a row a metric, both sides, the shift with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median, stdev

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tokenswarm.reports.markdown import escape, table
from tokenswarm.reports.narrow import Narrowing
from tokenswarm.reports.numbers import MISSING, harmless, of_metric
from tokenswarm.result.comparison import Comparison, Finding, Run

HEAD = ("metric", "baseline", "new", "change", "interval", "says")
LEAVE_OUT = [HEAD.index(name) for name in ("interval", "baseline", "new")]
_STYLES = {"better": "green", "worse": "bold red", "same": "dim", "can't tell": "yellow"}
_MARKS = {"better": "✅", "worse": "❌", "same": "✅", "can't tell": "❔"}


def report(comparison: Comparison) -> RenderableType:
    """The table, the reasons of what can't be told, and the word for all."""
    cells = [[*map(Text, row(one)[:-1]), Text(one.word, style=_STYLES[one.word])] for one in comparison.findings]
    shown = Narrowing(HEAD, cells, LEAVE_OUT, left=(HEAD.index("metric"), HEAD.index("says")))
    reasons = [Padding(Text(harmless(text), style="dim"), (0, 1, 0, 3)) for text in why(comparison)]
    word = Text.assemble(" the new runs: ", (comparison.word, _STYLES[comparison.word]))
    return Group(Text(""), shown, Text(""), word, *reasons, Text(""))


def markdown(comparison: Comparison) -> str:
    """The same for a pull request's comment."""
    lines = [f"## {_MARKS[comparison.word]} tokenswarm: the new runs are {_as_said(comparison)}", ""]
    lines += table(HEAD, [row(finding) for finding in comparison.findings])
    lines += ["", *(f"- {escape(text)}" for text in why(comparison))]
    return "\n".join(lines).rstrip() + "\n"


VARIATION_HEAD = ("metric", "median", "least", "largest", "spread")


def variation(runs: Sequence[Run]) -> RenderableType:
    """How much the runs of one thing vary: what a difference will be held against."""
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, collapse_padding=True, header_style="bold")
    for name in VARIATION_HEAD:
        shown.add_column(name, justify="left" if name == "metric" else "right", no_wrap=True)
    for cells in varied(runs):
        shown.add_row(*map(Text, cells))
    return Group(Text(""), shown, Text(""), Text(f" {len(runs)} run{'s' * (len(runs) != 1)} that count"), Text(""))


def varied(runs: Sequence[Run]) -> list[list[str]]:
    """A row a metric that every run has. The spread is the standard deviation over the mean."""
    found = []
    for metric in runs[0].values if runs else ():
        values = [value for run in runs if (value := run.values.get(metric)) is not None]
        if len(values) < len(runs):
            continue
        told = [of_metric(metric, value) for value in (median(values), min(values), max(values))]
        found.append([metric, *told, f"{100 * stdev(values) / fmean(values):.2g}%" if len(values) > 1 else MISSING])
    return found


def row(finding: Finding) -> list[str]:
    """The cells of one metric. Values of a side are medians over its runs."""
    return [
        finding.metric,
        _side(finding.metric, finding.a),
        _side(finding.metric, finding.b),
        percent(finding.ratio),
        f"{percent(finding.low)[:-1]}…{percent(finding.high)}" if finding.low is not None else MISSING,
        finding.word,
    ]


def why(comparison: Comparison) -> list[str]:
    """A sentence for each reason why a metric can't be told, and one on what the words mean."""
    of_reason: dict[str, list[str]] = {}
    for finding in comparison.findings:
        if finding.word == "can't tell":
            of_reason.setdefault(finding.why, []).append(finding.metric)
    told = [f"{', '.join(metrics)}: {reason}" for reason, metrics in of_reason.items()]
    intervals = {f"{f.confidence:.0%}" for f in comparison.findings if f.confidence is not None}
    margins = {f"{f.kind} {100 * f.margin:.3g}%": None for f in comparison.findings}
    if comparison.definitions:
        told.append(f"under the definitions of {comparison.definitions}: {comparison.apart}")
    if margins:
        told.append(f"margins, within which a change is none: {', '.join(margins)}")
    told += [f"left out: {text}" for text in comparison.left_out]
    if intervals:
        told.append(f"intervals hold the true change in {' or '.join(sorted(intervals))} of cases; a run is one sample")
    return told


def percent(ratio: float | None) -> str:
    """+3.1%, −12%, +1084%: a ratio as a change. What logarithms leave of two equal values is none."""
    if ratio is None:
        return MISSING
    change = round(100 * (ratio - 1), 4)
    size = abs(change)
    return f"{'−' if change < 0 else '+'}{f'{size:.0f}' if size >= 999.5 else f'{size:.3g}'}%"


def _side(metric: str, values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return of_metric(metric, median(known)) if known else MISSING


def _as_said(comparison: Comparison) -> str:
    if comparison.word != "can't tell":
        return {"same": "the same"}.get(comparison.word, comparison.word)
    return "neither shown to be worse nor to be the same"
