"""From the stamps of an answer to the gaps between the events of each choice, and what their reads hid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tokenswarm.measure.counting import between


def unless_ones(counts: Sequence[int]) -> tuple[int, ...]:
    """The counts; () where all are 1."""
    return tuple(counts) if any(count != 1 for count in counts) else ()


def gaps_between(
    stamps: Sequence[int], tokens: Sequence[int] | None, lows: Mapping[int, int]
) -> tuple[Sequence[int], Sequence[int], list[int], list[int], int]:
    """Gaps between successive distinct stamps of one choice; of each, the tokens of the event that ends it, how many
    events share its read and how long before its end they may have come, ns; merged events.

    Without `tokens`, or where nothing is merged, there are none of these in the answer either. `lows`: stamp of a read
    -> nothing of it came before this, where more is known than that it came after the read before.
    """
    plain = between(tuple(stamps))
    if plain is not None:
        return plain, tokens[1:] if tokens is not None else (), [], [], 0
    # A stamp that runs backwards (kernel stamps are converted, ±0.1 µs) is the same read as far as anyone can tell.
    kept: list[int] = []
    kept_tokens: list[int] = []
    events: list[int] = []
    hidden: list[int] = []
    newest = stamps[0]
    for i in range(1, len(stamps)):
        if stamps[i] > newest:
            kept.append(stamps[i] - newest)
            hidden.append(min(kept[-1], stamps[i] - lows.get(stamps[i], newest)))
            events.append(1)
            newest = stamps[i]
            if tokens is not None:
                kept_tokens.append(tokens[i])
        elif events:
            events[-1] += 1
    return kept, kept_tokens, events, hidden, len(stamps) - 1 - len(kept)


def gaps_of(
    stamps: tuple[int, ...], tokens: Sequence[int] | None, of_choice: Sequence[int] | None, lows: Mapping[int, int]
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...], int]:
    """Gaps in ns, tokens of each and events that end it (() where all are 1), what they hide (() where nothing), and
    the number of merged events.

    `of_choice`: the choice of each event, where there is more than one; the gaps of one choice stand together.
    """
    gaps: Sequence[int]
    gap_tokens: Sequence[int]
    if of_choice is None:
        gaps, gap_tokens, events, hidden, shared = gaps_between(stamps, tokens, lows)
    else:
        gaps, gap_tokens, events, hidden, shared = (), (), [], [], 0
        places: dict[int, list[int]] = {}
        for place, choice in enumerate(of_choice):
            places.setdefault(choice, []).append(place)
        for _, picked in sorted(places.items()):
            counts = [tokens[i] for i in picked] if tokens is not None else None
            more = gaps_between([stamps[i] for i in picked], counts, lows)
            gaps, gap_tokens = [*gaps, *more[0]], [*gap_tokens, *more[1]]
            events += more[2] or [1] * len(more[0])
            hidden += more[3] or more[0]
            shared += more[4]
    gap_events = unless_ones(events)
    return tuple(gaps), unless_ones(gap_tokens), gap_events, tuple(hidden) if gap_events else (), shared
