"""The official clients of OpenAI, Anthropic and Ollama against the embedded engine: real sockets, their own parsers."""

from __future__ import annotations

import pytest
from simulator_process import HELLO, simulator


@pytest.fixture(scope="module", autouse=True)
def clients() -> None:
    """Loaded here and not above: each process that collects tests would take two seconds for it."""
    global anthropic, ollama, openai
    import anthropic
    import ollama
    import openai


@pytest.fixture(scope="module")
def server():
    with simulator("--preset", "instant", "--reasoning-tokens", "2", "--allow-fault-header") as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as one:
        yield one


@pytest.fixture(scope="module")
def claude(server):
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as one:
        yield one


@pytest.fixture(scope="module")
def native(server):
    return ollama.Client(host=server.url)


def test_openai_chat_stream(client):
    chunks = list(
        client.chat.completions.create(
            model="sim", messages=HELLO, max_tokens=9, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[1:-1]] == [None] * 8 + ["length"]
    assert [bool(getattr(chunk.choices[0].delta, "reasoning", None)) for chunk in chunks[1:-1]] == [True] * 2 + [
        False
    ] * 7
    usage = chunks[-1].usage
    assert (usage.completion_tokens, usage.prompt_tokens, usage.total_tokens) == (9, 10, 19)
    assert usage.completion_tokens_details.reasoning_tokens == 2


def test_openai_chat_whole(client):
    answer = client.chat.completions.create(model="sim", messages=HELLO, max_tokens=9, n=2)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[0].message.content != answer.choices[1].message.content
    assert answer.usage.completion_tokens == 18


def test_openai_completions(client):
    chunks = list(
        client.completions.create(
            model="sim", prompt="Once upon", max_tokens=5, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(chunk.choices[0].text for chunk in chunks[:-1])
    assert (len(chunks), chunks[-1].usage.completion_tokens) == (6, 5)
    assert text == client.completions.create(model="sim", prompt="Once upon", max_tokens=5).choices[0].text


def test_openai_lists_and_errors(client):
    assert [model.id for model in client.models.list()] == ["sim"]
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="nope", messages=HELLO)
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="sim", messages=[])
    with pytest.raises(openai.RateLimitError):
        client.chat.completions.create(model="sim", messages=HELLO, extra_headers={"x-sim-fault": "http_429"})
    with pytest.raises(openai.APIError):
        list(
            client.chat.completions.create(
                model="sim", messages=HELLO, stream=True, extra_headers={"x-sim-fault": "error_mid"}
            )
        )


def test_openai_responses_stream(client, server):
    events = list(client.responses.create(model="sim", input="Say hello.", max_output_tokens=9, stream=True))
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    thoughts = [event.delta for event in events if event.type == "response.reasoning_text.delta"]
    words = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert (len(thoughts), len(words)) == (2, 7)
    done = {event.type: event.text for event in events if event.type.endswith("_text.done")}
    assert done == {"response.reasoning_text.done": "".join(thoughts), "response.output_text.done": "".join(words)}
    last = events[-1].response
    assert (events[-1].type, last.incomplete_details.reason) == ("response.incomplete", "max_output_tokens")
    assert (last.usage.output_tokens, last.usage.input_tokens, last.usage.total_tokens) == (9, 10, 19)
    assert last.usage.output_tokens_details.reasoning_tokens == 2
    row = server.truth("?tokens=1")["requests"][-1]
    assert (row["api"], row["output_tokens"], row["prompt_tokens"]) == ("responses", 9, 10)


def test_openai_responses_helper_and_whole(client):
    with client.responses.stream(model="sim", input="Say hello.", instructions="Be brief.") as stream:
        streamed = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        assert stream.get_final_response().status == "completed"
    whole = client.responses.create(model="sim", input="Say hello.", instructions="Be brief.")
    assert whole.output_text == streamed
    assert [item.type for item in whole.output] == ["reasoning", "message"]
    chat = client.chat.completions.create(
        model="sim", messages=[{"role": "system", "content": "Be brief."}, *HELLO]
    )  # the same prompt, and so the same answer
    assert (chat.choices[0].message.content, chat.usage.prompt_tokens) == (streamed, whole.usage.input_tokens)


def test_openai_responses_errors(client):
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="nope", input="hi")
    with pytest.raises(openai.BadRequestError):
        client.responses.create(model="sim", input=[])
    with pytest.raises(openai.RateLimitError):
        client.responses.create(model="sim", input="hi", extra_headers={"x-sim-fault": "http_429"})
    events = list(
        client.responses.create(model="sim", input="hi", stream=True, extra_headers={"x-sim-fault": "error_mid:4"})
    )
    assert (events[-1].type, events[-1].code) == ("error", "server_error")
    assert "EngineCore" in events[-1].message


