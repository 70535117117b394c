"""Plain rows: {"prompt", "output_tokens"?}, {"text"}, {"messages": [...]}, MT-Bench's {"turns": [...]}, or a string.

`prompt` may be a list of messages. Beside a prompt of text stand `input`, `context` (joined to it), `system` and
`history`; an answer is `output`, `answer`, `completion`, `response` or `chosen`, as text or as messages. These rows may
stand in JSONL or in a JSON array; the name is that of the usual container.
"""

from __future__ import annotations

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
    safe_text,
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
    if isinstance(question, str):
        return _one_question(row, row_name, rules, safe_text(question), joined=key == "prompt")
    if not isinstance(question, list):
        return dropped("bad_turn")
    if question and all(isinstance(turn, str) for turn in question) and key == "turns":
        return _plain_turns(question, row, row_name, rules)
    notes: list[str] = []
    return from_messages(question, row, row_name, rules, notes, answer=answer_of(row, notes))


def _one_question(row: Row, row_name: str, rules: Rules, user: str, *, joined: bool) -> Reading:
    """`joined`: with what it is about. A `text` is a whole prompt, and has it already."""
    context = context_of(row) if joined else ""
    if context is None:
        return dropped("bad_turn")
    if not is_empty(context) and not is_empty(user):
        user = f"{user}\n\n{context}"
    notes: list[str] = []
    return asked(row, row_name, rules, user, answer_of(row, notes), notes)


def _plain_turns(texts: list[str], row: Row, row_name: str, rules: Rules) -> Reading:
    """MT-Bench: questions only. A stated length is each answer's."""
    if is_empty(texts[0]):
        return dropped("empty_value")
    kept = [safe_text(text) for text in texts if not is_empty(text)]
    first = asked(row, row_name, rules, kept[0], None, [] if len(kept) == len(texts) else ["cut_at_empty_message"])
    if first.conversation is None:
        return first
    whole, length = first.conversation, first.conversation.turns[-1].output_tokens
    turns = (*whole.turns, *(Turn(text, None, length) for text in kept[1:]))
    return Reading(Conversation(whole.id, turns, whole.system), notes=first.notes)
