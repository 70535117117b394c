"""POST /api/chat of Ollama: one JSON object a line, the last one with `done: true`.

A tool call comes whole in one line and its arguments are an object: their JSON text is the content of the event.
"""

from __future__ import annotations

import msgspec

from tokenswarm.engines import Delta, Sampling
from tokenswarm.engines.body import to_json
from tokenswarm.engines.ollama_envelope import MALFORMED, Envelope, not_json, reshaped, sampling_fields, special
from tokenswarm.prompts import Prompt


class _Function(msgspec.Struct, gc=False):
    arguments: msgspec.Raw = msgspec.Raw(b"{}")


class _ToolCall(msgspec.Struct, gc=False):
    function: _Function | None = None


class _Message(msgspec.Struct, gc=False):
    content: str | None = None
    thinking: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Line(Envelope, gc=False):
    message: _Message | None = None


_decode = msgspec.json.Decoder(_Line).decode


def encode(prompt: Prompt, sampling: Sampling) -> bytes:
    """Return the JSON body of a streaming request for `prompt.messages`."""
    messages = [{"role": message.role, "content": message.content} for message in prompt.messages]
    return to_json({"model": sampling.model, "messages": messages, **sampling_fields(prompt, sampling)}, sampling.extra)


def decode(data: bytes) -> Delta:
    """Return what one line says. Raises NotAnEvent where it is no JSON or no chat line."""
    try:
        line = _decode(data)
    except MALFORMED as reason:
        found = reshaped(data, reason, _Line)
        if isinstance(found, Delta):
            return found
        line = found
    message = line.message
    if message is None:
        return special(data, line, None)
    content = message.content or ""
    calls = message.tool_calls
    if calls:
        content += _arguments(data, calls)
    if line.done or line.error is not None:
        return special(data, line, Delta(content, message.thinking or "", bool(calls)))
    return Delta(content, message.thinking or "", bool(calls))


def _arguments(data: bytes, calls: list[_ToolCall]) -> str:
    try:
        return "".join(bytes(call.function.arguments).decode() for call in calls if call.function)
    except UnicodeDecodeError as reason:
        raise not_json(data, reason) from None
