"""The result of a run on a terminal: tables, gates, the verdict with its reasons, where the report is.

Everything is drawn as Text, never as markup, and foreign text loses its control characters, so a server's error can't
paint the screen. Colours say nothing that words don't: NO_COLOR and 80 columns are enough.
"""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tokenswarm.reports import cells as rows
from tokenswarm.reports.narrow import Narrowing
from tokenswarm.reports.numbers import harmless
from tokenswarm.reports.progress import Progress
from tokenswarm.result.summary import Summary

__all__ = ["Progress", "report"]

_STYLES = {
    "VALID": "bold green",
    "DEGRADED": "bold yellow",
    "INVALID": "bold red",
    "pass": "green",
    "fail": "bold red",
    "inconclusive": "yellow",
    "note": "dim",
    "degraded": "yellow",
    "invalid": "red",
}

ERRORS_SHOWN = 5

LEAVE_OUT_OF_STAGES = [
    rows.STAGE_HEAD.index(name) for name in ("E2E p50", "TPOT p50", "ITL p99", "tok/s user", "ITL p50")
]
LEAVE_OUT_OF_LATENCIES = [rows.LATENCY_HEAD.index(name) for name in ("p99.9", "mean", "p95", "p90", "max")]
LEAVE_OUT_OF_SEARCH = [rows.SEARCH_HEAD.index(name) for name in ("requests", "window", "why")]


def report(summary: Summary, path: str, *, written: bool = True) -> RenderableType:
    """The whole result of a run. `path`: the results folder; `written`: report.html is in it."""
    stages, latencies = rows.stage_rows(summary), rows.latency_rows(summary)
    parts: list[RenderableType] = [Text("")]
    if len(stages) > 1:
        head = [name.replace(" ", "\n") for name in rows.STAGE_HEAD]
        parts += [Narrowing(head, stages, LEAVE_OUT_OF_STAGES), Text("")]
    if latencies:
        head = ["all stages" if len(stages) > 1 else "", *rows.LATENCY_HEAD[1:]]
        parts += [Narrowing(head, latencies, LEAVE_OUT_OF_LATENCIES), Text("")]
    parts.append(Text(f" {rows.facts(summary)}"))
    note = rows.footnote(summary, latencies, stages if len(stages) > 1 else [])
    if note:
        parts.append(Padding(Text(note, style="dim"), (0, 1)))
    parts += _errors(summary)
    if summary.search:
        parts += [Text(""), Narrowing(rows.SEARCH_HEAD, rows.search_rows(summary), LEAVE_OUT_OF_SEARCH)]
        parts += [Text(f" {rows.search_line(summary)}", style="bold")]
    parts += [Text(f" {line}") for line in rows.soak_lines(summary)]
    parts += _gates(summary)
    parts += _verdict(summary)
    parts.append(Text.assemble(" results: ", (harmless(path, 4_000), "bold"), overflow="fold"))
    if written:
        parts.append(Text.assemble(" report:  ", (harmless(f"{path}/report.html", 4_000), "bold"), overflow="fold"))
    return Group(*parts)


def _errors(summary: Summary) -> list[RenderableType]:
    errors = rows.errors(summary.requests)
    if not errors:
        return []
    told = [f"{n} × {harmless(what, 300)}" for n, what in errors[:ERRORS_SHOWN]]
    if len(errors) > ERRORS_SHOWN:
        told.append(f"and {len(errors) - ERRORS_SHOWN} further kinds")
    title = Text(f"{rows.errors_of(summary)}:", style="bold")
    return [Padding(title, (0, 1)), *(Padding(Text(line), (0, 1, 0, 3)) for line in told)]


def _gates(summary: Summary) -> list[RenderableType]:
    if not summary.gates:
        return []
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, collapse_padding=True, header_style="bold")
    for name in rows.GATE_HEAD:
        table.add_column(Text(name), justify="right" if name in ("limit", "value") else "left", no_wrap=name != "why")
    for gate in summary.gates:
        metric, limit, value, result, why = rows.gate_row(gate)
        table.add_row(metric, limit, value, Text(result, style=_STYLES[gate.result]), Text(harmless(why), style="dim"))
    return [Text(""), table]


def _verdict(summary: Summary) -> list[RenderableType]:
    status = summary.verdict.status or "not judged"
    words = Text.assemble(" verdict: ", (status, _STYLES.get(status, "bold")), " (partial)" if summary.partial else "")
    parts: list[RenderableType] = [Text(""), words]
    for doubt in summary.verdict.doubts:
        style = _STYLES[doubt.severity]
        reason = Text.assemble((doubt.severity, style), f" {doubt.code}: ", (harmless(doubt.message), style))
        parts.append(Padding(reason, (0, 1, 0, 3)))
    return [*parts, Text("")]
