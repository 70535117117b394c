"""Each rule has a fault that trips it alone; a good run trips none; a further fault never improves a verdict."""

from __future__ import annotations

import functools
import importlib
import inspect
import math
import pkgutil
import re
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sample_runs
import test_telemetry_rules
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tokenswarm.clock import NS_PER_S
from tokenswarm.errors import ExitCode
from tokenswarm.judge import rules
from tokenswarm.judge.rules import contamination, soak, telemetry
from tokenswarm.judge.rules.evidence import SEVERITIES, Evidence, UsersSeen
from tokenswarm.judge.verdict import RULES, exit_code, judge
from tokenswarm.measure import snapshot
from tokenswarm.measure.budget import FINE_METRICS, scale_of
from tokenswarm.measure.share import Share
from tokenswarm.measure.snapshot import Instrument, Merged
from tokenswarm.measure.stills import Still
from tokenswarm.profile.bars import Bar, Bars
from tokenswarm.profile.engine import Engine
from tokenswarm.profile.load import ENDLESS_S, Load, Stage, TraceSource
from tokenswarm.profile.slo import Percentiles, Slo
from tokenswarm.profile.target import Tls
from tokenswarm.profile.typed_yaml import Seconds
from tokenswarm.prompts.info import UNANSWERED
from tokenswarm.record import Outcome, TokenSource
from tokenswarm.result.soak import Drift, Soak
from tokenswarm.result.summary import Doubt, Gate, StagePlan, Summary, Verdict, plan_of, summarize

DOCS = Path(__file__).resolve().parent.parent / "docs" / "verdict.md"
MS = NS_PER_S // 1000


def made(**run: Any) -> bytes:
    return snapshot.encode(sample_runs.run(**{"ok": 1100, "workers": 2, **run}))


usual = functools.cache(made)  # of most cases


class Case:
    """What is known at the end of a run; faults change it."""

    def __init__(self, **run: Any) -> None:
        self.merged: Merged = snapshot.decode_merged(made(**run) if run else usual())
        self.evidence: dict[str, Any] = {
            "expected_workers": 2,
            "profile": sample_runs.profile(),
            "rows": sum(sum(block.by_outcome.values()) for block in self.merged.blocks),
        }

    def judge(self) -> Verdict:
        evidence = Evidence(merged=self.merged, **self.evidence)
        return judge(evidence, summarize(self.merged, plan=plan_of_all(evidence), partial=evidence.interrupted))

    @property
    def instrument(self) -> Instrument:
        return self.merged.workers[1].instrument


def plan_of_all(evidence: Evidence) -> list[StagePlan]:
    return [plan_of(number, stage) for number, stage in enumerate(evidence.profile.load.stages)]


def on_merged(change: Callable[[Merged], None]) -> Callable[[Case], None]:
    return lambda case: change(case.merged)


def steady(**more: int) -> Callable[[Case], None]:
    """Add to counts of the steady block."""

    def change(case: Case) -> None:
        block = case.merged.block(0)
        for name, value in more.items():
            setattr(block, name, getattr(block, name) + value)

    return change


def outcomes(outcome: Outcome, n: int, counter: str = "failed") -> Callable[[Case], None]:
    """n further requests, fully accounted for."""

    def change(case: Case) -> None:
        steady(intended=n, sent=n, **{counter: n})(case)
        by_outcome = case.merged.block(0).by_outcome
        by_outcome[outcome.value] = by_outcome.get(outcome.value, 0) + n
        case.evidence["rows"] += n

    return change


def told(**tables: dict[str, Any]) -> Callable[[Case], None]:
    """Put these into tables of the steady block."""

    def change(case: Case) -> None:
        for name, table in tables.items():
            getattr(case.merged.block(0), name).update(table)

    return change


def known(**facts: Any) -> Callable[[Case], None]:
    return lambda case: case.evidence.update(facts)


def profiled(changes: dict[str, Any]) -> Callable[[Case], None]:
    return lambda case: case.evidence.update(profile=msgspec.structs.replace(case.evidence["profile"], **changes))


def instrument(**values: Any) -> Callable[[Case], None]:
    def change(case: Case) -> None:
        for name, value in values.items():
            setattr(case.instrument, name, max(value, getattr(case.instrument, name)))  # a fault never heals another

    return change


def lags(name: str, seconds: float, n: int) -> Callable[[Case], None]:
    """n further looks at the loop's or the receive lag of worker 1."""

    def change(case: Case) -> None:
        own = case.instrument
        getattr(own, name).add(seconds, n)
        setattr(own, f"{name}_ns_max", max(getattr(own, f"{name}_ns_max"), int(seconds * NS_PER_S)))

    return change


def widened(metric: str, share: float, of: float = 1.0) -> Callable[[Case], None]:
    """`of` of the samples, the largest, may be less than they are by `share`, or more where it is negative: half of
    that is the bar."""

    def change(case: Case) -> None:
        block = case.merged.block(0)
        both_sides, scale = getattr(block.budget, metric), scale_of(metric)
        side = both_sides.low if share > 0 else both_sides.high
        values = getattr(block.fine, metric) if metric in FINE_METRICS else getattr(block, metric).counts
        block.rho_weighted.pop(metric, None)  # enough of them for a p99.9
        left = math.ceil(sum(values.values()) * of)
        for key, n in sorted(values.items(), reverse=True):
            moved, left = min(n, left), left - min(n, left)
            below = key + math.floor(math.log2(1 - share) * scale)
            side[key] = side.get(key, 0) - moved
            side[below] = side.get(below, 0) + moved

    return change


