"""The four wire formats as the server sends them, strictly parsed and compared key by key with vLLM and Ollama."""

from __future__ import annotations

import json
import re

import pytest
from simulator_process import HELLO, PATHS, exchange, ndjson, post, request_bytes, simulator, sse

from tokenswarm.simulator.text import VOCABULARY, cut_at_stop, go_escaped, json_escaped
from tokenswarm.simulator.wire_ollama import OllamaWire, rfc3339_nano
from tokenswarm.simulator.wire_openai import OpenAIWire


@pytest.fixture(scope="module")
def server():
    with simulator("--preset", "instant", "--max-model-len", "2048") as running:
        yield running


@pytest.fixture(scope="module")
def thinker():
    with simulator("--preset", "instant", "--reasoning-tokens", "3") as running:
        yield running


def shape(value: object) -> object:
    """Keys in their order and kinds of values; texts and numbers themselves don't matter."""
    if isinstance(value, dict):
        return [(key, shape(inner)) for key, inner in value.items()]
    if isinstance(value, list):
        return [shape(inner) for inner in value]
    return type(value).__name__


def ours(server, capture) -> list[object]:
    """Our answer to the very request of a capture (its model is another)."""
    asked = json.loads(capture.with_name(capture.name + ".request.json").read_text())
    path = "/v1/chat/completions" if "messages" in asked else "/v1/completions"
    return sse(exchange(server, post(path, json.dumps({**asked, "model": "sim"}).encode()))[1])


@pytest.mark.parametrize("name", ["chat", "chat_no_usage", "chat_continuous_usage", "completion"])
def test_streams_have_the_shape_of_vllm(server, shared, name):
    capture = shared(f"wire/vllm_{name}.sse")
    theirs = [shape(event) for event in sse(capture.read_bytes())]
    assert [shape(event) for event in ours(server, capture)] == theirs


def test_two_choices_have_the_shape_of_vllm(server, shared):
    capture = shared("wire/vllm_chat_n2.sse")
    theirs, mine = sse(capture.read_bytes()), ours(server, capture)
    assert [shape(event) for event in mine[:2]] == [shape(event) for event in theirs[:2]]  # both roles first
    assert [event["choices"][0]["index"] for event in mine[:2]] == [0, 1]
    assert sorted(map(repr, map(shape, mine))) == sorted(map(repr, map(shape, theirs)))
    assert mine[-1]["usage"]["completion_tokens"] == 6


def test_unstreamed_answers_have_the_shape_of_vllm(server, shared):
    capture = shared("wire/vllm_chat_nonstream.json")
    asked = {"model": "sim", "messages": HELLO, "max_tokens": 4}
    head, body = exchange(server, post("/v1/chat/completions", json.dumps(asked).encode()))
    assert b"content-type: application/json" in head
    assert shape(json.loads(body)) == shape(json.loads(capture.read_bytes()))


def test_the_head_is_uvicorns_in_order_and_case(server, shared):
    theirs = shared("wire/vllm_chat.sse.headers").read_bytes()
    head, _ = exchange(server, request_bytes("chat"))
    names = [line.split(b":")[0] for line in theirs.split(b"\r\n")[1:] if line and not line.startswith(b"vary")]
    assert [line.split(b":")[0] for line in head.split(b"\r\n")[1:]] == names
    assert b"content-type: text/event-stream; charset=utf-8" in head


@pytest.mark.parametrize(
    ("name", "status"),
    [("badjson", 400), ("badfield", 400), ("emptymsgs", 400), ("streamopts", 400), ("ctx400", 400), ("model404", 404)],
)
def test_errors_are_vllms_word_for_word(server, shared, name, status):
    capture = shared(f"wire/vllm_err_{name}.json")
    asked = capture.with_name(capture.name + ".request.json").read_bytes()
    if name != "badjson":  # its message holds the place of the mistake
        asked = asked.replace(b'"tiny"', b'"sim"')
    head, body = exchange(server, post("/v1/chat/completions", asked))
    assert head.startswith(b"HTTP/1.1 %d" % status)
    assert body.decode() == capture.read_text().replace("tiny", "sim")