def test_anthropic_stream(claude, server):
    events = list(claude.messages.create(model="sim", messages=HELLO, max_tokens=9, stream=True))
    kinds = [event.type for event in events if event.type != "ping"]
    assert (kinds[0], kinds[-2:]) == ("message_start", ["message_delta", "message_stop"])
    assert [event.content_block.type for event in events if event.type == "content_block_start"] == ["thinking", "text"]
    deltas = [event.delta.type for event in events if event.type == "content_block_delta"]
    assert deltas == ["thinking_delta"] * 2 + ["signature_delta"] + ["text_delta"] * 7
    last = events[-2]
    assert (last.delta.stop_reason, last.usage.output_tokens, last.usage.input_tokens) == ("max_tokens", 9, 10)
    row = server.truth("?tokens=1")["requests"][-1]
    assert (row["api"], row["output_tokens"], row["prompt_tokens"]) == ("messages", 9, 10)


def test_anthropic_helper_and_whole(claude):
    asked = {"model": "sim", "messages": HELLO, "max_tokens": 200, "system": "Be brief."}
    with claude.messages.stream(**asked) as stream:
        streamed = "".join(stream.text_stream)
        final = stream.get_final_message()
    whole = claude.messages.create(**asked)
    assert [block.type for block in whole.content] == [block.type for block in final.content] == ["thinking", "text"]
    assert whole.content[1].text == streamed == final.content[1].text
    stopped = {**asked, "stop_sequences": [streamed[20:24]], "thinking": {"type": "disabled"}}
    with claude.messages.stream(**stopped) as stream:
        final = stream.get_final_message()
    whole = claude.messages.create(**stopped)
    for one in (final, whole):
        assert (one.stop_reason, one.stop_sequence) == ("stop_sequence", streamed[20:24])
        assert [block.type for block in one.content] == ["text"]
    assert final.content[0].text == whole.content[0].text


def test_anthropic_errors(claude):
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.create(model="nope", messages=HELLO, max_tokens=4)
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        claude.messages.create(model="sim", messages=HELLO, max_tokens=0)
    with pytest.raises(anthropic.BadRequestError, match="system"):
        claude.messages.create(model="sim", messages=[{"role": "system", "content": "x"}, *HELLO], max_tokens=4)
    with pytest.raises(anthropic.RateLimitError):
        claude.messages.create(model="sim", messages=HELLO, max_tokens=4, extra_headers={"x-sim-fault": "http_429"})
    with pytest.raises(anthropic.APIError, match="EngineCore"):
        list(
            claude.messages.create(
                model="sim", messages=HELLO, max_tokens=9, stream=True, extra_headers={"x-sim-fault": "error_mid:4"}
            )
        )


# Tools may be offered, and are never called here: a model that has none to call answers in words.
NAMED = {"name": "get_weather", "description": "x"}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
FUNCTION = {**NAMED, "parameters": SCHEMA}


