"""Where prompts come from: a file of real conversations, or a seeded generator. Yields `Conversation`s, frozen.

One source a file: sharegpt.py, alpaca.py, jsonl.py, synthetic.py. Reading, filtering, sampling and sharding are the
same for all of them and stand in library.py.
"""

from __future__ import annotations

import msgspec


class Message(msgspec.Struct, frozen=True, gc=False):
    role: str  # "system" | "user" | "assistant" | "tool"
    content: str


class Turn(msgspec.Struct, frozen=True, gc=False):
    """One user message, and what the data set says came back."""

    user: str
    answer: str | None = None  # the data set's own answer; None where it has none
    output_tokens: int | None = None  # a length that the file states; None: derive it from the answer


class Conversation(msgspec.Struct, frozen=True, gc=False):
    id: str  # stable across runs and workers: the row's id, or its number in the file
    turns: tuple[Turn, ...]
    system: str | None = None
    template: str | None = None  # a rendered single prompt for text endpoints (Alpaca); None: the user message as it is


class Prompt(msgspec.Struct, frozen=True, gc=False):
    """What one request asks: messages for chat endpoints, text for completion endpoints."""

    id: str
    messages: tuple[Message, ...]
    text: str
    conversation: str
    turn: int
    output_tokens_max: int | None = None
    ends_itself: bool = False  # no length is known: the maximum is only a bound, and an answer may be shorter
    input_tokens: int | None = None  # None where no tokenizer was given

    def size(self, *, chat: bool) -> int:
        """Bytes of the text that is sent, without the dialect's own."""
        texts = [message.content for message in self.messages] if chat else [self.text]
        return sum(len(text) if text.isascii() else len(text.encode()) for text in texts)
