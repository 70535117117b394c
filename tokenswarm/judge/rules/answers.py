"""Rules about what the answers say of themselves: were the limit, the length and the options kept, and who counts?"""

from __future__ import annotations

from tokenswarm.judge.rules.evidence import Evidence, Rule, doubt, everything, steady
from tokenswarm.result.summary import Doubt, Summary

OVER_LIMIT_SHARE = 0.01  # a note up to here
SHORT_SHARE = 0.01
TOKENS_PER_EVENT = 1.5  # from here on the gap between events is not one between tokens
TOLD_SHARE = 0.5
MOSTLY = 4  # whole answers for a half one: else the server ignores the option


def tokens_over_limit(evidence: Evidence, summary: Summary) -> Doubt | None:
    block = steady(evidence)
    if not block.over_limit:
        return None
    example = block.over_limit_says.get("example", "")
    share = block.over_limit / max(1, summary.requests_steady.ok)
    return doubt(
        "tokens-over-limit",
        "degraded" if share > OVER_LIMIT_SHARE else "note",
        f"{block.over_limit} of {summary.requests_steady.ok} answers ({share:.1%}) have more output tokens than were "
        f"asked for ({example}): the server does not keep `max_tokens`, or the count is a "
        f"gateway's own. Throughput and TPOT rest on it: ask the engine itself, without the gateway.",
        answers=block.over_limit,
        ok=summary.requests_steady.ok,
        share=share,
        example=example,
    )


def short_answers(evidence: Evidence, summary: Summary) -> Doubt | None:
    block = steady(evidence)
    share = block.short / max(1, summary.requests_steady.ok)
    if share <= SHORT_SHARE:
        return None
    example = block.short_says.get("example", "")
    return doubt(
        "short-answers",
        "note",
        f"{block.short} of {summary.requests_steady.ok} answers ({share:.1%}) have fewer output tokens than were asked "
        f"for ({example}): the context is full, or the server ignores `ignore_eos`. Ask for less, "
        f"or give the server a longer context; compare only runs whose answers are as long.",
        answers=block.short,
        ok=summary.requests_steady.ok,
        share=share,
        example=example,
    )


def half_answers(evidence: Evidence, _summary: Summary) -> Doubt | None:
    """Nearly all answers have the length that was asked of them, and a few are cut and look whole."""
    block = steady(evidence)
    if not block.length_halved or block.length_kept < MOSTLY * block.length_halved or evidence.profile.engine.stop:
        return None
    return doubt(
        "half-answers",
        "degraded",
        f"{block.length_halved} answers end with `stop` at three quarters of the length that `ignore_eos` asked for, "
        f"or earlier, and {block.length_kept} have all of it: a gateway ends answers that the engine broke off. "
        f"They count as good, with the latency of half an answer. Look at the engine's log and counters.",
        halved=block.length_halved,
        kept=block.length_kept,
    )


def reasoning_added(evidence: Evidence, summary: Summary) -> Doubt | None:
    block = steady(evidence)
    if not block.reasoning_added:
        return None
    return doubt(
        "reasoning-added",
        "note",
        f"The server leaves reasoning tokens out of its count of output tokens ({block.reasoning_added} of "
        f"{summary.requests_steady.ok} answers). They were generated, so they were added: tools that take the count as "
        f"it is show a longer TPOT and less throughput.",
        answers=block.reasoning_added,
        ok=summary.requests_steady.ok,
        reasoning_tokens=block.reasoning_tokens,
    )


def tokens_per_event(evidence: Evidence, summary: Summary) -> Doubt | None:
    """ITL is a gap between events; where these hold several tokens and do not say so, it is none between tokens."""
    block, ratio = steady(evidence), summary.tokens.per_event
    answers = block.tokens_told + block.tokens_untold
    if ratio is None or ratio < TOKENS_PER_EVENT or block.tokens_told > TOLD_SHARE * answers:
        return None
    can = evidence.profile.engine.kind == "openai"
    mend = "set `engine.continuous_usage: true` for shared gaps, where the server has it, or " if can else ""
    return doubt(
        "tokens-per-event",
        "note",
        f"An event holds {ratio:.2f} tokens on average (speculative decoding, a stream interval, tokens that are not "
        f"shown), and does not say how many: `itl_s` is the gap between events, about {ratio:.1f} times that between "
        f"tokens; {mend}use `tpot_s`.",
        tokens_per_event=ratio,
        answers=answers,
        told=block.tokens_told,
    )


def events_over_tokens(_evidence: Evidence, summary: Summary) -> Doubt | None:
    """Each content event holds a token at least, so a count below that of the events is not of the whole answer."""
    ratio = summary.tokens.per_event
    if ratio is None or ratio >= 1 / TOKENS_PER_EVENT or summary.tokens.source != "server":
        return None
    return doubt(
        "events-over-tokens",
        "note",
        f"The server states {ratio:.2f} output tokens for each event with content: it counts only a part of the answer "
        f"(its reasoning is missing?), or a gateway cuts the text anew. TPOT is too long by as much in the first case.",
        tokens_per_event=ratio,
        output_tokens=summary.tokens.output,
    )


def continuous_usage_ignored(evidence: Evidence, _summary: Summary) -> Doubt | None:
    block = everything(evidence)
    if not evidence.profile.engine.continuous_usage or block.tokens_told or not block.tokens_untold:
        return None
    return doubt(
        "continuous-usage-ignored",
        "note",
        f"`engine.continuous_usage` had no effect: none of {block.tokens_untold} answers had a count in each event (a "
        f"router drops the option, or the server does not know it). `itl_s` is the gap between events: ask the engine "
        f"without the router, or leave the option out.",
        answers=block.tokens_untold,
    )


def choices_missing(_evidence: Evidence, summary: Summary) -> Doubt | None:
    missing = summary.requests.by_error.get("choices missing", 0)
    if not missing:
        return None
    said = summary.requests.error_says.get("choices missing", "")
    return doubt(
        "choices-missing",
        "invalid",
        f"{missing} answers had fewer choices than were asked for ({said}): the load was lower than planned. Set "
        f"`engine.choices: 1`, or use a server that knows `n`.",
        answers=missing,
        example=said,
    )


RULES: tuple[Rule, ...] = (
    tokens_over_limit,
    short_answers,
    half_answers,
    reasoning_added,
    tokens_per_event,
    events_over_tokens,
    continuous_usage_ignored,
    choices_missing,
)
