"""POST /v1/messages as Anthropic, vLLM, llama.cpp and Ollama speak it: blocks of content, each opened, filled, closed.

Text is content, so is the JSON of a tool's input; thinking is reasoning; a signature is neither. `message_delta` tells
why the answer ends and what it holds, `message_stop` ends it: one without the other is an answer that was cut.
`input_tokens` leaves out what was read from the cache or written to it; the prompt is all three. What `message_start`
counts is Ollama's estimate, so the output is counted by `message_delta` alone.
"""

from __future__ import annotations

from typing import Any

import msgspec

from tokenswarm.engines import CUT, UNTOLD, Delta, Sampling, Usage
from tokenswarm.engines.body import to_json
from tokenswarm.engines.counts import limit, tokens
from tokenswarm.engines.failure import error_line
from tokenswarm.engines.typed_events import MALFORMED, foreign, reshaped, typed_error
from tokenswarm.prompts import Prompt

HEADERS = {"anthropic-version": "2023-06-01"}
"""The protocol asks for a version in each request; this one is the only one that servers besides Anthropic's know."""

_TYPES = frozenset(
    (
        *("message_start", "message_delta", "message_stop"),
        *("content_block_start", "content_block_delta", "content_block_stop"),
    )
)


class _Piece(msgspec.Struct, gc=False):
    """A `delta`, or the block that `content_block_start` opens."""

    type: str | None = None
    text: str | None = None
    thinking: str | None = None
    partial_json: str | None = None
    input: object = None
    stop_reason: str | None = None


class _Message(msgspec.Struct, gc=False):
    usage: object = None


class _Event(msgspec.Struct, gc=False):
    type: str | None = None
    delta: _Piece | None = None
    content_block: _Piece | None = None
    message: _Message | None = None
    usage: object = None
    error: object = None


_decode = msgspec.json.Decoder(_Event).decode


def encode(prompt: Prompt, sampling: Sampling) -> bytes:
    """Return the JSON body of a streaming request for `prompt.messages`. The protocol wants a limit in each.

    System messages stand in `system`, and there is no other role than user and assistant. It knows no seed.
    """
    system = [message.content for message in prompt.messages if message.role == "system"]
    messages = [
        {"role": "assistant" if message.role == "assistant" else "user", "content": message.content}
        for message in prompt.messages
        if message.role != "system"
    ]
    body = {
        "model": sampling.model,
        "max_tokens": limit(prompt, sampling, always=True),
        "system": "\n\n".join(system) if system else None,
        "messages": messages,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "stop_sequences": sampling.stop or None,
        "stream": True,
    }
    return to_json(body, sampling.extra)


def decode(data: bytes) -> Delta:
    """Return what one event says. Raises NotAnEvent where it is no JSON or no event of a message."""
    try:
        event = _decode(data)
    except MALFORMED as reason:
        found = reshaped(data, reason, _Event, _tidy)
        if isinstance(found, Delta):
            return found
        event = found
    piece = event.delta
    if event.type == "content_block_delta" and piece is not None and event.error is None:
        return Delta(piece.text or piece.partial_json or "", piece.thinking or "", piece.partial_json is not None)
    return _special(data, event)


def _special(data: bytes, event: _Event) -> Delta:
    """Read an event that opens, closes or ends something, an error, or nothing of the answer."""
    kind = event.type
    if kind == "error" or event.error is not None:
        said = error_line(event.error) or typed_error(msgspec.json.decode(data))
        return Delta(error=said or "the server ended the answer with an error")
    if kind == "message_start":
        usage = _usage(event.message.usage) if event.message else None
        return Delta(usage=usage and msgspec.structs.replace(usage, output_tokens=None))
    if kind == "content_block_start" and event.content_block is not None:
        return _opened(event.content_block)
    if kind == "message_delta":
        reason = event.delta.stop_reason if event.delta else None
        return Delta(usage=msgspec.structs.replace(_usage(event.usage) or Usage(), reason=reason or UNTOLD))
    if kind == "message_stop":
        return Delta(finished=((0, CUT),))
    if kind in _TYPES:
        return Delta()
    return foreign(data, kind, "content")


def _opened(block: _Piece) -> Delta:
    """What a block holds from its start: nothing, but where a gateway sends it whole."""
    whole = msgspec.json.encode(block.input).decode() if isinstance(block.input, dict) and block.input else ""
    return Delta(block.text or whole, block.thinking or "", block.type == "tool_use")


def _tidy(event: dict[str, Any]) -> dict[str, Any] | Delta:
    """An event of a type that is not known here says nothing that a field of ours could."""
    kind = event.get("type")
    return (
        foreign(msgspec.json.encode(event), kind, "content") if isinstance(kind, str) and kind not in _TYPES else event
    )


def _usage(usage: object) -> Usage | None:
    if not isinstance(usage, dict):
        return None
    new, output = tokens(usage.get("input_tokens")), tokens(usage.get("output_tokens"))
    read, written = tokens(usage.get("cache_read_input_tokens")), tokens(usage.get("cache_creation_input_tokens"))
    details = usage.get("output_tokens_details")
    thought = details.get("thinking_tokens", details.get("reasoning_tokens")) if isinstance(details, dict) else None
    prompt = None if new is None else new + (read or 0) + (written or 0)
    return Usage(prompt, output, tokens(thought), read)
