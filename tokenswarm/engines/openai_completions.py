"""POST /v1/completions: one text in, pieces of text out; no roles, tools or reasoning.

Ollama puts a zeroed usage on every event before the real one; `Timeline` takes the last and believes no zero.
"""

from __future__ import annotations

import msgspec

from tokenswarm.engines import Delta, Sampling
from tokenswarm.engines.body import to_json
from tokenswarm.engines.openai_envelope import (
    MALFORMED,
    ChoiceIndex,
    Envelope,
    complete,
    not_json,
    sampling_fields,
    without_choices,
)
from tokenswarm.prompts import Prompt


class _Choice(msgspec.Struct, gc=False):
    text: str | None = None
    index: ChoiceIndex = 0
    finish_reason: str | None = None
    token_ids: list[int] | None = None


class _Chunk(Envelope, gc=False):
    choices: list[_Choice] | None = None


_decode = msgspec.json.Decoder(_Chunk).decode


def encode(prompt: Prompt, sampling: Sampling) -> bytes:
    """Return the JSON body of a streaming request for `prompt.text`."""
    body = {"model": sampling.model, "prompt": prompt.text, **sampling_fields(prompt, sampling)}
    return to_json(body, sampling.extra)


def decode(data: bytes) -> Delta:
    """Return what one event says. Raises NotAnEvent where it is no JSON or no text completion chunk."""
    try:
        chunk = _decode(data)
    except MALFORMED as reason:
        return not_json(data, reason)
    choices = chunk.choices
    if choices is None:
        return without_choices(data, chunk)
    if len(choices) == 1 and chunk.bare:
        choice = choices[0]
        if choice.finish_reason is None and choice.token_ids is None:
            return Delta(choice.text or "", "", False, choice.index)
    first, *more = [_delta(choice) for choice in choices] or [Delta()]
    return complete(chunk, first, more)


def _delta(choice: _Choice) -> Delta:
    return Delta(
        choice.text or "",
        choice=choice.index,
        tokens=len(choice.token_ids) if choice.token_ids else None,
        finished=((choice.index, choice.finish_reason),) if choice.finish_reason else (),
    )