def test_a_full_queue_answers_as_vllm(shared):
    with simulator("--max-num-seqs", "1", "--max-queued", "1") as busy, busy.open() as runs, busy.open() as waits:
        runs.sendall(request_bytes("chat", tokens=4000))
        assert runs.recv(1)
        waits.sendall(request_bytes("chat", tokens=4000))
        assert waits.recv(1)
        head, body = exchange(busy, request_bytes("ollama_chat"))
        expected = shared("wire/vllm_err_overload.json").read_bytes()
        assert exchange(busy, request_bytes("completions"))[1] == expected
        assert b"503" in head.splitlines()[0]
        assert body == shared("wire/ollama_503.CONSTRUCTED.json").read_bytes().strip()
        assert busy.truth()["totals"]["rejected"] == 2
        assert b'vllm:admission_rejections_total{model_name="sim",reason="max_num_queued_reqs"} 2.0' in busy.get(
            "/metrics"
        )


def test_ollamas_chat_has_its_shape(server, thinker, shared):
    theirs = ndjson(shared("wire/ollama_chat.CONSTRUCTED.ndjson").read_bytes())
    head, body = exchange(server, request_bytes("ollama_chat", tokens=5))
    lines = ndjson(body)
    assert b"content-type: application/x-ndjson\r\n" in head
    assert {repr(shape(line)) for line in lines[:-1]} == {repr(shape(theirs[0]))}
    assert shape(lines[-1]) == shape(theirs[-1])
    assert (lines[-1]["eval_count"], lines[-1]["done_reason"], len(lines)) == (5, "length", 6)
    thinking = ndjson(exchange(thinker, request_bytes("ollama_chat", tokens=5))[1])
    assert [repr(shape(line)) for line in thinking[:3]] == [repr(shape(theirs[2]))] * 3
    assert "thinking" not in thinking[3]["message"]
    still = ndjson(exchange(thinker, request_bytes("ollama_chat", tokens=5, think=False))[1])
    assert all("thinking" not in line["message"] for line in still)


def test_ollamas_generate_has_its_shape(server, shared):
    theirs = ndjson(shared("wire/ollama_generate_midstream_error.FROM_DOCS.ndjson").read_bytes())
    lines = ndjson(exchange(server, request_bytes("ollama_generate", tokens=5))[1])
    assert shape(lines[0]) == shape(theirs[0])
    assert list(lines[-1]) == [
        *("model", "created_at", "response", "done", "done_reason", "total_duration", "load_duration"),
        *("prompt_eval_count", "prompt_eval_duration", "eval_count", "eval_duration"),
    ]


def test_ollamas_errors_and_loads(server, shared):
    head, body = exchange(server, request_bytes("ollama_chat", model="nope"))
    assert head.startswith(b"HTTP/1.1 404")
    assert body == shared("wire/ollama_404.CONSTRUCTED.json").read_bytes().strip()
    loaded = json.loads(exchange(server, request_bytes("ollama_chat", messages=[]))[1])
    theirs = json.loads(shared("wire/ollama_chat_load_only.CONSTRUCTED.json").read_bytes())
    assert shape(loaded) == shape(theirs)
    head, body = exchange(server, request_bytes("ollama_chat", options={"num_predict": "many"}))
    assert head.startswith(b"HTTP/1.1 400")
    assert isinstance(json.loads(body)["error"], str)


def test_reasoning_comes_first_and_is_counted(thinker):
    def run(api: str, tokens: int) -> list:
        return sse(exchange(thinker, request_bytes(api, tokens=tokens, stream_options={"include_usage": True}))[1])

    deltas = [event["choices"][0]["delta"] for event in run("chat", 5)[:-1]]
    assert [list(delta) for delta in deltas] == [["role", "content"]] + [["reasoning"]] * 3 + [["content"]] * 2
    assert run("chat", 5)[-1]["usage"]["completion_tokens_details"] == {"reasoning_tokens": 3}
    cut_off = run("chat", 2)
    assert cut_off[-2]["choices"][0]["finish_reason"] == "length"
    assert all("content" not in event["choices"][0]["delta"] for event in cut_off[1:-1])
    assert "text" in run("completions", 2)[0]["choices"][0]  # completions don't reason


def content(events: list) -> str:
    return "".join(event["choices"][0]["delta"].get("content", "") for event in events if event["choices"])


def test_the_text_is_fixed_by_prompt_seed_and_choice(server):
    def said(**fields: object) -> str:
        return content(sse(exchange(server, request_bytes("chat", tokens=20, **fields))[1]))

    assert said() == said()
    assert len({said(), said(seed=1), said(messages=[{"role": "user", "content": "Other."}])}) == 3
    whole = json.loads(exchange(server, request_bytes("chat", tokens=20, stream=False))[1])
    assert whole["choices"][0]["message"]["content"] == said()


