"""Generated conversations of wanted lengths, from a seed and this file's own word list: no data, no licence.

Each word is a common English one that stands as a single token in the usual vocabularies (with its leading blank), so a
text of n words is about n tokens; it is an estimate. Given a tokenizer, a text is the longest that has no more tokens.
"""

from __future__ import annotations

import random

import msgspec

from tokenswarm.prompts import Conversation, Turn
from tokenswarm.prompts.lengths import CountTokens, LengthLaw, sample_length

_WORD_LIST = """
    the a this that each every some any one two three four five six ten first second last next other same new old
    good great small large long short high low early late open close clear simple full empty right left real main
    time day week month year hour minute morning evening night place city house room door window garden road river
    field mountain water fire light sound music story book page letter word line name number list table paper picture
    question answer problem reason result example idea plan rule test case part point step side end start middle group
    team family friend person people teacher student doctor worker player market price money cost bank trade office
    company product service system model data network server memory machine engine power energy speed weight length
    color shape size form type kind level order state change move turn call look show tell ask give take make keep
    hold bring send read write think know learn find need want help work play run walk stand build grow cut pay buy
    sell meet wait stay leave return follow lead carry watch listen speak explain describe compare choose decide
    with from into over under between after before about through during without because while when where which
    how why what who and or but so if then than also only even still again always never often maybe soon here there
"""
_WORDS = tuple(_WORD_LIST.split())


class Synthetic(msgspec.Struct, frozen=True, kw_only=True):
    """What to generate. `rows` different conversations of `turns` user messages; lengths are tokens of one message."""

    rows: int
    input_tokens: LengthLaw
    output_tokens: LengthLaw
    turns: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rows < 1 or self.turns < 1:
            raise ValueError("a synthetic data set needs 1 row and 1 turn or more")


def generate(settings: Synthetic, number: int, count_tokens: CountTokens | None = None) -> Conversation:
    """Conversation `number` (from 0): the same on every machine, whichever worker asks for it and in whatever order."""
    source = random.Random(f"tokenswarm synthetic {settings.seed} {number}")
    turns = []
    for _ in range(settings.turns):
        tokens = sample_length(settings.input_tokens, source)
        turns.append(Turn(make_text(tokens, source, count_tokens), None, sample_length(settings.output_tokens, source)))
    return Conversation(id=f"synthetic-{number + 1}", turns=tuple(turns))


def count_words(text: str) -> int:
    """The estimate for this file's own texts: one token a word."""
    return len(text.split())


def make_text(tokens: int, source: random.Random, count_tokens: CountTokens | None = None) -> str:
    """A text of about `tokens` tokens: one word each, or as many words as the tokenizer says (never more tokens)."""
    draw, known = source.random, len(_WORDS)
    words = [_WORDS[int(draw() * known)] for _ in range(max(1, tokens))]
    if count_tokens is None:
        return " ".join(words)
    low, high = 1, len(words)
    while low < high:  # the longest prefix of the words that has no more tokens than wanted
        middle = (low + high + 1) // 2
        if count_tokens(" ".join(words[:middle])) <= tokens:
            low = middle
        else:
            high = middle - 1
    return " ".join(words[:low])
