"""Limits in, pass / fail / inconclusive out: one gate for each limit of a profile's `slo`.

Percentiles and goodput are shares of requests and are decided by the binomial rule of statistics.py at 99 %; a request
that failed or was cut off is beyond every latency limit. Means, maxima, failed_ratio and rates are facts about this run
and are compared as they are. No sample, no number: fail, never a pass. In words: docs/verdict.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import msgspec

from tokenswarm.measure.budget import Sides, above, scale_of
from tokenswarm.measure.sketch import Sketch
from tokenswarm.measure.slo import ALL
from tokenswarm.measure.slo import Slo as RequestSlo
from tokenswarm.measure.snapshot import BETWEEN_READS, Block, Merged, total
from tokenswarm.measure.statistics import GateResult, binomial_gate, effective_n, samples_needed
from tokenswarm.profile.bars import Bars
from tokenswarm.profile.slo import Percentiles, Slo
from tokenswarm.result.stat import half_width, intervals
from tokenswarm.result.summary import PERCENTILES, RHO_OF, Gate, Summary

FAR = 2.0
"""An undecided share is refuted where most requests miss the limit, and the observed value is so many times it."""

_STRICTEST_FIRST = ("max", "p999", "p99", "p95", "p90", "p50")  # a mean says nothing about one request

RATES = ("output_tokens_per_s", "requests_per_s")
"""Limits from below: fields of `slo` and of the summary's throughput, compared as they are."""

_MUST_HAVE = ("ttft", "ttft_intended", "ttfat", "e2e", "e2e_intended")
"""A success without one of these violates its limit, as in the recorder; TPOT and gaps need two tokens to exist."""


class _Count(msgspec.Struct):
    """How many of `n` are beyond a limit, at worst: requests, or for `itl` gaps between tokens."""

    n: int
    violations: int
    unit: str
    unknown: int = 0  # of the violations: may be none, since nothing was measured
    lost: int = 0  # of the violations: requests that failed or never ended, whatever the observed value

    @property
    def told(self) -> str:
        lost = f", {self.lost} of these failed or never ended" if self.lost else ""
        return f"{self.violations} of {self.n} {self.unit} miss it{lost}"


def request_limits(slo: Slo) -> RequestSlo | None:
    """The limit of each latency for one request, for goodput: that of its highest percentile. None: no such limit."""
    limits: dict[str, float] = {}
    for name in RequestSlo.__struct_fields__:
        wanted: Percentiles | None = getattr(slo, name)
        if wanted is not None:
            given = [limit for which in _STRICTEST_FIRST if (limit := getattr(wanted, which)) is not None]
            if given:
                limits[name] = given[0]
    return RequestSlo(**limits) if limits else None


def evaluate(slo: Slo, summary: Summary, merged: Merged, bars: Bars | None = None) -> list[Gate]:
    """A gate for each limit, in the order of the profile's fields. Judged: requests intended in a steady window."""
    steady = total(block for block in merged.blocks if block.phase == "steady")
    gates = []
    for metric, which, limit in latency_limits(slo):
        exact = _is_request_limit(slo, metric, limit)
        gates.append(_latency_gate(steady, metric, which, limit, exact=exact, bars=bars or Bars()))
    if slo.goodput_ratio is not None:
        gates.append(_goodput_gate(steady, slo))
    if slo.failed_ratio is not None:
        gates.append(_failed_gate(steady, slo.failed_ratio, total(merged.blocks).censored))
    for name in RATES:
        limit = getattr(slo, name)
        if limit is not None:
            gates.append(_rate_gate(name, limit, getattr(summary.throughput, name)))
    return gates


def latency_limits(slo: Slo) -> Iterator[tuple[str, str, float]]:
    """(metric without `_s`, "p99" | "mean" | "max" ..., limit in s) for each latency limit of the profile."""
    for name in RequestSlo.__struct_fields__:
        wanted: Percentiles | None = getattr(slo, name)
        for which in Percentiles.__struct_fields__ if wanted is not None else ():
            limit = getattr(wanted, which)
            if limit is not None:
                yield name.removesuffix("_s"), which, limit


def _is_request_limit(slo: Slo, metric: str, limit: float) -> bool:
    limits = request_limits(slo)
    return limits is not None and getattr(limits, f"{metric}_s") == limit


