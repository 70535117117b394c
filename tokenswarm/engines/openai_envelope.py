"""What chat and text completion events of OpenAI-like servers have in common: usage, engine times, errors, sampling.

Fields that only inform (counts, times) are typed `object`: a wrong type there is ignored, not an error of the stream.
Sources: vLLM's `metrics`, llama.cpp's `timings` and `prompt_progress`, as captured in tests/streams.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeVar

import msgspec

from tokenswarm.engines import NOTHING, Delta, NotAnEvent, Sampling, Usage
from tokenswarm.engines.counts import limit, ms_as_ns, tokens
from tokenswarm.engines.failure import blank, error_line, error_text
from tokenswarm.engines.odd_shapes import tidy, words_elsewhere
from tokenswarm.engines.other_apis import chat_words, known_by, mend, text_words
from tokenswarm.prompts import Prompt
from tokenswarm.record import EngineTimes

CHAT, COMPLETIONS = "chat", "completions"

ChoiceIndex = Annotated[int, msgspec.Meta(ge=0, le=65_535)]  # bounds what one server can make us remember

MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

DONE = Delta(sentinel=True)


class WireUsage(msgspec.Struct, gc=False):
    prompt_tokens: object = None
    completion_tokens: object = None
    total_tokens: object = None
    reasoning_tokens: object = None  # of servers that have no details
    cached_tokens: object = None  # Moonshot
    prompt_cache_hit_tokens: object = None  # DeepSeek
    prompt_tokens_details: object = None
    completion_tokens_details: object = None


class Metrics(msgspec.Struct, gc=False):
    """vLLM with --enable-per-request-metrics; the first token counts from scheduling, without the queue; generation is
    first to last token. The drafts come with --per-request-spec-decode-metrics.
    """

    time_to_first_token_ms: object = None
    generation_time_ms: object = None
    queue_time_ms: object = None
    speculative_decoding: object = None


class Timings(msgspec.Struct, gc=False):
    """llama.cpp; `prompt_n` leaves out the `cache_n` tokens that were in the KV-cache already."""

    cache_n: object = None
    prompt_n: object = None
    prompt_ms: object = None
    predicted_n: object = None
    predicted_ms: object = None
    draft_n: object = None
    draft_n_accepted: object = None


class Envelope(msgspec.Struct, gc=False):
    """An event without its choices. A dialect adds `choices: list[...] | None = None`."""

    usage: WireUsage | None = None
    error: object = None
    metrics: Metrics | None = None
    timings: Timings | None = None

    @property
    def bare(self) -> bool:
        return self.usage is None and self.error is None and self.metrics is None and self.timings is None


def ends(reason: str) -> bool:
    """Tell whether a finish reason is one: some servers write `null` as a text, in each event."""
    return reason.strip().lower() not in ("", "null", "none")


def complete(envelope: Envelope, first: Delta, more: list[Delta]) -> Delta:
    """Return the event of `first` (its first choice) and `more` (the others) with what the envelope says."""
    if not more and envelope.bare:
        return first
    return Delta(
        first.content,
        first.reasoning,
        first.tool,
        first.choice,
        first.tokens,
        first.finished,
        _drafts(_usage(envelope.usage, envelope.timings), envelope),
        _times(envelope.metrics, envelope.timings),
        "" if blank(envelope.error) else error_line(envelope.error),
        False,
        False,
        tuple(more),
    )


def _detail(details: object, key: str) -> int | None:
    return tokens(details.get(key)) if isinstance(details, dict) else None


def _usage(usage: WireUsage | None, timings: Timings | None) -> Usage | None:
    """Server usage; where llama.cpp was not asked for it, its timings carry the same counts."""
    cached = tokens(timings.cache_n) if timings else None
    if usage is not None:
        prompt, output = tokens(usage.prompt_tokens), tokens(usage.completion_tokens)
        for elsewhere in (usage.cached_tokens, usage.prompt_cache_hit_tokens):
            cached = tokens(elsewhere) if elsewhere is not None and cached is None else cached
        if usage.prompt_tokens_details is not None:
            stated = _detail(usage.prompt_tokens_details, "cached_tokens")
            cached = cached if stated is None else stated
        reasoning = tokens(usage.reasoning_tokens) if usage.reasoning_tokens is not None else None
        if usage.completion_tokens_details is not None:
            stated = _detail(usage.completion_tokens_details, "reasoning_tokens")
            reasoning = reasoning if stated is None else stated
        if not reasoning:
            return Usage(prompt, output, reasoning, cached)
        return Usage(prompt, output, reasoning, cached, _beside(prompt, output, reasoning, usage.total_tokens))
    if timings is None:
        return None
    new = tokens(timings.prompt_n)
    return Usage(
        prompt_tokens=None if new is None else new + (cached or 0),
        output_tokens=tokens(timings.predicted_n),
        cached_tokens=cached,
    )


_PROPOSED = (
    ("num_draft_tokens", "num_accepted_draft_tokens"),  # vLLM
    ("num_draft_tokens", "num_accepted_tokens"),
    ("total_draft_tokens", "total_accepted_draft_tokens"),  # TensorRT-LLM
)


def _drafts(usage: Usage | None, envelope: Envelope) -> Usage | None:
    """The usage with what a speculative decoder proposed, and how much of it was taken: vLLM, llama.cpp, SGLang."""
    metrics, timings = envelope.metrics, envelope.timings
    if metrics is not None and metrics.speculative_decoding is not None:
        return _with_drafts(usage, metrics.speculative_decoding)
    if timings is not None and timings.draft_n is not None:
        return _taken(usage, timings.draft_n, timings.draft_n_accepted)
    details = envelope.usage.completion_tokens_details if envelope.usage is not None else None
    if isinstance(details, dict) and "rejected_prediction_tokens" in details:
        accepted, rejected = tokens(details.get("accepted_prediction_tokens")), details["rejected_prediction_tokens"]
        if accepted is not None and tokens(rejected) is not None:
            return _taken(usage, accepted + rejected, accepted)
    return usage


def _with_drafts(usage: Usage | None, told: object) -> Usage | None:
    """The usage with an object that tells of drafts; as it was where that tells none."""
    if isinstance(told, dict):
        for proposed, taken in _PROPOSED:
            if proposed in told and taken in told:
                return _taken(usage, told[proposed], told[taken])
    return usage


def _taken(usage: Usage | None, drafted: object, accepted: object) -> Usage | None:
    proposed, taken = tokens(drafted), tokens(accepted)
    if not proposed or taken is None or taken > proposed:
        return usage
    return msgspec.structs.replace(usage or Usage(), draft_tokens=proposed, accepted_tokens=taken)


def _beside(prompt: int | None, output: int | None, reasoning: int, total: object) -> bool | None:
    """Does the total say that reasoning tokens are left out of the output? More than all output can't be among it."""
    if output is None:
        return False
    if reasoning > output or (prompt is not None and total == prompt + output + reasoning):
        return True
    return False if prompt is not None and total == prompt + output else None


