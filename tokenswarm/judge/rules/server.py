"""Rules about what the server did with what it was asked: refused it, broke it off, read only a part of it."""

from __future__ import annotations

import msgspec

from tokenswarm.judge.rules.accounting import FAILED_SHARE_MAX, error_kinds
from tokenswarm.judge.rules.evidence import Evidence, Rule, doubt, everything, steady
from tokenswarm.judge.rules.path import lost_by
from tokenswarm.measure.periods import Outage
from tokenswarm.measure.prompt_cut import BEYOND
from tokenswarm.measure.windows import Restart
from tokenswarm.result.summary import Doubt, Summary

FAILED_SHARE = 0.01  # of the requests, above which the rest is no longer what users get
AROUND_S = 5.0  # a restart, in which requests fail too
OUTAGE = (5, 5)  # seconds, and failures, from which on it has a name
AT_THE_END_S = 2  # of one that no success follows
ONE_AGE_N, ONE_AGE_S = 5, 2.0  # broken answers, and their age, that may show a time-out
ONE_AGE_WIDTH, ONE_AGE_WIDTH_S = 0.02, 0.25  # what timers and a round trip add
STILL_STREAMS, STILL_DUE = 2, 20.0  # answers, and events that would have come, from which on silence is no chance
STILL_GAPS = 3.0  # times the gap that nine in ten stay below: else the engine sends so
CUT_SHARE = (0.02, 0.1)  # of the prompts: what counts without cached tokens may look like; too many for any number


def failures(evidence: Evidence, summary: Summary) -> Doubt | None:
    """More failed than a few, or most did for a while. Truncated answers, and failures alone, have their own codes."""
    counts = summary.requests_steady
    truncated = counts.by_outcome.get("truncated", 0)
    failed, finished = counts.failed - truncated, counts.ok + counts.failed
    if not counts.ok or not failed or counts.failed > FAILED_SHARE_MAX * finished:
        return None
    if summary.soak is not None and summary.soak.failed_in_restarts:  # `engine-restarted` tells of those
        failed = max(0, failed - summary.soak.failed_in_restarts)
    outage = _outage(evidence)
    if outage is not None and summary.soak is not None and _in_a_restart(outage, summary.soak.restarts):
        outage = None
    if outage is None and failed <= FAILED_SHARE * (counts.ok + failed):
        return None
    outcomes = {name: n for name, n in counts.by_outcome.items() if name not in ("ok", "censored", "cancelled")}
    main = max(outcomes, key=lambda name: outcomes[name])
    when = (
        f" From {outage.start_s} s to {outage.end_s} s of the run {outage.failed} of {outage.ended} failed: an outage"
        f"{', and none succeeded after it' if outage == steady(evidence).periods.at_the_end() else ''}."
        if outage is not None
        else ""
    )
    return doubt(
        "failures",
        "degraded",
        f"{counts.failed} of {finished} requests failed ({counts.failed / finished:.1%}), mostly as {main}.{when} "
        f"Latencies are those of the others. Mend it, or lower the load: {error_kinds(counts)}."
        f"{lost_by(evidence.marks, outcomes)}",
        failed=counts.failed,
        finished=finished,
        outcomes=outcomes,
        outage=None if outage is None else msgspec.to_builtins(outage),
    )


def _outage(evidence: Evidence) -> Outage | None:
    """A time in which most requests failed, the one that lasts to the end first; None where it is short, or all."""
    periods = steady(evidence).periods
    for found, least_s in ((periods.at_the_end(), AT_THE_END_S), (periods.worst(), OUTAGE[0])):
        if found is None or found.failed < OUTAGE[1] or found.ended >= sum(periods.ended.values()):
            continue
        if found.end_s - found.start_s >= max(least_s, periods.width_s):
            return found
    return None


def server_gone(evidence: Evidence, _summary: Summary) -> Doubt | None:
    """Who died under the load and stays away: however late in the run, no pipeline should go on with it."""
    if not evidence.gone:
        return None
    last = everything(evidence).periods.at_the_end()
    since = f" Nothing succeeded from {last.start_s} s of the run on." if last is not None else ""
    return doubt(
        "server-gone",
        "invalid",
        f"The server is not there any more: behind the run, {evidence.gone}.{since} What it did until then is in the "
        f"tables, what it would have done is not known: read its log, and run again.",
        said=evidence.gone,
        since_s=None if last is None else last.start_s,
    )


