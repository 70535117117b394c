"""How many replicas carry a load within its limits, and what they cost: from measured levels to a fleet. Pure.

A replica carries the largest load that kept every limit below the smallest that did not. Loads add up: n replicas
behind a fair router carry n times as much. That is on the safe side for arrivals at random, which spread more evenly
over many replicas than over one.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from math import ceil, isfinite
from typing import Literal, NamedTuple

import msgspec

from tokenswarm.judge.gates import RATES, latency_limits
from tokenswarm.measure.statistics import binomial_gate
from tokenswarm.profile.slo import Slo
from tokenswarm.result.fleet import Capacity, Demand, Fleet, Kind, Level, Word
from tokenswarm.result.stat import PERCENTILES, Stat
from tokenswarm.result.summary import Part, Stage, Summary

ALIKE = 0.1  # how far mean lengths may be apart and still be called the same
ROUNDING = 1e-9  # of a number of replicas: 3.0000000001 of them are 3

_WORST: tuple[Word, ...] = ("fail", "unknown", "perhaps", "pass")


class Columns(NamedTuple):
    """Arrivals of a trace: s, in order, and the tokens of each."""

    at_s: Sequence[float]
    input_tokens: Sequence[int]
    output_tokens: Sequence[int]


def limits_of(slo: Slo) -> dict[str, float]:
    """Each limit that a level is judged by: {"ttft_s.p95": 1.0, "failed_ratio": 0.01}. Rates are left out."""
    found = {f"{metric}_s.{which}": limit for metric, which, limit in latency_limits(slo)}
    ratios = {name: getattr(slo, name) for name in ("goodput_ratio", "failed_ratio")}
    return found | {name: limit for name, limit in ratios.items() if limit is not None}


def left_out(slo: Slo) -> list[str]:
    """Limits of a whole run that no single replica can be held to."""
    return [name for name in RATES if getattr(slo, name) is not None]


# -- levels ------------------------------------------------------------------------------------------------------------


def levels_of(summary: Summary, limits: Mapping[str, float], *, own: bool) -> list[Level]:
    """Each stage of a run as a level. `own`: these limits are the run's, so that a search has judged them already."""
    tries = {probe["stage"]: probe for probe in summary.search.get("probes", ())}
    probes = tries if own else {}
    found = []
    for stage in summary.stages:
        carried = stage.throughput.requests_per_s
        if stage.rate_end is not None or not carried or not stage.steady_window.length_s:
            continue  # a ramp is no level, and nor is what was never measured
        if stage.stage in tries and tries[stage.stage]["result"] == "gone":
            continue  # the server was away in it, whatever the load
        probe = probes.get(stage.stage)
        if probe is not None:
            word, limit = _of_probe(probe)
        else:
            word, limit = judge(stage, limits)
        kind: Literal["rate", "users"] = "users" if stage.concurrency is not None and stage.rate is None else "rate"
        load = stage.concurrency if kind == "users" else stage.rate
        offered = carried if stage.rate is None else stage.rate
        found.append(
            Level(
                kind=kind, load=float(load or carried), carried=offered, word=word, limit=limit, power_w=_power(stage)
            )
        )
    return found


def _of_probe(probe: Mapping[str, object]) -> tuple[Word, str]:
    limit = str(probe.get("reason") or "").partition(":")[0]
    if probe["result"] == "pass":
        return "pass", ""
    return ("perhaps" if probe["within"] else "fail"), limit


def _power(stage: Stage) -> float | None:
    """Watts of all its GPUs; None where they were not watched, or a record was played back."""
    gpus, power = stage.gpu.get("gpus"), stage.gpu.get("power_w_mean")
    known = [gpu for gpu in gpus if isinstance(gpu, dict)] if isinstance(gpus, list) else []
    if not isinstance(power, int | float) or any(gpu.get("backend") == "replay" for gpu in known):
        return None
    return float(power) if isfinite(power) and power > 0 else None


