"""What /api/chat and /api/generate lines have in common: the end, its counts and durations, errors, options.

Source: ollama api/types.go. Counts and durations of the final line are `omitempty`: a zero is absent there, and so
is what a release or a gateway does not know.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from tokenswarm.engines import NOTHING, Delta, NotAnEvent, Sampling, Usage
from tokenswarm.engines.counts import limit, ns, tokens
from tokenswarm.engines.failure import blank, error_line, error_text
from tokenswarm.engines.odd_shapes import tidy
from tokenswarm.engines.other_apis import known_by, mend
from tokenswarm.prompts import Prompt
from tokenswarm.record import EngineTimes

MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Envelope(msgspec.Struct, gc=False):
    """A line without its piece of text."""

    done: bool | None = None
    done_reason: str | None = None
    error: object = None
    total_duration: object = None
    load_duration: object = None
    prompt_eval_count: object = None
    prompt_eval_duration: object = None
    eval_count: object = None
    eval_duration: object = None


_OF_THE_OTHER = (b'"message"', b'"response"')  # of /api/chat and /api/generate

# What carries the words of other APIs: an object that has one of these is no keep-alive.
_OF_OTHER_APIS = frozenset(("choices", "content", "text", "message", "response", "delta", "output", "candidates"))

Line = TypeVar("Line", bound=Envelope)


def special(data: bytes, line: Envelope, piece: Delta | None) -> Delta:
    """Read a line that is not just a piece of text: the end, an error, or nothing of the answer. Raises NotAnEvent."""
    beside = piece is not None or line.done is not None
    error = "" if beside and blank(line.error) else error_line(line.error)
    if not beside and not error:
        return _without_text(data)
    if piece is None and not error and any(key in data for key in _OF_THE_OTHER):
        _check_path(data)
    piece = piece or Delta()
    reason = line.done_reason
    return Delta(
        piece.content,
        piece.reasoning,
        piece.tool,
        # Releases before 2024-05 give no reason; "done" is what they do say.
        finished=((0, reason if isinstance(reason, str) and reason else "done"),) if line.done else (),
        usage=_usage(line) if line.done else None,
        times=_times(line) if line.done else None,
        error=error,
    )


def _check_path(data: bytes) -> None:
    """Raises NotAnEvent for a line with the words of another of Ollama's paths."""
    if said := mend(_object(data)):
        raise NotAnEvent(f"a line of {len(data)} bytes has no words of this API{said}")


def _object(data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except MALFORMED as reason:  # in a field that no line of ours has
        raise not_json(data, reason) from None


def _without_text(data: bytes) -> Delta:
    value = _object(data)
    if error := error_text(value):
        return Delta(error=error)
    if _OF_OTHER_APIS.isdisjoint(value):
        return NOTHING
    raise NotAnEvent(f"a line of {len(data)} bytes has neither text nor an error{known_by(value)}")


def reshaped(data: bytes, reason: Exception, line: type[Line]) -> Line | Delta:
    """Read a line that the strict decoder could not: no object at all, or one of another shape. Raises NotAnEvent."""
    if data.strip() in (b"", b"null"):
        return NOTHING
    try:
        event = msgspec.json.decode(data, type=dict[str, Any])
        if isinstance(event.get("message"), str) and (error := error_text(event)):
            return Delta(error=error)
        return msgspec.convert(tidy(event), line)
    except MALFORMED:
        raise not_json(data, reason) from None


def not_json(data: bytes, reason: Exception) -> NotAnEvent:
    """Return the exception for a line that JSON could not read."""
    return NotAnEvent(f"a line of {len(data)} bytes is not of this API: {reason}")


def _usage(line: Envelope) -> Usage:
    # An absent prompt_eval_count is not a zero: old releases left the cached tokens out of it.
    return Usage(prompt_tokens=tokens(line.prompt_eval_count) or None, output_tokens=tokens(line.eval_count))


def _times(line: Envelope) -> EngineTimes | None:
    """Durations of the final line; queue ≈ total − load − prompt eval − eval, since Ollama does not state it.

    A zero is absent on the wire, and an absent part is known to be 0 only where there was nothing to do: no token
    evaluated, or one, which is the prefill's. A part that is longer than the total is not stated.
    """
    total_ns = ns(line.total_duration) or None
    load_ns = _part(line.load_duration, total_ns)
    prefill_ns = _part(line.prompt_eval_duration, total_ns)
    decode_ns = _part(line.eval_duration, total_ns)
    nothing = (None, 0) if total_ns is not None else ()  # all of them 0: none was measured
    if prefill_ns is None and line.prompt_eval_duration in nothing and line.prompt_eval_count == 0:
        prefill_ns = 0
    if decode_ns is None and line.eval_duration in nothing and tokens(line.eval_count) in (0, 1):
        decode_ns = 0
    queue_ns = None
    if total_ns is not None and load_ns is not None and prefill_ns is not None and decode_ns is not None:
        rest_ns = total_ns - load_ns - prefill_ns - decode_ns
        queue_ns = max(0, rest_ns) if rest_ns > -total_ns // 100 else None  # parts are rounded, not invented
    if total_ns is None and load_ns is None and prefill_ns is None and decode_ns is None:
        return None
    return EngineTimes(
        total_ns=total_ns, load_ns=load_ns, prefill_ns=prefill_ns, decode_ns=decode_ns, queue_ns=queue_ns
    )


def _part(value: object, total_ns: int | None) -> int | None:
    part_ns = ns(value) or None
    return None if part_ns is not None and total_ns is not None and part_ns > total_ns else part_ns


def sampling_fields(prompt: Prompt, sampling: Sampling) -> dict[str, object]:
    """Return `stream` and `options`. Ollama knows neither several choices, nor usage options, nor ignore_eos.

    A prompt's own output length wins over the run's `max_tokens`; one of them, or a bound of our own, is always sent.
    """
    options = {
        "num_predict": limit(prompt, sampling, always=True),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": sampling.seed,
        "stop": sampling.stop or None,
    }
    return {"stream": True, "options": {key: value for key, value in options.items() if value is not None}}
