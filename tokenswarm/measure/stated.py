"""What a server states about an answer, held against what was asked and what was seen. docs/metrics.md tells the rules.

A count is believed where it can be true. Where it can't, the events are counted, and the record keeps both.
"""

from __future__ import annotations

import msgspec

from tokenswarm.engines import Usage
from tokenswarm.record import EngineTimes, TokenSource

PIECES_MAX = 8  # content events a token: a text cut into letters has half of that
_SLACK_NS = 1_000_000  # two clocks; and 1 % of the time


def merged(old: Usage | None, new: Usage) -> Usage | None:
    """The newer usage; what it does not state stands. Usage of 0 and 0 (Ollama, in each event) states nothing."""
    if not (new.prompt_tokens or new.output_tokens or new.reasoning_tokens or new.draft_tokens):
        return old
    if old is None:
        return new
    if not new.draft_tokens and old.draft_tokens:  # told with the finish reason, before the usage
        new = msgspec.structs.replace(new, draft_tokens=old.draft_tokens, accepted_tokens=old.accepted_tokens)
    if new.prompt_tokens and new.output_tokens is not None:
        return new
    return msgspec.structs.replace(
        new,
        prompt_tokens=new.prompt_tokens or old.prompt_tokens,
        output_tokens=old.output_tokens if new.output_tokens is None else new.output_tokens,
        reasoning_tokens=old.reasoning_tokens if new.reasoning_tokens is None else new.reasoning_tokens,
        cached_tokens=old.cached_tokens if new.cached_tokens is None else new.cached_tokens,
    )


Counts = tuple[int, bool, bool]
"""How many counts of an answer came behind new content; did one fall, did one grow?"""

NO_COUNTS: Counts = (0, False, False)


def compared(counts: Counts, old: Usage | None, stated: int) -> Counts:
    """The counts, with one more: it is held against what was stated before."""
    n, fell, grew = counts
    before = (old and old.output_tokens) or 0
    return n + 1, fell or stated < before, grew or (n > 0 and stated > before)


def of_single_events(counts: Counts, events: int, stated: int | None) -> bool:
    """Whether each counts one event by itself: a count of all so far grows, and never falls.

    Counts of single events do so by chance (1, 1, 2, 2). A count that most events bring is one of all where the newest
    has two tokens for three events or more: an event with words holds a token, unless somebody cut the text anew.
    """
    n, fell, grew = counts
    few = 3 * n >= 2 * events and 3 * (stated or 0) < 2 * events
    return n > 1 and (fell or not grew or few)


def output_tokens(
    usage: Usage, events: int, counted: int, limit: int | None, partial: bool
) -> tuple[int, TokenSource, bool]:
    """(output tokens, their source, were reasoning tokens added to what is stated?) of an answer of so many events.

    `counted`: those up to the event that stated the count. `limit`: the most that was asked for. `partial`: the usage
    may be that of some choices only.
    """
    stated, reasoning = usage.output_tokens, usage.reasoning_tokens or 0
    if stated is None or partial or (counted < events and stated < events):  # more came behind what was counted
        return events, TokenSource.EVENTS, False
    if reasoning and (
        usage.reasoning_beside or (usage.reasoning_beside is None and stated < events <= stated + reasoning)
    ):
        return stated + reasoning, TokenSource.SERVER, True
    if stated == 0 and events:
        return events, TokenSource.EVENTS, False
    if stated * PIECES_MAX < events:
        return events, TokenSource.EVENTS, False  # a count of one event, or without the reasoning
    if limit is not None and events <= limit < stated - reasoning:
        return events, TokenSource.EVENTS, False  # no count of this answer: a gateway's own, or another's
    return stated, TokenSource.SERVER, False


def plausible(times: EngineTimes | None, e2e_ns: int, tokens: int) -> EngineTimes | None:
    """The durations that can be true: none is longer than the request, and several tokens take some time.

    `e2e_ns`: 0 where it is not known.
    """
    if times is None:
        return None
    longest_ns = e2e_ns + e2e_ns // 100 + _SLACK_NS
    absurd = {
        name: None
        for name in times.__struct_fields__
        if (value := getattr(times, name)) is not None and e2e_ns > 0 and longest_ns < value
    }
    if times.decode_ns == 0 and tokens > 1:
        absurd["decode_ns"] = None
    if not absurd:
        return times
    if "total_ns" in absurd:
        absurd["queue_ns"] = None  # it was worked out from the total
    found = msgspec.structs.replace(times, **absurd)
    return None if found == EngineTimes() else found
