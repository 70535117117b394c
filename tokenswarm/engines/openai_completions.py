"""POST /v1/completions: one text in, pieces of text out; no roles, tools or reasoning.

Ollama puts a zeroed usage on every event before the real one; zeros are no usage. A whole answer, of a server that
ignores `stream: true`, has the shape of an event: it is one.
"""

from __future__ import annotations

import msgspec

from tokenswarm.engines import Delta, Sampling
from tokenswarm.engines.body import to_json
from tokenswarm.engines.openai_envelope import (
    COMPLETIONS,
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
        found = reshaped(data, reason, _Chunk)
        if isinstance(found, Delta):
            return found
        chunk = found
    choices = chunk.choices
    if not choices:
        return without_choices(data, chunk, choices)
    if len(choices) == 1 and chunk.bare:
        choice = choices[0]
        if (
            choice.finish_reason is None
            and choice.token_ids is None
            and (choice.text or not says_more(data, COMPLETIONS))
        ):
            return Delta(choice.text or "", "", False, choice.index)
    first, *more = [_delta(choice) for choice in choices]
    if first.finished or not first.content:
        return second_look(data, chunk, first, more, COMPLETIONS)
    return complete(chunk, first, more)


def _delta(choice: _Choice) -> Delta:
    reason = choice.finish_reason
    return Delta(
        choice.text or "",
        choice=choice.index,
        tokens=len(choice.token_ids) if choice.token_ids else None,
        finished=((choice.index, reason),) if reason and ends(reason) else (),
    )