def test_lengths_and_finish_reasons(server):
    def end(**fields: object) -> tuple[str, int]:
        events = sse(exchange(server, request_bytes("chat", stream_options={"include_usage": True}, **fields))[1])
        return events[-2]["choices"][0]["finish_reason"], events[-1]["usage"]["completion_tokens"]

    assert end(tokens=7) == ("length", 7)
    assert end(tokens=7, max_completion_tokens=3) == ("length", 3)
    natural = end(tokens=None)
    assert natural[0] == "stop"
    assert natural == end(tokens=None)
    assert end(tokens=None, min_tokens=1500) == ("stop", 1500)
    assert end(tokens=None, ignore_eos=True) == ("length", 2048 - 10)


def test_a_stop_string_ends_the_answer_and_is_left_out(server):
    full = content(sse(exchange(server, request_bytes("chat", tokens=40))[1]))
    stop = full[30:36]
    events = sse(exchange(server, request_bytes("chat", tokens=40, stop=["no such thing", stop]))[1])
    last = events[-1]["choices"][0]
    assert content(events) == full[: full.index(stop)]
    assert (last["finish_reason"], last["stop_reason"]) == ("stop", stop)
    lines = ndjson(exchange(server, request_bytes("ollama_chat", options={"num_predict": 40, "stop": [stop]}))[1])
    said = "".join(line["message"]["content"] for line in lines)
    assert said == full[: full.index(stop)]
    assert lines[-1]["done_reason"] == "stop"
    assert all(line["message"]["content"] for line in lines[:-1])  # Ollama sends no empty pieces


def test_a_stop_string_across_pieces_and_after_min_tokens():
    indices = [0, 1, 2, 0, 1]
    pieces = [VOCABULARY[index] for index in indices]
    across = pieces[0][-1] + pieces[1][0]
    assert cut_at_stop(indices, (across,), 0) == ([pieces[0][:-1], ""], across)
    kept, reason = cut_at_stop(indices, (across,), 2)
    assert (len(kept), reason) == (5, across)
    assert "".join(kept) == "".join(pieces[:3]) + pieces[3][:-1]
    assert cut_at_stop(indices, ("zzz",), 0) == (pieces, None)


@pytest.mark.parametrize(
    "field",
    [
        {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required"},
        {"logprobs": True},
        {"echo": True},
        {"response_format": {"type": "json_object"}},
        {"n": 0},
        {"min_tokens": 9},
        {"stop": ""},
        {"messages": [{"content": "no role"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        {"max_tokens": 0},
        {"max_tokens": True},
        {"messages": [{"role": "user", "content": "long " * 3000}]},
    ],
)
def test_what_it_can_not_do_is_refused_with_400(server, field):
    head, body = exchange(server, request_bytes("chat", **field))
    assert head.startswith(b"HTTP/1.1 400")
    error = json.loads(body)["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert error["code"] == 400


@pytest.mark.parametrize("api", ["chat", "ollama_generate"])
@pytest.mark.parametrize("body", [b"", b"\xff", b"[]", b"[" * 100_000, b'{"options": 3, "stream_options": 3}'])
def test_nonsense_is_a_400(server, api, body):
    head, _ = exchange(server, post(PATHS[api], body))
    assert head.startswith(b"HTTP/1.1 400")


def test_several_prompts_are_several_choices(server):
    events = sse(exchange(server, request_bytes("completions", prompt=["one", [1, 2, 3]], n=2, tokens=2))[1])
    assert sorted(event["choices"][0]["index"] for event in events) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_traps_survive_both_escapings():
    for text in [*VOCABULARY, "\u2028 \u2029 \x07 \x7f <&>"]:
        assert json.loads(b'"' + json_escaped(text) + b'"') == text
        escaped = go_escaped(text)
        assert json.loads(b'"' + escaped + b'"') == text
        assert not re.search(rb"[<>&]|\xe2\x80\xa8", escaped)
    chat = OpenAIWire("i", 1, 'a"b%s', True, 3, False, False)
    assert json.loads(chat.start(1)[0][6:])["model"] == 'a"b%s'
    assert json.loads(chat.token(0, "x", False, 1, None, None)[6:])["model"] == 'a"b%s'
    assert OllamaWire("m", True, 1, lambda: 0).token(0, "<b>", False, 1, None, None).count(b"\\u003c") == 1


def test_go_times_have_no_trailing_zeros():
    assert rfc3339_nano(1795478259_000000000) == b"2026-11-23T23:57:39Z"
    assert rfc3339_nano(1795478259_120000000) == b"2026-11-23T23:57:39.12Z"
    assert rfc3339_nano(1795478259_000000001) == b"2026-11-23T23:57:39.000000001Z"
