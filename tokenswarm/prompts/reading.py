"""What every reader shares: the answer it gives for one row, and how a message's role and text are found.

A reader is `read(row, row_id, rules) -> Reading` and `matches(row) -> bool`, pure. A Reading holds a conversation, or
the reason why there is none; `notes` name what was changed on the way (a trimmed turn, a skipped message).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from tokenswarm.prompts import Conversation, Turn

ROLES = {
    "human": "user",
    "user": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "bot": "assistant",
    "system": "system",
    "developer": "system",
    "function_call": "tool",
    "observation": "tool",
    "tool": "tool",
    "function": "tool",
}
"""Every role name seen in ShareGPT V3, its raw files, LLaMA-Factory, OASST and OpenAI rows, and what it means here."""

LENGTH_KEYS = (
    "output_tokens", "output_len", "output_length", "output_tokens_count", "completion_tokens_count", "max_tokens",
    "max_completion_tokens", "max_new_tokens", "max_output_tokens", "num_predict", "n_predict",
)  # fmt: skip
ANSWER_KEYS = ("output", "answer", "completion", "response", "chosen")
CONTEXT_KEYS = ("input", "context", "passage")
SYSTEM_KEYS = ("system", "system_prompt", "system_message")
REQUEST_KEYS = ("body", "payload")
LEFT_OUT = (
    ("media_left_out", ("image", "images", "video", "videos", "audio", "audios")),
    ("tools_left_out", ("tools", "functions")),
    ("delay_left_out", ("delay",)),
)
"""What may stand beside a question and is not sent: how it is counted, and its keys."""
_TOKENS = re.compile(r"([0-9]{1,18})(?:\.0*)?")

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


def without_nulls(row: Any) -> Any:
    """The row without columns that hold nothing: a merged data set has the columns of all its parts in every row."""
    if not isinstance(row, dict):
        return row
    return {key: value for key, value in row.items() if value is not None and value != [] and value != {}}


def request_in(row: object) -> object:
    """The request that a row wraps, as in a file of OpenAI's batches, under the row's id; None: it wraps none."""
    for key in REQUEST_KEYS:
        if isinstance(row, dict) and isinstance(row.get(key), dict):
            return {"id": row.get("custom_id"), **without_nulls(row[key])}
    return None


def message_text(message: Row) -> str | None:
    """The text of a message: `value`, `content` (text or parts), `text`, `parts` or `markdown.answer`; None: none."""
    found: str | None = None
    for key in ("value", "content", "text", "parts"):
        if key not in message:
            continue
        found = any_text(message[key])
        if found:
            return found
    markdown = message.get("markdown")
    if isinstance(markdown, dict):
        return scalar_text(markdown.get("answer"))
    return found


def any_text(value: object) -> str | None:
    """`scalar_text`, and also the text of parts: `[{"type": "text", "text": ...}]`, `["..."]`, `{"parts": [...]}`."""
    if isinstance(value, dict):
        value = value["parts"] if isinstance(value.get("parts"), list) else [value]
    if not isinstance(value, list):
        return scalar_text(value)
    texts: list[str] = []
    for part in value:
        text = part.get("text", part.get("content")) if isinstance(part, dict) else part
        if not isinstance(text, str):
            continue  # a picture, a file: see `holds_media`
        texts.append(safe_text(text))
    return "".join(texts) if texts else None


def holds_media(message: object) -> bool:
    """Whether a part of the message is no text."""
    parts = message.get("content") if isinstance(message, dict) else None
    return isinstance(parts, list) and any(isinstance(part, dict) and any_text(part) is None for part in parts)


def role_name(item: Row) -> str | None:
    """Whose message it is, in the data set's own word; None where it does not say."""
    author = item.get("author")
    names = (item.get("from"), item.get("role"), author.get("role") if isinstance(author, dict) else author)
    return next((name for name in names if isinstance(name, str)), None)


def role_of(item: Row) -> str | None:
    """user | assistant | system | tool; None where it does not say, or is nobody's that is known."""
    return ROLES.get((role_name(item) or "").strip().lower())


def role_and_text(item: object) -> tuple[str, str] | None:
    """(user | assistant | system | tool, text) of a turn, which may be a JSON string; None: it is no message."""
    if isinstance(item, str):
        try:
            item = msgspec.json.decode(item)
        except (msgspec.MsgspecError, UnicodeEncodeError, RecursionError):
            return None
    if not isinstance(item, dict):
        return None
    role, text = role_of(item), message_text(item)
    if text is None and role == "assistant" and has_any(item, ("tool_calls", "function_call")):
        text = ""
    return None if role is None or text is None else (role, text)


