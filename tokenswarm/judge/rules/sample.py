"""Rules about the sample: long enough, large enough, steady, complete, alike on all workers, counted in one way."""

from __future__ import annotations

from collections.abc import Iterable

from tokenswarm.clock import NS_PER_S
from tokenswarm.judge.gates import latency_limits
from tokenswarm.judge.rules.evidence import SEVERITIES, Evidence, Rule, Severity, doubt, ms, steady
from tokenswarm.measure.series import HALVES, SERIES
from tokenswarm.measure.share import Share
from tokenswarm.measure.sketch import Sketch
from tokenswarm.measure.snapshot import Block
from tokenswarm.measure.statistics import binomial_cdf, effective_n, enough, samples_needed
from tokenswarm.prompts.info import UNANSWERED
from tokenswarm.result.soak import Drift
from tokenswarm.result.summary import PERCENTILES, RHO_OF, Doubt, Summary

SHORT_S = 60.0  # a smoke test; MLPerf asks for 600 s
DRIFT = (0.05, 0.10)  # of the median from the first to the second half of a window
DRIFT_N_MIN = 200  # requests in a window, below which a drift doubts but does not condemn
HALF_N_MIN = samples_needed(0.5)  # requests of a half, below which its median is chance
MSER_CUT = 1 / 3  # more than this cut means that the series never became steady
WORKER_N_MIN, WORKER_TTFT, WORKER_TTFT_S = 100, 0.25, 0.005  # answers; medians that differ by more, and by so many s
WORKER_FAILED, WORKER_FAILED_SHARE, WORKER_CHANCE = 5, 0.05, 1e-4  # failures, their share above twice the others'
REPEATED = (0.02, 0.10)  # of the conversations ask the same as another one
MEDIAN_Z = 2.33  # 99 %, one-sided, for each half


def _is_short(summary: Summary) -> bool:
    return summary.steady_window.length_s < SHORT_S


def short_run(_evidence: Evidence, summary: Summary) -> Doubt | None:
    if not _is_short(summary):
        return None
    length_s, n = summary.steady_window.length_s, summary.requests_steady.ok
    return doubt(
        "short-run",
        "degraded",
        f"The steady windows last {length_s:.3g} s and hold {n} successful request{'s' * (n != 1)}: a smoke test. "
        f"Measure for {SHORT_S:g} s or more; a p99 takes {samples_needed(0.99)} requests.",
        length_s=length_s,
        ok=n,
    )


def few_samples(evidence: Evidence, summary: Summary) -> Doubt | None:
    """A limit on a percentile that the sample is too small for. A short run says so by itself."""
    if _is_short(summary):
        return None
    block, lacking = steady(evidence), {}
    for metric, which, _ in latency_limits(evidence.profile.slo):
        n, rho = getattr(block, metric).n, block.rho(RHO_OF[metric])
        if which in PERCENTILES and n and not enough(PERCENTILES[which], n, rho):
            lacking[f"{metric}_s.{which}"] = [round(effective_n(n, rho), 1), samples_needed(PERCENTILES[which])]
    if not lacking:
        return None
    text = ", ".join(f"{name} has {have:g} of {need}" for name, (have, need) in lacking.items())
    return doubt(
        "few-samples",
        "degraded",
        f"Too few independent samples for percentiles that have a limit ({text}): run longer, or limit a lower one.",
        samples=lacking,
    )


def censored(evidence: Evidence, summary: Summary) -> Doubt | None:
    """Requests cut off at the drain bound are the slowest: they must be few against the tail that is looked at."""
    hung = summary.requests.censored  # those of a warm-up hung all the window long
    n = summary.requests_steady.ok + hung
    if not hung:
        return None
    gated = [PERCENTILES[which] for _, which, _ in latency_limits(evidence.profile.slo) if which in PERCENTILES]
    p = max([0.5, *gated, *(p for p in PERCENTILES.values() if enough(p, n))])
    share, tail = hung / n, 1.0 - p
    if share < tail / 10:
        return None
    return doubt(
        "censored",
        "invalid" if share >= tail else "degraded",
        f"{hung} of {n} requests were still running when the drain bound was reached ({share:.1%}): they "
        f"are the slowest, and the percentiles up to p{100 * p:g} lack them. Raise `phases.drain`.",
        censored=hung,
        n=n,
        p=p,
    )


