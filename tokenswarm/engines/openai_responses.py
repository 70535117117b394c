"""POST /v1/responses as OpenAI, vLLM and Ollama speak it: typed events, each with what it adds under `delta`.

Text and refusals are content, so are the arguments of tools; reasoning comes as text or as a summary. Every `…done`
repeats what its deltas said and holds nothing new. The end is `response.completed`, or `response.incomplete` with the
reason; OpenAI's `response.failed` and `error` are errors. Types that are not known here add nothing to the answer.
"""

from __future__ import annotations

from typing import Any

import msgspec

from tokenswarm.engines import Delta, Sampling, Usage
from tokenswarm.engines.body import to_json
from tokenswarm.engines.counts import limit, ms_as_ns, tokens
from tokenswarm.engines.failure import blank, error_line
from tokenswarm.engines.typed_events import MALFORMED, foreign, reshaped, typed_error
from tokenswarm.prompts import Prompt
from tokenswarm.record import EngineTimes

# Of each type that adds to the answer: its place, as fields of a Delta.
_CONTENT = frozenset(("response.output_text.delta", "response.refusal.delta"))
_REASONING = frozenset(
    ("response.reasoning_text.delta", "response.reasoning_summary_text.delta", "response.reasoning.delta")
)
_TOOL = frozenset(
    (
        *("response.function_call_arguments.delta", "response.custom_tool_call_input.delta"),
        *("response.mcp_call_arguments.delta", "response.code_interpreter_call_code.delta"),
    )
)
_ENDS = {"response.completed": "completed", "response.incomplete": "incomplete"}
_FAILS = frozenset(("response.failed", "response.cancelled", "error"))
_FAILED = ("failed", "cancelled")  # the status of a response, whatever the event that ends it is called


class _Response(msgspec.Struct, gc=False):
    status: object = None
    error: object = None
    incomplete_details: object = None
    usage: object = None


class _Event(msgspec.Struct, gc=False):
    type: str | None = None
    delta: str | None = None
    response: _Response | None = None
    error: object = None
    timings: object = None  # llama.cpp, beside the response that ends


_decode = msgspec.json.Decoder(_Event).decode


def encode(prompt: Prompt, sampling: Sampling, *, ollama: bool = False) -> bytes:
    """Return the JSON body of a streaming request for `prompt.messages`, each of them an item of `input`.

    An item's type may be left out, but llama.cpp then takes no answer of the assistant.

    `seed`, `stop` and `ignore_eos` are vLLM's; OpenAI has none of them. Ollama without a limit goes on to ten times
    its context, so it always gets one.
    """
    body = {
        "model": sampling.model,
        "input": [{"type": "message", "role": said.role, "content": said.content} for said in prompt.messages],
        "max_output_tokens": limit(prompt, sampling, always=ollama),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": sampling.seed,
        "stop": sampling.stop or None,
        "ignore_eos": True if sampling.ignore_eos and not ollama else None,
        "stream": True,
    }
    return to_json(body, sampling.extra)


def decode(data: bytes) -> Delta:
    """Return what one event says. Raises NotAnEvent where it is no JSON or no event of a response."""
    try:
        event = _decode(data)
    except MALFORMED as reason:
        found = reshaped(data, reason, _Event, _tidy)
        if isinstance(found, Delta):
            return found
        event = found
    kind = event.type
    if event.error is None:
        if kind in _CONTENT:
            return Delta(event.delta or "")
        if kind in _REASONING:
            return Delta("", event.delta or "")
        if kind in _TOOL:
            return Delta(event.delta or "", tool=True)
    return _special(data, event)


def _special(data: bytes, event: _Event) -> Delta:
    """Read an event without words of the answer: its state, its end, an error, or nothing of it."""
    kind, response = event.type or "", event.response or _Response()
    usage = _usage(response.usage)
    failed = kind in _ENDS and (not blank(response.error) or response.status in _FAILED)
    if failed or kind in _FAILS or event.error is not None:
        kind = f"status {response.status}" if failed else kind
        said = error_line(event.error) or error_line(response.error) or typed_error(msgspec.json.decode(data))
        return Delta(usage=usage, error=said or f"the server ended the answer with {kind or 'an error'}")
    if kind in _ENDS:
        why = _why(response.incomplete_details) or _ENDS[kind]
        return Delta(finished=((0, why),), usage=usage, times=_times(event.timings))
    if kind.startswith("response."):
        return Delta(usage=usage)
    return foreign(data, event.type, "output")


def _tidy(event: dict[str, Any]) -> dict[str, Any]:
    """Without what a type that adds nothing carries under our names: that is its own business."""
    if not isinstance(event.get("type"), str):
        return event
    told = {"response": dict} | ({} if event["type"] in _CONTENT | _REASONING | _TOOL else {"delta": str})
    return {key: value for key, value in event.items() if isinstance(value, told.get(key, object))}


def _why(details: object) -> str:
    reason = details.get("reason") if isinstance(details, dict) else None
    return reason if isinstance(reason, str) else ""


def _times(timings: object) -> EngineTimes | None:
    if not isinstance(timings, dict):
        return None
    return EngineTimes(prefill_ns=ms_as_ns(timings.get("prompt_ms")), decode_ns=ms_as_ns(timings.get("predicted_ms")))


def _usage(usage: object) -> Usage | None:
    if not isinstance(usage, dict):
        return None
    return Usage(
        tokens(usage.get("input_tokens")),
        tokens(usage.get("output_tokens")),
        _detail(usage.get("output_tokens_details"), "reasoning_tokens"),
        _detail(usage.get("input_tokens_details"), "cached_tokens"),
    )


def _detail(details: object, key: str) -> int | None:
    return tokens(details.get(key)) if isinstance(details, dict) else None
