"""What every reader shares: the answer it gives for one row, and how a message's role and text are found.

A reader is `read(row, row_id, rules) -> Reading` and `matches(row) -> bool`, pure. A Reading holds a conversation, or
the reason why there is none; `notes` name what was changed on the way (a trimmed turn, a skipped message).
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from tokenswarm.prompts import Conversation, Turn

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
    "function_call": "tool",
    "observation": "tool",
    "tool": "tool",
    "function": "tool",
}
"""Every role name seen in ShareGPT V3, its raw files, LLaMA-Factory and OpenAI rows, and what it means here."""

Row = dict[str, Any]


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """What a reader may decide differently."""

    leading_assistant: Literal["trim", "drop"] = "trim"
    system: Literal["keep", "drop"] = "keep"


class Reading(msgspec.Struct, frozen=True, gc=False):
    conversation: Conversation | None
    reason: str = ""  # why there is no conversation
    notes: tuple[str, ...] = ()  # what was changed


def dropped(reason: str) -> Reading:
    return Reading(None, reason)


def safe_text(text: str) -> str:
    """The text with each lone surrogate made U+FFFD: `"\\ud83d"` is legal JSON and cannot be sent as UTF-8."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def is_empty(text: str) -> bool:
    return not text or text.isspace()


def scalar_text(value: object) -> str | None:
    """A field's text: a string as it is, a number as its digits, null and nothing as "", None for anything else."""
    if isinstance(value, str):
        return safe_text(value)
    if value is None:
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return None


def message_text(message: Row) -> str | None:
    """The text of a message from `value`, `content` (text or parts), `text` or `markdown.answer`; None: it has none."""
    found: str | None = None
    for key in ("value", "content", "text"):
        if key not in message:
            continue
        value = message[key]
        if isinstance(value, list):
            value = _parts_text(value)
        found = scalar_text(value)
        if found:
            return found
    markdown = message.get("markdown")
    if isinstance(markdown, dict):
        return scalar_text(markdown.get("answer"))
    return found


def _parts_text(parts: list[Any]) -> str | None:
    texts: list[str] = [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]
    return "".join(texts) if texts else None


def role_and_text(item: object) -> tuple[str, str] | None:
    """(user | assistant | system | tool, text) of a turn, which may be a JSON string; None: it is no message."""
    if isinstance(item, str):
        try:
            item = msgspec.json.decode(item)
        except (msgspec.MsgspecError, UnicodeEncodeError, RecursionError):
            return None
    if not isinstance(item, dict):
        return None
    name = item.get("from", item.get("role"))
    role = ROLES.get(name.strip().lower()) if isinstance(name, str) else None
    text = message_text(item)
    return None if role is None or text is None else (role, text)


def row_id(row: object, number: int) -> str:
    """The row's own id where it has a usable one, else its number in the file, from 1."""
    if isinstance(row, dict):
        for key in ("id", "question_id", "conversation_id"):
            value = row.get(key)
            if (isinstance(value, str) and value) or (isinstance(value, int) and not isinstance(value, bool)):
                return safe_text(str(value))
    return str(number)


def stated_tokens(row: Row) -> int | None:
    """The output length that the row states, in tokens; None where it states none."""
    for key in ("output_tokens", "output_len", "max_tokens"):
        value = row.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def one_turn(row_name: str, user: str, answer: str | None, output_tokens: int | None = None) -> Reading:
    """The reading of a row that holds one question, and maybe its answer."""
    if is_empty(user):
        return dropped("empty_value")
    kept = None if answer is None or is_empty(answer) else answer
    return Reading(Conversation(id=row_name, turns=(Turn(user, kept, output_tokens),)))