def not_steady(evidence: Evidence, summary: Summary) -> Doubt | None:
    """The medians of a window's halves differ, by more than chance; or MSER-5 finds no steady part.

    A note in a short run, which `short-run` doubts already, and under a trace, whose own load is not even. Where the
    windows were tested for a trend, see `_beside`.
    """
    found: list[tuple[Severity, float, str, Block]] = []
    tested = {(one.stage, one.metric): one for one in summary.soak.drift} if summary.soak is not None else {}
    ramps = {stage.stage for stage in summary.stages if stage.rate_end is not None}  # not meant to be steady
    for block in (block for block in evidence.merged.blocks if block.stage not in ramps):
        for metric in SERIES if block.phase == "steady" else ():
            severity, change = _drift(block, metric)
            severity = _beside(tested.get((block.stage, f"{metric}_s.p50")), severity, block, metric)
            if severity is not None:
                found.append((severity, change, metric, block))
    if not found:
        return None
    severity, change, metric, block = max(found, key=lambda row: (SEVERITIES.index(row[0]), abs(row[1])))
    cut = block.mser_cut.get(metric, 0) / max(1, block.mser_n.get(metric, 0))
    traced = evidence.profile.load.kind == "trace"
    mend = (
        "The trace has hours of its own, more requests in one or longer ones: see when it was so in report.html."
        if traced
        else "Use a longer warm-up, or a lower load if the server falls behind."
    )
    return doubt(
        "not-steady",
        "note" if traced or _is_short(summary) else severity,
        f"Stage {block.stage + 1} was not steady: {'; '.join(_how(metric, change, cut))}. {mend}",
        stage=block.stage,
        metric=f"{metric}_s",
        change=change,
        transient_ratio=cut,
    )


def _beside(trend: Drift | None, severity: Severity | None, block: Block, metric: str) -> Severity | None:
    """What the halves may still say beside a test for a trend, which has looked at all of the window.

    A trend for the worse is told by `drift`, once. Whatever else moved (a wave, a trend for the better) costs no whole
    run: the windows show when it was so. And halves of the first requests alone (series.py) are none of the window.
    """
    if trend is None or severity is None:
        return severity
    if trend.drifts and trend.worse:
        return None
    whole = block.mser_n.get(metric, 0) >= getattr(block, metric).n
    return min(severity, "degraded" if whole else "note", key=SEVERITIES.index)


def _how(metric: str, change: float, cut: float) -> list[str]:
    """What was not steady, and not what was."""
    drifted = f"the median of {metric} changed by {change:+.0%} from the first half of its window to the second"
    settled = f"of {metric} in order of arrival the first {cut:.0%} look like a start-up (MSER-5)"
    said = [drifted] if abs(change) > DRIFT[0] else []
    return [*said, settled] if cut >= MSER_CUT or not said else said


def _drift(block: Block, metric: str) -> tuple[Severity | None, float]:
    """(severity, relative change of the median from the first half of the window to the second)."""
    first, second = block.first_half.get(metric), block.second_half.get(metric)
    n = block.mser_n.get(metric, 0)
    never_steady = n >= DRIFT_N_MIN and block.mser_cut.get(metric, 0) >= MSER_CUT * n
    transient: Severity | None = "note" if never_steady else None
    p50_1, p50_2 = (half.quantile(0.5) if half is not None else None for half in (first, second))
    if first is None or second is None or not p50_1 or not p50_2 or min(first.n, second.n) < HALF_N_MIN:
        return transient, 0.0
    change, apart = p50_2 / p50_1 - 1.0, _apart(first, second, 0.0)
    by_chance = _apart(first, second, block.rho(HALVES + metric)) <= 0  # neighbours wait in one queue, and wander
    # A trend correlates the requests by itself, so the cautious bounds need only not overlap.
    long = block.window_ns >= SHORT_S * NS_PER_S  # a smoke test's few seconds drift with the machine's own noise
    if long and apart > DRIFT[1] and n >= DRIFT_N_MIN and _apart(first, second, block.rho(metric)) > 0:
        return "invalid", change
    return ("degraded" if not by_chance and abs(change) > DRIFT[0] else transient), change