def both(*faults: Callable[[Case], None]) -> Callable[[Case], None]:
    def change(case: Case) -> None:
        for fault in faults:
            fault(case)

    return change


def outage(start_s: int, seconds: int) -> Callable[[Case], None]:
    """In each second most of the requests that ended failed."""

    def change(case: Case) -> None:
        for second in range(start_s, start_s + seconds):
            for _ in range(1 + 2 * case.merged.block(0).periods.ended.get(second, 0)):
                case.merged.block(0).periods.add(second, failed=True)

    return change


def broken(age_s: float, n: int, sketch: str = "broken_e2e") -> Callable[[Case], None]:
    def change(case: Case) -> None:
        for number in range(n):
            getattr(case.merged.block(0), sketch).add(age_s + 0.01 * number)

    return change


def window(seconds: float) -> Callable[[Case], None]:
    return lambda case: setattr(case.merged.block(0), "window_ns", int(seconds * NS_PER_S))


def send_lag(seconds: float) -> Callable[[Case], None]:
    return lambda case: case.merged.block(0).send_lag.add(seconds, 100)


def drift(factor: float, metric: str = "ttft") -> Callable[[Case], None]:
    """The requests of the second half take `factor` times as long."""

    def change(case: Case) -> None:
        half = case.merged.block(0).second_half[metric]
        moved = snapshot.Sketch(value * factor for value in (half.quantile(q / 400) for q in range(1, 401)) if value)
        case.merged.block(0).second_half[metric] = moved

    return change


def queue_of(n: int) -> Callable[[Case], None]:
    """So many requests more were under way at the window's end than at its begin, and requests waited for them."""

    def change(case: Case) -> None:
        block = case.merged.block(0)
        block.window_requests -= n
        block.ttft_intended.add(50.0, 300)

    return change


def user_stamps(case: Case) -> None:
    for worker in case.merged.workers:
        own = worker.instrument
        own.user_stamped, own.kernel_stamped = own.user_stamped + own.kernel_stamped, 0


def users(lowest: int, mean: float) -> Callable[[Case], None]:
    """What workers reported beside the 3 users of the stage: their answers in flight fill most of 3 users' time."""

    def change(case: Case) -> None:
        seen = case.evidence.get("users", (UsersSeen(asked=3, lowest=3, highest=3, total=300, looks=100),))[0]
        total = min(seen.total, int(100 * mean))
        case.evidence["users"] = (
            UsersSeen(asked=3, lowest=min(lowest, seen.lowest), highest=3, total=total, looks=100),
        )

    return change


def in_flight(share: float) -> Callable[[Case], None]:
    def change(case: Case) -> None:
        users(3, 3.0)(case)
        block = case.merged.block(0)
        block.window_in_flight_ns = min(block.window_in_flight_ns, int(3 * share * block.window_ns))

    return change


def not_final(case: Case) -> None:
    case.merged.workers[1].final = False


def says(**examples: str) -> Callable[[Case], None]:
    def change(case: Case) -> None:
        for name, text in examples.items():
            getattr(case.merged.block(0), name)["example"] = text

    return change


def tokens_each(n: float) -> Callable[[Case], None]:
    """So many tokens an event, by the server's count."""

    def change(case: Case) -> None:
        block = case.merged.block(0)
        block.output_tokens = int(block.events * n)

    return change


def another_worker(case: Case, failed: int) -> None:
    """One of two, of whose requests so many failed, and of the other's none."""
    case.merged.workers[0].share = Share(ok=580)
    other = msgspec.structs.replace(case.merged.workers[0], worker=1, share=Share(ok=500, failed=failed))
    case.merged.workers.append(other)


def thoughts(case: Case, n: int) -> None:
    """So many more answers have a first token than one of the answer itself."""
    ttfat = case.merged.block(0).ttfat
    key = next(key for key, count in ttfat.counts.items() if count > n)
    ttfat.counts[key] -= n
    ttfat.n -= n


def held(**signs: int) -> Callable[[Case], None]:
    """Signs of 1000 answers, that something on the path kept tokens back."""

    def change(case: Case) -> None:
        own = case.merged.block(0).held
        for name, value in {"answers": 1000, **signs}.items():
            setattr(own, name, max(value, getattr(own, name)))

    return change


CHOICES_MISSING = {"choices missing": 24}
CONTINUOUS = {"engine": Engine(continuous_usage=True)}
TLS = {"tls": Tls(verify=False), "target": ("https://127.0.0.1:8000",)}
OLLAMA = {"engine": Engine(kind="ollama")}
P999 = {"slo": Slo(ttft_s=Percentiles(p999=9.0))}
POISSON_11, POISSON_14 = ({"load": Load(kind="poisson", stages=(Stage(rate=(rate,)),))} for rate in (11.0, 14.0))
MANY = {"load": Load(requests=5000, stages=(Stage(users=10, duration=Seconds(ENDLESS_S)),))}
MANY_IN_TIME = {"load": Load(requests=5000, stages=(Stage(users=10),))}
STILL = Still(stage=0, phase="steady", start_s=40.0, end_s=43.0, decoding=8, due=300.0)
LOST = "worker 1 (host, pid 101)"

