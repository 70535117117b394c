"""POST /api/generate of Ollama: one JSON object a line, `response` instead of a message; the last has `done: true`."""

from __future__ import annotations

import msgspec

from tokenswarm.engines import Delta, Sampling
from tokenswarm.engines.body import to_json
from tokenswarm.engines.ollama_envelope import MALFORMED, Envelope, reshaped, sampling_fields, special
from tokenswarm.prompts import Prompt


class _Line(Envelope, gc=False):
    response: str | None = None
    thinking: str | None = None


_decode = msgspec.json.Decoder(_Line).decode


def encode(prompt: Prompt, sampling: Sampling) -> bytes:
    """Return the JSON body of a streaming request for `prompt.text`."""
    return to_json(
        {"model": sampling.model, "prompt": prompt.text, **sampling_fields(prompt, sampling)}, sampling.extra
    )


def decode(data: bytes) -> Delta:
    """Return what one line says. Raises NotAnEvent where it is no JSON or no generate line."""
    try:
        line = _decode(data)
    except MALFORMED as reason:
        found = reshaped(data, reason, _Line)
        if isinstance(found, Delta):
            return found
        line = found
    if line.response is None and line.thinking is None:
        return special(data, line, None)
    piece = Delta(line.response or "", line.thinking or "")
    return special(data, line, piece) if line.done or line.error is not None else piece