def _apart(first: Sketch, second: Sketch, rho: float) -> float:
    """By how much, relatively, the 99 % bounds of two medians lie apart; 0 or less where they overlap.

    Bounds are order statistics: the quantiles 0.5 ± z/(2√n_eff).
    """
    bounds = []
    for half in (first, second):
        margin = MEDIAN_Z / 2 / max(effective_n(half.n, rho), 1e-9) ** 0.5
        low, high = half.quantiles((max(0.0, 0.5 - margin), min(1.0, 0.5 + margin)))
        bounds.append((low or 0.0, high or 0.0))
    (low_1, high_1), (low_2, high_2) = bounds
    return max(low_2 / high_1, low_1 / high_2) - 1.0 if high_1 and high_2 else 0.0


def workers_differ(evidence: Evidence, _summary: Summary) -> Doubt | None:
    """One worker sees another server than the rest: its machine, its network, or a path or a limit of its own."""
    shares = {worker.worker: worker for worker in evidence.merged.workers}
    rho, told, seen = steady(evidence).rho("ttft"), [], []
    for name, worker in shares.items() if len(shares) > 1 else ():
        how = _worse(worker.share, _sum(other.share for other in shares.values() if other is not worker), rho)
        if how:
            told.append(f"of worker {name} ({worker.host or 'its machine'}) {how}")
            seen.append(name)
    if not told:
        return None
    return doubt(
        "workers-differ",
        "note",
        f"Workers saw different servers: {'; '.join(told[:2])}. Look at its machine, its network, and what stands "
        "between (a limit for each address, another way): the percentiles are of both.",
        workers=seen,
    )


def _sum(shares: Iterable[Share]) -> Share:
    found = Share()
    for share in shares:
        found.add(share.ok, share.failed, share.ttft)
    return found


def _worse(own: Share, others: Share, rho: float) -> str:
    """What a worker has to say that the others do not; "": nothing."""
    ended, of_others = own.ok + own.failed, others.ok + others.failed
    usual = others.failed / of_others if of_others else 1.0
    by_chance = 1 - binomial_cdf(own.failed - 1, ended, min(max(usual, 1 / max(2, of_others)), 0.999)) if ended else 1.0
    often = own.failed > (2 * usual + WORKER_FAILED_SHARE) * ended
    if own.failed >= WORKER_FAILED and often and by_chance < WORKER_CHANCE:
        return f"{own.failed} of {ended} requests failed, of the others {others.failed} of {of_others}"
    p50, usual_p50 = own.ttft.quantile(0.5) or 0.0, others.ttft.quantile(0.5) or 0.0
    enough_n = min(own.ttft.n, others.ttft.n) >= WORKER_N_MIN
    if enough_n and p50 - usual_p50 > WORKER_TTFT_S and _apart(own.ttft, others.ttft, rho) > WORKER_TTFT:
        return f"the median of TTFT is {ms(p50)}, of the others {ms(usual_p50)}"
    return ""


def tokens_mixed(evidence: Evidence, summary: Summary) -> Doubt | None:
    if summary.tokens.source != "mixed":
        return None
    by_source, refused = summary.tokens.output_by_source, _counts_refused(evidence)
    why = f", or with one that can't be theirs ({refused}: beyond `max_tokens`, or of a part)" if refused else ""
    return doubt(
        "tokens-mixed",
        "note",
        "Output tokens come from different counts ("
        + ", ".join(f"{source} {n}" for source, n in by_source.items())
        + f"): some answers came without the server's own count{why}, and events are a lower bound.",
        **by_source,
    )


