"""Plain rows: {"prompt", "output_tokens"?}, {"text"}, {"messages": [...]}, MT-Bench's {"turns": [...]}, or a string.

`prompt` may be a list of messages. An answer is taken from `answer`, `completion`, `response` or `output` where it is a
string. These rows may stand in JSONL or in a JSON array; the name is that of the usual container.
"""

from __future__ import annotations

from tokenswarm.prompts import Conversation, Turn
from tokenswarm.prompts.reading import Reading, Row, Rules, dropped, is_empty, one_turn, safe_text, stated_tokens
from tokenswarm.prompts.sharegpt import from_messages

_QUESTION_KEYS = ("prompt", "turns", "messages", "text")
_ANSWER_KEYS = ("answer", "completion", "response", "output")


def matches(row: object) -> bool:
    return isinstance(row, str) or (isinstance(row, dict) and any(key in row for key in _QUESTION_KEYS))


def read(row: object, row_name: str, rules: Rules) -> Reading:
    if isinstance(row, str):
        return one_turn(row_name, safe_text(row), None)
    if not isinstance(row, dict):
        return dropped("unknown_shape")
    key = next((key for key in _QUESTION_KEYS if key in row), None)
    if key is None:
        return dropped("unknown_shape")
    question = row[key]
    if isinstance(question, str):
        return one_turn(row_name, safe_text(question), _answer(row), stated_tokens(row))
    if question is None:
        return dropped("empty_value")
    if not isinstance(question, list):
        return dropped("bad_turn")
    if question and all(isinstance(turn, str) for turn in question) and key == "turns":
        return _plain_turns(question, row_name, stated_tokens(row))
    return from_messages(question, row_name, rules, system=row.get("system"), output_tokens=stated_tokens(row))


def _plain_turns(texts: list[str], row_name: str, output_tokens: int | None) -> Reading:
    if is_empty(texts[0]):
        return dropped("empty_value")
    kept = [safe_text(text) for text in texts if not is_empty(text)]
    notes = () if len(kept) == len(texts) else ("cut_at_empty_message",)
    return Reading(Conversation(row_name, tuple(Turn(text, None, output_tokens) for text in kept)), notes=notes)


def _answer(row: Row) -> str | None:
    for key in _ANSWER_KEYS:
        value = row.get(key)
        if isinstance(value, str):
            return safe_text(value)
    return None