FAULTS: dict[str, tuple[str, str, Callable[[Case], None]]] = {
    "a request vanished": ("accounting-mismatch", "invalid", steady(intended=1)),
    "a request was counted twice": ("accounting-mismatch", "invalid", both(steady(ok=1), known(rows=1101))),
    "an end without an outcome": (
        "accounting-mismatch", "invalid", lambda case: case.merged.block(0).by_outcome.update(reset=1),
    ),
    "sent, never ended": ("accounting-mismatch", "invalid", steady(intended=1, sent=1)),
    "rows are missing": ("rows-mismatch", "invalid", known(rows=1099)),
    "a worker died": ("worker-lost", "invalid", both(not_final, known(lost={LOST: "its heartbeat stopped"}))),
    "somebody edited the users": ("users-changed", "invalid", known(changed={0: (12, 24)})),
    "a worker was told to go": ("worker-left", "invalid", known(left={LOST: "was ended by a signal (SIGTERM)"})),
    "the master died": ("never-ended", "invalid", both(not_final, known(recovered="7 rows are there.", rows=7))),
    "the run goes on": ("goes-on", "degraded", both(not_final, known(goes_on="These are its numbers so far."))),
    "a few rows ask the same": (
        "dataset-repeats", "note", known(dataset={"rows_kept": 1000, "duplicates": 21}),
    ),
    "many rows ask the same": (
        "dataset-repeats", "degraded", known(dataset={"rows_kept": 1000, "duplicates": 101}),
    ),
    "a data set of questions": (
        "history-without-answers", "note", known(dataset={"rows_kept": 80, "notes": {UNANSWERED: 80}}),
    ),
    "a worker never came": ("worker-missing", "invalid", known(expected_workers=3)),
    "a worker fell silent": ("final-report-missing", "invalid", not_final),
    "a stranger knocked": (
        "worker-refused", "note", known(refused=("a worker on x (pid 1) was refused: late",), refused_workers=1),
    ),
    "a partition healed": ("worker-silent", "degraded", known(silences={LOST: 5.0})),
    "a user was missing for a moment": ("users-differ", "degraded", users(2, 2.98)),
    "a user was missing": ("users-differ", "invalid", users(2, 2.0)),
    "users waited for a sixth of the time": ("users-idle", "degraded", in_flight(0.75)),
    "a third of the users sent nothing": ("users-idle", "invalid", in_flight(0.58)),
    "a user was stopped": ("cancelled-requests", "degraded", outcomes(Outcome.CANCELLED, 3, "cancelled")),
    "users were stopped": ("cancelled-requests", "invalid", outcomes(Outcome.CANCELLED, 24, "cancelled")),
    "live reports got lost": (
        "reports-missing", "note", on_merged(lambda merged: setattr(merged.workers[0], "missing", [3, 4])),
    ),
    "users were missing": ("run-trouble", "invalid", known(remarks=("only 3 of 50 users were there",))),
    "a load that only fails": ("aborted", "invalid", known(aborted="the first 50 requests all failed")),
    "a signal": ("interrupted", "degraded", known(interrupted=True)),
    "most requests failed": ("mostly-failed", "invalid", outcomes(Outcome.HTTP_5XX, 1101)),
    "the server died": ("server-gone", "invalid", known(gone="http://gpu:1: connection refused")),
    "the engine stood still": ("engine-stood-still", "note", known(stills=(STILL,))),
    "2 % refused": ("failures", "degraded", outcomes(Outcome.HTTP_5XX, 24)),
    "an outage of 8 s": ("failures", "degraded", both(outcomes(Outcome.CONNECT, 9), outage(40, 8))),
    "the engine began earlier": (
        "tokens-held-back", "degraded",
        held(
            told=1000, told_events=9000, told_tokens=9000, client_first_ns=443_000 * MS, client_total_ns=503_000 * MS,
            engine_first_ns=100_000 * MS, engine_total_ns=500_000 * MS, engine_decode_ns=400_000 * MS,
        ),
    ),
    "a proxy that stores answers": ("tokens-held-back", "degraded", held(stored=990)),
    "a length was said ahead": ("tokens-held-back", "degraded", held(announced=1000)),
    "a block buffer": ("tokens-held-back", "degraded", held(blocks=700)),
    "a cork": ("tokens-held-back", "degraded", held(corked=700)),
    "all died at one age": ("path-timeout", "note", broken(60.0, 8)),
    "all died after one silence": ("path-timeout", "note", broken(60.0, 8, "broken_silence")),
    "every other request refused": ("failures", "degraded", outcomes(Outcome.RATE_LIMITED, 1100)),
    "half of the prompts cut": (
        "prompt-cut", "invalid", lambda case: case.merged.block(0).prompt_cut.add(90, 550),
    ),
    "5 % of the prompts cut": ("prompt-cut", "degraded", lambda case: case.merged.block(0).prompt_cut.add(90, 55)),
    "a router fell back": ("models-mixed", "degraded", told(by_model={"big": 1000, "small": 20, "tiny": 5})),
    "an alias, or another model": (
        "model-renamed", "note", both(profiled({"engine": Engine(model="m")}), told(by_model={"other": 1100})),
    ),
    "a hidden error": (
        "silent-ends", "note", both(outcomes(Outcome.TRUNCATED, 3), told(by_error={"silent end": 3})),
    ),
    "an odd option, once": ("model-reloaded", "note", told(seldom={"again": 4})),
    "an odd option": ("model-reloaded", "degraded", told(seldom={"again": 40, "overtaken by": 90})),
    "fewer slots than users": (
        "slots-busy", "note",
        both(
            profiled(OLLAMA),
            lambda case: case.merged.block(0).engine_queue.add(0.9, 1100),
            lambda case: case.merged.block(0).engine_decode.add(0.1, 1100),
        ),
    ),
    "a crowd before a cold model": (
        "refused-while-cold", "note",
        both(
            outcomes(Outcome.HTTP_5XX, 2),
            told(by_error={"http 503": 2}, error_says={"http 503": "HTTP 503: server busy, please try again. maximum "
                 "pending requests exceeded"}),
        ),
    ),
    "tokens without a line": ("lines-and-tokens", "note", both(profiled(OLLAMA), steady(output_tokens=1500))),
    "tool calls on the last line": ("answers-at-once", "note", told(seldom={"at once": 5})),
    "2 % truncated": ("truncated-answers", "invalid", outcomes(Outcome.TRUNCATED, 24)),
    "0.1 % dropped": ("dropped-arrivals", "degraded", steady(intended=1, dropped=1)),
    "a fifth of the arrivals never came": ("arrivals-missing", "invalid", profiled(POISSON_14)),
    "its time ended a run of so many requests": ("requests-missing", "note", profiled(MANY_IN_TIME)),
    "fewer requests than were asked for": ("requests-missing", "invalid", profiled(MANY)),
    "half of the rate was kept": ("rate-not-kept", "degraded", both(profiled(POISSON_11), queue_of(550))),
    "1 % dropped": ("dropped-arrivals", "invalid", steady(intended=8, dropped=8)),
    "connections were closed": ("reconnects", "note", steady(reconnects=30)),
    "a NaN": ("impossible-values", "invalid", lambda case: case.merged.block(0).ttft.add(float("nan"))),
    "a negative duration": ("impossible-values", "invalid", lambda case: case.merged.block(0).ttft.add(-1.0)),
    "a stall of 100 ms": ("loop-stall", "note", lags("loop_lag", 0.1, 1)),
    "stopped for 2 s": ("loop-stall", "note", lags("loop_lag", 2.0, 1)),
    "8 % of the time in stalls": ("loop-stall", "note", lags("loop_lag", 0.98, 9)),
    "the first tokens are known to 2.5 %": ("error-bar", "degraded", widened("ttft", 0.05)),
    "the first tokens are known to 12 %": ("error-bar", "invalid", widened("ttft", 0.24)),
    "the ends are known to 12 %": ("error-bar", "invalid", widened("e2e", 0.24)),
    "the pace is known to 12 %": ("error-bar", "degraded", widened("tpot", 0.24)),
    "the gaps are known to 12 %": ("error-bar", "degraded", widened("itl", 0.24)),
    "of the gaps p99.9 is not known": ("error-bar", "note", widened("itl", -0.6, of=0.002)),
    "reads late by 3 ms": ("receive-lag", "note", lags("rx_lag", 0.003, 100)),
    "reads late by 10 ms": ("receive-lag", "note", lags("rx_lag", 0.010, 100)),
    "sent late by 30 ms": ("send-lag", "note", send_lag(0.030)),
    "answers that came in one read": ("merged-events", "note", steady(one_read=9)),
    "80 % CPU": ("cpu-saturated", "note", instrument(cpu_ratio_max=0.8)),
    "95 % CPU": ("cpu-saturated", "degraded", instrument(cpu_ratio_max=0.95)),
    "CPU full and late": (
        "cpu-saturated", "degraded", both(instrument(cpu_ratio_max=0.99), lags("loop_lag", 0.03, 50)),
    ),
    "throttled for 1 %": ("cpu-throttled", "note", instrument(throttled_ns=NS_PER_S)),
    "throttled for 10 %": ("cpu-throttled", "note", instrument(throttled_ns=11 * NS_PER_S)),
    "the wall clock stepped": ("clock-step", "degraded", instrument(clock_step_ns_max=3600 * NS_PER_S)),
    "the master's wall clock stepped": ("clock-step", "degraded", known(clock_step_s=15.0)),
    "user-space stamps": ("user-stamps", "note", user_stamps),
    "20 s": ("short-run", "degraded", window(20.0)),
    "p99.9 of 1100": ("few-samples", "degraded", profiled(P999)),
    "0.3 % cut off": ("censored", "degraded", outcomes(Outcome.CENSORED, 3, "censored")),
    "2 % cut off": ("censored", "invalid", outcomes(Outcome.CENSORED, 24, "censored")),
    "slower by 8 %": ("not-steady", "degraded", drift(1.08)),
    "faster by 8 %": ("not-steady", "degraded", drift(0.92, "tpot")),
    "slower by half": ("not-steady", "invalid", drift(1.5, "e2e")),
    "mostly transient": ("not-steady", "note", lambda case: case.merged.block(0).mser_cut.update(ttft=400)),
    "counts of two kinds": (
        "tokens-mixed", "note", lambda case: case.merged.block(0).output_tokens_by_source.update(events=9),
    ),
    "no counts": (
        "tokens-from-events", "note",
        lambda case: setattr(case.merged.block(0), "output_tokens_by_source", {TokenSource.EVENTS.value: 9}),
    ),
    "the data set began again": (
        "dataset-wrapped", "degraded", on_merged(lambda merged: setattr(merged.workers[0], "wraps", 1)),
    ),
    "more than was asked for": (
        "tokens-over-limit", "degraded", both(steady(over_limit=100), says(over_limit_says="8 asked for, 17 stated")),
    ),
    "seldom more than was asked for": ("tokens-over-limit", "note", steady(over_limit=5)),
    "counts of single events": ("counts-of-parts", "note", told(seldom={"count of a part": 5})),
    "ends that nobody told": ("ends-untold", "degraded", told(seldom={"end untold": 5})),
    "a filter": ("other-ends", "note", told(other_ends={"content_filter": 5, "repetition": 2})),
    "a filter for many": ("other-ends", "degraded", told(other_ends={"content_filter": 9, "SAFETY": 9})),
    "an end in words of its own": ("other-ends", "note", told(other_ends={"natural_end": 1100})),
    "less than was asked for": ("short-answers", "note", steady(short=600)),
    "a gateway ends answers": ("half-answers", "degraded", steady(length_halved=4, length_kept=1000)),
    "reasoning was left out": ("reasoning-added", "note", steady(reasoning_added=1100)),
    "a worker behind a firewall": ("workers-differ", "note", lambda case: another_worker(case, failed=60)),
    "thoughts that come to no answer": ("only-reasoning", "note", lambda case: thoughts(case, 20)),
    "several tokens an event": ("tokens-per-event", "note", tokens_each(3.4)),
    "several events a token": ("events-over-tokens", "note", tokens_each(0.2)),
    "continuous usage without effect": ("continuous-usage-ignored", "note", profiled(CONTINUOUS)),
    "one of two choices": (
        "choices-missing", "invalid",
        both(outcomes(Outcome.TRUNCATED, 24), lambda case: case.merged.block(0).by_error.update(CHOICES_MISSING)),
    ),
    "any certificate": ("tls-unverified", "note", profiled(TLS)),
}  # fmt: skip

