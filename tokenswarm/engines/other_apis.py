"""Which API an event is of, that is none of the dialect's: the words by which a refusal tells how to mend it."""

from __future__ import annotations

from typing import Any

from tokenswarm.engines.failure import clean_line

_NAMES_MAX = 6
_TYPED = {"response.": "responses", "message_": "messages", "content_block_": "messages"}


def mend(event: dict[str, Any]) -> str:
    """Words to add to the refusal of an event; "" where it is of no API that is known here."""
    kind, api = _spoken(event)
    return f": it is one of the API that `engine.kind: {kind}` and `engine.api: {api}` stand for" if api else ""


def known_by(event: dict[str, Any]) -> str:
    """The mend, or the names of what an event of no known API has: no word of an answer stands in a name."""
    names = ", ".join([name for name in event if name.isidentifier()][:_NAMES_MAX])
    return mend(event) or clean_line(f"; it has {names}" if names else "")


def chat_words(choice: dict[str, Any]) -> bool:
    """Whether a choice has words as chat events have them, and none as completions have them."""
    delta = choice.get("delta")
    return choice.get("text") is None and isinstance(delta, dict) and any(map(delta.get, _WORDS))


def text_words(choice: dict[str, Any]) -> bool:
    """Whether a choice has words as completions have them, and is none of a chat."""
    return choice.get("delta") is None and isinstance(choice.get("text"), str) and choice["text"] != ""


_WORDS = ("content", "reasoning", "reasoning_content", "tool_calls")


def _spoken(event: dict[str, Any]) -> tuple[str, str]:
    choices, message = event.get("choices"), event.get("message")
    if isinstance(choices, list):
        found = [choice for choice in choices if isinstance(choice, dict)]
        if any(map(chat_words, found)):
            return "openai", "chat"
        return "openai", "completions" if any(map(text_words, found)) else ""
    for begin, api in _TYPED.items():
        if isinstance(event.get("type"), str) and event["type"].startswith(begin):
            return "openai", api
    if isinstance(message, dict) and any(map(message.get, ("content", "thinking", "tool_calls"))):
        return "ollama", "chat"
    return "ollama", "generate" if isinstance(event.get("response"), str) and event["response"] else ""