def _latency_gate(steady: Block, metric: str, which: str, limit: float, *, exact: bool, bars: Bars) -> Gate:
    sketch: Sketch = getattr(steady, metric)
    name = f"{metric}_s.{which}"
    spans = intervals(steady, metric)
    value = sketch.mean if which == "mean" else sketch.high if which == "max" else spans.value(PERCENTILES[which])
    if not math.isfinite(limit):
        return _gate(name, "<=", limit, value, "fail", "the limit is no finite number")
    if not steady.ok:
        return _gate(name, "<=", limit, None, "fail", "no request succeeded in a steady window")
    if value is None or not math.isfinite(value):
        why = f"; {steady.one_read} answers came in one read each" if steady.one_read else ""
        return _gate(name, "<=", limit, None, "fail", f"no request gave a {metric}{why}")
    if which in ("mean", "max"):
        result, reason = _fact(steady, metric, which, limit)
        return _gate(name, "<=", limit, value, result, reason)
    p = PERCENTILES[which]
    count = _count_violations(steady, metric, limit, exact=exact)
    low, high = spans.interval(p)
    result, reason = _decide(p, count, steady.rho(RHO_OF[metric]), far=min(value, low) > limit * FAR)
    if result == "inconclusive" and count.unknown and low <= limit < high:
        reason = f"{reason}; {_between(low, high)}"
    shown = value if half_width(value, low, high) <= getattr(bars, f"{metric}_s").invalid else None
    return _gate(name, "<=", limit, shown, result, reason)


def _between(low: float, high: float) -> str:
    """What the instrument leaves open, and what would decide it."""
    most = f"{high:.4g} s" if math.isfinite(high) else "nobody knows what"
    return (
        f"the instrument's own error puts it between {low:.4g} s and {most}: a worker with a core of its own, tokens "
        f"that don't share reads, or a limit outside of that would decide it"
    )


def _fact_between(steady: Block, metric: str, which: str) -> tuple[float, float]:
    """What a mean or a maximum is at least and at most, its value within."""
    sketch, sides = getattr(steady, metric), getattr(steady.budget, metric, None) or Sides()
    if which == "max":
        spans = intervals(steady, metric)
        low, high = spans.interval(1.0) if sides.low or sides.high else (sketch.max, sketch.max)
        return low, max(high, sketch.max)
    lows, highs = sketch.n + sum(sides.low.values()), sketch.n + sum(sides.high.values())
    means = [sketch.sum / sketch.n, (sketch.sum + sides.low_sum) / max(1, lows)]
    return min(means), max(means[0], (sketch.sum + sides.high_sum) / max(1, highs))


def _fact(steady: Block, metric: str, which: str, limit: float) -> tuple[GateResult, str]:
    """A mean or a maximum: compared as it is, where nothing is hidden that could lie beyond the limit."""
    reason = f"{'largest' if which == 'max' else 'mean'} of {getattr(steady, metric).n} samples of successful requests"
    failed = steady.failed + steady.censored
    if which == "max" and failed:
        return "fail", f"{reason}, and {failed} requests failed or never ended"
    low, high = _fact_between(steady, metric, which)
    if low <= limit < high:
        return "inconclusive", f"{reason}; {_between(low, high)}"
    if limit < low:
        return "fail", reason
    if steady.censored:
        return "inconclusive", f"{reason}; {steady.censored} more had not ended when the drain bound was reached"
    if metric in BETWEEN_READS and steady.one_read:
        return "inconclusive", f"{reason}; {steady.one_read} answers came in one read each, and nobody knows their pace"
    return "pass", reason


def _count_violations(steady: Block, metric: str, limit: float, *, exact: bool) -> _Count:
    """Exact where the recorder compared each request with this very limit, else to the width of a bucket (1.1 %)."""
    sketch: Sketch = getattr(steady, metric)
    lost = steady.failed + steady.censored
    unknown = steady.one_read if metric in BETWEEN_READS else 0
    sides = getattr(steady.budget, metric, None) or Sides()
    worse, better = (above(shifts, limit, scale_of(metric)) for shifts in (sides.high, sides.low))
    if metric == "itl":
        typical = math.ceil(
            sketch.n / max(1, steady.ok - unknown)
        )  # as if each had been an average answer of late tokens
        lost, unknown = lost * typical, unknown * typical
        hidden = sum(sides.high.values())  # gaps that a read hid: there, and without a value
        n, beyond = sketch.n + hidden + lost + unknown, sketch.above(limit) + lost + unknown
        return _Count(n, min(n, beyond + worse), "gaps", unknown + worse - better)
    absent = steady.ok - sketch.n if metric in _MUST_HAVE else 0
    n, beyond = sketch.n + absent + unknown + lost, sketch.above(limit) + absent + unknown
    if exact and steady.slo_judged:
        beyond = steady.slo_missed_by.get(f"{metric}_s", 0)
        unknown = steady.slo_unsure.get(f"{metric}_s", 0)
    return _Count(n, min(n, beyond + worse + lost), "requests", unknown + worse - better, lost)


