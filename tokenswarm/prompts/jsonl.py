"""Plain rows: {"prompt", "output_tokens"?}, {"text"}, {"messages": [...]}, MT-Bench's and AIPerf's {"turns": [...]},
or a string.

`prompt` may be a list of messages. Beside a prompt of text stand `input`, `context` (joined to it), `system` and
`history`; an answer is `output`, `answer`, `completion`, `response` or `chosen`, as text or as messages. These rows may
stand in JSONL or in a JSON array; the name is that of the usual container.
"""

from __future__ import annotations

from typing import Any

from tokenswarm.prompts import Conversation, Turn
from tokenswarm.prompts.reading import (
    Reading,
    Row,
    Rules,
    answer_of,
    asked,
    context_of,
    dropped,
    is_empty,
    message_text,
    note_left_out,
    role_of,
    safe_text,
    stated_tokens,
)
from tokenswarm.prompts.sharegpt import from_messages

_QUESTION_KEYS = ("prompt", "turns", "messages", "text")


def matches(row: object) -> bool:
    return isinstance(row, str) or (isinstance(row, dict) and any(key in row for key in _QUESTION_KEYS))


def read(row: object, row_name: str, rules: Rules) -> Reading:
    if isinstance(row, str):
        return asked({}, row_name, rules, safe_text(row), None, [])
    key = next((key for key in _QUESTION_KEYS if key in row), None) if isinstance(row, dict) else None
    if key is None or not isinstance(row, dict):
        return dropped("unknown_shape")
    question = row[key]
    if question is None:
        return dropped("empty_value")
    if isinstance(question, str) and key in ("prompt", "text"):
        return _one_question(row, row_name, rules, safe_text(question), joined=key == "prompt")
    if not isinstance(question, list):
        return dropped("bad_turn")
    if key == "turns" and (questions := _plain_turns(question, row, row_name, rules)) is not None:
        return questions
    notes: list[str] = []
    return from_messages(question, row, row_name, rules, notes, answer=answer_of(row, notes))


def _one_question(row: Row, row_name: str, rules: Rules, user: str, *, joined: bool) -> Reading:
    """`joined`: with what it is about. A `text` is a whole prompt, and has it already."""
    context = context_of(row) if joined else ""
    if context is None:
        return dropped("bad_turn")
    if role_of(row) not in (None, "user"):  # a message of a conversation, each in a row of its own
        return dropped("no_user_turn")
    if not is_empty(context) and not is_empty(user):
        user = f"{user}\n\n{context}"
    notes = ["history_left_out"] if row.get("parent_id") else []
    return asked(row, row_name, rules, user, answer_of(row, notes), notes)


def _plain_turns(items: list[Any], row: Row, row_name: str, rules: Rules) -> Reading | None:
    """Questions without answers: MT-Bench's texts, AIPerf's objects, of which the first may be a system message.

    A stated length is that answer's, or each one's where the row states it. None: they are messages of two sides.
    """
    said = [{"text": item} if isinstance(item, str) else item for item in items]
    if said and isinstance(said[0], dict) and role_of(said[0]) == "system":
        row, said = {**row, "system": message_text(said[0])}, said[1:]
    if not said or not all(isinstance(item, dict) and role_of(item) in (None, "user") for item in said):
        return None
    texts = [message_text(item) for item in said]
    if None in texts:
        return dropped("bad_turn")
    if is_empty(texts[0] or ""):
        return dropped("empty_value")
    notes: list[str] = []
    first = asked(row, row_name, rules, texts[0] or "", None, notes)
    if first.conversation is None:
        return first
    notes += first.notes
    whole, each = first.conversation, first.conversation.turns[-1].output_tokens
    turns = list(whole.turns[:-1])
    for item, text in zip(said, texts, strict=True):
        note_left_out(item, notes)
        if is_empty(text or ""):
            notes.append("cut_at_empty_message")
        else:
            turns.append(Turn(text or "", None, stated_tokens(item, notes) or each))
    return Reading(Conversation(whole.id, tuple(turns), whole.system), notes=tuple(dict.fromkeys(notes)))