@pytest.mark.parametrize(
    "choice", ["auto", "none", "required", {"type": "function", "function": {"name": "get_weather"}}]
)
@pytest.mark.parametrize("stream", [False, True])
def test_openai_chat_with_tools(client, choice, stream):
    def ask():
        return client.chat.completions.create(
            model="sim", messages=HELLO, max_tokens=9, stream=stream,
            tools=[{"type": "function", "function": FUNCTION}], tool_choice=choice,
        )  # fmt: skip

    if choice not in ("auto", "none"):  # it can't be made to call one, and says so
        with pytest.raises(openai.BadRequestError, match="tool_choice"):
            ask()
    elif stream:
        chunks = list(ask())
        assert chunks[-1].choices[0].finish_reason == "length"
        assert not any(chunk.choices[0].delta.tool_calls for chunk in chunks)
    else:
        assert (ask().choices[0].message.tool_calls or [], ask().choices[0].finish_reason) == ([], "length")


@pytest.mark.parametrize("choice", ["auto", "none", "required"])
def test_openai_responses_with_tools(client, choice):
    def ask(**more):
        tools = [{"type": "function", "strict": False, **FUNCTION}]
        return client.responses.create(
            model="sim", input="hi", max_output_tokens=9, tools=tools, tool_choice=choice, **more
        )

    if choice == "required":
        with pytest.raises(openai.BadRequestError, match="tool_choice"):
            ask()
    else:
        assert {item.type for item in ask().output} == {"reasoning", "message"}
        assert list(ask(stream=True))[-1].type == "response.incomplete"


@pytest.mark.parametrize("choice", ["auto", "none", "any", "tool"])
def test_anthropic_with_tools(claude, choice):
    asked = {
        "model": "sim", "messages": HELLO, "max_tokens": 9, "tools": [{**NAMED, "input_schema": SCHEMA}],
        "tool_choice": {"type": choice} | ({"name": "get_weather"} if choice == "tool" else {}),
    }  # fmt: skip
    if choice in ("any", "tool"):
        with pytest.raises(anthropic.BadRequestError, match="tool_choice"):
            claude.messages.create(**asked)
    else:
        assert {block.type for block in claude.messages.create(**asked).content} == {"thinking", "text"}
        with claude.messages.stream(**asked) as stream:
            assert stream.get_final_message().stop_reason == "max_tokens"


def test_openai_completions_errors(client):
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="nope", prompt="x")
    with pytest.raises(openai.BadRequestError, match="echo"):
        client.completions.create(model="sim", prompt="x", echo=True)
    with pytest.raises(openai.RateLimitError):
        client.completions.create(model="sim", prompt="x", extra_headers={"x-sim-fault": "http_429"})
    with pytest.raises(openai.APIError):
        list(client.completions.create(
            model="sim", prompt="x", max_tokens=9, stream=True, extra_headers={"x-sim-fault": "error_mid:4"}
        ))  # fmt: skip


def test_ollama_chat_stream(native):
    lines = list(native.chat("sim", messages=HELLO, stream=True, options={"num_predict": 6}))
    assert [line.done for line in lines] == [False] * 6 + [True]
    assert [bool(line.message.thinking) for line in lines[:-1]] == [True] * 2 + [False] * 4
    last = lines[-1]
    assert (last.eval_count, last.prompt_eval_count, last.done_reason) == (6, 10, "length")
    assert last.total_duration >= last.prompt_eval_duration + last.eval_duration - 2  # 1 ns each stands for none


def test_ollama_generate(native):
    lines = list(native.generate("sim", "Once upon", stream=True, options={"num_predict": 6}))
    assert (len(lines), lines[-1].eval_count) == (7, 6)
    whole = native.generate("sim", "Once upon", options={"num_predict": 6})
    assert whole.response == "".join(line.response for line in lines)


def test_ollama_lists_and_errors(native):
    assert [model.model for model in native.list().models] == ["sim:latest"]
    assert [model.model for model in native.ps().models] == ["sim:latest"]
    assert native.show("sim").modelinfo["llama.attention.head_count_kv"] == 8
    with pytest.raises(ollama.ResponseError) as caught:
        native.chat("nope", messages=HELLO)
    assert caught.value.status_code == 404
