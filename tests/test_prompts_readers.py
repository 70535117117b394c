"""What each reader makes of a row: one quirk a row, in tests/data/*_quirks.json, and rows of real files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from tokenswarm.prompts import Conversation, Turn, alpaca, jsonl, sharegpt
from tokenswarm.prompts.info import UNANSWERED
from tokenswarm.prompts.library import DataSettings, read_row
from tokenswarm.prompts.reading import LENGTH_KEYS, Reading, Rules, row_id, safe_text
from tokenswarm.prompts.source import RowFault, decode_row

DATA = Path(__file__).parent / "data"
RULES = Rules()


def rows_of(name: str) -> list[Any]:
    return json.loads((DATA / name).read_text(encoding="utf-8"))


SHAREGPT = {row.get("id", "no-id"): row for row in rows_of("sharegpt_quirks.json")}


def read_quirk(name: str, rules: Rules = RULES) -> Reading:
    return sharegpt.read(SHAREGPT[name], name, rules)


def turns_of(reading: Reading) -> tuple[Turn, ...]:
    assert reading.conversation is not None, reading.reason
    return reading.conversation.turns


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("empty-list_0", "empty_conversation"),
        ("null-list_0", "empty_conversation"),
        ("gpt-only_1", "no_user_turn"),
        ("system-only_0", "no_user_turn"),
        ("empty-value_0", "empty_value"),
        ("blank-value_0", "empty_value"),
        ("null-value_0", "empty_value"),
        ("plain-string-turn_0", "bad_turn"),
        ("missing-from_0", "bad_turn"),
        ("missing-text_0", "bad_turn"),
        ("unknown-role_0", "bad_turn"),
        ("number-turn_0", "bad_turn"),
        ("no-conversation_0", "unknown_shape"),
        ("string-conversations_0", "unknown_shape"),
    ],
)
def test_rows_that_hold_nothing_to_send_say_why(name: str, reason: str) -> None:
    assert read_quirk(name) == Reading(None, reason)


@pytest.mark.parametrize(
    ("name", "turns"),
    [
        ("plain_0", [("Which way is north?", "Where the moss grows."), ("And without moss?", "Use a compass.")]),
        ("user-assistant_0", [("Roles by their other names?", "Fine.")]),
        ("chatgpt_0", [("Who wrote this?", "Somebody.")]),
        ("bing-markdown_0", [("What is a fjord?", "A **drowned** valley.")]),
        ("bard-text_0", [("And a firth?", "A Scottish one.")]),
        ("items_0", [("The key is items here.", "So it is.")]),
        ("page-content_0", [("A whole page?", "With its title.")]),
        ("conversation-singular_0", [("One conversation?", "One.")]),
        ("messages_0", [("Plainly?", "Plainly.")]),
        ("content-parts_0", [("In parts", "Joined.")]),
        ("json-string-turn_0", [("I am a string that holds an object.", "So am I.")]),
        ("html_0", [("<p>Bold: <b>yes</b> &amp; no</p>", '<div class="markdown">ok</div>')]),
        ("escaped-markdown_0", [("Compute BX\\*2 and a\\_b", "a\\_b = 2")]),
        ("cjk_0", [("请用中文介绍一下潮汐。", "潮汐是海水的周期性涨落。")]),
        ("emoji-zwj_0", [("👩‍👩‍👧‍👦 who is this?", "A family 🙂")]),
        ("nul-control_0", [("a\0b\x07c\x1b[0m", "kept")]),
        ("crlf_0", [("line one\r\nline two\r\n", "three\r\n")]),
        ("spaces_0", [("  leading and trailing stay  \n", "\tyes ")]),
        ("zero-width_0", [("no\u200bbreak\u00a0here", "kept too")]),
        ("one-character_0", [("?", "!")]),
        ("number-value_0", [("42", "The answer.")]),
        ("role-spelling_0", [("Spelled oddly?", "Understood.")]),
        ("empty-answer_0", [("Anybody there?", None)]),
        ("ends-with-human_0", [("A?", "B."), ("C?", None)]),
        ("empty-second-question_0", [("First?", "Yes.")]),
        ("human-human_0", [("Wait,\n\nI mean: which way is south?", "The other.")]),
        ("gpt-gpt_0", [("Count.", "One,\n\ntwo.")]),
        ("gpt-first_11", [("Go on, please.", "Gladly.")]),
        ("tool-call_0", [("Weather?", "Grey.")]),
        ("system-late_0", [("One?", "Two.")]),
        ("lone-surrogate_0", [("cut \ufffd here", "made safe")]),
        ("pair_0", [("🙂 here", "one character")]),
    ],
)
def test_turns_of_every_shape(name: str, turns: list[tuple[str, str | None]]) -> None:
    got = turns_of(read_quirk(name))
    assert [(turn.user, turn.answer) for turn in got] == turns
    for turn in got:
        (turn.user + (turn.answer or "")).encode()  # whatever the file held, it can be sent


@pytest.mark.parametrize(
    ("name", "notes"),
    [
        ("plain_0", ()),
        ("gpt-first_11", ("leading_assistant_trimmed",)),
        ("empty-answer_0", ("empty_answer_skipped",)),
        ("empty-second-question_0", ("cut_at_empty_message",)),
        ("human-human_0", ("user_messages_joined",)),
        ("tool-call_0", ("tool_skipped", "tools_left_out")),
        ("content-parts_0", ("media_left_out",)),
        ("system-late_0", ("late_system_skipped",)),
    ],
)
def test_every_change_to_a_kept_row_is_noted(name: str, notes: tuple[str, ...]) -> None:
    assert read_quirk(name).notes == notes


def test_a_row_that_starts_with_the_assistant_is_dropped_where_the_rule_says_so() -> None:
    rules = Rules(leading_assistant="drop")
    assert read_quirk("gpt-first_11", rules) == Reading(None, "starts_with_assistant")
    assert read_quirk("gpt-only_1", rules) == Reading(None, "starts_with_assistant")
    assert read_quirk("system-first_0", rules).conversation is not None


def test_the_system_message_is_kept_apart_or_dropped() -> None:
    kept = read_quirk("system-first_0").conversation
    assert kept is not None
    assert kept.system == "Answer in rhymes."
    reading = read_quirk("system-first_0", Rules(system="drop"))
    assert reading.conversation is not None
    assert reading.conversation.system is None
    assert reading.notes == ("system_dropped",)
    column = sharegpt.read({"system": "From a column.", "conversations": [{"from": "human", "value": "x"}]}, "r", RULES)
    assert column.conversation is not None
    assert column.conversation.system == "From a column."


def test_ids_are_the_rows_own_or_its_number() -> None:
    assert row_id({"id": "QWJhYvA_0"}, 7) == "QWJhYvA_0"
    assert row_id({"question_id": 81}, 7) == "81"
    assert row_id({"id": ""}, 7) == row_id({"id": None}, 7) == row_id("text", 7) == row_id({"id": True}, 7) == "7"


ALPACA = rows_of("alpaca_quirks.json")


def alpaca_row(instruction: object) -> Reading:
    row = next(row for row in ALPACA if row.get("instruction", "-") == instruction)
    return alpaca.read(row, "r", RULES)


@pytest.mark.parametrize(
    "instruction", ["Sing.", "Hum.", "Whistle.", "Clap.", "Stamp.", "Jump.", "Nod.", "Wink.", "Bow."]
)
def test_every_spelling_of_no_input_is_no_input(instruction: str) -> None:
    reading = alpaca_row(instruction)
    assert turns_of(reading)[0].user == instruction
    assert reading.notes == ("no_input_marker",)
    assert reading.conversation is not None
    assert "### Input" not in (reading.conversation.template or "")


@pytest.mark.parametrize(
    ("instruction", "user", "answer"),
    [
        ("Name a colour.", "Name a colour.", "Green."),
        ("Double the number.", "Double the number.\n\n21", "42"),
        (
            "Explain the phrase.",
            "Explain the phrase.\n\nNo input was given to the machine.",
            "It had nothing to work on.",
        ),
        ("Say nothing.", "Say nothing.", None),
        ("Say nothing at all.", "Say nothing at all.", None),
        ("Give no output.", "Give no output.", None),
        ("Show the text key.", "Show the text key.", "It stays away."),
        ("No input key.", "No input key.", "Fine."),
        ("No input key at all.", "No input key at all.", "Fine too."),
        (12, "12", "A number as instruction."),
        ("A number as input.", "A number as input.\n\n7", "Seven."),
        ("Picture?", "Picture?\n\n<Picture Attached>", "I see none."),
        ("Controls.", "Controls.\n\na\0b", "Kept."),
        ("  Spaces stay. ", "  Spaces stay. \n\n  here too\n", "Yes."),
        ("A seed task.", "A seed task.\n\nits input", "its output"),
        ("From an evaluation set.", "From an evaluation set.", "With a generator."),
    ],
)
def test_alpaca_rows_as_chat_messages(instruction: object, user: str, answer: str | None) -> None:
    turn = turns_of(alpaca_row(instruction))[0]
    assert (turn.user, turn.answer) == (user, answer)


@pytest.mark.parametrize(
    ("instruction", "reason"),
    [("", "empty_value"), ("   ", "empty_value"), (None, "empty_value"), ("A list as input.", "bad_turn")],
)
def test_alpaca_rows_without_a_question(instruction: object, reason: str) -> None:
    assert alpaca_row(instruction) == Reading(None, reason)
    assert alpaca.read({"input": "x", "output": "y"}, "r", RULES).reason == "unknown_shape"


def test_alpaca_templates_are_byte_exact() -> None:
    # written out here once more, from train.py of stanford_alpaca@761dc5bf
    with_input = alpaca_row("Double the number.").conversation
    assert with_input is not None
    assert with_input.template == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nDouble the number.\n\n### Input:\n21"
        "\n\n### Response:"
    )
    without = alpaca_row("Sing.").conversation
    assert without is not None
    assert without.template == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nSing.\n\n### Response:"
    )


def test_braces_in_alpaca_data_are_data() -> None:
    assert alpaca.render("In {input} {instruction}", "{instruction} {input}").count("{instruction} {input}") == 1
    assert "In {input} {instruction}\n\n### Input:\n{instruction} {input}\n\n" in alpaca.render(
        "In {input} {instruction}", "{instruction} {input}"
    )


@pytest.mark.parametrize(
    ("row", "turns"),
    [
        ("just a string", [Turn("just a string")]),
        ({"prompt": "p"}, [Turn("p")]),
        ({"prompt": "p", "output_tokens": 32}, [Turn("p", None, 32)]),
        ({"prompt": "p", "completion": "c"}, [Turn("p", "c")]),
        ({"prompt": "p", "output_len": 5, "response": "r"}, [Turn("p", "r", 5)]),
        ({"prompt": "p", "output_tokens": True}, [Turn("p")]),
        ({"prompt": "p", "output_tokens": -1}, [Turn("p")]),
        ({"text": "t"}, [Turn("t")]),
        ({"turns": ["a", "b"]}, [Turn("a"), Turn("b")]),
        ({"turns": ["a", " "]}, [Turn("a")]),
        ({"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, [Turn("a", "b")]),
        ({"messages": [{"role": "user", "content": "a"}], "max_tokens": 9}, [Turn("a", None, 9)]),
    ],
)
def test_plain_rows(row: object, turns: list[Turn]) -> None:
    assert jsonl.matches(row)
    assert jsonl.read(row, "r", RULES).conversation == Conversation(id="r", turns=tuple(turns))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": ""}, "empty_value"),
        ({"prompt": None}, "empty_value"),
        ({"prompt": 5}, "bad_turn"),
        ({"turns": []}, "empty_conversation"),
        ({"turns": ["", "b"]}, "empty_value"),
        ({"turns": [1]}, "bad_turn"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "no_user_turn"),
        ({"messages": "a"}, "bad_turn"),
        ({"turns": [{"text": "a"}, {"images": ["b"]}]}, "bad_turn"),
        ({"text": "An answer.", "role": "assistant", "parent_id": "1"}, "no_user_turn"),
        ({"timestamp": 0, "input_length": 5}, "unknown_shape"),
        (7, "unknown_shape"),
        (None, "unknown_shape"),
        ([], "unknown_shape"),
    ],
)
def test_plain_rows_without_a_question(row: object, reason: str) -> None:
    assert jsonl.read(row, "r", RULES) == Reading(None, reason)


@pytest.mark.parametrize("reader", [sharegpt, alpaca, jsonl])
@pytest.mark.parametrize("row", [None, 1, 1.5, True, [], [[]], {}, {"id": 1}])
def test_readers_take_any_json_value(reader: Any, row: object) -> None:
    assert not reader.matches(row)
    assert reader.read(row, "r", RULES).reason == "unknown_shape"


def test_surrogates_become_whole_characters_or_the_replacement() -> None:
    assert safe_text("\ud83d\ude42") == "🙂"
    assert safe_text("a\ud83d") == "a\ufffd"
    assert safe_text("\ude42\ud83d") == "\ufffd\ufffd"
    assert safe_text("é") == "é"


def test_rows_that_strict_parsers_refuse_are_read() -> None:
    assert decode_row(b'{"a": "raw\x01control"}') == {"a": "raw\x01control"}
    assert decode_row(b'["\\ud83d"]') == ["\ud83d"]
    assert decode_row(b"12345678901234567890123") == 12345678901234567890123


def as_opened(row: object, **settings: Any) -> Reading:
    """What the library makes of a row: the format is found, empty columns decide nothing."""
    return read_row(row, 0, DataSettings(path="x", **settings))[1]


def asked(*texts: str) -> Iterator[dict[str, str]]:
    """Messages of user and assistant in turns."""
    yield from (
        {"role": role, "content": text} for role, text in zip(cycle(("user", "assistant")), texts, strict=False)
    )


def said(reading: Reading) -> list[tuple[str, str | None, int | None]]:
    return [(turn.user, turn.answer, turn.output_tokens) for turn in turns_of(reading)]


@pytest.mark.parametrize(
    ("row", "turns", "notes"),
    [
        (  # Dolly
            {"instruction": "When?", "context": "It opened in 1932.", "response": "In 1932.", "category": "closed_qa"},
            [("When?\n\nIt opened in 1932.", "In 1932.", None)],
            (),
        ),
        ({"instruction": "Name one.", "context": "", "response": "Beetroot."}, [("Name one.", "Beetroot.", None)], ()),
        (
            {"prompt": "When?", "context": "It opened in 1932.", "answer": 1932},
            [("When?\n\nIt opened in 1932.", "1932", None)],
            (),
        ),
        ({"text": "The whole prompt.", "context": "in it"}, [("The whole prompt.", None, None)], ()),
        (
            {"instruction": "A third?", "input": "", "output": ["Denmark.", "Finland."], "history": []},
            [("A third?", "Denmark.", None)],
            ("first_of_several_answers",),
        ),
        (
            {"instruction": "And?", "output": "Sweden.", "history": [["One?", "Norway."], ["Two?", None]]},
            [("One?", "Norway.", None), ("Two?", None, None), ("And?", "Sweden.", None)],
            (UNANSWERED,),
        ),
        (
            {"prompt": "And?", "response": "Sweden.", "history": [["One?", "Norway."]], "max_tokens": 9},
            [("One?", "Norway.", None), ("And?", "Sweden.", 9)],
            (),
        ),
        (
            {"prompt": [{"role": "user", "content": "A?"}], "completion": [{"role": "assistant", "content": "B."}]},
            [("A?", "B.", None)],
            (),
        ),
        ({"prompt": [{"role": "user", "content": "A?"}], "completion": "B."}, [("A?", "B.", None)], ()),
        ({"prompt": "A?", "chosen": "B.", "rejected": "C."}, [("A?", "B.", None)], ()),
        ({"prompt": "A?", "output": {"odd": 1}}, [("A?", None, None)], ("answer_unreadable",)),
        ({"conversation": {"messages": [{"role": "user", "content": "A?"}]}}, [("A?", None, None)], ()),
        ({"conversations": [[{"role": "user", "content": "A?"}]]}, [("A?", None, None)], ()),
        (
            {"messages": [{"author": {"role": "user"}, "content": {"content_type": "text", "parts": ["A", "?"]}}]},
            [("A?", None, None)],
            (),
        ),
        (
            {
                "messages": [
                    {"role": "user", "name": "Bo", "content": "A?"},
                    {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
                    {"role": "tool", "content": [{"type": "text", "text": "x"}]},
                    {"role": "assistant", "content": "B."},
                ]
            },
            [("A?", "B.", None)],
            ("tool_skipped", "empty_answer_skipped"),
        ),
        (
            {"image": "x.png", "conversations": [{"from": "human", "value": "<image>What?"}]},
            [("<image>What?", None, None)],
            ("media_left_out",),
        ),
        (  # a request: its length is that of the answer to its last question
            {"messages": [*asked("A?", "B.", "C?")], "max_tokens": 9},
            [("A?", "B.", None), ("C?", None, 9)],
            (),
        ),
        ({"messages": [*asked("A?", "B.", "C?", "D.")], "max_tokens": 9}, [("A?", "B.", 9), ("C?", "D.", None)], ()),
        (  # OpenAI's batches
            {"custom_id": "r-1", "url": "/v1/chat/completions", "body": {"messages": [*asked("A?")], "max_tokens": 9}},
            [("A?", None, 9)],
            (),
        ),
        ({"payload": {"prompt": "A?", "stream": True}}, [("A?", None, None)], ()),
        ({"messages": [*asked("A?")], "options": {"num_predict": 9}}, [("A?", None, 9)], ()),  # Ollama's
        ({"messages": json.dumps([*asked("A?", "B.")])}, [("A?", "B.", None)], ()),  # a column of a table
        (  # AIPerf
            {"session_id": "s", "turns": [{"text": "A?", "delay": 0}, {"text": "B?", "delay": 9, "output_length": 7}]},
            [("A?", None, None), ("B?", None, 7)],
            ("delay_left_out", UNANSWERED),
        ),
        (
            {"turns": [{"role": "user", "text": "A?", "image": "x"}, {"text": ""}, {"text": "B?"}], "max_tokens": 9},
            [("A?", None, 9), ("B?", None, 9)],
            ("media_left_out", "cut_at_empty_message", UNANSWERED),
        ),
        ({"turns": [*asked("A?", "B.")]}, [("A?", "B.", None)], ()),
        ({"turns": [*asked("A?", "B.", "C?")]}, [("A?", "B.", None), ("C?", None, None)], ()),
        ({"text": "A?", "role": "prompter", "parent_id": None}, [("A?", None, None)], ()),  # OASST
        ({"text": "C?", "role": "prompter", "parent_id": "1"}, [("C?", None, None)], ("history_left_out",)),
    ],
)
def test_rows_are_sent_with_all_that_belongs_to_them(row: object, turns: list[Any], notes: tuple[str, ...]) -> None:
    reading = as_opened(row)
    assert said(reading) == turns
    assert reading.notes == notes


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "Go.", "system": "Answer in one word.", "output": "x"},
        {"prompt": "Go.", "system_prompt": "Answer in one word."},
        {"messages": [{"role": "user", "content": "Go."}], "system": [{"type": "text", "text": "Answer in one word."}]},
        {"messages": [{"role": "developer", "content": "Answer in one word."}, {"role": "user", "content": "Go."}]},
        {"turns": ["Go.", "On."], "system": "Answer in one word."},
        {"turns": [{"role": "system", "text": "Answer in one word."}, {"text": "Go."}]},
    ],
)
def test_a_rows_system_message_is_sent_or_counted(row: object) -> None:
    conversation = as_opened(row).conversation
    assert conversation is not None
    assert conversation.system == "Answer in one word."
    if conversation.template is not None:
        assert conversation.template.startswith("Answer in one word.\n\nBelow is")
    without = as_opened(row, rules=Rules(system="drop"))
    assert without.conversation is not None
    assert (without.conversation.system, without.notes[:1]) == (None, ("system_dropped",))


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "Go.", "history": [["only a question"]]},
        {"instruction": "Go.", "history": "a text"},
        {"instruction": "Go.", "context": ["a", "list"]},
        {"prompt": "Go.", "context": {"title": "x"}},
        {"prompt": "Go.", "system": {"odd": 1}},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
    ],
)
def test_a_row_whose_context_cant_be_read_is_dropped(row: object) -> None:
    assert as_opened(row) == Reading(None, "bad_turn")


@pytest.mark.parametrize(
    ("row", "first"),
    [
        ({"conversations": None, "messages": [{"role": "user", "content": "A?"}]}, "A?"),
        ({"conversations": [], "messages": [{"role": "user", "content": "A?"}]}, "A?"),
        ({"conversations": [{"from": "human", "value": "C?", "role": None, "content": None}], "messages": None}, "C?"),
        ({"messages": [{"from": None, "value": None, "role": "user", "content": "E?"}]}, "E?"),
        ({"instruction": "G", "input": "", "output": "H", "conversations": None, "messages": None}, "G"),
        ({"instruction": None, "prompt": "P", "text": None, "turns": None}, "P"),
        ({"prompt": None, "text": "T"}, "T"),
    ],
)
@pytest.mark.parametrize("explicit", [False, True])
def test_a_column_that_holds_nothing_hides_no_other(row: object, first: str, explicit: bool) -> None:
    wanted = "auto" if not explicit else "alpaca" if first == "G" else "jsonl" if first in "PT" else "sharegpt"
    assert said(as_opened(row, format=wanted))[0][0] == first


def test_a_row_of_empty_columns_is_empty() -> None:
    assert as_opened({"conversations": None, "messages": None}) == Reading(None, "empty_conversation")


@pytest.mark.parametrize("key", LENGTH_KEYS)
@pytest.mark.parametrize(
    ("value", "length"),
    [
        (128, 128), (128.0, 128), ("128", 128), (" 128.0 ", 128), (None, None), (128.5, None), (-1, None), (0, None),
        ("long", None), (True, None), ([128], None), (1e300, None), ("9" * 5000, None),
    ],
)  # fmt: skip
def test_a_length_is_read_in_all_its_clothes_or_noted(key: str, value: object, length: int | None) -> None:
    for row in ({"prompt": "p", key: value}, {"instruction": "p", key: value}, {"turns": ["p"], key: value}):
        reading = as_opened(row)
        assert said(reading)[0] == ("p", None, length)
        assert reading.notes == (() if length or value is None else ("length_unreadable",))


@pytest.mark.parametrize("row", [b'{"prompt": "a", "prompt": "b"}', b'{"a": {"x": 1, "x": 2}, "x": 3}'])
def test_a_key_that_stands_twice_is_no_row(row: bytes) -> None:
    with pytest.raises(RowFault, match="stands twice"):
        decode_row(row)


def test_a_key_may_stand_in_two_objects_and_in_texts() -> None:
    row = b'{"id": 1, "messages": [{"id": 2, "text": "\\"id\\""}, {"id": 3}]}'
    assert decode_row(row) == {"id": 1, "messages": [{"id": 2, "text": '"id"'}, {"id": 3}]}
