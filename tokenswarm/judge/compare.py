"""Runs against runs: is B better, worse, the same, or can't it be told? A pure function of the runs' summaries.

Each metric is one number a run, by its logarithm. *Worse* takes both: an exact one-sided test that stands after Holm
over all metrics, and a shift beyond the metric's margin. *Same* takes an interval of the shift that lies within the
margin on both sides. What is neither can't be told from so many runs. A sweep is one number a run too: the geometric
mean over its stages, since each stage tested by itself would need more runs than anybody makes. Ranks say nothing of
one run against several, as of a branch against a stored group: there the spread of the group is what it is held to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import exp, expm1, fsum, inf, log

import msgspec

from tokenswarm.judge import alike, ranksum, student
from tokenswarm.measure.statistics import holm
from tokenswarm.result.comparison import MARGINS, RUNS_MAX, Comparison, Finding, Kind, Open, Run, Side, Word
from tokenswarm.result.foreign.formats import OK_RATIO, metric_names
from tokenswarm.result.stat import PERCENTILES, Stat
from tokenswarm.result.summary import Part, Summary

ALPHA = 0.05
ALPHA_ALONE = 0.005  # of one run against several, whose test takes more for granted
CONFIDENCE = 0.9  # two-sided, so that each side is a test at 5 %: two one-sided tests for *same*

LATENCIES = ("ttft_s", "itl_s", "tpot_s", "e2e_s")
Values = tuple[tuple[float | None, ...], tuple[float | None, ...]]  # of each run, by side


class Metric(msgspec.Struct, frozen=True):
    """A number of a run or of a stage: `latency.ttft_s.p50`, and which way is good."""

    name: str
    kind: Kind
    read: Callable[[Part], float | None]
    higher_is_better: bool = False


class Held(msgspec.Struct, frozen=True):
    """Both sides of a metric held against each other, in logarithms: the shift B − A, its interval, and chances."""

    a: list[float]
    b: list[float]
    shift: float
    low: float
    high: float
    confidence: float  # 0: one run a side has no interval
    p_up: float  # that B lies so high by chance
    p_down: float


def _latency(name: str, which: str, kind: Kind) -> Metric:
    def read(part: Part) -> float | None:
        value: float | None = getattr(getattr(part.latency, name), which)
        return value

    return Metric(f"{name}.{which}", kind, read)


def _rate(name: str) -> Metric:
    def read(part: Part) -> float | None:
        value: float | None = getattr(part.throughput, name)
        return value

    return Metric(name, "throughput", read, higher_is_better=True)


METRICS: tuple[Metric, ...] = (
    _latency("ttft_s", "p50", "median"),
    _latency("ttft_s", "p99", "tail"),
    _latency("itl_s", "p50", "median"),
    _latency("itl_s", "p99", "tail"),
    _latency("tpot_s", "p50", "median"),
    _latency("e2e_s", "p50", "median"),
    _latency("e2e_s", "p95", "tail"),
    _rate("output_tokens_per_s"),
    _rate("requests_per_s"),
    Metric(OK_RATIO, "success", lambda part: part.requests_steady.ok_ratio, higher_is_better=True),
)
"""What is compared, in the order of the table. One row is one metric."""


def metrics_of(tool: str) -> tuple[Metric, ...]:
    """What is compared under another tool's definitions. They have no reader: the values are read already."""
    found = []
    for name in metric_names(tool):
        if name == OK_RATIO:
            found.append(METRICS[-1])
            continue
        rate = name.endswith("_per_s")
        kind: Kind = "throughput" if rate else "median" if name.endswith(".p50") else "tail"
        found.append(Metric(name, kind, lambda _: None, higher_is_better=rate))
    return tuple(found)


def compare(
    a: Sequence[Run],
    b: Sequence[Run],
    margins: Mapping[Kind, float] = MARGINS,
    metrics: Sequence[Metric] = METRICS,
) -> Comparison:
    """Hold the runs `b` against the runs `a`. ValueError where a side is empty or has more than RUNS_MAX runs."""
    if not a or not b:
        raise ValueError("a comparison takes at least one run a side")
    values = {m.name: (tuple(r.values.get(m.name) for r in a), tuple(r.values.get(m.name) for r in b)) for m in metrics}
    known = [m for m in metrics if any(v is not None for side in values[m.name] for v in side)]
    known = [m for m in known if not _all_succeeded(m, values[m.name])] or known
    held = {m.name: _held(m, *pair) for m in known if (pair := _logs(*values[m.name])) is not None}
    worse, better = {}, {}
    for m in known:
        if m.name in held:
            up, down = held[m.name].p_up, held[m.name].p_down
            worse[m.name], better[m.name] = (down, up) if m.higher_is_better else (up, down)
    alpha = ALPHA_ALONE if _alone(len(a), len(b)) else ALPHA
    stands = holm(worse, alpha), holm(better, alpha)
    findings = []
    for m in known:
        p = (worse[m.name], better[m.name]) if m.name in held else None
        told = (stands[0].get(m.name, False), stands[1].get(m.name, False))
        findings.append(_find(m, values[m.name], held.get(m.name), p, told, margins[m.kind], len(held)))
    return Comparison(
        word=_overall([finding.word for finding in findings]),
        findings=tuple(findings),
        alpha=alpha,
        a=side("baseline", a),
        b=side("new", b),
        differs=alike.set_apart(a, b),
    )


def side(name: str, runs: Sequence[Run]) -> Side:
    return Side(name=name, runs=tuple(run.run_id for run in runs), status=tuple(run.status for run in runs))


def _alone(a: int, b: int) -> bool:
    """Is one side a single run, and the other enough to have a spread?"""
    return min(a, b) == 1 and max(a, b) >= student.RUNS_LEAST


