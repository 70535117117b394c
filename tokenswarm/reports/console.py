"""The result of a run on a terminal: tables, gates, the verdict with its reasons, where the report is.

Everything is drawn as Text, never as markup, and foreign text loses its control characters, so a server's error can't
paint the screen. Colours say nothing that words don't: NO_COLOR and 80 columns are enough.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tokenswarm.reports import rows
from tokenswarm.reports.numbers import harmless
from tokenswarm.reports.progress import Progress
from tokenswarm.summary import Summary

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


def report(summary: Summary, path: str) -> RenderableType:
    """The whole result of a run. `path`: the results folder."""
    stages, latencies = rows.stage_rows(summary), rows.latency_rows(summary)
    parts: list[RenderableType] = [Text("")]
    if len(stages) > 1:
        parts.append(_table([name.replace(" ", "\n") for name in rows.STAGE_HEAD], stages))
    if latencies:
        parts.append(_table(rows.LATENCY_HEAD, latencies))
    parts.append(Text(f" {rows.facts(summary)}"))
    note = rows.footnote(latencies, stages if len(stages) > 1 else [])
    if note:
        parts.append(Padding(Text(note, style="dim"), (0, 1)))
    parts += _errors(summary)
    parts += _gates(summary)
    parts += _verdict(summary)
    parts.append(Text.assemble(" results: ", (harmless(path, 4_000), "bold"), overflow="fold"))
    return Group(*parts)


def _table(head: Sequence[str], cells: Sequence[Sequence[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=True, collapse_padding=True, show_edge=False, header_style="bold")
    for position, name in enumerate(head):
        table.add_column(Text(name), justify="left" if not position and not name else "right", no_wrap=True)
    for row in cells:
        table.add_row(*[Text(cell) for cell in row])
    return table


def _errors(summary: Summary) -> list[RenderableType]:
    errors = list(summary.requests.by_error.items())
    if not errors:
        return []
    shown = ", ".join(f"{harmless(kind, 80)} ({n})" for kind, n in errors[:ERRORS_SHOWN])
    more = f" and {len(errors) - ERRORS_SHOWN} further kinds" if len(errors) > ERRORS_SHOWN else ""
    return [Padding(Text.assemble(("errors: ", "bold"), f"{shown}{more}"), (0, 1))]


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