def _times(metrics: Metrics | None, timings: Timings | None) -> EngineTimes | None:
    if metrics is not None:
        return EngineTimes(
            ttft_ns=ms_as_ns(metrics.time_to_first_token_ms),
            queue_ns=ms_as_ns(metrics.queue_time_ms),
            decode_ns=ms_as_ns(metrics.generation_time_ms),
        )
    if timings is not None:
        return EngineTimes(prefill_ns=ms_as_ns(timings.prompt_ms), decode_ns=ms_as_ns(timings.predicted_ms))
    return None


Chunk = TypeVar("Chunk", bound=Envelope)

# What carries the words of other APIs: an object that has one of these is no keep-alive.
_OF_OTHER_APIS = frozenset(
    (
        *("content", "text", "message", "messages", "response", "delta", "output", "candidates", "content_block"),
        *("completion", "generated_text", "token", "tokens", "done"),
    )
)


def without_choices(data: bytes, envelope: Envelope, choices: object) -> Delta:
    """Read an event without a choice: an error in one of its shapes, usage alone, or nothing of the answer.

    `choices`: [] where it has at least the list. Raises NotAnEvent where it has the words of another API.
    """
    if envelope.usage is not None or error_line(envelope.error) or choices is not None:
        told = complete(envelope, Delta(), [])
        if told.usage is not None or told.times is not None or told.error:
            return told
    try:
        value = msgspec.json.decode(data)
    except MALFORMED as reason:
        raise NotAnEvent(f"an event of {len(data)} bytes is malformed: {reason}") from None
    if "choices" in value and blank(value.get("error")):
        value.pop("error", None)
    if error := error_text(value):
        return Delta(error=error)
    if choices is not None or _OF_OTHER_APIS.isdisjoint(value):  # timings alone: another API of llama.cpp
        return NOTHING
    raise NotAnEvent(f"an event of {len(data)} bytes has neither choices nor an error{known_by(value)}")