def _all_succeeded(metric: Metric, values: Values) -> bool:
    """Where no request failed there is nothing to test, and each test makes the others stricter."""
    return metric.kind == "success" and all(value in (None, 1.0) for side in values for value in side)


def _held(metric: Metric, x: list[float], y: list[float]) -> Held:
    if _alone(len(x), len(y)):
        least = student.COUNTED if metric.kind == "success" else student.MEASURED
        shift, low, high, up, down = student.one_against(x, y, CONFIDENCE, least)
        return Held(x, y, shift, low, high, CONFIDENCE, up, down)
    low, high, confidence = ranksum.interval(x, y, CONFIDENCE)
    up, down = ranksum.p_greater(x, y), ranksum.p_greater(y, x)
    return Held(x, y, ranksum.shift(x, y), low, high, confidence, up, down)


def percentiles(run: Summary) -> dict[str, dict[str, Open]]:
    """Each percentile that is told, with what the instrument leaves open of it, by latency; its stages together."""
    found: dict[str, dict[str, Open]] = {}
    for name in LATENCIES:
        stat: Stat = getattr(run.latency, name)
        told = {which: value for which in PERCENTILES if (value := getattr(stat, which)) is not None and value > 0}
        found[name] = {which: (v, stat.low.get(which, v), stat.high.get(which, v)) for which, v in told.items()}
    return {name: told for name, told in found.items() if told}


def measured(run: Summary) -> dict[str, float | None]:
    """The one number of each metric."""
    return {metric.name: _number(run, metric) for metric in METRICS}


def _number(run: Summary, metric: Metric) -> float | None:
    """Its own, or the geometric mean over the stages of a sweep. None where a part has none."""
    parts: Sequence[Part] = run.stages if len(run.stages) > 1 else [run]
    found = [metric.read(part) for part in parts]
    if any(value is None or not 0 < value < inf for value in found):
        return None
    return exp(fsum(log(value) for value in found if value) / len(found))


def _logs(a: Sequence[float | None], b: Sequence[float | None]) -> tuple[list[float], list[float]] | None:
    """Logarithms of both sides; None where a run has no such number: leaving it out would choose among runs."""
    if any(value is None for value in (*a, *b)):
        return None
    return [log(value) for value in a if value], [log(value) for value in b if value]


def _find(
    metric: Metric,
    values: Values,
    held: Held | None,
    p: tuple[float, float] | None,
    stands: tuple[bool, bool],
    margin: float,
    tests: int,
) -> Finding:
    a, b = values
    fixed = {
        "metric": metric.name, "kind": metric.kind, "higher_is_better": metric.higher_is_better, "margin": margin,
        "a": a, "b": b,
    }  # fmt: skip
    if held is None or p is None:
        missing = sum(value is None for value in (*a, *b))
        why = f"{missing} of {len(a) + len(b)} runs have no {metric.name}: too few samples for it, or none"
        return Finding(**fixed, word="can't tell", why=why)  # type: ignore[arg-type]
    bad = -held.shift if metric.higher_is_better else held.shift  # > 0: B is worse, by this much of a logarithm
    limit = log(1.0 + margin)
    word, why = _judge(bad, held, limit, stands)
    needed = None
    if word == "can't tell":
        needed, why = _more(bad, limit, held, tests)
    return Finding(
        **fixed,  # type: ignore[arg-type]
        word=word,
        ratio=exp(held.shift),
        low=exp(held.low) if held.confidence > 0 else None,
        high=exp(held.high) if held.confidence > 0 else None,
        confidence=held.confidence if held.confidence > 0 else None,
        p_worse=p[0],
        p_better=p[1],
        runs_needed=needed,
        why=why,
    )


def _judge(bad: float, held: Held, limit: float, stands: tuple[bool, bool]) -> tuple[Word, str]:
    percent = f"{100 * (expm1(limit)):.3g} %"
    seen = "every order of these runs but a few says so"
    if _alone(len(held.a), len(held.b)):
        seen = f"it lies outside of what the {max(len(held.a), len(held.b))} runs of the other side spread over"
    if stands[0] and bad > limit:
        return "worse", f"{seen}, and by more than {percent}"
    if stands[1] and bad < -limit:
        return "better", f"{seen}, and by more than {percent}"
    if held.confidence >= CONFIDENCE - 1e-9 and -limit < held.low and held.high < limit:
        return "same", f"within {percent} either way, at {100 * CONFIDENCE:.0f} %"
    return "can't tell", ""


def _more(bad: float, limit: float, held: Held, tests: int) -> tuple[int | None, str]:
    """(runs a side that would tell, why it can't be told now)."""
    x, y = held.a, held.b
    have = min(len(x), len(y))
    deviation = (ranksum.spread(x) ** 2 + ranksum.spread(y) ** 2) ** 0.5 / 2**0.5
    if _alone(len(x), len(y)):
        deviation = max(ranksum.spread(x), ranksum.spread(y))
    elif have < 2:
        return None, "a side of one run has no spread to hold a difference against: make at least 3 a side, better 5"
    beyond = abs(bad) > limit
    alpha = ALPHA / max(1, tests) if beyond else (1.0 - CONFIDENCE) / 2
    needed = ranksum.runs_needed(abs(abs(bad) - (0.0 if beyond else limit)), deviation, alpha)
    what = "a difference beyond the margin" if beyond else "a difference within the margin"
    if needed is None:
        return None, f"{what} would take more than {RUNS_MAX} runs a side to show, so much do they vary"
    needed = max(needed, have + 1)
    return needed, f"{what} would take about {needed} runs a side to show"


def _overall(words: Sequence[Word]) -> Word:
    order: tuple[Word, ...] = ("worse", "can't tell", "better")
    return next((word for word in order if word in words), "same" if words else "can't tell")
