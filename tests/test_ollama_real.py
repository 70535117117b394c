"""What a real Ollama sent, over real sockets: outcome, tokens, thoughts, the read of the first token, the sentence.

Captures of Ollama 0.33 on a CPU with scripted models. Each is served again with its own head, a chunk a line or event,
as it came.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import gevent
import pytest
from exchanges import PROMPT, READERS, Setup
from raw_server import raw_server

from tokenswarm.client.sending import Request
from tokenswarm.clock import monotonic_ns
from tokenswarm.engines import Sampling
from tokenswarm.engines.dialects import DIALECTS
from tokenswarm.engines.framing import ndjson, sse
from tokenswarm.engines.ollama_ps import loaded
from tokenswarm.measure.timeline import Timeline
from tokenswarm.record import RequestRecord

STREAMS = Path(__file__).parent / "streams"
NO_LAST_LINE = "the server ended the answer without its last line (`done: true`), after"
REPEATED = "more than 30 equal pieces in a row, where Ollama stops without a word"
ENGINE = "and hid why: so Ollama ends when its engine fails"


class Told(NamedTuple):
    outcome: str
    finish: str = ""
    events: int = 0
    thoughts: int = 0  # of these
    first: int | None = None  # the line or event with the first token, from 0
    prompt: int | None = None
    output: int = 0
    source: str = "server"
    sentence: str = ""


def broken(outcome: str, events: int, sentence: str) -> Told:
    return Told(outcome, "", events, 0, 0, None, events, "events", sentence)


def refused(outcome: str, sentence: str) -> Told:
    return Told(outcome, source="events", sentence=sentence)


TABLE = {
    "chat.ndjson": Told("ok", "length", 8, 0, 0, 55, 8),
    "chat_cold_start.ndjson": Told("ok", "length", 4, 0, 0, 55, 4),
    "chat_engine_error_line.ndjson": broken(
        "error_object",
        2,
        "llama-server chat error: map[code:500 message:The model produced output that does not match the expected "
        "peg-native format type:server_error]",
    ),
    "chat_held_tokens.ndjson": Told("ok", "length", 7, 0, 0, 55, 10),
    "chat_logprobs.ndjson": Told("ok", "length", 3, 0, 0, 55, 3),
    "chat_nonstream.json": Told("ok", "stop", 1, 0, 0, 55, 21),
    "chat_queued.ndjson": Told("ok", "length", 8, 0, 0, 56, 8),
    "chat_repeat_no_done.ndjson": broken("truncated", 32, f"{NO_LAST_LINE} 32 content events: {REPEATED}"),
    "chat_repeat_nonstream_done_false.json": broken("truncated", 1, f"{NO_LAST_LINE} 1 content events: {REPEATED}"),
    "chat_runner_death.ndjson": broken(
        "error_object", 33, "an error was encountered while running the model: unexpected EOF"
    ),
    "chat_stop.ndjson": Told("ok", "stop", 20, 0, 0, 55, 21),  # the end of text is a token
    "chat_thinking.ndjson": Told("ok", "stop", 9, 4, 0, 8, 14),
    "chat_tool_cut_error.ndjson": broken(
        "error_object",
        4,
        'llama-server returned invalid tool call arguments for "get_weather": unexpected end of JSON input',
    ),
    "chat_tool_only.ndjson": Told("ok", "stop", 1, 0, 0, 397, 8),
    "chat_utf8_cut.ndjson": Told("ok", "length", 8, 0, 0, 55, 17),
    "generate_load_only.json": Told(
        "empty", "load", sentence="the answer holds no content: it ended with finish reason 'load'", source="events"
    ),
    "generate_raw.ndjson": Told("ok", "length", 6, 0, 0, 5, 6),
    "generate_thinking_empty_lines.ndjson": Told("ok", "stop", 9, 4, 2, 8, 14),
    "openai_chat_one_token.sse": Told("ok", "length", 1, 0, 0, 55, 1),
    "openai_chat_reasoning.sse": Told("ok", "stop", 9, 4, 0, 8, 14),
    "openai_chat_tool.sse": Told("ok", "tool_calls", 5, 0, 0, 397, 12),
    "openai_chat_usage.sse": Told("ok", "length", 8, 0, 0, 55, 8),
    "openai_completion_repeat_no_done.sse": broken(
        "truncated", 32, f"the server ended the answer without a finish reason, after 32 content events: {REPEATED}"
    ),
    "openai_completion_runner_death.sse": broken(
        "truncated",
        24,
        "the server ended the answer and hid an error, after 24 content events: its last names no model",
    ),
    "openai_completion_usage.sse": Told("ok", "length", 5, 0, 0, 55, 5),
    "responses.sse": Told("ok", "completed", 4, 0, 4, 55, 4),
    "responses_no_end.sse": Told(
        *("truncated", "", 2, 0, 4, None, 2, "events"),
        f"the server ended the answer without `response.completed`, after 2 content events, {ENGINE}",
    ),
    "anthropic_messages.sse": Told("ok", "max_tokens", 4, 0, 2, 55, 4),
    "anthropic_messages_no_end.sse": Told(
        *("truncated", "", 2, 0, 2, None, 2, "events"),  # 2 prompt tokens are an estimate, and the truth never came
        f"the server ended the answer without `message_stop`, after 2 content events, {ENGINE}",
    ),
    "err_busy503.json": refused(
        "http_5xx", "HTTP 503: server busy, please try again. maximum pending requests exceeded"
    ),
    "err_ctx400.json": refused(
        "http_4xx",
        "HTTP 400: request (2803 tokens) exceeds the available context size (2048 tokens), try increasing it",
    ),
    "err_model404.json": refused("http_4xx", "HTTP 404: model 'nope' not found"),
    "err_runner_gone500.json": refused("http_5xx", "HTTP 500: llama-server process no longer running: unknown"),
    "openai_err_badtype.json": refused(
        "http_4xx",
        "HTTP 400: json: cannot unmarshal string into Go struct field ChatCompletionRequest.max_tokens of type int",
    ),
}


def key_of(name: str) -> tuple[str, str]:
    if name.startswith("openai"):
        return "openai", "completions" if "completion" in name else "chat"
    if name.startswith(("responses", "anthropic")):
        return "ollama", "responses" if name.startswith("responses") else "messages"
    return "ollama", "generate" if "generate" in name else "chat"


def pieces(name: str, body: bytes) -> list[bytes]:
    end = b"\n\n" if name.endswith(".sse") else b"\n"
    return [part + end for part in body.split(end) if part]


def asked_for(name: str) -> int | None:
    asked = json.loads((STREAMS / f"ollama_real_{name}.request.json").read_bytes() or b"{}")
    found = {**asked, **asked.get("options", {})}
    limit = next((found[key] for key in ("max_tokens", "max_output_tokens", "num_predict") if key in found), None)
    return limit if isinstance(limit, int) else None


@pytest.fixture(scope="module")
def setup() -> Iterator[Setup]:
    made = Setup()
    yield made
    made.close()


def script_of(name: str, body: bytes) -> list[bytes]:
    """This capture's head and this body, in chunks where it was a stream."""
    lines = (STREAMS / f"ollama_real_{name}.headers").read_text().splitlines()
    sort = next(line for line in lines if line.lower().startswith("content-type"))
    if name.endswith(".json"):
        return [f"{lines[0]}\r\n{sort}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body]
    head = f"{lines[0]}\r\n{sort}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    return [head, *(b"%x\r\n%b\r\n" % (len(part), part) for part in pieces(name, body)), b"0\r\n\r\n"]


def play(setup: Setup, name: str, body: bytes, kind: tuple[str, str] | None = None) -> RequestRecord:
    """Our client's record of an answer with this capture's head and this body."""
    with raw_server(script_of(name, body)) as server, gevent.Timeout(20):
        client = setup.client(server, kind=kind or key_of(name), keep_text=False)
        request = Request("0-1", PROMPT, 0, "steady", monotonic_ns())
        return client.send(request, Sampling(model="m", max_tokens=asked_for(name)))


def capture(name: str) -> bytes:
    return (STREAMS / f"ollama_real_{name}").read_bytes()


def test_no_capture_is_left_out() -> None:
    found = {path.name.removeprefix("ollama_real_") for path in STREAMS.glob("ollama_real_*")}
    assert {name for name in found if not name.endswith((".headers", ".request.json"))} == {*TABLE, "ps.json"}


@pytest.mark.parametrize("name", TABLE)
def test_what_the_record_says(setup: Setup, name: str) -> None:
    told = TABLE[name]
    got = play(setup, name, capture(name))
    assert (got.outcome.value, got.finish_reason, got.error) == (told.outcome, told.finish, told.sentence)
    assert (got.events, got.reasoning_events) == (told.events, told.thoughts)
    assert (got.prompt_tokens, got.output_tokens, got.token_source.value) == (told.prompt, told.output, told.source)
    assert bool(got.first_ns) == (told.first is not None)
    silent = told.outcome == "truncated"
    assert (got.error_kind == "silent end") == silent, "no proxy is to blame for it"
    assert "proxy" not in got.error


@pytest.mark.parametrize("name", [name for name, told in TABLE.items() if told.first is not None])
def test_which_line_has_the_first_token(name: str) -> None:
    """Each line is a read of its own, a millisecond after the one before."""
    dialect, timeline = DIALECTS[key_of(name)], Timeline()
    timeline.sent_ns = 1
    framer = (sse if dialect.framing == "sse" else ndjson)(1 << 20)
    for i, piece in enumerate(pieces(name, capture(name))):
        for payload in framer.feed(piece):
            timeline.mark(1 + i * 1_000_000, dialect.decode(payload))
    timeline.done_ns = 1 + i * 1_000_000
    got = timeline.finish(timeline.judge()[0], id="1", stage=0, phase="steady", conversation="", turn=0)
    assert got.ttft_ns == TABLE[name].first * 1_000_000
    if "tool_only" in name:  # nothing comes before the end: the whole time is the TTFT, and there is no pace
        assert (got.ttft_ns, got.tpot_ns, got.gaps_ns, got.at_once) == (got.e2e_ns, None, (), True)


def test_the_silent_end_is_told_on_each_path(setup: Setup) -> None:
    """Our own cuts of captures: where nothing speaks for Ollama, nobody is blamed."""
    chat = b"".join(pieces("x.ndjson", capture("chat.ndjson"))[:-1])
    assert play(setup, "chat.ndjson", chat).error == f"{NO_LAST_LINE} 8 content events, {ENGINE}"
    thirty = b"".join(pieces("x.ndjson", capture("chat_repeat_no_done.ndjson"))[:-1])
    assert play(setup, "chat.ndjson", thirty).error == f"{NO_LAST_LINE} 31 content events, {ENGINE}"
    raw = b"".join(pieces("x.ndjson", capture("generate_raw.ndjson"))[:-1])
    assert ENGINE in play(setup, "generate_raw.ndjson", raw).error
    openai = b"".join(pieces("x.sse", capture("openai_chat_usage.sse"))[:-3])
    assert (
        "without a finish reason, after 8 content events, and hid why"
        in play(setup, "openai_chat_usage.sse", openai).error
    )
    other = play(setup, "openai_chat_usage.sse", openai.replace(b"fp_ollama", b"fp_other"))
    assert (other.error_kind, other.error) == (
        "truncated",
        "the answer ended without a finish reason, after 8 content events",
    )
    typed = capture("responses_no_end.sse")
    assert play(setup, "responses_no_end.sse", typed, ("openai", "responses")).error_kind == "truncated"


def test_an_error_that_is_hidden_is_one_only_as_the_last_word(setup: Setup) -> None:
    name = "openai_completion_runner_death.sse"
    parts = pieces(name, capture(name))
    early = b"".join([*parts[:5], parts[-1], *parts[5:-1]])
    got = play(setup, name, early)
    assert (got.error_kind, "hid an error" in got.error) == ("silent end", False)
    chat = (
        b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}],"model":""}\n\n'
    )
    tail = pieces("x.sse", capture("openai_chat_usage.sse"))[:-3]
    got = play(setup, "openai_chat_usage.sse", b"".join([*tail, chat]))
    assert got.error == "the server ended the answer and hid an error, after 8 content events: its last names no model"


def test_loaded_models_of_the_capture() -> None:
    models = loaded(json.loads(capture("ps.json")))
    assert len(models) >= 2
    assert all(one.name.endswith(":latest") and one.vram_ratio == 0.0 for one in models)
    assert {one.context for one in models} == {2048}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", ["chat_repeat_no_done.ndjson", "openai_completion_repeat_no_done.sse"])
def test_a_client_that_knows_the_server_tells_it_as_well(name: str, reader: str) -> None:
    """A reader in C takes what the first streams taught: the words must still be looked at."""
    made = Setup(reader)
    script = script_of(name, capture(name))
    try:
        with raw_server(script, script, script) as server, gevent.Timeout(20):
            client = made.client(server, kind=key_of(name), keep_text=False, fresh=True)
            requests = [Request(f"0-{i}", PROMPT, 0, "steady", monotonic_ns()) for i in range(3)]
            found = {client.send(request, Sampling(model="m", max_tokens=40)).error for request in requests}
    finally:
        made.close()
    assert found == {TABLE[name].sentence}
