"""POST /v1/chat/completions as vLLM, llama.cpp, transformers serve, SGLang and Ollama speak it.

A role-only or empty delta is an event without content. Arguments of tool calls are content; a tool's name alone is
not (it comes before the model has written anything that a user can use, and some servers send it with the role).
`reasoning_details` repeats what stands in `reasoning` or `reasoning_content`, where these are sent, too.
"""

from __future__ import annotations

import msgspec

from tokenswarm.engines import Delta, Sampling
from tokenswarm.engines.body import to_json
from tokenswarm.engines.openai_envelope import (
    CHAT,
    MALFORMED,
    ChoiceIndex,
    Envelope,
    complete,
    ends,
    reshaped,
    sampling_fields,
    says_more,
    second_look,
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


class _Choice(msgspec.Struct, gc=False):
    delta: _Piece | None = None
    index: ChoiceIndex = 0
    finish_reason: str | None = None
    token_ids: list[int] | None = None


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
        ):
            content, reasoning = piece.content or "", piece.reasoning or piece.reasoning_content or ""
            if content or reasoning or not says_more(data, CHAT):
                return Delta(content, reasoning, False, choice.index)
    first, *more = [_delta(choice) for choice in choices]
    if first.finished or not (first.content or first.reasoning):
        return second_look(data, chunk, first, more, CHAT)
    return complete(chunk, first, more)


def _delta(choice: _Choice) -> Delta:
    piece = choice.delta or _Piece()
    calls = piece.tool_calls or []
    arguments = "".join(call.function.arguments or "" for call in calls if call.function)
    reason = choice.finish_reason
    return Delta(
        (piece.content or "") + (piece.refusal or "") + arguments,
        piece.reasoning or piece.reasoning_content or "",
        bool(calls),
        choice.index,
        len(choice.token_ids) if choice.token_ids else None,
        ((choice.index, reason),) if reason and ends(reason) else (),
    )
