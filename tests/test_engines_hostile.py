"""Hostile input to the dialects: nothing but NotAnEvent for what is no event, nothing but a short line for refusals."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tokenswarm.engines import NOTHING, Delta, Dialect, NotAnEvent
from tokenswarm.engines.counts import ms_as_ns, ns, tokens
from tokenswarm.engines.dialects import DIALECTS
from tokenswarm.engines.failure import clean_line, error_message, hide, secret_words

CHAT = DIALECTS["openai", "chat"]
TEXT = DIALECTS["openai", "completions"]
RESPONSES = DIALECTS["openai", "responses"]
MESSAGES = DIALECTS["openai", "messages"]
by_name = pytest.mark.parametrize("dialect", DIALECTS.values(), ids=lambda dialect: dialect.name)


def event(dialect: Dialect, value: object) -> Delta:
    return dialect.decode(json.dumps(value).encode())


def chunk(delta: object, **rest: object) -> dict[str, object]:
    return {"id": "1", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, **rest}]}


# --- decode ----------------------------------------------------------------------------------------------------------

USUAL: dict[str, object] = {
    "openai-chat": chunk({"content": "a"}, finish_reason=None),
    "openai-completions": {"choices": [{"index": 0, "text": "a"}]},
    "ollama-chat": {"message": {"role": "assistant", "content": "a"}, "done": False},
    "ollama-generate": {"response": "a", "done": False},
    "responses": {"type": "response.output_text.delta", "item_id": "m", "content_index": 0, "delta": "a"},
    "messages": {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "a"}},
}

EVERY = b'{"choices":[{"delta":{"content":"?"},"text":"?"}],"response":"?","message":{"content":"?"}}'
TYPED = {
    "responses": b'{"type":"response.output_text.delta","delta":"?"}',
    "messages": b'{"type":"content_block_delta","delta":{"type":"text_delta","text":"?"}}',
}


def of(table: dict[str, object], dialect: Dialect) -> object:
    """The value of a dialect; the two typed APIs are read alike by both kinds."""
    return table[dialect.api if dialect.api in TYPED else dialect.name]


NO_EVENTS = {
    "text": b"hello",
    "html": b"<html><body>Log in</body></html>",
    "cut": b'{"choices":[{"index":0,"delta":{"content":"a',
    "trailing": b'{"choices":[],"done":false} x',
    "twice": b'{"choices":[],"done":false}{"choices":[],"done":false}',
    "list": b"[]",
    "string": b'"a"',
    "number": b"1",
    "NaN": b'{"choices":NaN,"done":NaN,"message":NaN,"response":NaN}',
    "Infinity": b'{"choices":-Infinity,"done":-Infinity}',
    "not UTF-8": EVERY.replace(b"?", b"\xff"),
    "lone surrogate": EVERY.replace(b"?", rb"\ud800"),
    "raw newline in text": EVERY.replace(b"?", b"a\nb"),
    "deep list": b"[" * 200_000,
    "deep object": b'{"a":' * 200_000,
    "deep, ignored": b'{"choices":[],"done":false,"x":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "deep error": b'{"error":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "nul": b"\x00",
    "done in quotes": b'"[DONE]"',
}


@by_name
@pytest.mark.parametrize("data", NO_EVENTS.values(), ids=NO_EVENTS)
def test_what_is_no_event(dialect: Dialect, data: bytes) -> None:
    data = data.replace(EVERY.partition(b"?")[0], TYPED.get(dialect.api, EVERY).partition(b"?")[0])
    with pytest.raises(NotAnEvent) as caught:
        dialect.decode(data)
    assert len(str(caught.value)) < 300
    assert "Log in" not in str(caught.value)


LIKE_COMMENTS = (b"", b"  ", b"null", b"{}", b" {} ", b'{"a":1}', b'{"id":"c1","model":"m"}', b'{"type":"ping"}')


@by_name
@pytest.mark.parametrize("data", LIKE_COMMENTS)
def test_what_says_nothing_of_the_answer_is_like_a_comment(dialect: Dialect, data: bytes) -> None:
    assert dialect.decode(data) is NOTHING


OTHER_APIS = {
    "responses": b'{"type":"response.output_text.delta","delta":"a"}',
    "messages": b'{"type":"message_start","message":{"role":"assistant","content":[]}}',
    "gemini": b'{"candidates":[{"content":{"parts":[{"text":"a"}]}}]}',
    "chat": b'{"object":"chat.completion.chunk","choices":[{"delta":{"content":"a"}}]}',
    "completions": b'{"object":"text_completion","choices":[{"text":"a"}]}',
    "ollama": b'{"message":{"content":"a"},"done":false}',
    "tgi": b'{"token":{"id":5,"text":"a"},"generated_text":null}',
}


@pytest.mark.parametrize(("other", "data"), OTHER_APIS.items(), ids=OTHER_APIS)
@pytest.mark.parametrize("dialect", [CHAT, TEXT, RESPONSES, MESSAGES], ids=lambda dialect: dialect.api)
def test_words_of_another_api_are_no_keep_alive(dialect: Dialect, other: str, data: bytes) -> None:
    if other == dialect.api:
        return
    with pytest.raises(NotAnEvent) as caught:
        dialect.decode(data)
    kind, api = ("ollama", "chat") if other == "ollama" else ("openai", other)
    told = f"it is one of the API that `engine.kind: {kind}` and `engine.api: {api}` stand for"
    assert (told in str(caught.value)) is (other not in ("gemini", "tgi"))


WORDS = {
    "chat": {"choices": [{"index": 0, "delta": {"content": "a"}}]},
    "chat, thoughts": {"choices": [{"index": 0, "delta": {"role": "assistant", "reasoning_content": "a"}}]},
    "chat, tool": {"choices": [{"delta": {"tool_calls": [{"function": {"name": "f"}}]}}]},
    "chat, all in the last": {"choices": [{"delta": {"content": "a"}, "finish_reason": "stop"}], "usage": {}},
    "completions": {"choices": [{"index": 0, "text": "a", "finish_reason": None}]},
    "completions, all in the last": {"choices": [{"text": "a", "finish_reason": "stop"}], "usage": {}},
}
LINES = {
    "chat": {"message": {"role": "assistant", "content": "a"}, "done": False},
    "chat, thoughts": {"message": {"role": "assistant", "content": "", "thinking": "a"}, "done": False},
    "chat, all in the last": {"message": {"content": "a"}, "done": True, "done_reason": "stop"},
    "generate": {"response": "a", "done": False},
    "generate, all in the last": {"response": "a", "done": True, "done_reason": "stop"},
}


@pytest.mark.parametrize(("kind", "said"), [("openai", said) for said in WORDS] + [("ollama", said) for said in LINES])
def test_words_as_another_path_of_the_server_has_them_name_its_api(kind: str, said: str) -> None:
    other = "completions" if kind == "openai" else "generate"
    spoken = said.partition(",")[0]
    dialect = DIALECTS[kind, other if spoken == "chat" else "chat"]
    value = (WORDS if kind == "openai" else LINES)[said]
    with pytest.raises(NotAnEvent, match=f"kind: {kind}` and `engine.api: {spoken}`"):
        event(dialect, value)
    assert event(DIALECTS[kind, spoken], value) != Delta()


def test_what_stands_beside_words_of_the_api_refuses_nothing() -> None:
    """Some servers write the fields of both, and an event without words is one to both."""
    both = {"index": 0, "delta": {"content": "a"}, "text": "a"}
    assert event(CHAT, {"choices": [both]}) == event(TEXT, {"choices": [both]}) == Delta("a")
    for empty in ({"delta": {"role": "assistant", "content": ""}}, {"text": ""}, {"delta": {}, "text": "all of it"}):
        assert event(CHAT, {"choices": [empty]}) == Delta()
    for empty in ({"delta": {"role": "assistant", "content": ""}}, {"text": "", "delta": {"content": "all of it"}}):
        assert event(TEXT, {"choices": [empty]}) == Delta()
    for path in ("chat", "generate"):
        assert event(DIALECTS["ollama", path], {"message": None, "response": "", "done": False}) == Delta()


def test_a_whole_answer_is_no_stream_and_says_so() -> None:
    whole = {"choices": [{"index": 0, "message": {"content": "hello"}, "finish_reason": "stop"}], "usage": {}}
    response = {"object": "response", "status": "completed", "output": [{"content": [{"text": "hello"}]}]}
    message = {"type": "message", "role": "assistant", "content": [{"type": "text", "text": "hello"}]}
    for dialect, answer in ((CHAT, whole), (RESPONSES, response), (MESSAGES, message)):
        with pytest.raises(NotAnEvent, match="ignores `stream: true`"):
            event(dialect, answer)


@by_name
def test_large_content_and_duplicate_keys(dialect: Dialect) -> None:
    usual = json.dumps(of(USUAL, dialect)).encode()
    assert dialect.decode(usual).content == "a"
    assert dialect.decode(TYPED.get(dialect.api, EVERY).replace(b"?", b"a")).content == "a"
    assert len(dialect.decode(usual.replace(b'"a"', b'"' + b"x" * 1_000_000 + b'"')).content) == 1_000_000
    assert dialect.decode(usual.replace(b'"a"', b'"\\u0000\\u0007"')).content == "\x00\x07"
    for key in (b'"content": ', b'"text": ', b'"response": '):
        twice = usual.replace(key + b'"a"', key + b'"b", ' + key + b'"a"')  # the last one counts, as in JavaScript
        assert dialect.decode(twice).content == "a"


def walk(value: object, path: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] + [found for key, item in items for found in walk(item, (*path, key))]


def put(value: object, path: tuple[object, ...], new: object) -> object:
    if not path:
        return new
    copied = dict(value) if isinstance(value, dict) else list(value)
    copied[path[0]] = put(copied[path[0]], path[1:], new)
    return copied


RICH = {
    "openai-chat": chunk(
        {"role": "assistant", "content": "a", "reasoning": "r", "tool_calls": [{"function": {"arguments": "x"}}]},
        finish_reason="stop",
        token_ids=[1],
    )
    | {
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 1}},
        "timings": {"prompt_ms": 1.0, "predicted_n": 1, "prompt_n": 1, "cache_n": 0},
        "metrics": {"queue_time_ms": 1.0},
        "error": {"message": "m"},
    },
    "openai-completions": {
        "choices": [{"index": 0, "text": "a", "finish_reason": "stop", "token_ids": [1]}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1},
        "error": "m",
    },
    "ollama-chat": {
        "message": {"content": "a", "thinking": "t", "tool_calls": [{"function": {"arguments": {"a": 1}}}]},
        "done": True,
        "done_reason": "stop",
        "total_duration": 5,
        "eval_count": 1,
        "error": "m",
    },
    "ollama-generate": {"response": "a", "thinking": "t", "done": True, "eval_duration": 5, "prompt_eval_count": 1},
    "responses": {
        "type": "response.output_text.delta",
        "delta": "a",
        "response": {
            "status": "completed",
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"},
            "usage": {"input_tokens": 1, "output_tokens": 1, "output_tokens_details": {"reasoning_tokens": 1}},
        },
        "output": [{"content": [{"text": "a"}]}],
    },
    "messages": {
        "type": "content_block_delta",
        "delta": {"type": "text_delta", "text": "a", "thinking": "t", "partial_json": "x", "stop_reason": "end_turn"},
        "content_block": {"type": "text", "text": "a", "input": {"a": 1}},
        "message": {"role": "assistant", "content": [], "usage": {"input_tokens": 1, "output_tokens": 1}},
        "usage": {"input_tokens": 1, "output_tokens": 1, "cache_read_input_tokens": 1},
    },
}
WRONG = (None, True, False, 0, -1, 10**30, 1.5, 1e308, "", "x", [], ["x"], [None], {}, {"x": 1}, [[]], "9" * 5000)


@by_name
def test_a_wrong_type_in_any_field_is_ignored_or_no_event_and_nothing_else(dialect: Dialect) -> None:
    rich = of(RICH, dialect)
    paths = walk(rich)
    refused = 0
    for path in paths:
        for wrong in WRONG:
            try:
                assert isinstance(event(dialect, put(rich, path, wrong)), Delta)
            except NotAnEvent:
                refused += 1
    assert refused > len(paths)  # wrong text, lists and objects in the fields that carry the answer are refused


@pytest.mark.parametrize("index", [-1, 65_536, 10**18, 10**30, 1.5, "0", None, True])
@pytest.mark.parametrize("dialect", [CHAT, TEXT], ids=["chat", "completions"])
def test_a_choice_index_that_is_none_is_refused(dialect: Dialect, index: object) -> None:
    with pytest.raises(NotAnEvent):
        event(dialect, {"choices": [{"index": index, "delta": {"content": "a"}, "text": "a"}]})


NAMES = [
    *("choices", "delta", "content", "text", "reasoning", "tool_calls", "function", "arguments", "index", "token_ids"),
    *("finish_reason", "usage", "error", "message", "detail", "object", "timings", "metrics", "code", "msg", "loc"),
    *("prompt_tokens", "completion_tokens", "cached_tokens", "response", "thinking", "done", "done_reason"),
    *("total_duration", "eval_count", "prompt_ms", "type", "output", "input", "partial_json", "stop_reason"),
    *("reasoning_text", "reasoning_details", "function_call", "custom", "audio", "transcript", "base_resp", "status"),
    *("content_block", "input_tokens", "output_tokens", "incomplete_details", "reason", "sequence_number"),
]
TEXTS = [
    *("stop", "[DONE]", "response.completed", "response.created", "response.output_text.delta", "response.failed"),
    *("message_start", "message_delta", "message_stop", "content_block_start", "content_block_delta", "error"),
]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.sampled_from(TEXTS),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(NAMES),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@by_name
@settings(max_examples=200)
@given(value=json_values)
@example(value={"usage": {}})
@example(value={"choices": [{"delta": {"tool_calls": 1, "audio": [], "function_call": "x"}, "error": {"a": 0}}]})
@example(value={"type": "message_delta", "delta": {"stop_reason": "stop"}})
def test_any_json_is_a_delta_or_no_event(dialect: Dialect, value: object) -> None:
    try:
        delta = dialect.decode(json.dumps(value).encode())
    except NotAnEvent:
        return
    assert len(delta.error) <= 200
    told = {} if delta.usage is None else msgspec.structs.asdict(delta.usage)
    assert isinstance(told.pop("reason", ""), str)
    assert told.pop("nameless", False) in (True, False)
    assert told.pop("reasoning_beside", None) in (True, False, None)
    assert all(count is None or (type(count) is int and 0 <= count <= 10**9) for count in told.values())
    assert delta.times is None or all(time is None or time >= 0 for time in msgspec.structs.astuple(delta.times))


@by_name
@settings(max_examples=200)
@given(data=st.binary(max_size=40))
def test_any_bytes_are_a_delta_or_no_event(dialect: Dialect, data: bytes) -> None:
    try:
        dialect.decode(data)
    except NotAnEvent:
        return


@pytest.mark.parametrize(
    ("check", "value", "expected"),
    [
        (tokens, 0, 0),
        (tokens, 10**9, 10**9),
        *((tokens, bad, None) for bad in (-1, 10**9 + 1, 10**40, True, 1.0, "1", None, [], {})),
        (ns, 0, 0),
        *((ns, bad, None) for bad in (-1, 10**17, True, 1.0, "1", None)),
        (ms_as_ns, 1, 1_000_000),
        (ms_as_ns, 0.0000004, 0),
        (ms_as_ns, 1.5, 1_500_000),
        *((ms_as_ns, bad, None) for bad in (-0.1, 1e12, 10**400, float("nan"), float("inf"), True, "1", None)),
    ],
)
def test_counts_that_can_not_be_true_are_not_stated(
    check: Callable[[object], int | None], value: object, expected: int | None
) -> None:
    assert check(value) == expected


# --- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "content_type", "message"),
    [
        (b"", "application/json", ""),
        (b"   \n", "text/plain", ""),
        (b'{"error":{"message":"a\\n  b"}}', "application/json", "a b"),
        (b'{"error":"a"}', "text/plain", "a"),
        (b'{"object":"error","message":"a"}', "application/json", "a"),
        (b'{"detail":"a"}', "application/json", "a"),
        (b'{"detail":[{"msg":"a","loc":["body",0],"input":"PROMPT"},{"msg":"b"}]}', "", "a at body.0; b"),
        (b'{"message":"a"}', "application/json", '{"message":"a"}'),
        (b'{"error":{"message":"a","in', "application/json", '{"error":{"message":"a","in'),
        (b"upstream connect error", "text/plain", "upstream connect error"),
        (b"<html><head><title>502 Bad\nGateway</title></head><body>x</body></html>", "text/html", "502 Bad Gateway"),
        (b"<html><style>p{}</style><script>x()</script><p>Log  in</p><!-- c --></html>", "text/html", "Log in"),
        (b"<!doctype html><p>a</p>", "", "a"),
        (b"\x1b[31mred\x1b[0m \x1b]0;title\x07\x1bMx\x00\x07\x9b", "text/plain", "red x \ufffd"),
        ("a\u202eb\u200bc\u2028d\x85e".encode(), "text/plain", "a b c d e"),
        (b"\xff\xfe", "text/plain", "\ufffd\ufffd"),
        (b"1 validation error: {'msg': 'bad', 'input': 'PROMPT'}", "text/plain", "1 validation error: {'msg': 'bad'"),
        (b"Input should be int [type=int, input_value='PROMPT']", "text/plain", "Input should be int [type=int"),
        (b'{"a":' * 100_000, "application/json", '{"a":' * 39 + '{"a"…'),
    ],
)
def test_what_a_refusal_says(body: bytes, content_type: str, message: str) -> None:
    assert error_message(body, content_type) == message


@settings(max_examples=300)
@given(body=st.binary(max_size=600) | st.text().map(str.encode), kind=st.sampled_from(["text/html", "", "text/plain"]))
def test_a_refusal_is_always_one_short_printable_line(body: bytes, kind: str) -> None:
    message = error_message(body, kind)
    assert len(message) <= 200
    assert message.isprintable()


def test_a_huge_refusal_is_cut() -> None:
    for body in (b"x" * 5_000_000, b"<p>" * 2_000_000, b'{"error":"' + b"y" * 5_000_000 + b'"}', b"\x1b" * 1_000_000):
        assert len(error_message(body, "text/html")) <= 200
    assert clean_line("z" * 201) == "z" * 199 + "…"
    assert clean_line("z" * 200) == "z" * 200


@pytest.mark.parametrize("cut", range(40))
def test_no_part_of_a_secret_that_a_reader_could_use_is_told(cut: int) -> None:
    """Wherever the 200 characters end: a whole key, or the beginning of one that was cut off."""
    words = secret_words({"Authorization": "Bearer sk-0123456789abcdef", "x-short": "abc"})
    assert words == ("Bearer sk-0123456789abcdef", "sk-0123456789abcdef"), "what is short would hide half the sentence"
    said = clean_line("x" * (160 + cut) + "sk-0123456789abcdef is no key; abc" + "." * 60)
    told = hide(said, words)
    assert not re.search(r"sk-0123", told)
    assert told.startswith("x" * 160)
    assert hide("abc is fine", words) == "abc is fine"
    assert hide("Bearer sk-0123456789abcdef, again sk-0123456789abcdef", words) == "[hidden], again [hidden]"
