"""report.html: one self-contained file, pictures first. No script, no network: its policy forbids both.

Numbers are those of summary.json; what only single requests tell (distributions, what happened when) comes from
requests.jsonl, read once in bounded memory. A chart without data is left out, and the page says why. The document is
well-formed XML, too, so that strict parsers can check it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenswarm.reports import cells
from tokenswarm.reports.html import engine, gpu, kv_cache, run, soak, sources, sweep, tables, telemetry
from tokenswarm.reports.html.figure import PERCENTILE_NAMES, Data, Figure, best_percentile, load_name, load_of
from tokenswarm.reports.html.figure import render as render_figure
from tokenswarm.reports.html.requests import Rows, read
from tokenswarm.reports.html.svg import escape
from tokenswarm.reports.numbers import MISSING, duration, quantity, ratio
from tokenswarm.result.summary import Part, Summary

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

_STYLE = Path(__file__).with_name("style.css")
_FOOT = "</main></body></html>\n"
_SIGNS = {"VALID": "✓", "DEGRADED": "!", "INVALID": "✗"}


def render(summary: Summary, manifest: Mapping[str, Any], requests: Rows, problems: list[str] | None = None) -> str:
    """The page as one text, of `pieces`."""
    return "".join(pieces(summary, manifest, requests, problems))


def pieces(
    summary: Summary, manifest: Mapping[str, Any], requests: Rows, problems: list[str] | None = None
) -> Iterator[str]:
    """The page, chart by chart and section by section, so that nobody has to hold it whole.

    `manifest` as of `manifest.finish`; `requests`: files of rows, or rows as dicts. What could not be read of them is
    told in the page, and added to `problems`.
    """
    data = Data(summary, read(requests, summary.duration_s))
    if problems is not None:
        problems += data.rows.problems
    parts = [
        ("sweep", "The sweep", sweep.figures(data)),
        ("telemetry", "Engine and GPUs over the sweep", telemetry.figures(data)),
        ("distributions", "How latencies are distributed", run.distributions(data)),
        ("time", "Over the run", run.times(data)),
        ("windows", "Windows of a long run", soak.figures(data)),
    ]
    parts.sort(key=lambda part: all(figure.draw is None for figure in part[2]))  # pictures before absent ones
    yield _head(f"tokenswarm: {summary.run_id}")
    yield _banner(summary, manifest)
    yield _tiles(summary)
    for name, title, figures in parts:
        yield from _charts(name, title, figures, _legend(data))
    yield section("search", "Search", tables.search(summary))
    yield section("gates", "Gates", tables.gates(summary) or "<p>The run has no SLO, so nothing was judged.</p>")
    yield section("doubts", "Reasons to doubt", tables.doubts(summary) or "<p>None was found.</p>")
    yield section("failures", "Failures by kind", tables.failures(summary) or "<p>No request failed.</p>")
    yield section("soak", "Drift, memory, restarts", soak.tables(summary))
    yield section("stages", "Stages", tables.stages(summary))
    yield section("latency", "Latency", _latency(summary))
    yield section("engine", "What the engine reports", engine.engine_tables(summary))
    yield section("kv-cache", "KV-cache: reported and predicted", kv_cache.kv_tables(summary))
    yield section("gpus", "What the GPUs report", gpu.gpu_tables(summary))
    yield section("sources", "How engine and GPUs were read", sources.sources(summary))
    yield section("instrument", "The instrument", tables.instrument(summary))
    yield section("conventions", "In other tools' words", _conventions(summary))
    yield section("repeat", "Repeat it", tables.repeat(manifest))
    yield section("definitions", "Definitions", _definitions(data))
    yield _FOOT


def document(title: str, body: str) -> str:
    """The file around a body: its policy and its style sheet."""
    return f"{_head(title)}{body}{_FOOT}"


def _head(title: str) -> str:
    style = _STYLE.read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en" xmlns="http://www.w3.org/1999/xhtml"><head><meta charset="utf-8"/>'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        '<meta name="referrer" content="no-referrer"/><meta name="color-scheme" content="light dark"/>'
        f'<link rel="icon" href="data:,"/><title>{escape(title)}</title><style>{style}</style></head>'
        "<body><main>"
    )


def section(name: str, title: str, inside: str) -> str:
    """A section; "" where nothing is in it."""
    return f'<section id="{name}"><h2>{escape(title)}</h2>{inside}</section>' if inside else ""


def charts(name: str, title: str, figures: Sequence[Figure], legend: str) -> str:
    """The drawn figures in a grid, then one sentence for each that is left out; those of one reason together."""
    return "".join(_charts(name, title, figures, legend))


def _charts(name: str, title: str, figures: Sequence[Figure], legend: str) -> Iterator[str]:
    if not figures:
        return
    yield f'<section id="{name}"><h2>{escape(title)}</h2>'
    drawn = [figure for figure in figures if figure.draw is not None]
    if drawn:
        yield f'{legend}<div class="grid">'
        yield from map(render_figure, drawn)
        yield "</div>"
    reasons: dict[str, list[str]] = {}
    for figure in figures:
        if figure.draw is None:
            reasons.setdefault(figure.reason, []).append(figure.title)
    for reason, titles in reasons.items():
        yield f'<p class="absent">Not shown: {escape("; ".join(titles))}, because {escape(reason)}.</p>'
    yield "</section>"


def _legend(data: Data) -> str:
    """The stages' colours, in words."""
    if len(data.stages) < 2:
        return ""
    items = [f'<li class="{data.colour(s.stage)}"><i></i>{escape(load_name(s))}</li>' for s in data.stages]
    return f'<ul class="legend" aria-label="stages">{"".join(items)}</ul>'


