"""The dialects: the table, strict JSON out, every known event shape in. What is no event: test_engines_hostile.py."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenswarm.engines import NOTHING, Delta, Dialect, NotAnEvent, Sampling, Usage
from tokenswarm.engines.dialects import DIALECTS
from tokenswarm.measure.stated import merged
from tokenswarm.prompts import Message, Prompt
from tokenswarm.record import EngineTimes

CHAT = DIALECTS["openai", "chat"]
TEXT = DIALECTS["openai", "completions"]
OLLAMA_CHAT = DIALECTS["ollama", "chat"]
OLLAMA_TEXT = DIALECTS["ollama", "generate"]
ALL = list(DIALECTS.values())
by_name = pytest.mark.parametrize("dialect", ALL, ids=lambda dialect: dialect.name)


def prompt(text: str = "Say hello.", output_tokens_max: int | None = None) -> Prompt:
    messages = (Message("system", "Be brief."), Message("user", text))
    return Prompt("1", messages, text, conversation="c", turn=0, output_tokens_max=output_tokens_max)


def body(dialect: Dialect, asked: Prompt, sampling: Sampling) -> dict[str, object]:
    """What a strict reader sees: UTF-8, no NaN, no duplicate key."""

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        assert len({key for key, _ in pairs}) == len(pairs)
        return dict(pairs)

    def refuse(constant: str) -> object:
        raise AssertionError(constant)

    sent = dialect.encode(asked, sampling).decode("utf-8")
    return json.loads(sent, object_pairs_hook=unique, parse_constant=refuse)


def event(dialect: Dialect, value: object) -> Delta:
    return dialect.decode(json.dumps(value).encode())


# --- the table -----------------------------------------------------------------------------------------------------


def test_the_table_of_dialects() -> None:
    assert {key: (row.path, row.models_path, row.framing, row.knows_ignore_eos) for key, row in DIALECTS.items()} == {
        ("openai", "chat"): ("/v1/chat/completions", "/v1/models", "sse", True),
        ("openai", "completions"): ("/v1/completions", "/v1/models", "sse", True),
        ("openai", "responses"): ("/v1/responses", "/v1/models", "sse", True),
        ("openai", "messages"): ("/v1/messages", "/v1/models", "sse", False),
        ("ollama", "chat"): ("/api/chat", "/api/tags", "ndjson", False),
        ("ollama", "generate"): ("/api/generate", "/api/tags", "ndjson", False),
        ("ollama", "responses"): ("/v1/responses", "/api/tags", "sse", False),
        ("ollama", "messages"): ("/v1/messages", "/api/tags", "sse", False),
    }
    assert len({row.name for row in ALL}) == len(ALL)


@pytest.mark.parametrize(
    ("content_type", "dialect", "accepted"),
    [
        ("text/event-stream", CHAT, True),
        ("Text/Event-Stream; charset=utf-8", TEXT, True),
        (" text/event-stream ;x=y", CHAT, True),
        ("application/json", CHAT, False),
        ("text/html", CHAT, False),
        ("", CHAT, False),
        ("text/event-streamer", CHAT, False),
        ("application/x-ndjson", OLLAMA_CHAT, True),
        ("application/json; charset=utf-8", OLLAMA_TEXT, True),
        ("text/html", OLLAMA_TEXT, False),
    ],
)
def test_content_types(content_type: str, dialect: Dialect, accepted: bool) -> None:
    assert dialect.accepts(content_type) is accepted


def test_names_of_models() -> None:
    both = (
        b'{"models":[{"name":"b:latest","model":"b"}],"object":"list","data":[{"id":"a","object":"model"},{"id":"c"}]}'
    )
    assert CHAT.models(both) == ["a", "c"]
    assert OLLAMA_CHAT.models(both) == ["b:latest"]
    assert OLLAMA_CHAT.models(b'{"models":[]}') == []
    assert OLLAMA_CHAT.models(b'{"models":null,"data":[]}') == []
    for bad in (b"", b"<html>", b"{}", b'"m"', b'{"data":7}', b'{"data":[1]}', b'{"data":[{"id":1}]}', b"[" * 99_999):
        for dialect in (CHAT, OLLAMA_CHAT):
            with pytest.raises(NotAnEvent):
                dialect.models(bad)


@pytest.mark.parametrize(
    ("body", "names"),
    [
        (b'[{"id":"org/a","object":"model"},{"id":"org/b","object":"model"}]', ["org/a", "org/b"]),
        (b'["a","b","a"]', ["a", "b"]),
        (b"[]", []),
        (b'{"object":"list","data":null}', []),
        (b'{"data":{}}', []),
        (b'{"data":["a","b"]}', ["a", "b"]),
        (b'{"data":{"a":{"object":"model"},"b":{"object":"model"}}}', ["a", "b"]),
        (b'{"a":{"object":"model"},"b":{"owned_by":"x"}}', ["a", "b"]),
        (b'{"id":"only","object":"model"}', ["only"]),
        (b'{"models":[{"name":"a:latest","model":"a:latest"}]}', ["a:latest"]),
        (b'{"models":["a"],"data":[]}', ["a"]),
        (b'{"data":[{"model":"a"},{"name":"b"},{"id":""},7]}', ["a", "b"]),
    ],
)
def test_lists_of_models_in_other_shapes(body: bytes, names: list[str]) -> None:
    for dialect in (CHAT, OLLAMA_CHAT):
        assert dialect.models(body) == names


@pytest.mark.parametrize(
    "body", [b'{"error":{"message":"no","type":"x"}}', b'{"status":{"up":true}}', b'{"detail":"Not Found"}', b"null"]
)
def test_what_is_no_list_of_models_is_refused(body: bytes) -> None:
    for dialect in (CHAT, OLLAMA_CHAT):
        with pytest.raises(NotAnEvent):
            dialect.models(body)


# --- encode --------------------------------------------------------------------------------------------------------

FULL = Sampling(
    model="m",
    max_tokens=7,
    ignore_eos=True,
    temperature=0.5,
    top_p=0.9,
    seed=3,
    stop=("a", "b"),
    choices=2,
    continuous_usage=True,
)


def test_openai_bodies() -> None:
    common = {
        "model": "m",
        "max_tokens": 7,
        "n": 2,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 3,
        "stop": ["a", "b"],
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say hello."}]
    assert body(CHAT, prompt(), FULL) == {**common, "messages": messages}
    assert body(TEXT, prompt(), FULL) == {**common, "prompt": "Say hello."}
    bare = Sampling(model="m", include_usage=False)
    assert body(TEXT, prompt(), bare) == {"model": "m", "prompt": "Say hello.", "stream": True}


def test_ollama_bodies() -> None:
    options = {"num_predict": 7, "temperature": 0.5, "top_p": 0.9, "seed": 3, "stop": ["a", "b"]}
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say hello."}]
    assert body(OLLAMA_CHAT, prompt(), FULL) == {"model": "m", "messages": messages, "stream": True, "options": options}
    assert body(OLLAMA_TEXT, prompt(), FULL) == {
        "model": "m",
        "prompt": "Say hello.",
        "stream": True,
        "options": options,
    }
    bare = {"model": "m", "prompt": "x", "stream": True, "options": {"num_predict": 4096}}  # else up to 10 contexts
    assert body(OLLAMA_TEXT, prompt("x"), Sampling(model="m")) == bare


def test_a_prompts_own_length_wins_and_zero_is_a_length() -> None:
    assert body(CHAT, prompt(output_tokens_max=5), FULL)["max_tokens"] == 5
    assert body(CHAT, prompt(output_tokens_max=0), FULL)["max_tokens"] == 0
    assert body(OLLAMA_CHAT, prompt(output_tokens_max=5), FULL)["options"]["num_predict"] == 5


def test_extra_is_merged_last_and_one_level_deep() -> None:
    sampling = Sampling(model="m", max_tokens=7, extra={"max_tokens": 9, "stream_options": {"x": 1}, "new": [None]})
    sent = body(CHAT, prompt(), sampling)
    assert (sent["max_tokens"], sent["new"]) == (9, [None])
    assert sent["stream_options"] == {"include_usage": True, "x": 1}
    ollama = Sampling(model="m", max_tokens=7, extra={"options": {"num_ctx": 8192}, "keep_alive": "5m"})
    sent = body(OLLAMA_CHAT, prompt(), ollama)
    assert (sent["options"], sent["keep_alive"]) == ({"num_predict": 7, "num_ctx": 8192}, "5m")


NASTY = {
    "lone high": ("a\ud800b", "a\ufffdb"),
    "lone low": ("a\udc00b", "a\ufffdb"),
    "split pair": ("\ud83d\ude00", "😀"),
    "reversed pair": ("\ude00\ud83d", "\ufffd\ufffd"),
    "nul and controls": ("\x00\x1b[31m\u2028\x7f", "\x00\x1b[31m\u2028\x7f"),
    "quotes": ('"\\\n{"stream": false}', '"\\\n{"stream": false}'),
    "one megabyte": ("é" * 500_000, "é" * 500_000),
    "empty": ("", ""),
}


@by_name
@pytest.mark.parametrize(("text", "read"), NASTY.values(), ids=NASTY)
def test_any_text_becomes_valid_json(dialect: Dialect, text: str, read: str) -> None:
    sent = body(dialect, prompt(text), Sampling(model="m", extra={"user": text}))
    messages = sent.get("messages") or sent.get("input")
    assert (messages[-1]["content"] if messages else sent["prompt"]) == read
    assert sent["user"] == read
    assert sent["stream"] is True


@by_name
@settings(max_examples=60)
@given(text=st.text(st.characters(codec=None)))
def test_every_text_is_read_back_by_a_strict_reader(dialect: Dialect, text: str) -> None:
    sent = body(dialect, prompt(text), Sampling(model=text))
    has_surrogate = any("\ud800" <= c <= "\udfff" for c in text)
    assert has_surrogate or sent["model"] == text


# --- decode: the shapes that servers send ----------------------------------------------------------------------------


def chunk(delta: object, **rest: object) -> dict[str, object]:
    return {"id": "1", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, **rest}]}


def tool(**function: object) -> dict[str, object]:
    return {"content": None, "tool_calls": [{"index": 0, "id": "x", "type": "function", "function": function}]}


CHAT_EVENTS = {
    "role, empty": (chunk({"role": "assistant", "content": ""}, finish_reason=None), Delta()),
    "role, null": (chunk({"role": "assistant", "content": None}, logprobs=None), Delta()),
    "role, absent": (chunk({"role": "assistant"}), Delta()),
    "role with content": (chunk({"role": "assistant", "content": "a"}), Delta("a")),
    "content": (chunk({"content": " a"}, finish_reason=None, token_ids=None), Delta(" a")),
    "blank is content": (chunk({"content": "\n"}), Delta("\n")),
    "reasoning": (chunk({"reasoning": "hm"}), Delta(reasoning="hm")),
    "reasoning_content": (chunk({"content": None, "reasoning_content": "hm"}), Delta(reasoning="hm")),
    "reasoning twice": (chunk({"reasoning": "hm", "reasoning_content": "hm"}), Delta(reasoning="hm")),
    "reasoning, empty content": (chunk({"content": "", "reasoning": "hm"}), Delta(reasoning="hm")),
    "both": (chunk({"content": "a", "reasoning": "hm"}), Delta("a", "hm")),
    "refusal": (chunk({"content": None, "refusal": "no"}), Delta("no")),
    "tool name": (chunk(tool(name="f")), Delta(tool=True)),
    "tool name, empty arguments": (chunk(tool(name="f", arguments="")), Delta(tool=True)),
    "tool arguments": (chunk(tool(arguments='{"a')), Delta('{"a', tool=True)),
    "tool without function": (chunk({"tool_calls": [{"index": 0}]}), Delta(tool=True)),
    "no tools": (chunk({"content": "a", "tool_calls": []}), Delta("a")),
    "other choice": ({"choices": [{"index": 3, "delta": {"content": "a"}}]}, Delta("a", choice=3)),
    "finish alone": (chunk({}, finish_reason="stop"), Delta(finished=((0, "stop"),))),
    "finish, delta null": (chunk(None, finish_reason="stop"), Delta(finished=((0, "stop"),))),
    "finish with content": (chunk({"content": "a"}, finish_reason="length"), Delta("a", finished=((0, "length"),))),
    "finish is empty": (chunk({"content": "a"}, finish_reason=""), Delta("a")),
    "token ids": (chunk({"content": "a"}, token_ids=[5, 6]), Delta("a", tokens=2)),
    "token ids without text": (chunk({"content": ""}, token_ids=[5]), Delta(tokens=1)),
    "no token ids": (chunk({"content": "a"}, token_ids=[]), Delta("a")),
    "progress": (chunk({"role": "assistant", "content": None}) | {"prompt_progress": {"total": 9}}, Delta()),
    "no choice": ({"choices": []}, NOTHING),
    "no choices": ({"id": "c1", "object": "chat.completion.chunk"}, NOTHING),
    "choices null": ({"id": "c1", "choices": None, "error": None}, NOTHING),
    "empty": ({}, NOTHING),
    "null": (None, NOTHING),
    "keep-alive": ({"type": "ping", "ts": 5}, NOTHING),
    "finish is null as a text": (chunk({"content": "a"}, finish_reason="null"), Delta("a")),
    "finish is None as a text": (chunk({"content": "a"}, finish_reason=" None "), Delta("a")),
    "parts": (chunk({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}), Delta("ab")),
    "one part": (chunk({"content": {"type": "text", "text": "a"}}), Delta("a")),
    "no parts": (chunk({"content": []}), Delta()),
    "thoughts among parts": (
        chunk({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]}),
        Delta(reasoning="hm"),
    ),
    "thoughts as text": (
        chunk({"content": [{"type": "thinking", "thinking": "hm"}, {"type": "output_text", "text": "a"}]}),
        Delta("a", "hm"),
    ),
    "reasoning as parts": (
        chunk({"content": None, "reasoning_content": [{"type": "text", "text": "hm"}]}, finish_reason=None),
        Delta(reasoning="hm"),
    ),
    "reasoning as one part": (chunk({"reasoning": {"type": "summary", "summary": "hm"}}), Delta(reasoning="hm")),
    "reasoning details": (
        chunk({"content": "", "reasoning_details": [{"type": "reasoning.text", "index": 0, "text": "hm"}]}),
        Delta(reasoning="hm"),
    ),
    "reasoning details, summary": (
        chunk({"reasoning_details": [{"type": "reasoning.summary", "summary": "hm"}]}),
        Delta(reasoning="hm"),
    ),
    "reasoning details, encrypted": (
        chunk({"reasoning_details": [{"type": "reasoning.encrypted", "data": "abc"}]}),
        Delta(),
    ),
    "reasoning twice, with details": (
        chunk({"reasoning_content": "hm", "reasoning_details": [{"type": "reasoning.text", "text": "hm"}]}),
        Delta(reasoning="hm"),
    ),
    "tool arguments as an object": (chunk(tool(name="f", arguments={"a": 1})), Delta('{"a":1}', tool=True)),
    "error in the choice": (chunk({"content": ""}, error={"code": 502, "message": "bad"}), Delta(error="bad")),
    "usage in the choice": (
        chunk({}, finish_reason="stop", usage={"prompt_tokens": 19, "completion_tokens": 13}),
        Delta(finished=((0, "stop"),), usage=Usage(19, 13)),
    ),
    "usage in the choice and above": (
        chunk({}, usage={"prompt_tokens": 19, "completion_tokens": 13})
        | {"usage": {"prompt_tokens": 19, "completion_tokens": 14}},
        Delta(usage=Usage(19, 14)),
    ),
    "usage that is none": (chunk({"content": "a"}) | {"usage": 0, "timings": [], "metrics": "x"}, Delta("a")),
    "flat error": ({"message": "Model not found", "type": "Not Found", "code": 404}, Delta(error="Model not found")),
    "error in a text": ({"error": '{"error":{"code":400,"message":"too long"}}'}, Delta(error="too long")),
    "errors": ({"errors": [{"message": "a"}, {"message": "b"}]}, Delta(error="a; b")),
    "error in an error": ({"error": {"error": {"message": "a"}}}, Delta(error="a")),
    "two choices": (
        {
            "choices": [
                {"index": 1, "delta": {"content": "b"}, "finish_reason": "stop"},
                {"index": 0, "delta": {"content": "a"}},
            ]
        },
        Delta("b", choice=1, finished=((1, "stop"),), more=(Delta("a"),)),
    ),
    "error null": (chunk({"content": "a"}) | {"error": None}, Delta("a")),
    "error beside choices": (chunk({"content": "a"}) | {"error": {"message": "bad"}}, Delta("a", error="bad")),
    "error": (
        {"error": {"message": "EngineCore died", "type": "X", "param": None, "code": 500}},
        Delta(error="EngineCore died"),
    ),
    "error text": ({"error": "boom"}, Delta(error="boom")),
    "error without words": ({"error": {}}, Delta(error="an error object without a message")),
    "error, empty text": ({"error": ""}, Delta(error="an error object without a message")),
    "error, only a code": ({"error": {"code": 500}}, Delta(error="500")),
    "old vLLM": ({"object": "error", "message": "too long", "code": 400}, Delta(error="too long")),
    "FastAPI": ({"detail": "Not Found"}, Delta(error="Not Found")),
    "FastAPI list": (
        {"detail": [{"loc": ["body", "n"], "msg": "must be int", "input": "secret"}]},
        Delta(error="must be int at body.n"),
    ),
}


@pytest.mark.parametrize(("value", "delta"), CHAT_EVENTS.values(), ids=CHAT_EVENTS)
def test_chat_events(value: object, delta: Delta) -> None:
    assert event(CHAT, value) == delta


@pytest.mark.parametrize("dialect", [CHAT, TEXT], ids=["chat", "completions"])
def test_the_sentinel(dialect: Dialect) -> None:
    for data in (b"[DONE]", b" [DONE] "):
        assert dialect.decode(data) == Delta(sentinel=True)


@pytest.mark.parametrize("dialect", [CHAT, TEXT], ids=["chat", "completions"])
def test_usage_and_engine_times(dialect: Dialect) -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
    assert event(dialect, {"choices": [], "usage": usage}).usage == Usage(9, 4)
    assert event(dialect, {"usage": usage}).usage == Usage(9, 4)
    details = {"prompt_tokens_details": {"cached_tokens": 8}, "completion_tokens_details": {"reasoning_tokens": 3}}
    assert event(dialect, {"choices": [], "usage": usage | details}).usage == Usage(9, 4, 3, 8)
    nothing = {"prompt_tokens_details": None, "completion_tokens_details": []}
    assert event(dialect, {"choices": [], "usage": usage | nothing}).usage == Usage(9, 4)
    assert event(dialect, {"choices": [], "usage": None}) == NOTHING
    thought = {"prompt_tokens": 7, "completion_tokens": 12, "completion_tokens_details": {"reasoning_tokens": 10}}
    for said, where in (
        (thought, None),
        (thought | {"total_tokens": 19}, False),
        (thought | {"total_tokens": 29}, True),
        (thought | {"completion_tokens": 2}, True),  # 10 can't be among 2
        (thought | {"completion_tokens": 2, "total_tokens": 9}, True),
        (thought | {"completion_tokens_details": None, "reasoning_tokens": 10, "total_tokens": 29}, True),
        (thought | {"completion_tokens_details": None, "total_tokens": 29}, False),
    ):
        told = event(dialect, {"choices": [], "usage": said}).usage
        assert told is not None
        assert told.reasoning_beside is where, said
    timings = {"cache_n": 7, "prompt_n": 2, "prompt_ms": 0.5, "predicted_n": 4, "predicted_ms": 12}
    delta = event(dialect, {"choices": [], "timings": timings})
    assert delta.usage == Usage(9, 4, cached_tokens=7)
    assert delta.times == EngineTimes(prefill_ns=500_000, decode_ns=12_000_000)
    assert event(dialect, {"choices": [], "timings": timings, "usage": usage}).usage == Usage(9, 4, cached_tokens=7)
    spoken = chunk({"content": "a"}) if dialect is CHAT else {"choices": [{"index": 0, "text": "a"}]}
    assert event(dialect, spoken | {"metrics": {"queue_time_ms": 1}}) == Delta(
        "a", times=EngineTimes(queue_ns=1_000_000)
    )
    metrics = {"time_to_first_token_ms": 1.5, "queue_time_ms": 0, "generation_time_ms": None, "mean_itl_ms": 5}
    assert event(dialect, {"choices": [], "metrics": metrics}).times == EngineTimes(ttft_ns=1_500_000, queue_ns=0)
    drafts = {"num_draft_tokens": 60, "num_accepted_draft_tokens": 30, "mean_acceptance_length": 2.5}
    told = event(dialect, {"choices": [], "usage": usage, "metrics": {"speculative_decoding": drafts}}).usage
    assert told == Usage(9, 4, draft_tokens=60, accepted_tokens=30)
    told = event(dialect, {"choices": [], "timings": timings | {"draft_n": 9, "draft_n_accepted": 5}}).usage
    assert told == Usage(9, 4, cached_tokens=7, draft_tokens=9, accepted_tokens=5)
    details = {"accepted_prediction_tokens": 30, "rejected_prediction_tokens": 30, "reasoning_tokens": 0}
    told = event(dialect, {"choices": [], "usage": usage | {"completion_tokens_details": details}}).usage
    assert told == Usage(9, 4, reasoning_tokens=0, draft_tokens=60, accepted_tokens=30)
    at_end = {"index": 0, "finish_reason": "stop", "speculative_decoding": {
        "total_draft_tokens": 60, "total_accepted_draft_tokens": 30, "acceptance_rate": 0.5,
    }}  # fmt: skip
    delta = event(dialect, {"choices": [at_end | ({"delta": {}} if dialect is CHAT else {"text": ""})]})
    assert delta == Delta(finished=((0, "stop"),), usage=Usage(draft_tokens=60, accepted_tokens=30))
    counted = event(dialect, {"choices": [], "usage": usage}).usage
    assert counted is not None
    assert delta.usage is not None
    assert merged(delta.usage, counted) == Usage(9, 4, draft_tokens=60, accepted_tokens=30)
    for wrong in ({"num_draft_tokens": 3, "num_accepted_draft_tokens": 4}, {"num_draft_tokens": 0}, [], "x", {}):
        assert event(dialect, {"usage": usage, "metrics": {"speculative_decoding": wrong}}).usage == Usage(9, 4)


def test_text_completion_events() -> None:
    def choice(**fields: object) -> dict[str, object]:
        return {"object": "text_completion", "choices": [fields]}

    assert event(TEXT, choice(index=0, text="a", finish_reason=None)) == Delta("a")
    assert event(TEXT, choice(index=2, text="a", token_ids=[1, 2])) == Delta("a", choice=2, tokens=2)
    assert event(TEXT, choice(index=0, text="a", finish_reason="length")) == Delta("a", finished=((0, "length"),))
    assert event(TEXT, choice(index=0, text=None)) == Delta()
    two = {"choices": [{"index": 0, "text": "a"}, {"index": 1, "text": "b"}]}
    assert event(TEXT, two) == Delta("a", more=(Delta("b", choice=1),))
    zeroed = choice(index=0, text="a") | {"usage": {"prompt_tokens": 0, "completion_tokens": 0}}
    assert event(TEXT, zeroed) == Delta("a", usage=Usage(0, 0))


LINE = {"model": "m", "created_at": "2026-09-10T20:31:05Z"}
END = {"done": True, "done_reason": "stop"}
OLLAMA_EVENTS = {
    "content": ({"message": {"role": "assistant", "content": "a"}, "done": False}, Delta("a")),
    "thinking": (
        {"message": {"role": "assistant", "content": "", "thinking": "hm"}, "done": False},
        Delta(reasoning="hm"),
    ),
    "tool": (
        {
            "message": {"content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"unit": "c"}}}]},
            "done": False,
        },
        Delta('{"unit": "c"}', tool=True),
    ),
    "tool without arguments": (
        {"message": {"content": "", "tool_calls": [{"function": {"name": "f"}}]}, "done": False},
        Delta("{}", tool=True),
    ),
    "end, zeros omitted": (
        {"message": {"content": ""}, **END, "total_duration": 50, "eval_duration": 30, "eval_count": 3},
        Delta(finished=((0, "stop"),), usage=Usage(None, 3), times=EngineTimes(50, None, None, 30, None)),
    ),
    "end with content": (
        {"message": {"content": "a"}, "done": True, "done_reason": "length"},
        Delta("a", finished=((0, "length"),), usage=Usage()),
    ),
    "end without reason": ({"message": {"content": ""}, "done": True}, Delta(finished=((0, "done"),), usage=Usage())),
    "end without message": ({**END}, Delta(finished=((0, "stop"),), usage=Usage())),
    "load": (
        {"message": {"content": ""}, "done": True, "done_reason": "load"},
        Delta(finished=((0, "load"),), usage=Usage()),
    ),
    "parts exceed the total": (
        {**END, "total_duration": 5, "load_duration": 9},
        Delta(finished=((0, "stop"),), usage=Usage(), times=EngineTimes(5, None, None, None, None)),
    ),
    "40 tokens, only a total": (
        {**END, "total_duration": 2_100, "prompt_eval_count": 12, "eval_count": 40},
        Delta(finished=((0, "stop"),), usage=Usage(12, 40), times=EngineTimes(2_100)),
    ),
    "zeros written out": (
        {**END, "total_duration": 9, "load_duration": 0, "prompt_eval_duration": 0, "eval_duration": 0}
        | {"prompt_eval_count": 12, "eval_count": 40},
        Delta(finished=((0, "stop"),), usage=Usage(12, 40), times=EngineTimes(9)),
    ),
    "nothing measured": (
        {**END, "total_duration": 0, "prompt_eval_duration": 0, "eval_duration": 0}
        | {"prompt_eval_count": 0, "eval_count": 0},
        Delta(finished=((0, "stop"),), usage=Usage(None, 0)),
    ),
    "a part of 143 hours": (
        {**END, "total_duration": 306, "load_duration": 4, "prompt_eval_duration": 290, "eval_duration": 516_000_000}
        | {"prompt_eval_count": 12, "eval_count": 3},
        Delta(finished=((0, "stop"),), usage=Usage(12, 3), times=EngineTimes(306, 4, 290, None, None)),
    ),
    "parts that do not fit together": (
        {**END, "total_duration": 300, "load_duration": 4, "prompt_eval_duration": 290, "eval_duration": 290}
        | {"prompt_eval_count": 12, "eval_count": 3},
        Delta(finished=((0, "stop"),), usage=Usage(12, 3), times=EngineTimes(300, 4, 290, 290, None)),
    ),
    "one token takes no time": (
        {**END, "total_duration": 120, "load_duration": 4, "prompt_eval_duration": 110}
        | {"prompt_eval_count": 12, "eval_count": 1},
        Delta(finished=((0, "stop"),), usage=Usage(12, 1), times=EngineTimes(120, 4, 110, 0, 6)),
    ),
    "parts without a total": (
        {**END, "total_duration": 0, "load_duration": 4, "prompt_eval_duration": 110, "eval_duration": 9},
        Delta(finished=((0, "stop"),), usage=Usage(), times=EngineTimes(None, 4, 110, 9, None)),
    ),
    "no piece of an answer": ({"status": "loading"}, NOTHING),
    "nothing": ({}, NOTHING),
    "flat error": ({"message": "Not Found", "code": 404}, Delta(error="Not Found")),
    "content as parts": (
        {"message": {"content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}]}},
        Delta("a", "hm"),
    ),
    "error": ({"error": "an error was encountered"}, Delta(error="an error was encountered")),
    "error beside text": ({"message": {"content": "a"}, "error": "x"}, Delta("a", error="x")),
    "nothing yet": ({"done": False}, Delta()),
}


@pytest.mark.parametrize(("value", "delta"), OLLAMA_EVENTS.values(), ids=OLLAMA_EVENTS)
def test_ollama_chat_lines(value: dict[str, object], delta: Delta) -> None:
    assert event(OLLAMA_CHAT, LINE | value) == delta


def test_ollama_generate_lines() -> None:
    assert event(OLLAMA_TEXT, LINE | {"response": "a", "done": False}) == Delta("a")
    assert event(OLLAMA_TEXT, LINE | {"response": "", "thinking": "hm", "done": False}) == Delta(reasoning="hm")
    end = event(OLLAMA_TEXT, LINE | {"response": "", **END, "context": list(range(5000)), "prompt_eval_count": 4})
    assert end == Delta(finished=((0, "stop"),), usage=Usage(prompt_tokens=4))
    assert event(OLLAMA_TEXT, LINE | {"response": "", "done": True, "done_reason": "unload"}).finished == (
        (0, "unload"),
    )
    assert event(OLLAMA_TEXT, {"error": "x"}) == Delta(error="x")
