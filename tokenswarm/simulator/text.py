"""Seeded text that costs nothing: word pieces by a congruential generator, and the stated estimate of prompt tokens.

Prompt tokens = ceil(characters / 4), plus 4 a message and 3 for the answer's header in a chat: deterministic, and close
to what BPE tokenizers make of English. Output text depends on the seed, the prompt and the choice only.
"""

from __future__ import annotations

import itertools
import json
import random
import zlib

_ONSETS = ["b", "br", "c", "ch", "d", "f", "fl", "g", "h", "k", "l", "m", "n", "p", "r", "s", "st", "t", "tr", "v"]
_VOWELS = ["a", "e", "i", "o", "u", "ea", "ou"]
_CODAS = ["", "n", "r", "st", "l", "nd", "s"]
# What breaks careless clients: quotes, backslashes, newlines, what Go escapes in JSON, and text beyond ASCII.
_TRAPS = [' "yes"', " \\", "\n", " <b>", " & ", " naïve", " 東京", " 🙂", "data: x\n\n", " {}"]

VOCABULARY: list[str] = [
    (" " if i % 4 else "") + "".join(parts)
    for i, parts in enumerate(itertools.islice(itertools.product(_ONSETS, _VOWELS, _CODAS), 1024 - 44 - len(_TRAPS)))
]
VOCABULARY += _TRAPS + [f" {n}" for n in range(1024 - len(VOCABULARY) - len(_TRAPS))]


def go_escaped(text: str) -> bytes:
    """The inside of a JSON string as Go's encoding/json writes it: `<`, `>`, `&` and the line separators as \\uXXXX."""
    inside = json.dumps(text, ensure_ascii=False)[1:-1]
    for char in "<>&\u2028\u2029":
        inside = inside.replace(char, f"\\u{ord(char):04x}")
    return inside.encode()


def json_escaped(text: str) -> bytes:
    """The inside of a JSON string as Pydantic writes it: shortest escapes, UTF-8."""
    return json.dumps(text, ensure_ascii=False)[1:-1].encode()


JSON_PIECES = [json_escaped(piece) for piece in VOCABULARY]
GO_PIECES = [go_escaped(piece) for piece in VOCABULARY]


class Pieces:
    """The pieces of one answer in order; `next_index` is the next piece's place in the vocabulary."""

    __slots__ = ("state",)

    def __init__(self, server_seed: int, request_seed: int, prompt: bytes, choice: int) -> None:
        self.state = zlib.crc32(b"%d %d %d " % (server_seed, request_seed, choice) + prompt)

    def next_index(self) -> int:
        # Numerical Recipes' constants; the high bits, because the low ones repeat soon.
        self.state = state = (self.state * 1664525 + 1013904223) & 0xFFFFFFFF
        return state >> 22


def natural_length(server_seed: int, request_seed: int, prompt: bytes, choice: int) -> int:
    """How long an answer is that nothing cuts off: log-normal, median 180, as ShareGPT's answers are; 1 to 4096
    tokens."""
    rng = random.Random(zlib.crc32(b"length %d %d %d " % (server_seed, request_seed, choice) + prompt))
    return max(1, min(4096, int(rng.lognormvariate(5.2, 0.9))))


def tokens_of(text: str) -> int:
    """The estimate for plain text: ceil(characters / 4), at least 1."""
    return max(1, -(-len(text) // 4))


def chat_tokens(messages: list[str]) -> int:
    """The estimate for a chat: each message's text and 4 for its role and marks, and 3 for the answer's header."""
    return sum(-(-len(message) // 4) + 4 for message in messages) + 3


def cut_at_stop(indices: list[int], stops: tuple[str, ...], min_tokens: int) -> tuple[list[str], str | None]:
    """The pieces up to a stop string, which itself is left out, and the string that ended them (None: none occurs).

    A match must end in a token after the first `min_tokens`, as in vLLM. Pieces beyond the cut are empty, not dropped:
    their tokens were generated.
    """
    text = ""
    for count, index in enumerate(indices, start=1):
        before = len(text)
        text += VOCABULARY[index]
        if count <= min_tokens:
            continue
        ends = [(text.find(stop, max(0, before - len(stop) + 1)), stop) for stop in stops]
        found = [match for match in ends if match[0] >= 0]
        if found:
            at, stop = min(found)
            return _slice(indices[:count], at), stop
    return [VOCABULARY[index] for index in indices], None


def _slice(indices: list[int], end: int) -> list[str]:
    pieces: list[str] = []
    for index in indices:
        piece = VOCABULARY[index][: max(0, end)]
        end -= len(VOCABULARY[index])
        pieces.append(piece)
    return pieces