def judge(part: Part, limits: Mapping[str, float]) -> tuple[Word, str]:
    """The worst that a limit says, and which. Failed and cut off requests are beyond every latency limit."""
    worst: tuple[Word, str] = ("pass", "")
    for name, limit in limits.items():
        word = _ratio(part, name, limit) if name.endswith("_ratio") else _latency(part, name, limit)
        if _WORST.index(word) < _WORST.index(worst[0]):
            worst = (word, name)
    return worst


def _ratio(part: Part, name: str, limit: float) -> Word:
    counts = part.requests_steady
    ended = counts.ok + counts.failed + counts.censored
    if not ended:
        return "unknown"
    if name == "failed_ratio":
        return "pass" if (counts.failed + counts.censored) / ended <= limit else "fail"
    judged, met = part.slo.judged, part.slo.met
    if not judged:
        return "unknown"
    if 0 < limit < 1:
        word = binomial_gate(limit, judged - met, judged)
        return word if word != "inconclusive" else "perhaps" if met / judged >= limit else "fail"
    return "pass" if met / judged >= limit else "fail"


def _latency(part: Part, name: str, limit: float) -> Word:
    metric, _, which = name.partition(".")
    stat: Stat = getattr(part.latency, metric)
    lost = part.requests_steady.failed + part.requests_steady.censored
    if not stat.n:
        return "fail" if lost else "unknown"
    if which in ("mean", "max"):
        value = getattr(stat, which)
        return "fail" if value > limit or (which == "max" and lost) else "perhaps" if lost else "pass"
    p = PERCENTILES[which]
    if lost > (1 - p) * (stat.n + lost):
        return "fail"
    value = getattr(stat, which)
    if value is None:
        return "unknown" if (stat.p50 or stat.min or 0.0) <= limit else "fail"
    if value > limit:
        return "fail"
    if lost:  # the rank moves up: the next percentile that is told bounds it
        shifted = p * (stat.n + lost) / stat.n
        above = [getattr(stat, other) for other, share in PERCENTILES.items() if share >= shifted]
        if not any(found is not None and found <= limit for found in above):
            return "perhaps"
    high = stat.sample_high.get(which)
    return "pass" if high is not None and high <= limit else "perhaps"


def capacity(levels: Iterable[Level]) -> Capacity | None:
    """Of the loads of one kind (rates, or users) those that carry more. None: not even the least keeps the limits."""
    known = list(levels)
    found = [one for kind in ("rate", "users") if (one := _of_kind([x for x in known if x.kind == kind])) is not None]
    return max(found, key=lambda one: one.best, default=None)


def _of_kind(levels: Sequence[Level]) -> Capacity | None:
    failed = min((level for level in levels if level.word == "fail"), key=lambda level: level.load, default=None)
    below = [level for level in levels if failed is None or level.load < failed.load]
    within = [level.carried for level in below if level.word in ("pass", "perhaps")]
    if not within:
        return None
    best = max(within)
    sure = max((level.carried for level in below if level.word == "pass"), default=None)
    return Capacity(
        best=best,
        low=sure,
        high=None if failed is None else max(failed.carried, best),
        limit="" if failed is None else failed.limit,
        users=levels[0].kind == "users",
    )


# -- demand ------------------------------------------------------------------------------------------------------------


def of_rate(rate: float, lengths: tuple[float | None, float | None], kind: Kind, *, adjust: bool) -> Demand:
    """A constant rate, of requests of these mean lengths (None: as measured)."""
    tokens_in, tokens_out = lengths[0] or kind.input_tokens, lengths[1] or kind.output_tokens
    counts = [x / y for x, y in ((tokens_in, kind.input_tokens), (tokens_out, kind.output_tokens)) if x and y]
    more, less = (max(counts, default=1.0), min(counts, default=1.0)) if adjust else (1.0, 1.0)
    return Demand(
        peak=rate * more, peak_low=rate * less, mean=rate * more, input_tokens=tokens_in, output_tokens=tokens_out,
        output_tokens_per_s=tokens_out * rate if tokens_out else None, adjusted=more,
    )  # fmt: skip


