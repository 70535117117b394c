"""What /api/chat and /api/generate lines have in common: the end, its counts and durations, errors, options.

Source: ollama api/types.go. Counts and durations of the final line are `omitempty`: a zero is absent there.
"""

from __future__ import annotations

import msgspec

from tokenswarm.engines import Delta, NotAnEvent, Sampling, Usage
from tokenswarm.engines.counts import ns, tokens
from tokenswarm.engines.failure import error_line
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


def special(data: bytes, line: Envelope, piece: Delta | None) -> Delta:
    """Read a line that is not just a piece of text: the end, an error. Raises NotAnEvent where it is none of these."""
    error = error_line(line.error)
    if piece is None and line.done is None and not error:
        raise NotAnEvent(f"a line of {len(data)} bytes has neither text nor an error")
    piece = piece or Delta()
    return Delta(
        piece.content,
        piece.reasoning,
        piece.tool,
        # Releases before 2024-05 give no reason; "done" is what they do say.
        finished=((0, line.done_reason or "done"),) if line.done else (),
        usage=_usage(line) if line.done else None,
        times=_times(line) if line.done else None,
        error=error,
    )


def not_json(data: bytes, reason: Exception) -> NotAnEvent:
    """Return the exception for a line that JSON could not read."""
    return NotAnEvent(f"a line of {len(data)} bytes is not of this API: {reason}")


def _usage(line: Envelope) -> Usage:
    # An absent prompt_eval_count is not a zero: old releases left the cached tokens out of it.
    return Usage(prompt_tokens=tokens(line.prompt_eval_count), output_tokens=tokens(line.eval_count))


def _times(line: Envelope) -> EngineTimes | None:
    """Durations of the final line; queue ≈ total − load − prompt eval − eval, since Ollama does not state it."""
    total_ns = ns(line.total_duration)
    if total_ns is None:
        return None
    load_ns, prefill_ns, decode_ns = (
        0 if value is None else ns(value)
        for value in (line.load_duration, line.prompt_eval_duration, line.eval_duration)
    )
    known = load_ns is not None and prefill_ns is not None and decode_ns is not None
    return EngineTimes(
        total_ns=total_ns,
        load_ns=load_ns,
        prefill_ns=prefill_ns,
        decode_ns=decode_ns,
        queue_ns=max(0, total_ns - (load_ns or 0) - (prefill_ns or 0) - (decode_ns or 0)) if known else None,
    )


def sampling_fields(prompt: Prompt, sampling: Sampling) -> dict[str, object]:
    """Return `stream` and `options`. Ollama knows neither several choices, nor usage options, nor ignore_eos.

    A prompt's own output length wins over the run's `max_tokens`.
    """
    length = prompt.output_tokens_max if prompt.output_tokens_max is not None else sampling.max_tokens
    options = {
        "num_predict": length,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": sampling.seed,
        "stop": sampling.stop or None,
    }
    return {"stream": True, "options": {key: value for key, value in options.items() if value is not None} or None}
