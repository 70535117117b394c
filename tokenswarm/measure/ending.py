"""How an answer ended whose body came whole, under 2xx: the outcome, and a sentence why."""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import lru_cache

from tokenswarm.engines import CUT
from tokenswarm.engines.failure import clean_line
from tokenswarm.record import USUAL_ENDS, Outcome

REASON_CHARS_MAX = 64  # of all choices, in a record: a label, not a text
OTHERS_MAX = 16  # reasons, then "other": what a server writes must not grow the reports

_GIVEN_UP = re.compile(
    r"(^|[_\W])(error|abort|cancel|cancell?ed|aborted|fail|failed|failure|time[d_ -]{0,2}out)([_\W]|$)"
    r"|overload|insufficient_system_resource",
    re.IGNORECASE,
)

_CUTS = re.compile(
    r"filter|refus|safety|moderat|guardrail|repeti|recitation|blocklist|blocked|prohibited|spii|sensitive",
    re.IGNORECASE,
)


def cuts(reason: str) -> bool:
    """Whether a finish reason tells of an answer that was cut for what it said; of a word of an engine's own, nobody
    knows: OpenAI and Azure (content_filter), Anthropic (refusal), vLLM (repetition), Gemini (SAFETY, RECITATION, SPII,
    BLOCKLIST, PROHIBITED_CONTENT), GLM (sensitive), Bedrock (guardrail_intervened).
    """
    return _CUTS.search(reason) is not None


@lru_cache(maxsize=256)  # servers know a handful of them
def gives_up(reason: str) -> bool:
    """Whether a finish reason is the protocol's own end, but not of an answer.

    vLLM and SGLang (error, abort), TensorRT-LLM (cancelled, timeout), DeepSeek (insufficient_system_resource) and GLM
    (network_error) end so what they gave up.
    """
    return reason == CUT or _GIVEN_UP.search(reason) is not None


def count_others(counts: dict[str, int], reasons: str) -> None:
    """Add what ended choices and is no usual end: a filter, for one. `reasons`: of a record, all its choices."""
    told = reasons.split(",")
    whole = told[:-1] if len(told) > 1 and len(reasons) >= REASON_CHARS_MAX else told
    for reason in filter(None, whole):
        if reason not in USUAL_ENDS:
            key = reason if reason in counts or len(counts) < OTHERS_MAX else "other"
            counts[key] = counts.get(key, 0) + 1


def judged(
    *,
    error: str,
    reasons: Collection[str],
    unfinished: bool,
    missing: int,
    choices: int,
    events: int,
    began: bool,
    end: str,
) -> tuple[Outcome, str]:
    """ok, truncated, error_object or empty, and why.

    `missing` of so many choices never began; `began`: an event of the answer came, with or without content; `end`: what
    the protocol ends an answer with, in words.
    """
    if error:
        return Outcome.ERROR_OBJECT, error
    given_up = sorted(filter(gives_up, reasons))
    if given_up and given_up[0] != CUT:
        return Outcome.ERROR_OBJECT, f"the server ended the answer with finish reason {clean_line(given_up[0])[:64]!r}"
    if not events and (not unfinished or not began):
        other = sorted(reason for reason in reasons if reason not in USUAL_ENDS)
        why = f": it ended with finish reason {clean_line(other[0])[:64]!r}" if other else ""
        return Outcome.EMPTY, f"the answer holds no content{why}"
    if missing:
        came = f"{choices - missing} of {choices} choices came"
        return Outcome.TRUNCATED, f"{came}: the server may not know `n` (engine.choices)"
    if given_up:
        return Outcome.TRUNCATED, f"the answer ended without `message_delta`, after {events} content events"
    if unfinished:
        return Outcome.TRUNCATED, f"the answer ended without {end}, after {events} content events"
    return Outcome.OK, ""
