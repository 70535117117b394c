"""ShareGPT rows, and every other list of messages, as conversations.

Takes `conversations`, `conversation`, `items` or `messages` (also inside `content`, the site's page shape), roles by
name or alias, text from `value`, `content`, `text` or `markdown.answer`. Values stay as they are: HTML, escapes, CRLF.
A real V3 file was cut at arbitrary messages: a third of such rows starts with the assistant, so roles are checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenswarm.prompts import Conversation, Turn
from tokenswarm.prompts.reading import (
    Reading,
    Row,
    Rules,
    dropped,
    has_any,
    holds_media,
    is_empty,
    note_left_out,
    role_and_text,
    stated_tokens,
    system_of,
    written_list,
)

MESSAGE_KEYS = ("conversations", "conversation", "items", "messages")


def matches(row: object) -> bool:
    return isinstance(row, dict) and messages_of(row) is not None


def read(row: object, row_name: str, rules: Rules) -> Reading:
    items = messages_of(row) if isinstance(row, dict) else None
    if items is None or not isinstance(row, dict):
        return dropped("unknown_shape")
    return from_messages(items, row, row_name, rules, [])


def messages_of(row: Row) -> list[Any] | None:
    """The row's list of messages: the first that holds some, also inside another (`{"conversation": {"messages": …}}`),
    or written as text, as in a column of a table. [] where such keys are there, and hold nothing.
    """
    found: list[Any] | None = None
    for key in (*MESSAGE_KEYS, "content"):
        value = row.get(key)
        if isinstance(value, dict):
            value = messages_of(value)
        elif key == "content":
            continue
        elif isinstance(value, str):
            value = written_list(value)
        if isinstance(value, list):
            if len(value) == 1 and isinstance(value[0], list):
                value = value[0]
            if value:
                return value
        if isinstance(value, list) or (key in row and row[key] is None):
            found = []
    return found


def from_messages(
    items: Sequence[object], row: Row, row_name: str, rules: Rules, notes: list[str], *, answer: str | None = None
) -> Reading:
    """The conversation that a list of messages of `row` holds.

    A length that the row states is that of the first answer; where the messages end with a question, as those of a
    request, it is that of the answer to it.
    `answer`: what stands beside the messages as the answer to the last of them.
    """
    if not items:
        return dropped("empty_conversation")
    messages: list[tuple[str, str]] = []
    for item in items:
        message = role_and_text(item)
        if message is None:
            return dropped("bad_turn")
        messages.append(message)
    if any(isinstance(item, dict) and has_any(item, ("tool_calls", "function_call")) for item in items):
        notes.append("tool_skipped")
    if any(holds_media(item) for item in items):
        notes.append("media_left_out")
    system = system_of(row)
    if system is None:
        return dropped("bad_turn")
    first_user = next((at for at, (role, _) in enumerate(messages) if role == "user"), len(messages))
    leading = messages[:first_user]
    if any(role != "system" for role, _ in leading):
        if rules.leading_assistant == "drop":
            return dropped("starts_with_assistant")
        notes.append("leading_assistant_trimmed")
    if first_user == len(messages):
        return dropped("no_user_turn")
    if is_empty(messages[first_user][1]):
        return dropped("empty_value")
    turns = _turns(messages[first_user:], notes)
    asked = -1 if turns[-1].answer is None else 0
    if answer is not None and turns[-1].answer is None and not is_empty(answer):
        turns[-1] = Turn(turns[-1].user, answer)
    output_tokens = stated_tokens(row, notes)
    if output_tokens is not None:
        turns[asked] = Turn(turns[asked].user, turns[asked].answer, output_tokens)
    note_left_out(row, notes)
    said = [system, *(text for role, text in leading if role == "system")]
    system_text = "\n\n".join(text for text in said if not is_empty(text))
    if system_text and rules.system == "drop":
        notes.append("system_dropped")
        system_text = ""
    conversation = Conversation(id=row_name, turns=tuple(turns), system=system_text or None)
    return Reading(conversation, notes=tuple(dict.fromkeys(notes)))


def _turns(messages: Sequence[tuple[str, str]], notes: list[str]) -> list[Turn]:
    """Turns from messages that begin with a non-empty user message.

    Two user messages in a row are one question (chat templates want the roles to alternate); an empty one ends the
    conversation, since nothing can be sent for it. Tool calls and tool results have no place in a replay: the answer
    to the user is the assistant's text after them.
    """
    turns: list[Turn] = []
    users: list[str] = []
    answers: list[str] = []
    for role, text in messages:
        if role == "user":
            if is_empty(text):
                notes.append("cut_at_empty_message")
                break
            if answers:
                turns.append(Turn("\n\n".join(users), "\n\n".join(answers)))
                users, answers = [], []
            elif users:
                notes.append("user_messages_joined")
            users.append(text)
        elif role == "assistant":
            if is_empty(text):
                notes.append("empty_answer_skipped")
            else:
                answers.append(text)
        else:
            notes.append(f"{role}_skipped" if role == "tool" else "late_system_skipped")
    turns.append(Turn("\n\n".join(users), "\n\n".join(answers) or None))
    return turns
