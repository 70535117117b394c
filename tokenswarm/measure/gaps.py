"""From the stamps of an answer to the gaps between the events of each choice, and what their reads hid.

The plain case, which every token takes, is _gaps.c where that was built and the reader in C may be, too.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from operator import sub
from types import ModuleType

from tokenswarm.clock import NS_PER_S
from tokenswarm.compiled import compiled
from tokenswarm.measure.sketch import Sketch
from tokenswarm.profile.environment import wanted_reader


def _in_c() -> ModuleType | None:
    name = "tokenswarm.measure._gaps"
    return importlib.import_module(name) if wanted_reader() != "python" and compiled(name) else None


IN_C = _in_c()


def plain_gaps(stamps: tuple[int, ...]) -> tuple[int, ...] | None:
    """Gaps between these stamps, ns; None where one of them is not above 0."""
    if IN_C is not None:
        gaps: tuple[int, ...] | None = IN_C.between(stamps)
        if gaps is not None:
            return gaps
    gaps = tuple(map(sub, stamps[1:], stamps))
    return gaps if not gaps or min(gaps) > 0 else None


def add_gaps(sketch: Sketch, gaps_ns: tuple[int, ...]) -> None:
    """What `Sketch.add_gaps` does with gaps of a token each."""
    counted = IN_C.count(gaps_ns, sketch.counts) if IN_C is not None and gaps_ns else None
    if counted is None:
        sketch.add_gaps(gaps_ns)
        return
    sum_ns, least_ns, most_ns = counted
    sketch.n += len(gaps_ns)
    sketch.sum += sum_ns / NS_PER_S
    sketch.min = min(sketch.min, least_ns / NS_PER_S)
    sketch.max = max(sketch.max, most_ns / NS_PER_S)


def unless_ones(counts: Sequence[int]) -> tuple[int, ...]:
    """The counts; () where all are 1."""
    return tuple(counts) if any(count != 1 for count in counts) else ()


def gaps_between(
    stamps: Sequence[int], tokens: Sequence[int] | None, lows: Mapping[int, int]
) -> tuple[list[int], list[int], list[int], list[int], int]:
    """Gaps between successive distinct stamps of one choice; of each, the tokens of the event that ends it, how many
    events share its read and how long before its end they may have come, ns; merged events.

    Without `tokens`, or where nothing is merged, there are none of these in the answer either. `lows`: stamp of a read
    -> nothing of it came before this, where more is known than that it came after the read before.
    """
    plain = plain_gaps(tuple(stamps))
    if plain is not None:
        return list(plain), list(tokens[1:]) if tokens is not None else [], [], [], 0
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
    plain = plain_gaps(stamps) if of_choice is None and tokens is None else None
    if plain is not None:
        return plain, (), (), (), 0
    if of_choice is None:
        gaps, gap_tokens, events, hidden, shared = gaps_between(stamps, tokens, lows)
    else:
        gaps, gap_tokens, events, hidden, shared = [], [], [], [], 0
        places: dict[int, list[int]] = {}
        for place, choice in enumerate(of_choice):
            places.setdefault(choice, []).append(place)
        for _, picked in sorted(places.items()):
            counts = [tokens[i] for i in picked] if tokens is not None else None
            more = gaps_between([stamps[i] for i in picked], counts, lows)
            gaps += more[0]
            gap_tokens += more[1]
            events += more[2] or [1] * len(more[0])
            hidden += more[3] or more[0]
            shared += more[4]
    gap_events = unless_ones(events)
    return tuple(gaps), unless_ones(gap_tokens), gap_events, tuple(hidden) if gap_events else (), shared