_NO_MODEL = (b'"model":""', b'"model": ""')
_DRAFTS = b'"speculative_decoding"'
_ELSEWHERE = re.compile(rb'_details"|"(?:error|thinking|reasoning_text|function_call|custom|audio)"[ ]?:[ ]?[^n ]')
_WORDS_OF_OTHER = {CHAT: (b'"text"', text_words), COMPLETIONS: (b'"delta"', chat_words)}
_SELDOM = (b'"usage":{', b'"usage": {', b'"message"', _DRAFTS, *_NO_MODEL)


def says_more(data: bytes, api: str) -> bool:
    """Whether an event without words may yet say something."""
    if _NO_MODEL[0] in data or _NO_MODEL[1] in data or _WORDS_OF_OTHER[api][0] in data:
        return True
    return _ELSEWHERE.search(data) is not None


def second_look(data: bytes, envelope: Envelope, first: Delta, more: list[Delta], api: str) -> Delta:
    """Complete an event whose first choice has no words, or ended: look for what few servers say, in the choice itself.

    That is words under other names, usage (Moonshot), an error (OpenRouter), drafts (TensorRT-LLM), and a model without
    a name (Ollama's last word before an end whose error it hides). Most events have words, so the decoders need not
    know of these fields. Raises NotAnEvent where it is a whole answer (it has a `message`), or has the words of the
    other API with choices.
    """
    key, others = _WORDS_OF_OTHER[api]
    other = key in data and not (first.content or first.reasoning)
    seldom = other or any(key in data and (envelope.usage is None or b"usage" not in key) for key in _SELDOM)
    if not seldom and _ELSEWHERE.search(data) is None:
        return complete(envelope, first, more)
    usage, error, drafts = envelope.usage, envelope.error, None
    try:
        choices = msgspec.json.decode(data)["choices"]
    except MALFORMED as reason:  # in a field that no decoder of ours has
        raise NotAnEvent(f"an event of {len(data)} bytes is malformed: {reason}") from None
    if other and any(map(others, choices)):
        said = mend({"choices": choices})
        raise NotAnEvent(f"an event of {len(data)} bytes has no words of this API{said}")
    for choice in choices:
        delta = choice.get("delta")
        if delta is None and choice.get("message") is not None:
            raise NotAnEvent(f"an event of {len(data)} bytes is a whole answer: the server ignores `stream: true`")
        if usage is None and isinstance(choice.get("usage"), dict):
            usage = msgspec.convert(choice["usage"], WireUsage)
        error = choice.get("error") if blank(error) else error
        drafts = choice.get("speculative_decoding") if drafts is None else drafts
        if isinstance(delta, dict) and not first.content and not first.reasoning:
            content, reasoning, tool = words_elsewhere(delta)
            first = msgspec.structs.replace(first, content=content, reasoning=reasoning, tool=first.tool or tool)
    found = complete(msgspec.structs.replace(envelope, usage=usage, error=error), first, more)
    if drafts is not None:
        found = msgspec.structs.replace(found, usage=_with_drafts(found.usage, drafts))
    quiet = not (found.content or found.reasoning or found.finished or found.error)
    nameless = quiet and any(key in data for key in _NO_MODEL)
    if not nameless:
        return found
    return msgspec.structs.replace(found, usage=msgspec.structs.replace(found.usage or Usage(), nameless=True))


def reshaped(data: bytes, reason: Exception, chunk: type[Chunk]) -> Chunk | Delta:
    """Read what the strict decoder could not: no object at all, or one of another shape. Raises NotAnEvent."""
    text = data.strip()
    if text == b"[DONE]":
        return DONE
    if text in (b"", b"null"):
        return NOTHING
    try:
        return msgspec.convert(tidy(msgspec.json.decode(data, type=dict[str, Any])), chunk)
    except MALFORMED:
        raise NotAnEvent(f"an event of {len(data)} bytes is not of this API: {reason}") from None


def sampling_fields(prompt: Prompt, sampling: Sampling) -> dict[str, object]:
    """Return the request fields besides model and prompt, in the order of the API reference; None where not sent.

    A prompt's own output length wins over the run's `max_tokens`.
    """
    stream_options: dict[str, object] = {}
    if sampling.include_usage or sampling.continuous_usage:  # vLLM has the second only together with the first
        stream_options["include_usage"] = True
    if sampling.continuous_usage:
        stream_options["continuous_usage_stats"] = True
    return {
        "max_tokens": limit(prompt, sampling),
        "n": sampling.choices if sampling.choices != 1 else None,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": sampling.seed,
        "stop": sampling.stop or None,
        "ignore_eos": True if sampling.ignore_eos else None,
        "stream": True,
        "stream_options": stream_options or None,
    }
