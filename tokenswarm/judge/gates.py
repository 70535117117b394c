"""Limits in, pass / fail / inconclusive out: one gate for each limit of a profile's `slo`.

Percentiles and goodput are shares of requests and are decided by the binomial rule of statistics.py at 99 %; a request
that failed or was cut off is beyond every latency limit. Means, maxima, failed_ratio and rates are facts about this run
and are compared as they are. No sample, no number: fail, never a pass. In words: docs/verdict.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import msgspec

from tokenswarm.measure import recorder
from tokenswarm.measure.sketch import Sketch
from tokenswarm.measure.snapshot import BETWEEN_READS, Block, Merged, total
from tokenswarm.measure.statistics import GateResult, binomial_gate, carried, effective_n, samples_needed
from tokenswarm.profile.slo import Percentiles, Slo
from tokenswarm.result.summary import PERCENTILES, RHO_OF, Gate, Summary

FAR = 2.0
"""An undecided share is refuted where most requests miss the limit, and the observed value is so many times it."""

_STRICTEST_FIRST = ("max", "p999", "p99", "p95", "p90", "p50")  # a mean says nothing about one request

RATES = ("output_tokens_per_s", "requests_per_s")
"""Limits from below: fields of `slo` and of the summary's throughput, compared as they are."""

_MUST_HAVE = ("ttft", "ttft_intended", "ttfat", "e2e")
"""A success without one of these violates its limit, as in the recorder; TPOT and gaps need two tokens to exist."""


class _Count(msgspec.Struct):
    """How many of `n` are beyond a limit, at worst: requests, or for `itl` gaps between tokens."""

    n: int
    violations: int
    unit: str
    unknown: int = 0  # of the violations: may be none, since nothing was measured


def request_limits(slo: Slo) -> recorder.Slo | None:
    """The limit of each latency for one request, for goodput: that of its highest percentile. None: no such limit."""
    limits: dict[str, float] = {}
    for name in recorder.Slo.__struct_fields__:
        wanted: Percentiles | None = getattr(slo, name)
        if wanted is not None:
            given = [limit for which in _STRICTEST_FIRST if (limit := getattr(wanted, which)) is not None]
            if given:
                limits[name] = given[0]
    return recorder.Slo(**limits) if limits else None


def evaluate(slo: Slo, summary: Summary, merged: Merged) -> list[Gate]:
    """A gate for each limit, in the order of the profile's fields. Judged: requests intended in a steady window."""
    steady = total(block for block in merged.blocks if block.phase == "steady")
    gates = []
    for metric, which, limit in latency_limits(slo):
        gates.append(_latency_gate(steady, metric, which, limit, exact=_is_request_limit(slo, metric, limit)))
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
    for name in recorder.Slo.__struct_fields__:
        wanted: Percentiles | None = getattr(slo, name)
        for which in Percentiles.__struct_fields__ if wanted is not None else ():
            limit = getattr(wanted, which)
            if limit is not None:
                yield name.removesuffix("_s"), which, limit


def _is_request_limit(slo: Slo, metric: str, limit: float) -> bool:
    limits = request_limits(slo)
    return limits is not None and getattr(limits, f"{metric}_s") == limit


def _latency_gate(steady: Block, metric: str, which: str, limit: float, *, exact: bool) -> Gate:
    sketch: Sketch = getattr(steady, metric)
    name = f"{metric}_s.{which}"
    value = sketch.mean if which == "mean" else sketch.high if which == "max" else sketch.quantile(PERCENTILES[which])
    if not math.isfinite(limit):
        return _gate(name, "<=", limit, value, "fail", "the limit is no finite number")
    if not steady.ok:
        return _gate(name, "<=", limit, None, "fail", "no request succeeded in a steady window")
    if value is None or not math.isfinite(value):
        why = f"; {steady.one_read} answers came in one read each" if steady.one_read else ""
        return _gate(name, "<=", limit, None, "fail", f"no request gave a {metric}{why}")
    if which in ("mean", "max"):
        result, reason = _fact(steady, metric, which, within=value <= limit)
        return _gate(name, "<=", limit, value, result, reason)
    p, far = PERCENTILES[which], value > limit * FAR
    count = _count_violations(steady, metric, limit, exact=exact)
    result, reason = _decide(p, count, steady.rho(RHO_OF[metric]), far=far)
    share = steady.merged_share(metric)
    if carried(p, share):
        return _gate(name, "<=", limit, value, result, reason)
    lost = steady.failed + steady.censored
    far = far and value * (1 - share) > limit * FAR  # so many tokens a read, and its gap is so much longer
    if not (far and result == "fail") and binomial_gate(p, min(lost, count.n), count.n) != "fail":
        result, reason = "inconclusive", f"{_merged(share)}, too many for {which}"
    return _gate(name, "<=", limit, None, result, reason)