STATUS = {"note": "VALID", "degraded": "DEGRADED", "invalid": "INVALID"}


def test_a_good_run_is_valid_without_any_doubt() -> None:
    assert Case().judge() == Verdict(status="VALID", doubts=[])


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_trips_its_rule_alone(fault: str) -> None:
    code, severity, inject = FAULTS[fault]
    case = Case()
    inject(case)
    verdict = case.judge()
    assert [(doubt.code, doubt.severity) for doubt in verdict.doubts] == [(code, severity)]
    assert verdict.status == STATUS[severity]
    (doubt,) = verdict.doubts
    assert doubt.message.endswith(".")
    assert len(doubt.message) < 400
    msgspec.json.encode(doubt)


def test_without_a_success_the_only_reason_is_that() -> None:
    case = Case(ok=0, ends={Outcome.CONNECT: 50})
    assert [doubt.code for doubt in case.judge().doubts] == ["no-success"]
    assert "connect (50: service unavailable)." in case.judge().doubts[0].message
    case = Case(ok=0)
    profiled(POISSON_11)(case)
    found = {doubt.code: doubt.message for doubt in case.judge().doubts}
    assert found["no-success"].endswith("; none was due in one: take a higher rate, or a longer window.")


def test_every_rule_has_a_fault() -> None:
    tripped = {code for code, _, _ in FAULTS.values()} | {"no-success"}
    others = (telemetry, contamination, soak)  # those have tests of their own
    assert len(RULES) == len(tripped) + sum(len(other.RULES) for other in others)


