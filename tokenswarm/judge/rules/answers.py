"""Rules about what the answers say of themselves: were the limit, the length and the options kept, and who counts?"""

from __future__ import annotations

from tokenswarm.engines.model_names import first_of, is_alias, same
from tokenswarm.judge.rules.evidence import Evidence, Rule, doubt, everything, steady
from tokenswarm.measure.ending import cuts
from tokenswarm.result.summary import Doubt, Summary

OVER_LIMIT_SHARE = 0.01  # a note up to here
SHORT_SHARE = 0.01
CUT_ENDS_SHARE = 0.01  # of the answers: a note up to here, and where nobody knows what the reason means
ONLY_REASONING_SHARE = 0.01
TOKENS_PER_EVENT = 1.5  # from here on the gap between events is not one between tokens
TOLD_SHARE = 0.5
OTHERS_SHARE = 0.1  # of the answers: too many for any number of the model that was asked for
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


def other_ends(evidence: Evidence, summary: Summary) -> Doubt | None:
    """A filter, a guard against repetition: what cuts answers short and leaves them whole by the protocol."""
    ends = dict(sorted(steady(evidence).other_ends.items(), key=lambda item: (-item[1], item[0])))
    if not ends:
        return None
    n, ok = sum(ends.values()), summary.requests_steady.ok * evidence.profile.engine.choices
    cut = sum(count for reason, count in ends.items() if cuts(reason))
    shown = ", ".join(f"{reason!r} ({count})" for reason, count in list(ends.items())[:3])
    return doubt(
        "other-ends",
        "degraded" if cut > CUT_ENDS_SHARE * max(1, ok) else "note",
        f"{n} of {ok} answers ({n / max(1, ok):.1%}) were ended neither by the model nor by a limit: finish reason "
        f"{shown}. They count as good, with the latency and tokens of what came until then. Look at the server's "
        f"filters, or take other prompts; compare only runs with as many. Rows of `requests.jsonl` have "
        f"`finish_reason`.",
        reasons=ends,
        cut=cut,
        ok=ok,
        share=n / max(1, ok),
    )


def ends_untold(evidence: Evidence, summary: Summary) -> Doubt | None:
    """A server that tells no finish reason: whether its answers are whole, nobody can say."""
    n, ok = steady(evidence).seldom.get("end untold", 0), summary.requests_steady.ok
    if not n:
        return None
    return doubt(
        "ends-untold",
        "degraded",
        f"{n} of {ok} answers ({n / max(1, ok):.1%}) tell no finish reason: `[DONE]` is taken for their end "
        f"(`engine.done_ends`). An answer that the engine or a gateway cut looks the same, so failures may be missing: "
        f"see the engine's counters, and compare the lengths.",
        answers=n,
        ok=ok,
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


def only_reasoning(evidence: Evidence, _summary: Summary) -> Doubt | None:
    """Answers that end before they begin: all their tokens are thoughts."""
    block = steady(evidence)
    lacking = block.ttft.n - block.ttfat.n
    if lacking <= ONLY_REASONING_SHARE * block.ttft.n:
        return None
    return doubt(
        "only-reasoning",
        "note",
        f"{lacking} of {block.ttft.n} answers ({lacking / block.ttft.n:.1%}) hold nothing but reasoning: most likely "
        f"their length ended them before the answer itself began. The time to the first answer token is that of the "
        f"others. Ask for more tokens (`dataset.output_tokens`), or for less reasoning.",
        answers=lacking,
        ok=block.ttft.n,
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


def counts_of_parts(evidence: Evidence, summary: Summary) -> Doubt | None:
    n, ok = steady(evidence).seldom.get("count of a part", 0), summary.requests_steady.ok
    if not n:
        return None
    return doubt(
        "counts-of-parts",
        "note",
        f"{n} of {ok} answers ({n / max(1, ok):.1%}) state a count of output tokens that is not of all: it is that of "
        f"one event, grows by less than two tokens for three of them, leaves nearly all of them out, or more content "
        f"came behind it. Content events are counted in its place, which may be fewer than the tokens. A gateway "
        f"rewrites `usage`, or the server counts so itself: ask the engine without the gateway.",
        answers=n,
        ok=ok,
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


def models_mixed(evidence: Evidence, summary: Summary) -> Doubt | None:
    """Answers of one run name several models: a fallback, a canary, a deployment that is half rolled out."""
    named, asked = summary.requests_steady.by_model, evidence.profile.engine.asked_model
    main = _main(named, asked)
    others = {name: n for name, n in named.items() if first_of(name) != name or not same(main, name)}
    if not others:
        return None
    known, n, share = is_alias(asked, main), sum(others.values()), sum(others.values()) / sum(named.values())
    shown = ", ".join(f"{name} ({count})" for name, count in list(others.items())[:3])
    return doubt(
        "models-mixed",
        "invalid" if known and share > OTHERS_SHARE else "degraded",
        f"{n} of {sum(named.values())} answers ({share:.1%}) name another model than {main}: {shown}. No figure is of "
        f"one model. Look at the router's fallbacks, canaries and deployments; name the model there, or test without "
        f"it. Rows of `requests.jsonl` with `model` are these answers.",
        asked=asked,
        answers=named,
        share=share,
    )


def model_renamed(evidence: Evidence, summary: Summary) -> Doubt | None:
    """All answers name one other model than was asked for, and not as a dated release or a path of it."""
    named, asked = summary.requests_steady.by_model, evidence.profile.engine.asked_model
    main = _main(named, asked)
    if not asked or not named or is_alias(asked, main) or not all(same(main, name) for name in named):
        return None
    return doubt(
        "model-renamed",
        "note",
        f"All answers name the model {main}; {asked} was asked for. Where that is no other name of it "
        f"(vLLM's `--served-model-name`, an alias of a gateway), something answers in its place.",
        asked=asked,
        answers=named,
    )


def _main(named: dict[str, int], asked: str) -> str:
    """The most frequent name of those that are the model asked for, else of all; "" where answers name none."""
    return first_of(
        max(
            named,
            key=lambda name: (same(asked, first_of(name)), is_alias(asked, first_of(name)), named[name]),
            default="",
        )
    )


RULES: tuple[Rule, ...] = (
    tokens_over_limit,
    short_answers,
    other_ends,
    ends_untold,
    half_answers,
    reasoning_added,
    only_reasoning,
    tokens_per_event,
    events_over_tokens,
    counts_of_parts,
    continuous_usage_ignored,
    choices_missing,
    models_mixed,
    model_renamed,
)