def _banner(summary: Summary, manifest: Mapping[str, Any]) -> str:
    status = summary.verdict.status
    severities = [doubt.severity for doubt in summary.verdict.doubts]
    counted = [f"{severities.count(word)} {word}" for word in ("invalid", "degraded", "note") if word in severities]
    results = [gate.result for gate in summary.gates]
    passed = f"{results.count('pass')} of {len(results)} gates pass" if results else "no gates"
    engine = manifest.get("engine")
    model = engine.get("model") if isinstance(engine, Mapping) else None
    about = [f"run {summary.run_id}", *([f"model {model}"] if model else []), cells.facts(summary)]
    partial = '<span class="partial">partial: the run was cut short</span>' if summary.partial else ""
    reasons = f'<a href="#doubts">{escape(", ".join(counted))}</a>' if counted else "no doubts"
    return (
        f'<header class="verdict {escape((status or "none").lower())}"><p class="brand">tokenswarm</p>'
        f'<h1><b aria-hidden="true">{_SIGNS.get(status or "", "?")}</b>{escape(status or "not judged")}</h1>{partial}'
        f'<p>{reasons} · <a href="#gates">{escape(passed)}</a></p><p class="about">{escape(" · ".join(about))}</p>'
        "</header>"
    )


def _tiles(summary: Summary) -> str:
    """The numbers that one asks for first: of the knee where there is a sweep, else of the run."""
    knee = sweep.knee(summary.stages)
    tiles: list[tuple[str, str, str]] = []
    if knee is None:
        part: Part = summary
        rates = summary.throughput
        tiles.append(("output tokens/s", quantity(rates.output_tokens_per_s), "in the steady windows"))
        tiles.append(("requests/s", quantity(rates.requests_per_s), f"{summary.requests_steady.ok} ok"))
        where = ""
    else:
        part = knee
        best = max(summary.stages, key=sweep.tokens_per_s)
        tiles.append(("best throughput", quantity(sweep.tokens_per_s(best)), f"tokens/s, {load_name(best)}"))
        last = knee is max(summary.stages, key=lambda stage: load_of(stage) or 0.0)
        more = sweep.at_the_end(summary.stages)[0] if last else f"{quantity(sweep.tokens_per_s(knee))} tokens/s"
        tiles.append(("knee", load_name(knee), more))
        where = f", {load_name(knee)}"
    for field, name in (("ttft_s", "TTFT"), ("itl_s", "ITL"), ("e2e_s", "E2E")):
        stat = getattr(part.latency, field)
        which = best_percentile([stat], among=("p99", "p95", "p90", "p50", "mean"))
        middle = f"p50 {duration(stat.p50)}, " if stat.p50 is not None and which != "p50" else ""
        value = duration(getattr(stat, which)) if which else MISSING
        label = f"{name} {PERCENTILE_NAMES[which]}" if which else name
        tiles.append((label, value, f"{middle}{tables.count(stat.n)} samples{where}" if stat.n else "no sample"))
    counts = summary.requests_steady
    ended = counts.ok + counts.failed + counts.censored
    tiles.append(("failed", ratio(counts.failed / ended) if ended else MISSING, f"{counts.failed} of {ended} requests"))
    if summary.throughput.goodput_ratio is not None:
        tiles.append(("goodput", ratio(summary.throughput.goodput_ratio), "requests that met the SLO"))
    items = "".join(
        f"<li><span>{escape(name)}</span><b>{escape(value)}</b><small>{escape(more)}</small></li>"
        for name, value, more in tiles
    )
    return f'<ul class="tiles">{items}</ul>'


def _latency(summary: Summary) -> str:
    found = tables.latencies(summary)
    if not found:
        return "<p>No successful request of a steady window: there is no latency to tell.</p>"
    pooled = "<p>All stages together; read each stage above.</p>" if len(summary.stages) > 1 else ""
    return pooled + found + tables.footnote(summary)


def _conventions(summary: Summary) -> str:
    found = tables.conventions(summary)
    if not found:
        return ""
    return (
        "<p>Other tools use other formulas under the same names, and the whole run: they cut no warm-up. "
        "Ours is the steady windows only. docs/metrics.md has every formula.</p>" + found
    )


def _definitions(data: Data) -> str:
    damaged = ""
    if data.rows.unreadable:
        damaged = f'<p class="absent">{data.rows.unreadable} lines of requests.jsonl are no rows and are not drawn.</p>'
    damaged += "".join(f'<p class="absent">{escape(problem)}.</p>' for problem in data.rows.problems)
    more = "<p>Field names as in summary.json; docs/metrics.md gives each its formula and what bad looks like.</p>"
    return tables.definitions() + more + damaged