def test_every_rule_that_is_written_is_asked() -> None:
    """A function of rules/ that looks at (Evidence, Summary) and may doubt is in a table, and so among RULES."""
    written = set()
    for info in pkgutil.iter_modules(rules.__path__):
        module = importlib.import_module(f"{rules.__name__}.{info.name}")
        for name, function in inspect.getmembers(module, inspect.isfunction):
            hints = typing.get_type_hints(function)
            looks = [kind for what, kind in hints.items() if what != "return"] == [Evidence, Summary]
            if not name.startswith("_") and looks and hints.get("return") == (Doubt | None):
                written.add(function)
    assert written == set(RULES)
    assert len(written) == len(RULES) > 30


def test_a_rule_that_is_taken_away_is_missed() -> None:
    """Each fault is seen by one rule only: without it, the run would look VALID."""
    for inject in (inject for _, _, inject in FAULTS.values()):
        case = Case()
        inject(case)
        evidence = Evidence(merged=case.merged, **case.evidence)
        summary = summarize(case.merged, plan=plan_of_all(evidence))
        assert sum(rule(evidence, summary) is not None for rule in RULES) == 1


_WORST = {"VALID": 0, "DEGRADED": 1, "INVALID": 2, None: 3}


@settings(max_examples=150)
@given(faults=st.lists(st.sampled_from(sorted(FAULTS)), max_size=4, unique=True), more=st.sampled_from(sorted(FAULTS)))
def test_a_further_fault_never_improves_the_verdict(faults: list[str], more: str) -> None:
    # A window of seconds is another measurement, not a further fault of a long one: it drifts by itself.
    of_windows = ("not-steady", "users-idle")
    assume(FAULTS[more][0] != "short-run" or all(FAULTS[fault][0] not in of_windows for fault in faults))
    # Users step back from what fails, and a rate that is measured lower was not kept instead of never come: in both the
    # second fault explains the first, which is another finding and no better a run.
    codes = {FAULTS[fault][0] for fault in faults}
    assume(not (FAULTS[more][0] == "failures" and "users-idle" in codes))
    assume(not (FAULTS[more][0] == "rate-not-kept" and "arrivals-missing" in codes))
    case = Case()
    for fault in faults:
        FAULTS[fault][2](case)
    before = case.judge()
    FAULTS[more][2](case)
    after = case.judge()
    assert _WORST[after.status] >= _WORST[before.status], (faults, more, before, after)