def of_trace(trace: Columns, span_s: float, window_s: float, kind: Kind, *, adjust: bool) -> Demand:
    """The busiest window of a trace: in requests, or where that is more, in tokens by those of a measured request."""
    window_s = min(window_s, span_s)
    start, end = _busiest(trace, window_s, kind, adjust=adjust)
    n = end - start
    tokens_in, tokens_out = sum(trace.input_tokens[start:end]) / n, sum(trace.output_tokens[start:end]) / n
    counts = [x / y for x, y in ((tokens_in, kind.input_tokens), (tokens_out, kind.output_tokens)) if y]
    more, less = (max(counts, default=1.0), min(counts, default=1.0)) if adjust else (1.0, 1.0)
    mean = len(trace.at_s) / span_s
    return Demand(
        peak=n / window_s * more, peak_low=n / window_s * less, mean=mean * more, input_tokens=tokens_in,
        output_tokens=tokens_out, output_tokens_per_s=sum(trace.output_tokens) / span_s, start_s=trace.at_s[start],
        window_s=window_s, adjusted=more,
    )  # fmt: skip


def _busiest(trace: Columns, window_s: float, kind: Kind, *, adjust: bool) -> tuple[int, int]:
    """The rows of the window that asks for most."""
    weights = [array("d", [1.0]) * len(trace.at_s)] if not adjust else []
    for tokens, measured in ((trace.input_tokens, kind.input_tokens), (trace.output_tokens, kind.output_tokens)):
        if measured:
            weights.append(array("d", [count / measured for count in tokens]))
    sums, best, found, end, n = [0.0] * len(weights), -1.0, (0, 1), 0, len(trace.at_s)
    for start, at_s in enumerate(trace.at_s):
        while end < n and trace.at_s[end] < at_s + window_s:
            for place, column in enumerate(weights):
                sums[place] += column[end]
            end += 1
        asked = max(sums)
        if asked > best * (1 + ROUNDING):
            best, found = asked, (start, end)
        for place, column in enumerate(weights):
            sums[place] -= column[start]
    return found


def apart(demand: Demand, kind: Kind) -> str:
    """Where its requests are longer or shorter than those that were measured; "" where they are alike."""
    pairs = {
        "prompts": (demand.input_tokens, kind.input_tokens),
        "answers": (demand.output_tokens, kind.output_tokens),
    }
    told = [
        f"{what} of {asked:.4g} tokens, measured with {measured:.4g}"
        for what, (asked, measured) in pairs.items()
        if asked and measured and not 1 - ALIKE <= asked / measured <= 1 + ALIKE
    ]
    return " and ".join(told)


# -- fleets ------------------------------------------------------------------------------------------------------------


def fleet(kind: Kind, demand: Demand, headroom: float) -> Fleet:
    """How many of this kind, of which a share `headroom` stays free at the peak."""
    found = capacity(kind.levels)
    if found is None:
        return _without(kind, demand)
    carries = found.best * (1 - headroom)
    replicas = _count(demand.peak, carries)
    low = None if found.high is None else _count(demand.peak_low, found.high * (1 - headroom))
    high = None if found.low is None else _count(demand.peak, found.low * (1 - headroom))
    made = Fleet(
        name=kind.name, capacity=found, demand=demand, replicas=replicas,
        replicas_low=1 if low is None else min(low, replicas), replicas_high=high, gpus=replicas * kind.gpus,
        used=demand.peak / (replicas * found.best), currency=kind.currency, notes=(*kind.notes, *_notes(kind, found)),
    )  # fmt: skip
    return _with_energy(_with_cost(made, kind), kind)


def _count(rate: float, carried: float) -> int:
    return max(1, ceil(rate / carried * (1 - ROUNDING)))