def written_list(text: str) -> list[Any] | None:
    """A list that is written as a text; None: it is something else."""
    try:
        found = msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeEncodeError, RecursionError):
        return None
    return found if isinstance(found, list) else None


def has_any(row: Row, keys: Sequence[str]) -> bool:
    """Whether one of these keys holds something."""
    return any(row.get(key) for key in keys)


def row_id(row: object, number: int) -> str:
    """The row's own id where it has a usable one, else its number in the file, from 1."""
    if isinstance(row, dict):
        for key in ("id", "question_id", "conversation_id"):
            value = row.get(key)
            if (isinstance(value, str) and value) or (isinstance(value, int) and not isinstance(value, bool)):
                return safe_text(str(value))
    return str(number)


def stated_tokens(row: Row, notes: list[str]) -> int | None:
    """The output length that the row states, in tokens: 128, 128.0 or "128"; also in Ollama's `options`.

    None where it states none. One that is stated and is no length (-1, 128.5, "long") is noted.
    """
    options = row.get("options")
    said_in = {**options, **row} if isinstance(options, dict) else row
    for key in LENGTH_KEYS:
        value = said_in.get(key)
        if value is None:
            continue
        said = _TOKENS.fullmatch(value.strip()) if isinstance(value, str) else None
        number = float(said[1]) if said else value
        if isinstance(number, int | float) and not isinstance(number, bool) and 0 < number < 2**53 and number % 1 == 0:
            return int(number)
        notes.append("length_unreadable")
    return None


def answer_of(row: Row, notes: list[str], keys: Sequence[str] = ANSWER_KEYS) -> str | None:
    """The row's answer: text, a number, a message, or the first of several; None where there is none.

    One that is there and holds no text is noted.
    """
    unreadable = False
    for key in keys:
        value = row.get(key)
        if value is None:
            continue
        items = value if isinstance(value, list) else [value]
        said = [text for item in items if (text := _said(item)) is not None]
        if said:
            if len(said) > 1:
                notes.append("first_of_several_answers")
            return said[0]
        unreadable = unreadable or bool(items)
    if unreadable:
        notes.append("answer_unreadable")
    return None


def _said(item: object) -> str | None:
    """What an answer says: a scalar's text, or that of a message of the assistant."""
    if not isinstance(item, dict):
        return None if item is None else scalar_text(item)
    message = role_and_text(item) if has_any(item, ("role", "from")) else ("assistant", message_text(item))
    return message[1] if message is not None and message[0] == "assistant" else None


def system_of(row: Row) -> str | None:
    """The row's own system message, "" where it has none; None: it has one that is no text."""
    for key in SYSTEM_KEYS:
        if row.get(key):
            return any_text(row[key])
    return ""


def note_left_out(row: Row, notes: list[str]) -> None:
    """What stands beside the question and is not sent is noted."""
    notes += [note for note, keys in LEFT_OUT if has_any(row, keys)]


def context_of(row: Row) -> str | None:
    """What the question is about: `input`, `context`, `passage`, joined; "" without. None: one that is no text."""
    texts = [scalar_text(row.get(key)) for key in CONTEXT_KEYS]
    if any(text is None for text in texts):
        return None
    return "\n\n".join(text for text in texts if text is not None and not is_empty(text))


def earlier_turns(row: Row) -> tuple[Turn, ...] | None:
    """`history`: pairs of question and answer. () without; None: of another shape."""
    history = row.get("history")
    if not history:
        return ()
    if not isinstance(history, list):
        return None
    turns = []
    for pair in history:
        texts = [scalar_text(text) for text in pair] if isinstance(pair, list) and len(pair) == 2 else []
        if not texts or any(text is None for text in texts) or is_empty(texts[0] or ""):
            return None
        turns.append(Turn(texts[0] or "", None if is_empty(texts[1] or "") else texts[1]))
    return tuple(turns)


def asked(
    row: Row, row_name: str, rules: Rules, user: str, answer: str | None, notes: list[str], template: str | None = None
) -> Reading:
    """The reading of a row that holds one question, with its system message and what was said before."""
    system, earlier = system_of(row), earlier_turns(row)
    if system is None or earlier is None:
        return dropped("bad_turn")
    if is_empty(user):
        return dropped("empty_value")
    if system and not is_empty(system) and rules.system == "drop":
        notes.append("system_dropped")
        system = ""
    if is_empty(system):
        system = ""
    kept = None if answer is None or is_empty(answer) else answer
    turns = (*earlier, Turn(user, kept, stated_tokens(row, notes)))
    if template is not None and (earlier or system):
        template = None if earlier else f"{system}\n\n{template}"
    note_left_out(row, notes)
    conversation = Conversation(id=row_name, turns=turns, system=system or None, template=template)
    return Reading(conversation, notes=tuple(dict.fromkeys(notes)))