def test_a_smoke_test_on_two_cores_is_called_short_and_nothing_else() -> None:
    case = Case(ok=120, window_s=12.0, ttft=sample_runs.lognormal(0.1, 0.4), stages=3)
    case.evidence["profile"] = sample_runs.profile(Slo(ttft_s=Percentiles(p99=2.0)))
    lags("loop_lag", 0.03, 2)(case)
    verdict = case.judge()
    assert [doubt.code for doubt in verdict.doubts] == ["short-run"]
    assert verdict.status == "DEGRADED"


def test_a_data_set_whose_rounds_differ_may_begin_again() -> None:
    case = Case()
    on_merged(lambda merged: setattr(merged.workers[0], "wraps", 1))(case)
    assert [doubt.code for doubt in case.judge().doubts] == ["dataset-wrapped"]
    rounds = msgspec.structs.replace(case.evidence["profile"].dataset, rounds="distinct")
    case.evidence["profile"] = msgspec.structs.replace(case.evidence["profile"], dataset=rounds)
    assert case.judge().doubts == []


@pytest.mark.parametrize("seed", range(8))
def test_chance_alone_is_no_drift(seed: int) -> None:
    case = Case(ok=120, window_s=100.0, ttft=sample_runs.lognormal(0.1, 0.6, seed))
    assert not [doubt for doubt in case.judge().doubts if doubt.severity != "note"]


def test_a_queue_that_grows_is_not_steady() -> None:
    verdict = Case(ok=800, ttft=lambda number: 0.1 + number / 1000).judge()
    assert verdict.status == "INVALID"
    assert [doubt.code for doubt in verdict.doubts] == ["not-steady"]
    assert "Stage 1" in verdict.doubts[0].message


@pytest.mark.parametrize(
    ("trend", "kept", "codes"),
    [
        (None, 1, [("not-steady", "invalid")]),
        ({"stage": 1, "drifts": False}, 1, [("not-steady", "invalid")]),  # another stage's
        ({"drifts": False}, 1, [("not-steady", "degraded")]),  # a wave, say: its windows tell when
        ({"drifts": True}, 1, [("drift", "degraded")]),
        ({"drifts": True, "worse": False}, 1, [("not-steady", "degraded"), ("drift", "note")]),
        ({"drifts": False}, 20, [("not-steady", "note")]),  # the order of a 20th of the requests is known
        ({"drifts": True}, 20, [("drift", "degraded")]),
    ],
)
def test_where_windows_are_tested_for_a_trend_halves_lose_no_run(
    trend: dict[str, Any] | None, kept: int, codes: list[tuple[str, str]]
) -> None:
    """The requests of the second half take half as long again; a longer run's sketch holds more than the halves do."""
    case = Case()
    drift(1.5)(case)
    block = case.merged.block(0)
    block.mser_n["ttft"] = block.ttft.n // kept
    block.mser_cut["ttft"] = 0
    evidence = Evidence(merged=case.merged, **case.evidence)
    summary = summarize(case.merged, plan=plan_of_all(evidence))
    if trend is not None:
        told = {"metric": "ttft_s.p50", "stage": 0, "worse": True, **trend}
        numbers = {"windows": 288, "blocks": 48, "middle": 0.1, "change": 0.4, "p": 1e-9, "rho": 0.0}
        summary.soak = Soak(window_s=300.0, drift=[Drift(**told, **numbers)])
    doubts = [(doubt.code, doubt.severity) for doubt in judge(evidence, summary).doubts]
    assert doubts == codes


def test_the_drift_of_a_smoke_test_is_only_noted() -> None:
    case = Case()
    both(drift(1.5), window(20.0))(case)
    assert [(doubt.code, doubt.severity) for doubt in case.judge().doubts] == [
        ("short-run", "degraded"),
        ("not-steady", "note"),
    ]


def test_the_halves_of_a_trace_differ_by_themselves() -> None:
    case = Case()
    drift(1.5)(case)
    (condemned,) = case.judge().doubts
    load = Load(kind="trace", trace=TraceSource(path="azure.csv"))
    case.evidence["profile"] = msgspec.structs.replace(case.evidence["profile"], load=load)
    (noted,) = [doubt for doubt in case.judge().doubts if doubt.code == "not-steady"]
    assert (condemned.code, condemned.severity, noted.severity) == ("not-steady", "invalid", "note")
    assert "The trace has hours of its own" in noted.message


def test_a_constant_server_did_not_change_by_nothing() -> None:
    case = Case()
    case.merged.block(0).mser_cut.update(ttft=400)
    (doubt,) = case.judge().doubts
    assert "changed by" not in doubt.message
    assert "MSER-5" in doubt.message


def test_two_requests_are_no_drift() -> None:
    case = Case(ok=20, window_s=100.0, ttft=lambda number: 0.1 if number < 10 else 0.3)
    assert "not-steady" not in {doubt.code for doubt in case.judge().doubts}


def test_an_outage_is_told_with_its_time() -> None:
    case = Case()
    FAULTS["an outage of 8 s"][2](case)
    (doubt,) = case.judge().doubts
    assert "From 40 s to 48 s of the run" in doubt.message
    assert "mostly as connect" in doubt.message
    assert "none succeeded after it" not in doubt.message