def _without(kind: Kind, demand: Demand) -> Fleet:
    """No load of it will do, or none is known to."""
    failed = min((x for x in kind.levels if x.word == "fail"), key=lambda x: (x.kind, x.load), default=None)
    open_ = [x for x in kind.levels if x.word == "unknown" and (failed is None or x.load < failed.load)]
    if open_:
        level = max(open_, key=lambda x: x.load)
        why = f"{_told(level)} has too few requests to tell {level.limit}: measure it for longer"
    else:
        assert failed is not None  # a level that is within, and none above it, would be a capacity
        why = f"not even {_told(failed)} keeps {failed.limit}: measure it at less, or it is too slow for these limits"
    return Fleet(name=kind.name, capacity=None, undecided=bool(open_), demand=demand, why=why, currency=kind.currency)


def _told(level: Level) -> str:
    return f"{level.load:.4g}/s" if level.kind == "rate" else f"{level.load:.0f} users"


def _notes(kind: Kind, found: Capacity) -> list[str]:
    notes = []
    if found.high is None:
        notes.append("nothing that was tried was too much for it, so that fewer may do: measure it higher")
    if found.low is None:
        notes.append("no load is sure to keep the limits, from so few requests: measure it for longer")
    if found.users:
        notes.append("measured with users in a closed loop: arrivals that bunch want more; `tokenswarm search` tells")
    if any(level.word == "unknown" for level in kind.levels):
        notes.append("a level had too few requests for a limit, and counts for nothing")
    return notes


def _with_cost(made: Fleet, kind: Kind) -> Fleet:
    """Replicas are paid for all the time, so a token costs by the mean load, not by the peak."""
    price, tokens_per_s = kind.price_per_gpu_hour, made.demand.output_tokens_per_s
    if price is None:
        return made
    hourly = {
        name: None if count is None else count * kind.gpus * price
        for name, count in (("best", made.replicas), ("low", made.replicas_low), ("high", made.replicas_high))
    }
    millions = tokens_per_s * 3600 / 1e6 if tokens_per_s else None
    each = {name: cost / millions if cost is not None and millions else None for name, cost in hourly.items()}
    return msgspec.structs.replace(
        made, cost_per_hour=hourly["best"], cost_per_million_output_tokens=each["best"], cost_low=each["low"],
        cost_high=each["high"],
    )  # fmt: skip


def _with_energy(made: Fleet, kind: Kind) -> Fleet:
    """By the power that was measured at the mean load of a replica, between the two levels around it."""
    points = sorted({level.carried: level.power_w for level in kind.levels if level.power_w is not None}.items())
    tokens_per_s = made.demand.output_tokens_per_s
    if not points or not tokens_per_s:
        return made
    counts = (made.replicas, made.replicas_low, made.replicas_high)
    watts = [None if count is None else count * power_at(points, made.demand.mean / count) for count in counts]
    best, *ends = (None if power is None else power / tokens_per_s * 1e6 / 3.6e6 for power in watts)
    known = [end for end in (best, *ends) if end is not None]
    low, high = min(known), max(known) if None not in ends else None
    return msgspec.structs.replace(
        made, power_w=watts[0], kwh_per_million_output_tokens=best, kwh_low=low, kwh_high=high
    )


def power_at(points: Sequence[tuple[float, float | None]], rate: float) -> float:
    """Watts at a rate: straight lines between (rate, watts) points; beyond them, the nearest one's."""
    known = [(at, power) for at, power in points if power is not None]
    if rate <= known[0][0]:
        return known[0][1]
    for (left, low), (right, high) in pairwise(known):
        if rate <= right:
            return low + (high - low) * (rate - left) / (right - left)
    return known[-1][1]


def ranked(fleets: Iterable[Fleet]) -> list[Fleet]:
    """The cheapest first; without prices the one of the fewest GPUs; last those that keep the limits at no load."""
    found = list(fleets)
    priced = all(one.cost_per_hour is not None for one in found if one.replicas is not None)
    far = float("inf")

    def rank(one: Fleet) -> tuple[float, float]:
        cost = one.cost_per_hour if priced else one.gpus
        return (far if cost is None else cost, far if one.gpus is None else one.gpus)

    return sorted(found, key=rank)