def _merged(share: float) -> str:
    return f"{share:.2%} of the tokens came in one read with others"


def _fact(steady: Block, metric: str, which: str, *, within: bool) -> tuple[GateResult, str]:
    """A mean or a maximum: compared as it is, where nothing is hidden that could lie beyond the limit."""
    reason = f"{'largest' if which == 'max' else 'mean'} of {getattr(steady, metric).n} samples of successful requests"
    failed = steady.failed + steady.censored
    if which == "max" and failed:
        return "fail", f"{reason}, and {failed} requests failed or never ended"
    if not within:
        return "fail", reason
    if steady.censored:
        return "inconclusive", f"{reason}; {steady.censored} more had not ended when the drain bound was reached"
    share = steady.merged_share(metric)
    if not carried(0.5, share) or (which == "max" and metric in BETWEEN_READS and steady.one_read):
        return "inconclusive", f"{reason}; {_merged(share)}"
    return "pass", reason


def _count_violations(steady: Block, metric: str, limit: float, *, exact: bool) -> _Count:
    """Exact where the recorder compared each request with this very limit, else to the width of a bucket (1.1 %)."""
    sketch: Sketch = getattr(steady, metric)
    lost = steady.failed + steady.censored
    unknown = steady.one_read if metric in BETWEEN_READS else 0
    if metric == "itl":
        typical = math.ceil(
            sketch.n / max(1, steady.ok - unknown)
        )  # as if each had been an average answer of late tokens
        lost, unknown = lost * typical, unknown * typical
        return _Count(sketch.n + lost + unknown, sketch.above(limit) + lost + unknown, "gaps", unknown)
    absent = steady.ok - sketch.n if metric in _MUST_HAVE else 0
    n, beyond = sketch.n + absent + unknown + lost, sketch.above(limit) + absent + unknown
    if exact and steady.slo_judged:
        beyond = steady.slo_missed_by.get(f"{metric}_s", 0)
        unknown = steady.slo_unsure.get(f"{metric}_s", 0)
    return _Count(n, beyond + lost, "requests", unknown)


def _decide(p: float, count: _Count, rho: float, *, far: bool) -> tuple[GateResult, str]:
    """The binomial rule, and two shortcuts to a fail where a small sample leaves it open (docs/verdict.md)."""
    result = binomial_gate(p, count.violations, count.n, rho)
    share = f"{count.violations} of {count.n} {count.unit} miss it"
    if count.unknown and result != "pass":
        known = count.violations - count.unknown
        if binomial_gate(p, known, count.n, rho) != "fail":
            return "inconclusive", f"{known} of {count.n} {count.unit} miss it; of {count.unknown} nothing is known"
    if result == "inconclusive":
        if count.violations == count.n:
            return "fail", f"all {count.n} {count.unit} miss it"
        if far and 2 * count.violations > count.n:
            return "fail", f"{share}, and the observed value is more than {FAR:g} times the limit"
        return result, f"{share}; {_wanted(p, count, rho)}"
    return result, share


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
    value, count = met / judged, _Count(judged, judged - met, "requests")
    if not 0.0 < limit < 1.0:  # every request, or none: no question of chance
        reason = f"{count.violations} of {judged} requests miss a limit"
        return _gate("goodput_ratio", ">=", limit, value, "pass" if value >= limit else "fail", reason)
    names = [name for name in recorder.Slo.__struct_fields__ if getattr(limits, name, None) is not None]
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
