"""report.md: a run for a pull request's comment or a job's summary. Verdict first, then gates, numbers, how to repeat.

Foreign text (errors of servers, names) is escaped: no HTML, no links, no mentions.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from tokenswarm.reports import cells as rows
from tokenswarm.reports.numbers import harmless
from tokenswarm.result.summary import Summary

_MARKS = {"VALID": "✅", "DEGRADED": "⚠️", "INVALID": "❌", "pass": "✅", "fail": "❌", "inconclusive": "❔"}
_SPECIAL = re.compile(r"[\\`*\[\]#|~<>&@$]|(?<!\w)_|_(?!\w)|(?<=\w)://|(?<=www)\.")


def escape(text: str) -> str:
    """Text that Markdown shows as it is: on one line, every special character as an entity, no links by themselves."""
    return _SPECIAL.sub(lambda found: "".join(f"&#{ord(char)};" for char in found[0]), harmless(text))


def render(summary: Summary, manifest: Mapping[str, Any]) -> str:
    """report.md. `manifest` as of `manifest.finish`."""
    status = summary.verdict.status or "not judged"
    partial = ", partial" if summary.partial else ""
    engine = manifest.get("engine") or {}
    model = engine.get("model") if isinstance(engine, Mapping) else None
    lines = [f"## {_MARKS.get(status, '')} tokenswarm: {status}{partial}".replace("  ", " "), ""]
    about = [f"run {summary.run_id}", *([f"model {model}"] if model else []), rows.facts(summary)]
    lines += [escape(" · ".join(about)), ""]
    lines += [line for told in rows.soak_lines(summary) for line in (escape(told), "")]
    if summary.search:
        lines += ["### Search", "", rows.search_line(summary), ""]
        lines += [*table(rows.SEARCH_HEAD, rows.search_rows(summary)), ""]
    lines += _doubts(summary) + _gates(summary)
    stages, latencies = rows.stage_rows(summary), rows.latency_rows(summary)
    if len(stages) > 1:
        lines += ["### Stages", "", *table(rows.STAGE_HEAD, stages), ""]
    if latencies:
        lines += ["### Latency", "", *table(rows.LATENCY_HEAD, latencies), ""]
    note = rows.footnote(summary, latencies, stages)
    if note:
        lines += [f"<sub>{escape(note)}</sub>", ""]
    lines += _errors(summary) + _repeat(manifest)
    return "\n".join(lines).rstrip() + "\n"


def table(head: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table; the first column left, the others right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(row)} |" for row in (head, rule, *([escape(cell) for cell in row] for row in cells))]


def _doubts(summary: Summary) -> list[str]:
    doubts = summary.verdict.doubts
    if not doubts:
        return []
    return [*(f"- **{doubt.severity}** `{doubt.code}`: {escape(doubt.message)}" for doubt in doubts), ""]


def _gates(summary: Summary) -> list[str]:
    if not summary.gates:
        return []
    cells = []
    for gate in summary.gates:
        row = rows.gate_row(gate)
        row[3] = f"{_MARKS.get(gate.result, '')} {gate.result}"
        cells.append(row)
    return ["### Gates", "", *table(rows.GATE_HEAD, cells), ""]


def _errors(summary: Summary) -> list[str]:
    errors = rows.errors(summary.requests)
    if not errors:
        return []
    shown = [f"- {n} × {escape(what)}" for n, what in errors[:10]]
    if len(errors) > 10:
        shown.append(f"- and {len(errors) - 10} further kinds")
    return [f"### {rows.errors_of(summary).capitalize()}", "", *shown, ""]


def _repeat(manifest: Mapping[str, Any]) -> list[str]:
    command = [harmless(str(word), 2_000) for word in manifest.get("command") or []]
    dataset = manifest.get("dataset") or {}
    revision = manifest.get("git_revision")
    sha256 = dataset.get("sha256") if isinstance(dataset, Mapping) else None
    versions = manifest.get("versions") or {}
    facts = [f"{name} {versions[name]}" for name in ("tokenswarm", "locust") if name in versions]
    facts += [f"git {str(revision)[:12]}"] if revision else []
    facts += [f"data set sha256 {str(sha256)[:12]}"] if sha256 else []
    if not command and not facts:
        return []
    text = shlex.join(command)
    fence = "`" * max(3, 1 + max((len(ticks) for ticks in re.findall("`+", text)), default=0))
    return ["### Repeat it", "", f"{fence}sh", text, fence, "", escape(" · ".join(facts))]
