"""A finished run for scripts: the summary as JSON, the stages as CSV, or one line.

What a server said can't act: JSON has no `::`, which a pipeline's runner would obey, and no cell of the CSV begins as
a formula does.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from tokenswarm.reports.numbers import harmless
from tokenswarm.result.comparison import Comparison
from tokenswarm.result.fleet import Plan
from tokenswarm.result.summary import PERCENTILES, Part, Stage, Summary, to_json

Form = Literal["tables", "json", "csv", "quiet"]

FORMULA = ("=", "+", "-", "@", "\t", "\r")

COUNTS: dict[str, Callable[[Part], float | None]] = {
    "window_s": lambda part: part.steady_window.length_s,
    "ok": lambda part: part.requests_steady.ok,
    "failed": lambda part: part.requests_steady.failed,
    "censored": lambda part: part.requests_steady.censored,
    "in_flight_mean": lambda part: part.batch_mean,
    "requests_per_s": lambda part: part.throughput.requests_per_s,
    "output_tokens_per_s": lambda part: part.throughput.output_tokens_per_s,
    "goodput_ratio": lambda part: part.throughput.goodput_ratio,
}
LATENCIES = ("ttft_s", "ttft_intended_s", "itl_s", "tpot_s", "e2e_s", "stall_s")


def as_json(summary: Summary) -> str:
    """summary.json, with `::` written so that it is the same JSON."""
    return to_json(summary).decode().replace("::", ":\\u003a")


def as_document(found: Comparison | Plan | Mapping[str, Any]) -> str:
    """A comparison, a plan or a group, in full, with `::` written so that it is the same JSON."""
    return msgspec.json.format(msgspec.json.encode(found)).decode().replace("::", ":\\u003a")


def as_csv(summary: Summary) -> str:
    """A row a stage, and one of the whole run; numbers in full, empty where there is none."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    named = [f"{name}_{which}" for name in LATENCIES for which in ("mean", *PERCENTILES, "max")]
    table.writerow(["run_id", "verdict", "stage", "users", "rate", "rate_end", *COUNTS, *named])
    for part in (*summary.stages, summary):
        stage = part if isinstance(part, Stage) else None
        load = [None, None, None] if stage is None else [stage.concurrency, stage.rate, stage.rate_end]
        where = ["all" if stage is None else stage.stage + 1, *load]
        stats = [getattr(part.latency, name) for name in LATENCIES]
        numbers = [getattr(stat, which) for stat in stats for which in ("mean", *PERCENTILES, "max")]
        counts = [count(part) for count in COUNTS.values()]
        table.writerow(_cells([summary.run_id, summary.verdict.status, *where, *counts, *numbers]))
    return text.getvalue()


def _cells(values: Sequence[Any]) -> list[str]:
    return [inert(value) if isinstance(value, str) else "" if value is None else repr(value) for value in values]


def inert(text: str) -> str:
    """Text of a cell that no spreadsheet takes for a formula."""
    clean = harmless(text)
    return f"'{clean}" if clean.startswith(FORMULA) else clean


def as_line(summary: Summary, path: str) -> str:
    """The verdict, the gates that did not pass, and where the results are."""
    gates = [f"{gate.metric} {gate.result}" for gate in summary.gates if gate.result != "pass"]
    status = (summary.verdict.status or "not judged") + (" (partial)" if summary.partial else "")
    return "  ".join([status, *([", ".join(gates)] if gates else []), f"results: {harmless(path, 4_000)}"]) + "\n"


def written_as(form: Form, summary: Summary, path: str) -> str:
    """What a script asked for; `tables` is the console's business."""
    if form == "json":
        return as_json(summary)
    return as_csv(summary) if form == "csv" else as_line(summary, path)


def form_of(given: Any) -> Form:
    """Which form the options of a command ask for; --json and --csv win over --quiet, which then silences the rest."""
    return "json" if given["json"] else "csv" if given["csv"] else "quiet" if given["quiet"] else "tables"
