"""Streams of the two APIs with typed events, and what each of them comes to: captured ones, and ones by the grammar.

The captures are of a real Ollama and of a real llama.cpp. The others were written here from the published lists of
events of OpenAI's Responses API and Anthropic's Messages API; the numbers in them were chosen, and counted by hand.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from tokenswarm.record import Outcome

STREAMS = Path(__file__).parent / "streams"


class Told(NamedTuple):
    """What a stream says of itself."""

    finish: str
    text: str  # without reasoning
    reasoning: str
    events: int  # with content or reasoning
    prompt: int | None = None
    output: int = 0  # what the record says: the events where the server does not count
    thought: int | None = None  # reasoning tokens that the server states
    cached: int | None = None
    outcome: Outcome = Outcome.OK
    sentence: str = ""


def sse(*events: dict[str, object]) -> bytes:
    """Events with their names, as both APIs send them."""
    return b"".join(b"event: %b\ndata: %b\n\n" % (str(e["type"]).encode(), json.dumps(e).encode()) for e in events)


def captured(name: str) -> bytes:
    return (STREAMS / f"{name}.sse").read_bytes()


# --- Responses -------------------------------------------------------------------------------------------------------


def response(kind: str, **fields: object) -> dict[str, object]:
    body = {"id": "resp_1", "object": "response", "model": "m", "output": [], "error": None, "usage": None}
    return {"type": f"response.{kind}", "response": {**body, **fields}}


def delta(kind: str, text: str) -> dict[str, object]:
    return {"type": f"response.{kind}.delta", "item_id": "i", "output_index": 0, "content_index": 0, "delta": text}


def done(kind: str, field: str, text: str) -> dict[str, object]:
    return {"type": f"response.{kind}.done", "item_id": "i", "output_index": 0, field: text}


def item(kind: str, **fields: object) -> dict[str, object]:
    return {"type": f"response.output_item.{kind}", "output_index": 0, "item": {"id": "i", **fields}}


def usage(prompt: int, output: int, thought: int = 0, cached: int = 0) -> dict[str, object]:
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": cached},
        "output_tokens": output,
        "output_tokens_details": {"reasoning_tokens": thought},
        "total_tokens": prompt + output,
    }


_BEGIN = (response("created", status="in_progress"), response("in_progress", status="in_progress"))
_MESSAGE = (
    item("added", type="message", role="assistant", content=[], status="in_progress"),
    {"type": "response.content_part.added", "item_id": "i", "part": {"type": "output_text", "text": ""}},
)
_MESSAGE_DONE = (
    done("output_text", "text", "Hi you"),
    {"type": "response.content_part.done", "item_id": "i", "part": {"type": "output_text", "text": "Hi you"}},
    item("done", type="message", role="assistant", content=[{"type": "output_text", "text": "Hi you"}]),
)
_TEXT = (*_MESSAGE, delta("output_text", "Hi"), delta("output_text", " you"), *_MESSAGE_DONE)

RESPONSES: dict[str, tuple[bytes, Told]] = {
    "captured": (captured("ollama_real_responses"), Told("completed", " w00 w01 w02 w03", "", 4, 55, 4, 0, 0)),
    "captured from llama.cpp": (
        captured("llamacpp_responses"),
        Told("completed", "\ufffd\ufffd\x10,\u055d", "", 3, 13, 6),
    ),
    "captured, without an end": (
        captured("ollama_real_responses_no_end"),
        Told("", " one two", "", 2, None, 2, outcome=Outcome.TRUNCATED, sentence="without `response.completed`"),
    ),
    "text": (
        sse(*_BEGIN, *_TEXT, response("completed", status="completed", usage=usage(9, 2, 0, 8))),
        Told("completed", "Hi you", "", 2, 9, 2, 0, 8),
    ),
    "reasoning, then text": (
        sse(
            *_BEGIN,
            item("added", type="reasoning", summary=[]),
            delta("reasoning_text", "hm"),
            delta("reasoning_text", " ok"),
            done("reasoning_text", "text", "hm ok"),
            *_TEXT,
            response("completed", status="completed", usage=usage(9, 4, 2)),
        ),
        Told("completed", "Hi you", "hm ok", 4, 9, 4, 2, 0),
    ),
    "a summary of the reasoning": (
        sse(
            *_BEGIN,
            {"type": "response.reasoning_summary_part.added", "part": {"type": "summary_text", "text": ""}},
            delta("reasoning_summary_text", "hm"),
            done("reasoning_summary_text", "text", "hm"),
            {"type": "response.reasoning_summary_part.done", "part": {"type": "summary_text", "text": "hm"}},
            *_TEXT,
            response("completed", status="completed", usage=usage(9, 40, 38)),
        ),
        Told("completed", "Hi you", "hm", 3, 9, 40, 38, 0),
    ),
    "a function call": (
        sse(
            *_BEGIN,
            item("added", type="function_call", name="f", arguments=""),
            delta("function_call_arguments", '{"a'),
            delta("function_call_arguments", '": 1}'),
            done("function_call_arguments", "arguments", '{"a": 1}'),
            item("done", type="function_call", name="f", arguments='{"a": 1}'),
            response("completed", status="completed", usage=usage(20, 7)),
        ),
        Told("completed", '{"a": 1}', "", 2, 20, 7, 0, 0),
    ),
    "tools of other kinds": (
        sse(
            *_BEGIN,
            delta("custom_tool_call_input", "ls"),
            delta("mcp_call_arguments", "{}"),
            delta("code_interpreter_call_code", "1+1"),
            {"type": "response.web_search_call.searching", "item_id": "i"},
            response("completed", status="completed", usage=usage(20, 7)),
        ),
        Told("completed", "ls{}1+1", "", 3, 20, 7, 0, 0),
    ),
    "a refusal": (
        sse(
            *_BEGIN,
            delta("refusal", "I can"),
            delta("refusal", "not"),
            done("refusal", "refusal", "I cannot"),
            response("completed", status="completed", usage=usage(9, 2)),
        ),
        Told("completed", "I cannot", "", 2, 9, 2, 0, 0),
    ),
    "the limit": (
        sse(
            *_BEGIN,
            *_TEXT,
            response(
                "incomplete",
                status="incomplete",
                incomplete_details={"reason": "max_output_tokens"},
                usage=usage(9, 2),
            ),
        ),
        Told("max_output_tokens", "Hi you", "", 2, 9, 2, 0, 0),
    ),
    "incomplete without a reason": (
        sse(*_BEGIN, *_TEXT, response("incomplete", incomplete_details=None, usage=usage(9, 2))),
        Told("incomplete", "Hi you", "", 2, 9, 2, 0, 0),
    ),
    "failed, and called completed": (
        sse(
            *_BEGIN,
            *_MESSAGE,
            delta("output_text", "Hi"),
            response("completed", status="failed", error={"message": "the model died"}),
        ),
        Told("", "Hi", "", 1, None, 1, outcome=Outcome.ERROR_OBJECT, sentence="the model died"),
    ),
    "cancelled, and called completed": (
        sse(*_BEGIN, *_MESSAGE, delta("output_text", "Hi"), response("completed", status="cancelled", error=None)),
        Told("", "Hi", "", 1, None, 1, outcome=Outcome.ERROR_OBJECT, sentence="status cancelled"),
    ),
    "failed in the middle": (
        sse(
            *_BEGIN,
            *_MESSAGE,
            delta("output_text", "Hi"),
            response("failed", status="failed", error={"code": "server_error", "message": "the model died"}),
        ),
        Told("", "Hi", "", 1, None, 1, outcome=Outcome.ERROR_OBJECT, sentence="the model died"),
    ),
    "an error in the middle": (
        sse(
            *_BEGIN,
            delta("output_text", "Hi"),
            {"type": "error", "code": "server_error", "message": "boom", "param": None, "sequence_number": 3},
        ),
        Told("", "Hi", "", 1, None, 1, outcome=Outcome.ERROR_OBJECT, sentence="boom"),
    ),
    "unknown types, keep-alives, [DONE]": (
        sse(
            response("queued", status="queued"),
            *_BEGIN,
            {"type": "keepalive", "sequence_number": 3},
            {"type": "response.new_thing.delta", "delta": {"x": [1]}, "response": 5},
            *_TEXT,
            {"type": "response.output_text.annotation.added", "annotation": {"type": "url"}},
            response("completed", status="completed", usage=usage(9, 2)),
        )
        + b": bye\n\ndata: [DONE]\n\n",
        Told("completed", "Hi you", "", 2, 9, 2, 0, 0),
    ),
    "no words": (
        sse(*_BEGIN, response("completed", status="completed", usage=usage(9, 0))),
        Told("completed", "", "", 0, 9, 0, 0, 0, Outcome.EMPTY, "no content"),
    ),
    "counts that can't be": (
        sse(*_BEGIN, *_TEXT, response("completed", usage=usage(0, 0) | {"input_tokens": -5})),
        Told("completed", "Hi you", "", 2, None, 2),
    ),
}


# --- Messages --------------------------------------------------------------------------------------------------------


def start(prompt: int, output: int = 1, **cache: int) -> dict[str, object]:
    body = {"id": "msg_1", "type": "message", "role": "assistant", "content": [], "model": "m", "stop_reason": None}
    return {
        "type": "message_start",
        "message": {**body, "usage": {"input_tokens": prompt, "output_tokens": output, **cache}},
    }


def block(index: int, kind: str, *pieces: dict[str, object], **fields: object) -> tuple[dict[str, object], ...]:
    """A block of content: opened, filled, closed."""
    return (
        {"type": "content_block_start", "index": index, "content_block": {"type": kind, **fields}},
        *({"type": "content_block_delta", "index": index, "delta": piece} for piece in pieces),
        {"type": "content_block_stop", "index": index},
    )


def text(said: str) -> dict[str, object]:
    return {"type": "text_delta", "text": said}


def thinking(said: str) -> dict[str, object]:
    return {"type": "thinking_delta", "thinking": said}


def json_piece(said: str) -> dict[str, object]:
    return {"type": "input_json_delta", "partial_json": said}


def end(reason: str | None, output: int, **counts: object) -> tuple[dict[str, object], ...]:
    told = {"stop_reason": reason, "stop_sequence": None}
    return (
        {"type": "message_delta", "delta": told, "usage": {"output_tokens": output, **counts}},
        {"type": "message_stop"},
    )


_PING: dict[str, object] = {"type": "ping"}
_WORDS = block(0, "text", text("Hi"), text(" you"), text=""), Told("end_turn", "Hi you", "", 2, 25, 15)

MESSAGES: dict[str, tuple[bytes, Told]] = {
    "captured": (
        captured("ollama_real_anthropic_messages"),
        Told("max_tokens", " w00 w01 w02 w03", "", 4, 55, 4),
    ),
    "captured from llama.cpp": (  # one new token, twelve from the cache
        captured("llamacpp_messages"),
        Told("max_tokens", "\ufffd\ufffd\x10,\u055d", "", 3, 13, 6, None, 12),
    ),
    "captured, without an end": (
        captured("ollama_real_anthropic_messages_no_end"),
        Told("", " one two", "", 2, None, 2, outcome=Outcome.TRUNCATED, sentence="without `message_stop`"),
    ),
    "text": (sse(start(25), _PING, *_WORDS[0], *end("end_turn", 15)), _WORDS[1]),
    "a prompt from the cache": (
        sse(start(5, cache_read_input_tokens=80, cache_creation_input_tokens=15), *_WORDS[0], *end("end_turn", 15)),
        Told("end_turn", "Hi you", "", 2, 100, 15, None, 80),
    ),
    "thinking with its signature": (
        sse(
            start(25),
            *block(0, "thinking", thinking("hm"), thinking(" ok"), {"type": "signature_delta", "signature": "Eq=="}),
            *block(1, "text", text("Hi"), text=""),
            *end("end_turn", 15, output_tokens_details={"thinking_tokens": 9}),
        ),
        Told("end_turn", "Hi", "hm ok", 3, 25, 15, 9),
    ),
    "a tool": (
        sse(
            start(25),
            *block(0, "tool_use", json_piece(""), json_piece('{"a'), json_piece('": 1}'), id="t", name="f", input={}),
            *end("tool_use", 15),
        ),
        Told("tool_use", '{"a": 1}', "", 2, 25, 15),
    ),
    "text, then a tool that comes whole": (
        sse(
            start(25),
            *block(0, "text", text("Look"), text=""),
            *block(1, "tool_use", id="t", name="f", input={"a": 1}),
            *end("tool_use", 15),
        ),
        Told("tool_use", 'Look{"a":1}', "", 2, 25, 15),
    ),
    "a stop sequence": (
        sse(start(25), *_WORDS[0], *end("stop_sequence", 15)),
        Told("stop_sequence", "Hi you", "", 2, 25, 15),
    ),
    "the limit": (
        sse(start(25), *_WORDS[0], *end("max_tokens", 15)),
        Told("max_tokens", "Hi you", "", 2, 25, 15),
    ),
    "the prompt is counted at the end, anew": (
        sse(start(2, 0), *_WORDS[0], *end("end_turn", 15, input_tokens=52)),
        Told("end_turn", "Hi you", "", 2, 52, 15),
    ),
    "an error in the middle": (
        sse(
            start(25),
            *_WORDS[0][:2],
            {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}},
        ),
        Told("", "Hi", "", 1, None, 1, outcome=Outcome.ERROR_OBJECT, sentence="Overloaded"),
    ),
    "an error instead of an answer": (
        sse({"type": "error", "error": {"type": "api_error", "message": "Internal server error"}}),
        Told("", "", "", 0, None, 0, outcome=Outcome.ERROR_OBJECT, sentence="Internal server error"),
    ),
    "a reason, but no end": (
        sse(start(25), *_WORDS[0], *end("end_turn", 15)[:1]),
        Told("", "Hi you", "", 2, 25, 15, outcome=Outcome.TRUNCATED, sentence="without `message_stop`"),
    ),
    "an end, but no reason": (
        sse(start(25), *_WORDS[0], *end(None, 15)),
        Told("message_stop", "Hi you", "", 2, 25, 15),
    ),
    "an end that a gateway wrote, without the server's word": (
        sse(start(25), *_WORDS[0], {"type": "message_stop"}),
        Told(
            "no message_delta", "Hi you", "", 2, None, 2, outcome=Outcome.TRUNCATED, sentence="without `message_delta`"
        ),
    ),
    "the server gave it up": (
        sse(start(25), *_WORDS[0], *end("error", 15)),
        Told("error", "Hi you", "", 2, 25, 15, outcome=Outcome.ERROR_OBJECT, sentence="finish reason 'error'"),
    ),
    "a reason, then counts": (
        sse(start(25), *_WORDS[0], end("max_tokens", 9)[0], *end(None, 15)),
        Told("max_tokens", "Hi you", "", 2, 25, 15),
    ),
    "unknown types, hidden thoughts, [DONE]": (
        sse(
            start(25),
            _PING,
            *block(0, "redacted_thinking", data="abc"),
            {"type": "new_thing", "delta": "x", "message": [1]},
            *block(1, "text", text("Hi"), {"type": "citations_delta", "citation": {"url": "u"}}, text(" you"), text=""),
            *end("end_turn", 15),
        )
        + b": bye\n\ndata: [DONE]\n\n",
        Told("end_turn", "Hi you", "", 2, 25, 15),
    ),
    "no words": (
        sse(start(25), *block(0, "text", text=""), *end("end_turn", 1)),
        Told("end_turn", "", "", 0, 25, 1, outcome=Outcome.EMPTY, sentence="no content"),
    ),
}