@pytest.mark.parametrize(
    ("after_s", "seconds", "told"),
    [
        (1, 2, True),
        (1, 1, False),  # one second of failures at the end of a window may be anything
    ],
)
def test_a_server_that_dies_at_the_end_is_told_however_few_requests_it_cost(
    after_s: int, seconds: int, told: bool
) -> None:
    """Users step back from a dead port: they fail seldom, and what was measured before hides it."""
    case = Case()
    last = max(case.merged.block(0).periods.ended)
    outcomes(Outcome.CONNECT, 6)(case)
    outage(last + after_s, seconds)(case)
    for _ in range(2):
        outage(last + after_s, seconds)(case)
    doubts = [doubt for doubt in case.judge().doubts if doubt.code == "failures"]
    assert bool(doubts) == told
    for doubt in doubts:
        assert f"From {last + after_s} s to {last + after_s + seconds} s of the run" in doubt.message
        assert "an outage, and none succeeded after it" in doubt.message


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, True),
        ({"phase": "warmup"}, False),
        ({"decoding": 1}, False),  # that stream alone
        ({"due": 19.0}, False),  # an engine of so few tokens a second
        ({"start_s": 42.95}, False),  # no longer than three usual gaps: it sends so
    ],
)
def test_what_is_an_engine_that_stands_still(changes: dict[str, Any], told: bool) -> None:
    case = Case()
    known(stills=(msgspec.structs.replace(STILL, **changes),))(case)
    assert ("engine-stood-still" in {doubt.code for doubt in case.judge().doubts}) == told


@pytest.mark.parametrize(("n", "doubted"), [(1, False), (10, False), (11, True)])
def test_a_drift_takes_enough_requests_in_each_half(n: int, doubted: bool) -> None:
    case = Case()
    block = case.merged.block(0)
    for half, value in ((block.first_half, 0.3), (block.second_half, 0.1)):
        half["ttft"] = snapshot.Sketch()
        for _ in range(n):
            half["ttft"].add(value)
    assert ("not-steady" in {doubt.code for doubt in case.judge().doubts}) == doubted


def test_bursts_are_told_first_where_most_tokens_shared_a_read() -> None:
    """A client that waited a little is no cause of a bar that the server's bursts make."""
    case = Case()
    widened("itl", 0.045)(case)
    case.merged.workers[0].instrument.run_delay_ns = case.merged.workers[0].elapsed_ns // 20
    (before,) = [doubt for doubt in case.judge().doubts if doubt.code == "error-bar"]
    case.merged.block(0).merged_events = case.merged.block(0).events * 3 // 4
    (bursts,) = [doubt for doubt in case.judge().doubts if doubt.code == "error-bar"]
    assert "sends them in bursts" not in before.message
    assert bursts.evidence["causes"][0].startswith("75.00% of the tokens shared a read with others")
    assert bursts.evidence["causes"][1:] == before.evidence["causes"] != []


def test_slow_connections_are_no_late_sends() -> None:
    case = Case()
    send_lag(0.030)(case)
    case.merged.block(0).connect.add(0.028, 100)
    assert case.judge().status == "VALID"


@pytest.mark.parametrize(
    ("metric", "share", "status"),
    [
        ("ttft", 0.035, "VALID"), ("ttft", 0.045, "DEGRADED"), ("ttft", 0.18, "DEGRADED"), ("ttft", 0.22, "INVALID"),
        ("itl", 0.02, "VALID"), ("itl", 0.045, "DEGRADED"), ("itl", 0.3, "DEGRADED"),
    ],
)  # fmt: skip
def test_a_bar_is_judged_against_its_number(metric: str, share: float, status: str) -> None:
    case = Case()
    widened(metric, share)(case)
    assert case.judge().status == status


def between_stages(unknown: int) -> Case:
    """One stage's worst gaps last 5 ms, the other's 50 ms; of the first ones `unknown` may be as long as the others."""
    case = Case(stages=2)
    for stage, gap_s in enumerate((0.005, 0.05)):
        block = case.merged.block(stage)
        n, block.stall = block.stall.n, snapshot.Sketch()
        for number in range(n):
            block.stall.add(gap_s * (1 + 0.1 * number / n))
    for _ in range(unknown):
        case.merged.block(0).budget.stall.shift(0.0052, 0.0052, 0.06)
    return case


def test_a_median_that_falls_between_two_stages_is_no_doubt_of_either() -> None:
    """Half of all samples are of each stage, so one of them moves the median of all from one to the other."""
    case = between_stages(1)
    (low, high) = (
        summarize(case.merged).latency.stall_s.low["p50"],
        summarize(case.merged).latency.stall_s.high["p50"],
    )
    assert high is not None
    assert high > 8 * low
    assert case.judge().status == "VALID"
    wide = between_stages(790)  # nor does the first stage know it now
    assert [doubt.code for doubt in wide.judge().doubts] == ["error-bar"]


def test_the_profile_says_how_wide_a_bar_may_be() -> None:
    for bars, status in ((Bars(ttft_s=Bar(0.1, 0.3)), "VALID"), (Bars(ttft_s=Bar(0.01, 0.02)), "INVALID")):
        case = Case()
        widened("ttft", 0.09)(case)
        evidence = Evidence(merged=case.merged, **{**case.evidence, "profile": sample_runs.profile(bars=bars)})
        assert judge(evidence, summarize(case.merged, bars=bars)).status == status


def test_only_what_is_too_wide_is_withheld() -> None:
    case = Case()
    widened("itl", -0.6, of=0.002)(case)
    latency = summarize(case.merged).latency
    assert (list(latency.itl_s.withheld), latency.itl_s.p999, latency.ttft_s.withheld) == (["p999"], None, {})
    assert latency.itl_s.p50


def test_stamps_of_user_space_are_as_late_as_the_loop() -> None:
    """A hundredth of the looks were 5 ms late: a quarter of a gap, and a twentieth of the time to the first token."""
    case = Case()
    both(user_stamps, lags("loop_lag", 0.005, 60))(case)
    assert {doubt.code: doubt.severity for doubt in case.judge().doubts} == {
        "error-bar": "degraded", "user-stamps": "note",
    }  # fmt: skip
    latency = summarize(case.merged).latency
    assert {"p50", "p99"} <= set(latency.itl_s.withheld)
    assert latency.ttft_s.p50


