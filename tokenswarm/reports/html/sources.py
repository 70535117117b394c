"""How engine and GPUs were read: the pages that were asked, and how much of the windows their readings cover."""

from __future__ import annotations

from collections.abc import Sequence

from tokenswarm.reports.html.reported import Engine, Gpus, by_stage, engine, gpus, left_out
from tokenswarm.reports.html.svg import escape
from tokenswarm.reports.html.tables import Cell, table
from tokenswarm.reports.html.units import counts
from tokenswarm.reports.numbers import MISSING, duration, ratio
from tokenswarm.result.summary import Summary
from tokenswarm.telemetry.join import Source
from tokenswarm.telemetry.server import Covered

LEFT_OUT_SHOWN = 20

_PAGE_HEAD = ("page", "kind", "looks", "good", "gaps", "newest problem", "says of itself", "does not tell")
_COVERED_HEAD: tuple[Cell, ...] = (
    "", "steady windows", ("covered", "first to last reading"), "readings", "gaps", ("longest hole", "no reading"),
    "restarts", ("windows", "without readings"),
)  # fmt: skip


def sources(summary: Summary) -> str:
    """Pages and coverage; "" where nothing was watched and nothing is left out."""
    own, cards = engine(summary), gpus(summary)
    pages = [_page_line(source, kind) for block, kind in ((own, "engine"), (cards, "GPUs")) for source in _of(block)]
    parts = [f'<div class="pages">{table(_PAGE_HEAD, pages, (0, 1, 4, 5, 6, 7))}</div>'] if pages else []
    lines = [
        _covered_line(f"{what}, {name}", block.coverage)
        for what, found in (("engine", by_stage(summary, engine)), ("GPUs", by_stage(summary, gpus)))
        for name, _, block in found
        if pages
    ]
    if lines:
        note = (
            "One look at each page a second, and at each edge of a window. A page counts whole or not at all: else it "
            "is a gap. After a restart the longest piece of the window stands for it."
        )
        parts.append(f'{table(_COVERED_HEAD, lines, (0, 4))}<p class="small">{note}</p>')
    return "".join(parts) + _left_out(summary)


def _of(block: Engine | Gpus | None) -> Sequence[Source]:
    return () if block is None else block.sources


def _page_line(source: Source, kind: str) -> list[Cell]:
    facts = ", ".join(f"{name} {value}" for name, value in source.facts.items())
    return [
        source.url,
        (source.kind or f"{kind}, unknown", source.version),
        str(source.looks),
        str(source.good),
        counts(source.gaps) or "none",
        source.problem or "none",
        facts or MISSING,
        ", ".join(source.missing) or "–",
    ]


def _covered_line(name: str, found: Covered) -> list[Cell]:
    share = f", {ratio(min(1.0, found.covered_s / found.window_s))}" if found.window_s > 0 else ""
    return [
        name,
        duration(found.window_s),
        f"{duration(found.covered_s)}{share}",
        str(found.samples),
        counts(found.gaps) or "none",
        duration(found.hole_s),
        str(found.resets),
        str(found.empty_windows),
    ]


def _left_out(summary: Summary) -> str:
    """What summary.json has and this page does not: told by name."""
    names = left_out(summary)
    if not names:
        return ""
    more = f" and {len(names) - LEFT_OUT_SHOWN} more" if len(names) > LEFT_OUT_SHOWN else ""
    told = ", ".join(f"<code>{escape(name)}</code>" for name in names[:LEFT_OUT_SHOWN])
    return f'<p class="absent">Not shown here, see summary.json: {told}{more}.</p>'