def _counts_refused(evidence: Evidence) -> int:
    """Answers of which the server states a count that can't be theirs."""
    seldom = steady(evidence).seldom
    return seldom.get("count beyond", 0) + seldom.get("count of a part", 0)


def tokens_from_events(evidence: Evidence, summary: Summary) -> Doubt | None:
    if summary.tokens.source != "events":
        return None
    engine, refused = evidence.profile.engine, _counts_refused(evidence)
    said, drops = "sent no token counts", "a gateway drops them, or the server doesn't count; ask the engine itself."
    if refused:
        said = f"sent no token counts that can be true ({refused} beyond `max_tokens`, or of a part)"
        mend = "Ask the engine itself, without its gateway."
    elif engine.kind != "openai" or engine.api not in ("chat", "completions"):
        mend = f"Each answer of this API should have them: {drops}"
    else:
        mend = f"They were asked for: {drops}" if engine.include_usage else "Set `engine.include_usage: true`."
    return doubt(
        "tokens-from-events",
        "note",
        f"The server {said}: output tokens are events, a lower bound unless it sends less than a token each. Token "
        f"rates and TPOT can't be compared with those of a server that counts. {mend}",
        output=summary.tokens.output,
        include_usage=engine.include_usage,
    )


def dataset_wrapped(evidence: Evidence, summary: Summary) -> Doubt | None:
    wraps = summary.instrument.dataset_wraps
    if not wraps or evidence.profile.dataset.rounds == "distinct":
        return None
    often = "once" if wraps == 1 else f"{wraps} times"
    return doubt(
        "dataset-wrapped",
        "degraded",
        f"The data set was used up and began again {often}: a server that caches prefixes answers repeated "
        f"prompts faster. Use a larger data set, a shorter run, or `dataset.rounds: distinct`.",
        wraps=wraps,
    )


def repeated(evidence: Evidence) -> float:
    """The share of the data set's conversations that ask the same as another one: they come again within a round."""
    if evidence.profile.load.kind == "trace" or evidence.profile.dataset.duplicates == "drop":
        return 0.0
    return float(evidence.dataset.get("duplicates", 0) / max(1, evidence.dataset.get("rows_kept", 0)))


def dataset_repeats(evidence: Evidence, _summary: Summary) -> Doubt | None:
    share = repeated(evidence)
    if share <= REPEATED[0]:
        return None
    return doubt(
        "dataset-repeats",
        "degraded" if share > REPEATED[1] else "note",
        f"{share:.0%} of the data set's conversations ask the same as another one: a server that caches prefixes "
        f"answers them faster. Leave them out: `dataset.duplicates: drop`.",
        share=share,
    )


def history_without_answers(evidence: Evidence, _summary: Summary) -> Doubt | None:
    dataset, load = evidence.profile.dataset, evidence.profile.load
    told = evidence.dataset.get("notes", {}).get(UNANSWERED)
    if not told or load.kind == "trace" or dataset.history == "model":
        return None
    what = "the questions alone" if load.open else "the model's own, so prompts differ from run to run"
    return doubt(
        "history-without-answers",
        "note",
        f"{told} of {evidence.dataset['rows_kept']} conversations have no answers to earlier turns: in the history of "
        f"later ones stand {what}. Take a data set with answers, or `dataset.conversations: single`.",
        conversations=told,
    )


def tls_unverified(evidence: Evidence, _summary: Summary) -> Doubt | None:
    if evidence.profile.tls.verify or not any(url.startswith("https:") for url in evidence.profile.target):
        return None
    return doubt(
        "tls-unverified",
        "note",
        "The server's certificate was not checked (`tls.verify: false`): name its CA in `tls.ca_file` instead.",
    )


RULES: tuple[Rule, ...] = (
    short_run,
    few_samples,
    censored,
    not_steady,
    workers_differ,
    tokens_mixed,
    tokens_from_events,
    dataset_wrapped,
    dataset_repeats,
    history_without_answers,
    tls_unverified,
)