def engine_stood_still(evidence: Evidence, _summary: Summary) -> Doubt | None:
    """No answer under way got a token for a while, at once: their gaps don't tell that it was all of them."""
    usual_s = steady(evidence).itl.quantile(0.9) or 0.0
    found = [
        still for still in evidence.stills
        if still.phase == "steady" and still.decoding >= STILL_STREAMS and still.due >= STILL_DUE
        and still.seconds > STILL_GAPS * usual_s
    ]  # fmt: skip
    if not found:
        return None
    longest = max(found, key=lambda still: still.seconds)
    times = f"{len(found)} times, the longest" if len(found) > 1 else "once:"
    return doubt(
        "engine-stood-still",
        "note",
        f"The engine, or all that lies before it, stood still {times} from {longest.start_s:.0f} s to "
        f"{longest.end_s:.0f} s of the run: none of {longest.decoding} answers under way got a token, where "
        f"{longest.due:.0f} events are usual. It is in the tail of `itl_s` and in `stall_s`. Look at the engine's log "
        f"of that time: one long prompt that holds up all others, a pause of its memory's, its machine, the network.",
        times=len(found),
        seconds=round(sum(still.seconds for still in found), 3),
        longest=msgspec.to_builtins(longest),
    )


def _in_a_restart(outage: Outage, restarts: list[Restart]) -> bool:
    """Whether an engine was away then, give or take what a request takes to fail and what a bin is wide."""
    return any(
        outage.start_s < one.back_s + AROUND_S and one.gone_s - AROUND_S < outage.end_s
        and outage.end_s - outage.start_s <= one.back_s - one.gone_s + 2 * AROUND_S
        for one in restarts
    )  # fmt: skip


def path_timeout(evidence: Evidence, _summary: Summary) -> Doubt | None:
    """Answers that were broken off, nearly all at one age, or after one silence: a time-out, and not the engine."""
    block = everything(evidence)
    for ages, of, told, mend in (
        (
            block.broken_silence,
            "silence",
            "after nothing had come of them for {} s",
            "Raise what the way allows between two bytes (nginx: proxy_read_timeout, HAProxy: timeout server), let the "
            "server send comments meanwhile, or find out why it was silent for so long",
        ),
        (
            block.broken_e2e,
            "age",
            "{} s after they were sent",
            "Raise it (Envoy: the route's timeout; a gateway's time for a request), or ask for shorter answers",
        ),
    ):
        low, middle, high = (value or 0.0 for value in ages.quantiles((0.1, 0.5, 0.9)))
        if ages.n < ONE_AGE_N or middle < ONE_AGE_S or high - low > max(ONE_AGE_WIDTH * middle, ONE_AGE_WIDTH_S):
            continue
        when = told.format(f"{middle:.3g}")
        return doubt(
            "path-timeout",
            "note",
            f"{ages.n} answers were broken off, nearly all {when}: a time-out of a proxy, a load balancer or the "
            f"server, not chance. {mend}.",
            n=ages.n,
            of=of,
            age_s=middle,
            from_s=low,
            to_s=high,
        )
    return None


def prompt_cut(evidence: Evidence, _summary: Summary) -> Doubt | None:
    """Prompts of which the server read clearly fewer tokens than any that it has ever read whole."""
    block = everything(evidence)
    cut, n = block.prompt_cut.above((block.prompt_tokens_max or 0) * BEYOND), block.prompt_len.n
    share = cut / n if n else 0.0
    ollama = evidence.profile.engine.kind == "ollama"
    if not cut or (share < CUT_SHARE[0] and not ollama):
        return None
    mend = (
        "Raise `num_ctx` (`engine.extra_body: {options: {num_ctx: …}}`), or send `truncate: false` there, so that it "
        "refuses instead"
        if ollama
        else "Raise the server's context (Ollama: OLLAMA_CONTEXT_LENGTH), or keep longer prompts out "
        "(`dataset.input_tokens.max`)"
    )
    return doubt(
        "prompt-cut",
        "invalid" if share > CUT_SHARE[1] else "degraded",
        f"The server cut at least {cut} of {n} prompts ({share:.1%}) without a word: they need up to "
        f"{block.prompt_cut.high:.0f} tokens, and it never read more than {block.prompt_tokens_max}. It answered other "
        f"questions than were asked. {mend}.",
        cut=cut,
        prompts=n,
        needed_max=block.prompt_cut.high,
        read_max=block.prompt_tokens_max,
    )


RULES: tuple[Rule, ...] = (server_gone, failures, engine_stood_still, path_timeout, prompt_cut)
