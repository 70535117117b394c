"""The rule about the instrument's own error: what it can have done to each number, as a share of that number.

Lags, stalls and merged reads are not judged by themselves: what they did to a number stands in its interval, and a
number whose interval is too wide is withheld, by itself. The run is INVALID where that is the median of a metric that
every run is made for.
"""

from __future__ import annotations

from math import inf

import msgspec

from tokenswarm.judge.gates import latency_limits
from tokenswarm.judge.rules.causes import causes
from tokenswarm.judge.rules.evidence import Evidence, Rule, Severity, doubt, ms, worst
from tokenswarm.profile.bars import Bar
from tokenswarm.result.stat import Stat, half_width
from tokenswarm.result.summary import Doubt, Summary

CENTRAL = ("ttft_s", "e2e_s")
"""Where a median that is not known makes the run INVALID; elsewhere it is withheld, and the rest stands."""

JUDGED = ("p50", "p90", "p95", "p99")
"""Percentiles that are judged in every run; p99.9, which one late read in a thousand spoils, where it has a limit."""

SHOWN_MAX = 4  # numbers that the sentence names
BURSTS = 0.5  # of the tokens shared a read: that is told first, whatever the client went through


class _Wide(msgspec.Struct, frozen=True):
    """A number with a wide bar: half of its interval / its value."""

    metric: str
    which: str
    share: float
    low: float
    high: float | None
    severity: Severity

    @property
    def words(self) -> str:
        name = f"{self.metric}.{self.which}"
        if self.high is None:
            return f"{name} at least {ms(self.low)}, and nothing bounds it"
        return f"{name} {ms(self.low)} to {ms(self.high)}"


def error_bar(evidence: Evidence, summary: Summary) -> Doubt | None:
    """Numbers whose bars are too wide: by metric and percentile, of the whole run."""
    limited = {(f"{metric}_s", which) for metric, which, _ in latency_limits(evidence.profile.slo)}
    found = [wide for metric in summary.latency.__struct_fields__ for wide in _of(metric, evidence, summary, limited)]
    if not found:
        return None
    severity = worst(*(wide.severity for wide in found)) or "note"
    found.sort(key=lambda wide: -wide.share)
    withheld = [f"{w.metric}.{w.which}" for w in found if w.which in getattr(summary.latency, w.metric).withheld]
    shown = "; ".join(wide.words for wide in found[:SHOWN_MAX])
    more = f" and {len(found) - SHOWN_MAX} more" if len(found) > SHOWN_MAX else ""
    why = causes(evidence, summary)
    if not why or (summary.instrument.merged_events_ratio or 0.0) > BURSTS:
        why = [_otherwise(summary), *why]
    told = " Withheld: " + ", ".join(withheld) + "." if withheld else ""
    return doubt(
        "error-bar",
        severity,
        f"What the instrument can have done to a number is a large part of it: {shown}{more}.{told} {' '.join(why)}",
        bars={f"{w.metric}.{w.which}": None if w.share == inf else w.share for w in found},
        withheld=withheld,
        causes=why,
    )


def _of(metric: str, evidence: Evidence, summary: Summary, limited: set[tuple[str, str]]) -> list[_Wide]:
    stat: Stat = getattr(summary.latency, metric)
    bar: Bar = getattr(evidence.profile.bars, metric)
    found = []
    for which, low in stat.low.items():
        share = _share(stat, which)
        if share <= bar.degraded or _between_stages(metric, which, bar, summary):
            continue
        judged = which in JUDGED or (metric, which) in limited
        severity: Severity = "degraded" if judged else "note"
        if share > bar.invalid and which == "p50" and metric in CENTRAL:
            severity = "invalid"
        found.append(_Wide(metric, which, share, low, stat.high.get(which), severity))
    return found


def _share(stat: Stat, which: str) -> float:
    """Half of a percentile's interval / its value; inf where nothing bounds it."""
    if which in stat.withheld:
        withheld = stat.withheld[which]
        return inf if withheld is None else withheld
    return half_width(getattr(stat, which), stat.low[which], stat.high.get(which))


def _between_stages(metric: str, which: str, bar: Bar, summary: Summary) -> bool:
    """Whether every stage knows this percentile well: then that of the run is wide for where it falls.

    The median of a stage of one user and one of four lies between what the two have, where there is next to nothing,
    and a single sample moves it far. It is shown with its bar, and nobody should doubt the stages for it.
    """
    stats: list[Stat] = [getattr(stage.latency, metric) for stage in summary.stages]
    known = [which in stat.low and _share(stat, which) <= bar.degraded for stat in stats if stat.n]
    return len(known) > 1 and all(known)


def _otherwise(summary: Summary) -> str:
    merged = summary.instrument.merged_events_ratio or 0.0
    if merged:
        return (
            f"{merged:.2%} of the tokens shared a read with others: a proxy or the server sends them in bursts "
            f"(`proxy_buffering off`), or this client read late now and then."
        )
    return "See `instrument` for what the client saw of itself."


RULES: tuple[Rule, ...] = (error_bar,)
