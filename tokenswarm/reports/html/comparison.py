"""comparison.html: two groups of runs on one page, in the parts and with the policy of report.html.

No script, no network; text of models, servers and users is escaped where it is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenswarm.reports import comparison as told
from tokenswarm.reports.html import pair, tables
from tokenswarm.reports.html.figure import Figure
from tokenswarm.reports.html.page import charts, document, section
from tokenswarm.reports.html.samples import Sampled, sample
from tokenswarm.reports.html.svg import escape
from tokenswarm.reports.numbers import MISSING
from tokenswarm.reports.rows import row_files
from tokenswarm.result.comparison import Comparison, Finding, Run

_SIGNS = {"better": "✓", "same": "✓", "worse": "✗", "can't tell": "?"}

HEAD = ("metric", "baseline", "new", "change", "interval", "p of worse", "p of better", "says", "would tell")

_DEFINITIONS = (
    (
        "worse, better",
        "an exact one-sided test that stands after Holm over all metrics, and a change beyond the margin",
    ),
    ("same", "the interval of the change lies within the margin on both sides"),
    ("can't tell", "neither; the table says about how many runs a side would tell"),
    ("change", "the middle of all pairs of a baseline and a new run (Hodges–Lehmann), as a ratio"),
    ("a run", "one sample: its requests share its warm-up, its machine and its neighbours"),
    ("a sweep", "one number a run: the geometric mean over its stages; distributions pool them"),
    ("one run", "against several: Student's t on the spread of these, at a stricter level"),
)


def render(found: Comparison, a: Sequence[Run], b: Sequence[Run]) -> str:
    """The page. Runs with a `folder` are drawn from their rows, too."""
    data = pair.Pair(found, (a, b), (_rows(a), _rows(b)))
    legend = _legend(data)
    parts = [
        ("effects", "What changed", [pair.effects(data)]),
        ("distributions", "How latencies are distributed", pair.distributions(data)),
        ("percentiles", "Percentiles", pair.percentiles(data)),
        ("runs", "Every run", pair.runs(data)),
    ]

    def drawn(name: str, title: str, figures: Sequence[Figure]) -> str:
        return charts(name, title, figures, legend)

    body = [
        _banner(found),
        _tiles(found),
        drawn(*parts[0]),
        section("verdicts", "What can be told", _verdicts(found)),
        *(drawn(*part) for part in parts[1:]),
        section("differs", "What differs in the set-ups", _differs(found)),
        section("sides", "The runs", _runs(found)),
        section("definitions", "Definitions", _definitions()),
    ]
    return document(f"tokenswarm: comparison, {found.word}", "".join(body))


def _rows(runs: Sequence[Run]) -> list[Sampled]:
    return [sample(row_files(Path(run.folder)), run.run_id) for run in runs if run.folder is not None]


def _legend(data: pair.Pair) -> str:
    items = "".join(
        f'<li class="{style}"><i></i>{letter}, {escape(name)}: {len(runs)} run{"s" * (len(runs) != 1)}</li>'
        for letter, style, name, runs in zip(pair.LETTERS, pair.STYLES, data.names, data.runs, strict=True)
    )
    return f'<ul class="legend" aria-label="sides">{items}</ul>'


def _banner(found: Comparison) -> str:
    style = "cant" if found.word == "can't tell" else found.word
    left = f'<span class="partial">{len(found.left_out)} left out</span>' if found.left_out else ""
    sides = f"{found.b.name} ({len(found.b.runs)} runs) against {found.a.name} ({len(found.a.runs)} runs)"
    words = [f.word for f in found.findings]
    counted = ", ".join(f"{words.count(w)} {w}" for w in ("worse", "better", "same", "can't tell") if w in words)
    return (
        f'<header class="verdict {style}"><p class="brand">tokenswarm</p>'
        f'<h1><b aria-hidden="true">{_SIGNS[found.word]}</b>{escape(found.word)}</h1>{left}'
        f'<p><a href="#verdicts">{escape(counted or "nothing to compare")}</a></p>'
        f'<p class="about">{escape(sides)}</p></header>'
    )


def _tiles(found: Comparison) -> str:
    """The change of what one asks for first, by the words that were found."""
    items = "".join(
        f"<li><span>{escape(pair.short(f.metric))}</span><b>{escape(told.percent(f.ratio))}</b>"
        f"<small>{escape(_between(f))}, {escape(f.word)}</small></li>"
        for f in found.findings
        if f.ratio is not None
    )
    return f'<ul class="tiles">{items}</ul>' if items else ""


def _between(finding: Finding) -> str:
    return MISSING if finding.low is None else f"{told.percent(finding.low)} to {told.percent(finding.high)}"


def _verdicts(found: Comparison) -> str:
    lines: list[list[tables.Cell]] = []
    for finding in found.findings:
        name, before, after, change, interval, word = told.row(finding)
        p = [MISSING if value is None else f"{value:.3g}" for value in (finding.p_worse, finding.p_better)]
        lines.append([name, before, after, change, interval, *p, f"{_SIGNS[word]} {word}", _more(found, finding)])
    head = [*HEAD[:1], found.a.name[:40], found.b.name[:40], *HEAD[3:]]
    reasons = "".join(f"<li>{escape(text, 1_000)}</li>" for text in told.why(found))
    return f"{tables.table(head, lines, (0, 7))}<ul>{reasons}</ul>"


def _more(found: Comparison, finding: Finding) -> str:
    if finding.runs_needed is None:
        return MISSING
    have = min(len(found.a.runs), len(found.b.runs))
    return f"{finding.runs_needed} runs a side, {finding.runs_needed - have} more"


def _differs(found: Comparison) -> str:
    if not found.differs:
        return "<p>Nothing that the manifests tell.</p>"
    lines: list[list[tables.Cell]] = [[one.what, _values(one.a), _values(one.b)] for one in found.differs]
    return tables.table(("", found.a.name[:40], found.b.name[:40]), lines, (0, 1, 2))


def _values(values: Sequence[str]) -> tuple[str, ...]:
    return tuple(values) or (MISSING,)


def _runs(found: Comparison) -> str:
    lines: list[list[tables.Cell]] = [
        [run_id, side.name, status]
        for side in (found.a, found.b)
        for run_id, status in zip(side.runs, side.status, strict=False)
    ]
    items = "".join(f"<li>{escape(text, 1_000)}</li>" for text in found.left_out)
    left = f"<h3>Left out</h3><ul>{items}</ul>" if items else ""
    return tables.table(("run", "side", "verdict"), lines, (0, 1, 2)) + left


def _definitions() -> str:
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in _DEFINITIONS)
    return f"<dl>{items}</dl>"
