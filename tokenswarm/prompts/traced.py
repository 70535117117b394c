"""Prompts of the lengths that a trace asks for: text from the data set, or generated, each with an answer's length.

Blocks that rows of a trace share by id are the same text wherever they stand, so that a server finds the prefixes that
the real one found. A prompt without blocks is like no other one.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable

from tokenswarm.prompts import Conversation, Message, Prompt
from tokenswarm.prompts.lengths import estimate_tokens
from tokenswarm.prompts.synthetic import make_text

OWN_WORDS = 4  # of 233: of 20,000 texts two have the same ones in one trace of 15
TOKENS_KEPT = 2 << 20  # of the texts of blocks that are kept at hand, 10 MiB; keeping one takes as much as:
TOKENS_OF_AN_ENTRY = 50

Text = Callable[[str, int], str]
"""A text of about so many tokens for a key: the same for the same key."""


class TracedPrompts:
    """Makes the prompt of each arrival."""

    def __init__(self, text: Text, seed: int, block_tokens: int = 0) -> None:
        """`block_tokens`: of a block that rows share; 0: the trace has none."""
        self._text = text
        self._seed = seed
        self._block_tokens = max(1, block_tokens)
        self._blocks: OrderedDict[int, str] = OrderedDict()

    def prompt(self, name: str, input_tokens: int, output_tokens: int, blocks: tuple[int, ...]) -> Prompt:
        """About `input_tokens` of text, the blocks' first; `name` is unique in the run."""
        size = self._block_tokens
        shared = min(len(blocks), (input_tokens + size - 1) // size)
        parts = [self._block(block) for block in blocks[: max(0, shared - 1)]]
        left = input_tokens - size * len(parts)
        if shared:  # the last one may be shorter than a block
            last = blocks[shared - 1]
            parts.append(self._block(last) if left >= size else self._text(self._key(last), left))
            left -= size
        if left > 0:
            parts.append(self._text(f"{self._seed} {name}", left))
        text = " ".join(parts)
        return Prompt(name, (Message("user", text),), text, name, 0, output_tokens, input_tokens=input_tokens)

    def _block(self, number: int) -> str:
        text = self._blocks.get(number)
        if text is None:
            text = self._blocks[number] = self._text(self._key(number), self._block_tokens)
            if len(self._blocks) * (self._block_tokens + TOKENS_OF_AN_ENTRY) > TOKENS_KEPT:
                self._blocks.popitem(last=False)
        else:
            self._blocks.move_to_end(number)
        return text

    def _key(self, number: int) -> str:
        return f"{self._seed} block {number}"


def generated(key: str, tokens: int) -> str:
    """Words of the generator's own list; a shorter text of the same key is the begin of a longer one."""
    return make_text(tokens, random.Random(f"tokenswarm trace {key}"))


class FromConversations:
    """Texts cut out of a data set: conversations from a drawn one on, one after the other, as long as needed.

    A few words of its own begin each: there are more keys than conversations, and no two texts may share a prefix.
    """

    def __init__(self, conversation: Callable[[int], Conversation], count: int) -> None:
        self._conversation, self._count = conversation, count

    def __call__(self, key: str, tokens: int) -> str:
        """A shorter text of the same key is the begin of a longer one."""
        source = random.Random(f"tokenswarm trace {key}")
        row = source.randrange(self._count)
        parts, left = [make_text(OWN_WORDS, source)], tokens
        while left > 0:
            for turn in self._conversation(row % self._count).turns:
                texts = [turn.user] if turn.answer is None else [turn.user, turn.answer]
                parts += texts
                left -= sum(map(estimate_tokens, texts))
            row += 1
        return _cut(" ".join(parts), tokens)


def _cut(text: str, tokens: int) -> str:
    """The longest begin of the text that is estimated at no more tokens."""
    low, high = 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if estimate_tokens(text[:middle]) <= tokens:
            low = middle
        else:
            high = middle - 1
    return text[:low]
