"""The official clients of OpenAI and Ollama against the embedded engine: real sockets, their own parsers."""

from __future__ import annotations

import ollama
import openai
import pytest
from simulator_process import HELLO, simulator


@pytest.fixture(scope="module")
def server():
    with simulator("--preset", "instant", "--reasoning-tokens", "2", "--allow-fault-header") as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as one:
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
