"""POST /v1/chat/completions as vLLM, llama.cpp, transformers serve, SGLang and Ollama speak it.

A role-only or empty delta is an event without content. Arguments of tool calls are content; a tool's name alone is
not (it comes before the model has written anything that a user can use, and some servers send it with the role).
`reasoning_details` repeats what stands in `reasoning` or `reasoning_content`, where these are sent, too.
"""

from __future__ import annotations

import msgspec

from tokenswarm.engines import Delta, Sampling
from tokenswarm.engines.body import to_json
from tokenswarm.engines.odd_shapes import reasoning_of
from tokenswarm.engines.openai_envelope import (
    MALFORMED,
    ChoiceIndex,
    Envelope,
    WireUsage,
    complete,
    ended,
    no_stream,
    reshaped,
    sampling_fields,
    without_choices,
)
from tokenswarm.prompts import Prompt


class _Function(msgspec.Struct, gc=False):
    arguments: str | None = None


class _ToolCall(msgspec.Struct, gc=False):
    function: _Function | None = None


class _Piece(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning: str | None = None  # vLLM, Ollama
    reasoning_content: str | None = None  # llama.cpp, SGLang, DeepSeek
    refusal: str | None = None  # OpenAI: an answer in words, under another name
    tool_calls: list[_ToolCall] | None = None
    reasoning_details: object = None  # OpenRouter, MiniMax: a list of parts


class _Choice(msgspec.Struct, gc=False):
    delta: _Piece | None = None
    index: ChoiceIndex = 0
    finish_reason: str | None = None
    token_ids: list[int] | None = None
    usage: WireUsage | None = None  # Moonshot
    error: object = None  # OpenRouter
    message: object = None  # a whole answer has it instead of a delta


class _Chunk(Envelope, gc=False):
    choices: list[_Choice] | None = None


_decode = msgspec.json.Decoder(_Chunk).decode


def encode(prompt: Prompt, sampling: Sampling) -> bytes:
    """Return the JSON body of a streaming request for `prompt.messages`."""
    messages = [{"role": message.role, "content": message.content} for message in prompt.messages]
    body = {"model": sampling.model, "messages": messages, **sampling_fields(prompt, sampling)}
    return to_json(body, sampling.extra)


def decode(data: bytes) -> Delta:
    """Return what one event says. Raises NotAnEvent where it is no JSON or no chat completion chunk."""
    try:
        chunk = _decode(data)
    except MALFORMED as reason:
        found = reshaped(data, reason, _Chunk)
        if isinstance(found, Delta):
            return found
        chunk = found
    choices = chunk.choices
    if not choices:
        return without_choices(data, chunk, choices)
    if len(choices) == 1 and chunk.usage is None and chunk.timings is None and chunk.error is None:
        choice = choices[0]
        piece = choice.delta
        if (
            piece is not None
            and choice.finish_reason is None
            and piece.tool_calls is None
            and piece.refusal is None
            and choice.token_ids is None
            and chunk.metrics is None
            and piece.reasoning_details is None
            and choice.error is None
        ):
            return Delta(piece.content or "", piece.reasoning or piece.reasoning_content or "", False, choice.index)
    if choices[0].delta is None and choices[0].message is not None:
        raise no_stream(data)
    first, *more = [_delta(choice) for choice in choices]
    usage = next((choice.usage for choice in choices if choice.usage is not None), None)
    error = next((choice.error for choice in choices if choice.error is not None), None)
    return complete(chunk, first, more, usage, error)


def _delta(choice: _Choice) -> Delta:
    piece = choice.delta or _Piece()
    calls = piece.tool_calls or []
    arguments = "".join(call.function.arguments or "" for call in calls if call.function)
    reason = ended(choice.finish_reason)
    return Delta(
        (piece.content or "") + (piece.refusal or "") + arguments,
        piece.reasoning or piece.reasoning_content or reasoning_of(piece.reasoning_details),
        bool(calls),
        choice.index,
        len(choice.token_ids) if choice.token_ids else None,
        ((choice.index, reason),) if reason else (),
    )
