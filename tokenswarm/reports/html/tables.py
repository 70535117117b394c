"""The tables of report.html: gates, doubts, failures, stages, latencies, the instrument, other tools, how to repeat.

Each function gives the HTML of a section's inside, or "" where there is nothing to tell. All text is escaped here.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from tokenswarm.reports import cells as rows
from tokenswarm.reports.html.figure import load_name
from tokenswarm.reports.html.svg import escape
from tokenswarm.reports.numbers import MISSING, duration, quantity, ratio
from tokenswarm.result.summary import Summary

FAILURES_SHOWN = 20

_CONCEPTS: tuple[tuple[str, str, Mapping[str, str]], ...] = (
    ("TTFT", "ttft_s", {
        "vllm_bench": "ttft_ms", "guidellm": "time_to_first_token_ms", "aiperf": "time_to_first_token_ms",
        "sglang": "ttft_ms",
    }),
    ("TPOT", "tpot_s", {
        "vllm_bench": "tpot_ms", "guidellm": "time_per_output_token_ms", "aiperf": "inter_token_latency_ms",
        "sglang": "tpot_ms",
    }),
    ("ITL", "itl_s", {
        "vllm_bench": "itl_ms", "guidellm": "inter_token_latency_ms", "aiperf": "inter_chunk_latency_ms",
        "sglang": "itl_ms",
    }),
    ("E2E", "e2e_s", {
        "vllm_bench": "e2el_ms", "guidellm": "request_latency", "aiperf": "request_latency_ms",
        "sglang": "e2e_latency_ms",
    }),
    ("output tokens/s", "output_tokens_per_s", {
        "vllm_bench": "output_throughput", "aiperf": "output_token_throughput", "sglang": "output_throughput",
    }),
    ("requests/s", "requests_per_s", {
        "vllm_bench": "request_throughput", "aiperf": "request_throughput", "sglang": "request_throughput",
    }),
)  # fmt: skip
_TOOLS = {"vllm_bench": "vLLM bench", "guidellm": "GuideLLM", "aiperf": "AIPerf", "sglang": "SGLang bench"}

_DEFINITIONS = (
    ("TTFT", "latency.ttft_s", "time to first token: from the request's sending to its first content or reasoning"),
    ("TTFT, as due", "latency.ttft_intended_s", "the same from when the request was due: what a user waits"),
    ("ITL", "latency.itl_s", "inter-token latency: the gap between successive tokens of an answer"),
    ("TPOT", "latency.tpot_s", "time per output token of a request: (last − first content) / (tokens − 1)"),
    ("E2E", "latency.e2e_s", "from sending to the last byte of the answer"),
    ("E2E, as due", "latency.e2e_intended_s", "the same from when the request was due"),
    ("worst gap", "latency.stall_s", "the longest gap between tokens of a request: the stutter that users notice"),
    ("tokens/s, req/s", "throughput.output_tokens_per_s", "what arrived in the steady windows / their length"),
    ("in flight", "batch_mean", "requests in flight in the steady window, mean: the batch as the client sees it"),
    ("in the batch", "server.metrics.running", "mean number of requests that the engine runs: the measured batch"),
    ("waiting", "server.metrics.waiting", "mean number of requests in the engine's queue"),
    ("KV-cache in use", "server.metrics.kv_cache_usage", "share of the cache that holds keys and values of tokens"),
    ("J/token", "gpu.j_per_output_token", "power of all GPUs / output tokens a second; idle GPUs are paid for, too"),
    ("tokens/s/W", "gpu.output_tokens_per_s_per_w", "its inverse, which is tokens a joule, too"),
    ("goodput", "throughput.goodput_ratio", "share of the requests that met every limit of the SLO"),
    ("steady window", "steady_window", "what is measured: after warm-up or settling, before users change again"),
    ("too few samples", "n_effective", "a percentile is left out, not guessed; requests in one queue count for less"),
)  # fmt: skip


Cell = str | tuple[str, ...]
"""A text, or one with smaller lines below."""

Filled = tuple[str, list[str]]
"""A table, and the names of the columns that it lacks."""


def table(head: Sequence[Cell], cells: Sequence[Sequence[Cell]], texts: Sequence[int] = (0,)) -> str:
    """A table that scrolls sideways where it must. `texts`: columns that are left-aligned. Cells are escaped."""

    def inside(cell: Cell) -> str:
        first, *more = (cell,) if isinstance(cell, str) else cell
        return escape(first, 2_000) + "".join(f"<small>{escape(text, 2_000)}</small>" for text in more if text)

    def row(values: Sequence[Cell], tag: str) -> str:
        parts = []
        for index, value in enumerate(values):
            style = ' class="text"' if index in texts else ""
            parts.append(f"<{tag}{style}>{inside(value)}</{tag}>")
        return f"<tr>{''.join(parts)}</tr>"

    body = "".join(row(values, "td") for values in cells)
    return f'<div class="scroll"><table><thead>{row(head, "th")}</thead><tbody>{body}</tbody></table></div>'


def filled(head: Sequence[Cell], cells: Sequence[Sequence[Cell]], texts: Sequence[int] = (0,)) -> Filled:
    """(the table without the columns that hold no value, the names of these); no table where only the first is left."""

    def first(cell: Cell) -> str:
        return cell if isinstance(cell, str) else cell[0]

    kept = [0, *(i for i in range(1, len(head)) if any(first(line[i]) != MISSING for line in cells))]
    missing = [first(head[i]) for i in range(len(head)) if i not in kept]
    if len(kept) == 1:
        return "", missing
    lines = [[line[i] for i in kept] for line in cells]
    return table([head[i] for i in kept], lines, [new for new, i in enumerate(kept) if i in texts]), missing


def titled(title: str, found: Filled, note: str = "") -> Filled:
    """The table with its title above and a note below."""
    shown, missing = found
    below = f'<p class="small">{escape(note, 1_000)}</p>' if note else ""
    return (f"<h3>{escape(title)}</h3>{shown}{below}" if shown else "", missing)


def joined(*given: Filled, missing: str) -> str:
    """The tables, and one sentence on what they lack, which begins with `missing`."""
    names = dict.fromkeys(name for _, names in given for name in names)
    told = f'<p class="small">{missing}: {escape(", ".join(names), 1_000)}.</p>' if names else ""
    return "".join(shown for shown, _ in given) + told


def gates(summary: Summary) -> str:
    return table(rows.GATE_HEAD, [rows.gate_row(gate) for gate in summary.gates], (0, 3, 4)) if summary.gates else ""


def search(summary: Summary) -> str:
    """Every try of a search, and the answer."""
    if not summary.search:
        return ""
    tries = table(rows.SEARCH_HEAD, rows.search_rows(summary), (2, 5))
    return f"<p>{escape(rows.search_line(summary))}</p>{tries}"


def doubts(summary: Summary) -> str:
    """Why the run may mislead, the worst first as the verdict gives them."""
    items = [
        f'<li class="{escape(doubt.severity)}"><b>{escape(doubt.severity)}</b> <code>{escape(doubt.code)}</code> '
        f"{escape(doubt.message, 2_000)}</li>"
        for doubt in summary.verdict.doubts
    ]
    return f'<ul class="doubts">{"".join(items)}</ul>' if items else ""


def failures(summary: Summary) -> str:
    """Kinds of failure with bars in proportion, the most frequent first."""
    kinds = [(what, n) for n, what in rows.errors(summary.requests)]
    if not kinds:
        return ""
    most, of = max(n for _, n in kinds), rows.errors_of(summary)
    lines = [
        f'<tr><td class="text">{escape(kind)}</td><td>{n}</td>'
        f'<td class="bar"><svg viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="failed" width="{100 * n / most:.1f}" height="8"/></svg></td></tr>'
        for kind, n in kinds[:FAILURES_SHOWN]
    ]
    more = f"<p>And {len(kinds) - FAILURES_SHOWN} further kinds.</p>" if len(kinds) > FAILURES_SHOWN else ""
    told = f"<p>{escape(of.capitalize())}.</p>" if of != "errors" else ""
    return f'{told}<div class="scroll"><table class="failures"><tbody>{"".join(lines)}</tbody></table></div>{more}'


def stages(summary: Summary) -> str:
    """The stages of a sweep, with the measured batch."""
    if len(summary.stages) < 2:
        return ""
    head = ["users" if stage.rate is None else "offered" for stage in summary.stages[:1]]
    cells = []
    for stage, row in zip(summary.stages, rows.stage_rows(summary), strict=True):
        cells.append([row[0] if row[0] != MISSING else load_name(stage), quantity(stage.batch_mean), *row[1:]])
    return table([*head, "in flight", *rows.STAGE_HEAD[1:]], cells, ())


def latencies(summary: Summary) -> str:
    found = rows.latency_rows(summary)
    return table(rows.LATENCY_HEAD, found) if found else ""


def footnote(summary: Summary) -> str:
    shown = rows.stage_rows(summary) if len(summary.stages) > 1 else []
    text = rows.footnote(summary, rows.latency_rows(summary), shown)
    return f'<p class="small">{escape(text)}</p>' if text else ""


def instrument(summary: Summary) -> str:
    """What the client measured about itself."""
    own = summary.instrument
    cells = [
        ["receive stamps", own.stamp or MISSING],
        ["send stamps", own.sent_stamp or MISSING],
        ["receive lag p99", duration(own.rx_lag_s.p99)],
        ["event loop lag p99", duration(own.loop_lag_s.p99)],
        ["event loop lag max", duration(own.loop_lag_s.max)],
        ["send lag p99", duration(own.send_lag_s.p99)],
        ["merged events", ratio(own.merged_events_ratio)],
        ["busiest worker, of a core", ratio(own.cpu_ratio_max)],
        ["workers", str(len(own.workers))],
    ]
    return table(("the client itself", ""), cells)


def conventions(summary: Summary) -> str:
    """The same run in other tools' words: a row a quantity, a column a tool, each under the name it has there."""
    tools = [tool for tool in _TOOLS if tool in summary.conventions]
    if not tools or not summary.requests.ok:
        return ""
    lines = []
    for concept, ours, names in _CONCEPTS:
        cells = [f'<td class="text">{escape(concept)}</td>', _convention(_own(summary, ours), ours)]
        for tool in tools:
            name = names.get(tool)
            cells.append(_convention(summary.conventions[tool].get(name), name) if name else f"<td>{MISSING}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    head = "".join(f"<th>{escape(text)}</th>" for text in ("tokenswarm", *(_TOOLS[tool] for tool in tools)))
    return (
        '<div class="scroll"><table class="tools"><thead><tr><th class="text">p50 / p99</th>'
        f"{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _own(summary: Summary, name: str) -> Any:
    return getattr(summary.throughput if name.endswith("_per_s") else summary.latency, name)


def _convention(value: Any, name: str) -> str:
    """p50 / p99 of a distribution in the unit that its name says, or a rate; the name below."""
    found = msgspec.to_builtins(value)
    if isinstance(found, dict):
        scale = 1e-3 if name.endswith("_ms") else 1.0
        pair = [found.get(key) for key in ("p50", "p99")]
        text = " / ".join(duration(None if number is None else number * scale) for number in pair)
    else:
        text = quantity(found)
    return f"<td>{escape(text)}<small>{escape(name)}</small></td>"


def repeat(manifest: Mapping[str, Any]) -> str:
    """The command, and what else made the run what it was."""
    words = manifest.get("command")
    command = [str(word) for word in words] if isinstance(words, list) else []
    versions, host = _mapping(manifest.get("versions")), _mapping(manifest.get("host"))
    dataset, seeds, engine = (_mapping(manifest.get(name)) for name in ("dataset", "seeds", "engine"))
    profile = _mapping(manifest.get("profile"))
    target = profile.get("target")
    facts = [
        ("started", manifest.get("started")),
        ("ended", manifest.get("ended")),
        ("profile", profile.get("name")),
        ("target", ", ".join(map(str, target)) if isinstance(target, list | tuple) else target),
        ("model", engine.get("model")),
        ("engine", ", ".join(f"{path} {version}" for path, version in _mapping(engine.get("version")).items())),
        ("data set", dataset.get("path") or dataset.get("format")),
        ("data set, sha256", dataset.get("sha256")),
        ("rows used", dataset.get("rows_kept")),
        ("seeds", ", ".join(f"{name} {value}" for name, value in seeds.items() if value is not None)),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("git revision", manifest.get("git_revision")),
        ("host", ", ".join(str(host[key]) for key in ("hostname", "system", "cpu") if host.get(key))),
        ("cpus, python", ", ".join(str(host[key]) for key in ("cpus", "python") if host.get(key))),
    ]
    cells = [
        f"<dt>{escape(name)}</dt><dd>{escape(value, 1_000)}</dd>" for name, value in facts if value not in (None, "")
    ]
    shown = f"<pre><code>{escape(shlex.join(command), 8_000)}</code></pre>" if command else ""
    return f"{shown}<dl>{''.join(cells)}</dl>" if shown or cells else ""


def count(n: int) -> str:
    """Of samples: exact up to four digits."""
    return str(n) if n < 10_000 else quantity(n)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def definitions() -> str:
    """One line each; docs/metrics.md has the formulas under the field names given here."""
    items = [
        f"<dt>{escape(word)}</dt><dd>{escape(text)} <code>{escape(field)}</code></dd>"
        for word, field, text in _DEFINITIONS
    ]
    return f"<dl>{''.join(items)}</dl>"