@pytest.mark.parametrize(
    ("cause", "target", "says"),
    [
        (instrument(run_delay_ns=13 * NS_PER_S), "http://127.0.0.1:8000", r"Something on this machine kept worker 1 "
         r"waiting for 12 % of the time. If it is the engine, give it one core less .*num_thread.*another machine"),
        (instrument(run_delay_ns=13 * NS_PER_S), "http://gpu:8000", r"Something else on its machine kept worker 1"),
        (instrument(throttled_ns=13 * NS_PER_S), "http://gpu:8000", r"CPU limit held worker 1 back for 1[12]"),
        (instrument(gc_pause_ns_max=40 * MS), "http://gpu:8000", r"garbage collector stopped worker 1 for up to 40 ms"),
        (instrument(suspended_ns=9 * NS_PER_S), "http://gpu:8000", r"The machine of worker 1 slept for 9 s"),
        (instrument(cpu_ratio_max=0.95), "http://gpu:8000", r"Worker 1 was busy with its own work, 95% of a core"),
    ],
)  # fmt: skip
def test_the_cause_is_named(cause: Callable[[Case], None], target: str, says: str) -> None:
    case = Case()
    both(cause, widened("ttft", 0.05))(case)
    evidence = Evidence(merged=case.merged, **{**case.evidence, "profile": sample_runs.profile(target=(target,))})
    doubts = {doubt.code: doubt.message for doubt in judge(evidence, summarize(case.merged)).doubts}
    assert re.search(says.replace("12 %", r"1\d ?%"), doubts["error-bar"]), doubts["error-bar"]


def test_a_lost_worker_is_told_once_and_does_not_hide_other_trouble() -> None:
    case = Case()
    not_final(case)
    case.evidence.update(
        lost={LOST: "no report for 10 s"},
        remarks=(f"{LOST} was lost during the run: no report for 10 s", "no worker is left", "the disk is full"),
    )
    doubts = {doubt.code: doubt for doubt in case.judge().doubts}
    assert set(doubts) == {"worker-lost", "run-trouble"}
    assert doubts["run-trouble"].evidence == {"remarks": ["the disk is full"]}


def test_the_worst_doubts_stand_first() -> None:
    case = Case()
    both(user_stamps, instrument(clock_step_ns_max=NS_PER_S), steady(intended=1))(case)
    severities = [doubt.severity for doubt in case.judge().doubts]
    assert severities == sorted(severities, key=lambda severity: -SEVERITIES.index(severity))
    assert severities[0] == "invalid"


def gates(*results: str) -> list[Gate]:
    return [Gate(metric="x", op="<=", limit=1.0, value=1.0, result=result) for result in results]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("status", "results", "interrupted", "code"),
    [
        ("VALID", [], False, ExitCode.OK),
        ("VALID", ["pass"], False, ExitCode.OK),
        ("DEGRADED", ["pass"], False, ExitCode.OK),
        ("DEGRADED", ["pass", "inconclusive"], False, ExitCode.INCONCLUSIVE),
        ("VALID", ["inconclusive", "fail"], False, ExitCode.GATE_FAILED),
        ("DEGRADED", ["fail"], False, ExitCode.GATE_FAILED),
        ("INVALID", [], False, ExitCode.INVALID),
        ("INVALID", ["pass"], False, ExitCode.INVALID),
        ("INVALID", ["fail", "inconclusive"], False, ExitCode.INVALID),
        (None, ["pass"], False, ExitCode.INVALID),
        ("VALID", ["pass"], True, ExitCode.INTERRUPTED),
        ("INVALID", ["fail"], True, ExitCode.INTERRUPTED),
    ],
)
def test_exit_codes_have_one_order(status: Any, results: list[str], interrupted: bool, code: ExitCode) -> None:
    assert exit_code(Verdict(status=status), gates(*results), interrupted) is code


def _codes_in_the_source() -> set[str]:
    folder = Path(judge.__code__.co_filename).parent / "rules"
    return {
        code for path in folder.glob("*.py") for code in re.findall(r'\bdoubt\(\s*"([a-z-]+)"', path.read_text("utf-8"))
    }


def test_the_docs_explain_every_code_and_no_other() -> None:
    documented = re.findall(r"^\| `([a-z-]+)` \|", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(documented) == len(set(documented))
    assert set(documented) == _codes_in_the_source()
    of_telemetry = {code for code, _, _ in test_telemetry_rules.FAULTS.values()}
    of_telemetry |= {rule.__name__.replace("_", "-") for rule in contamination.RULES}
    of_long_runs = {"drift", "engine-memory-grows", "client-memory-grows", "windows-lost"}
    others = of_telemetry | of_long_runs | {"no-success"}
    assert _codes_in_the_source() == {code for code, _, _ in FAULTS.values()} | others


def test_the_docs_name_every_exit_code() -> None:
    text = DOCS.read_text(encoding="utf-8")
    for code in ExitCode:
        assert re.search(rf"^\| {code.value} \|", text, re.MULTILINE), code


def test_doubts_are_plain_json() -> None:
    case = Case()
    for _, _, inject in list(FAULTS.values())[::3]:
        inject(case)
    for doubt in case.judge().doubts:
        assert msgspec.json.decode(msgspec.json.encode(doubt), type=Doubt) == doubt