def _decide(p: float, count: _Count, rho: float, *, far: bool) -> tuple[GateResult, str]:
    """The binomial rule, and two shortcuts to a fail where a small sample leaves it open (docs/verdict.md)."""
    result = binomial_gate(p, count.violations, count.n, rho)
    if count.unknown and result != "pass":
        known = count.violations - count.unknown
        if binomial_gate(p, known, count.n, rho) != "fail":
            return "inconclusive", f"{known} of {count.n} {count.unit} miss it; of {count.unknown} nothing is known"
    if result == "inconclusive":
        if count.violations == count.n:
            return "fail", f"all {count.n} {count.unit} miss it"
        if far and 2 * count.violations > count.n:
            return "fail", f"{count.told}, and the observed value is more than {FAR:g} times the limit"
        return result, f"{count.told}; {_wanted(p, count, rho)}"
    return result, count.told


def _wanted(p: float, count: _Count, rho: float) -> str:
    independent = effective_n(count.n, rho)
    worth = f", and these are worth {independent:.0f} independent ones" if independent < 0.95 * count.n else ""
    needed = samples_needed(p, 1)
    if independent < needed:
        return f"to be sure takes {needed} {count.unit} of which at most one misses it{worth}"
    return f"too close to the allowed {1 - p:.3g} to be sure at 99 %{worth}"


def _goodput_gate(steady: Block, slo: Slo) -> Gate:
    """The share of requests that met all limits; where no latency has a limit, the share that succeeded."""
    limit = slo.goodput_ratio or 0.0
    limits = request_limits(slo)
    judged = steady.slo_judged if limits is not None else steady.ok + steady.failed + steady.censored
    met = steady.slo_met if limits is not None else steady.ok
    if not judged:
        return _gate("goodput_ratio", ">=", limit, None, "fail", "no request was judged in a steady window")
    if not steady.ok:
        return _gate("goodput_ratio", ">=", limit, 0.0, "fail", "no request succeeded in a steady window")
    unknown = steady.slo_unsure.get(ALL, 0)
    if unknown == judged:
        unknown = 0  # nothing measured is a fail
    value, count = met / judged, _Count(judged, judged - met, "requests", unknown, steady.failed + steady.censored)
    if not 0.0 < limit < 1.0:  # every request, or none: no question of chance
        reason = f"{count.violations} of {judged} requests miss a limit" + f", {unknown} of them maybe" * bool(unknown)
        sure: GateResult = "inconclusive" if (met + unknown) / judged >= limit else "fail"
        return _gate("goodput_ratio", ">=", limit, value, "pass" if value >= limit else sure, reason)
    names = [name for name in RequestSlo.__struct_fields__ if getattr(limits, name, None) is not None]
    rho = max((steady.rho(RHO_OF[name.removesuffix("_s")]) for name in names), default=0.0)
    result, reason = _decide(limit, count, rho, far=value < limit / FAR)
    return _gate("goodput_ratio", ">=", limit, value, result, reason)


def _failed_gate(steady: Block, limit: float, hung: int) -> Gate:
    """`hung`: requests of any phase that had not ended at the drain bound; one of a warm-up hung on through it."""
    ended = steady.ok + steady.failed + steady.censored
    if not ended:
        return _gate("failed_ratio", "<=", limit, None, "fail", "no request ended in a steady window")
    value = steady.failed / ended
    at_worst = (steady.failed + hung) / (ended + hung - steady.censored)
    reason = f"{steady.failed} of {ended} requests failed"
    if hung:
        reason += f", and {hung} had not ended when the drain bound was reached"
    if steady.censored == ended or value > limit:
        result: GateResult = "fail"
    else:
        result = "pass" if at_worst <= limit else "inconclusive"
    return _gate("failed_ratio", "<=", limit, value, result, reason)


def _rate_gate(name: str, limit: float, value: float | None) -> Gate:
    if value is None or not math.isfinite(value):
        return _gate(name, ">=", limit, None, "fail", "there was no steady window to measure it in")
    return _gate(name, ">=", limit, value, "pass" if value >= limit else "fail", "mean over the steady windows")


def _gate(metric: str, op: str, limit: float, value: float | None, result: GateResult, reason: str) -> Gate:
    return Gate(metric=metric, op=op, limit=limit, value=value, result=result, reason=reason)
