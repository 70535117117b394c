"""What `tokenswarm path` found, for people: the table and the findings on a terminal, and report.html."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tokenswarm.reports.html.figure import Drawing, Figure
from tokenswarm.reports.html.figure import render as render_figure
from tokenswarm.reports.html.page import document, section
from tokenswarm.reports.html.svg import escape, frame, line, linear, number, plot_height, time
from tokenswarm.reports.html.tables import table
from tokenswarm.reports.numbers import MISSING, duration, ratio
from tokenswarm.result.path import Level, PathReport, Side

HEAD = ("streams", "way", "ok", "TTFT added", "E2E added", "gap p50", "gap p99", "share a read")


def rows(levels: tuple[Level, ...]) -> list[tuple[str, ...]]:
    """The table's cells: two rows a level."""
    return [
        (str(level.streams) if way == "direct" else "", way, f"{side.ok}/{level.answers}", *_cells(side))
        for level in levels
        for way, side in (("direct", level.direct), ("path", level.via))
    ]


def _cells(side: Side) -> tuple[str, ...]:
    times = (side.added_ttft_s, side.added_e2e_s, side.gap_p50_s, side.gap_p99_s)
    told = [MISSING if value is None else ("-" if value < 0 else "") + duration(abs(value)) for value in times]
    return (*told, ratio(side.merged_ratio))


def console(report: PathReport) -> RenderableType:
    """The table, the findings, the verdict."""
    shown = Table(box=None, pad_edge=False)
    for name in HEAD:
        shown.add_column(name, justify="left" if name == "way" else "right")
    for cells in rows(report.levels):
        shown.add_row(*map(Text, cells))
    lines: list[RenderableType] = [Text(""), shown, Text("")]
    lines += [Text(f"{what}: {came}") for what, came in report.checks]
    if report.marks:
        lines.append(Text("headers of the path: " + ", ".join(f"{k}: {v}" for k, v in list(report.marks.items())[:6])))
    lines += [Text(f"\nverdict: {report.verdict}", style="bold")]
    lines += [Text(f"  {'note' if f.word == 'transparent' else f.word} {f.code}: {f.message}") for f in report.findings]
    return Group(*lines)


def page(report: PathReport) -> str:
    """report.html: the verdict, the two timelines of one stream, the tables."""
    body = (
        f'<header class="verdict {"valid" if report.verdict == "transparent" else "degraded"}">'
        f'<p class="brand">tokenswarm path</p><h1>{escape(report.verdict)}</h1>'
        f'<p class="about">{escape(report.via)} to {escape(report.upstream)}, {escape(report.api)}</p></header>'
    )
    body += section("timelines", "One stream on both sides", render_figure(_timelines(report)))
    found = [(finding.word, finding.code, finding.message) for finding in report.findings]
    told = table(("word", "finding", "what it did"), found, (0, 1, 2)) if found else "<p>Nothing.</p>"
    body += section("findings", "What it did", told)
    body += section("levels", "By streams at a time", table(HEAD, rows(report.levels), (1,)))
    body += section("checks", "What was tried", table(("tried", "what came of it"), report.checks, (0, 1)))
    return document(f"tokenswarm path: {report.via}", body)


def _timelines(report: PathReport) -> Figure:
    trace = report.trace
    end_s = max([0.001, *trace.sent_s, *trace.seen_s])

    def draw(width: float, height: float) -> Drawing:
        n = float(max(1, len(trace.sent_s), len(trace.seen_s)))
        y = linear("tokens", n, plot_height(height), number)
        area = frame(width, height, time("since the request was sent", end_s, width), y)
        both = ((trace.sent_s, "p50"), (trace.seen_s, "tail"))
        return area, [line(area, [(at, float(n)) for n, at in enumerate(times, 1)], style) for times, style in both]

    caption = (
        "The tokens of one stream through the path: when the engine wrote each (plain), and when the client had it "
        "(dashed). The distance to the right is what the path adds; steps are reads that hold several tokens."
    )
    return Figure(name="timelines", title="One stream", caption=caption, draw=draw, wide=True)
