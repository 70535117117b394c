"""The server dialects, one a file: `encode` (a prompt to a request body) and `decode` (one wire event to a Delta).

Both are pure functions. The types stand here; `engines.dialects.DIALECTS` is the table that the rest of the program
reads: a new engine is a new file and a new row there. docs/add-an-engine.md walks through it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

from tokenswarm.prompts import Prompt
from tokenswarm.record import EngineTimes

UNTOLD = "message_stop"  # the reason of a Messages answer whose end is told without one
CUT = "no message_delta"  # ... and of one that a gateway ended: the server itself tells a reason, or null, beforehand


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Token counts as the server states them; None where it does not."""

    prompt_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    cached_tokens: int | None = None
    # Do the reasoning tokens stand beside the output tokens (xAI), or among them (OpenAI)? None: no total tells.
    reasoning_beside: bool | None = False
    draft_tokens: int | None = None  # that a speculative decoder proposed
    accepted_tokens: int | None = None  # of these, those that the model took
    # What is as seldom as counts, and would make each Delta larger:
    reason: str = ""  # why the answer will end, where that is told before its end
    nameless: bool = False  # an event that names no model: how Ollama's /v1 ends an answer whose error it hides


class Delta(msgspec.Struct, frozen=True, gc=False):
    """What one event of the stream says. Most events carry one thing; some servers put several into one."""

    content: str = ""  # answer text; tool-call arguments count as content (`tool` is set)
    reasoning: str = ""
    tool: bool = False
    choice: int = 0
    tokens: int | None = None  # tokens in this event, where the wire says it (token ids)
    finished: tuple[tuple[int, str], ...] = ()  # (choice, reason) for each choice that ended here
    usage: Usage | None = None
    times: EngineTimes | None = None
    error: str = ""  # an error object: its message
    sentinel: bool = False  # [DONE]: neither enough nor needed
    void: bool = False  # it says nothing of the answer (no data, {}, no choices): like a comment
    more: tuple[Delta, ...] = ()  # further choices that the same event carries, one Delta each


NOTHING = Delta(void=True)


class Sampling(msgspec.Struct, frozen=True):
    """What a request asks for besides its prompt. None: not sent."""

    model: str
    max_tokens: int | None = None
    ignore_eos: bool = False
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    choices: int = 1
    include_usage: bool = True
    continuous_usage: bool = False
    extra: dict[str, object] = {}  # merged into the body last: what a server knows and we don't

    def tokens_max(self, prompt: Prompt) -> int | None:
        """Return the length that a request for `prompt` asks for at most, or None where the server may go on."""
        options = self.extra.get("options") if self.extra else None
        for asked in filter(None, (self.extra, options if isinstance(options, dict) else None)):
            for key in ("max_tokens", "max_completion_tokens", "max_output_tokens", "num_predict"):
                if key in asked:
                    length = asked[key]
                    return length if type(length) is int and length > 0 else None
        return prompt.output_tokens_max if prompt.output_tokens_max is not None else self.max_tokens

    @property
    def choices_asked(self) -> int:
        """How many answers a request asks for: `n` of `extra` wins, as it does in the body."""
        n = self.extra.get("n", self.choices)
        return n if type(n) is int and n > 0 else 1


class NotAnEvent(ValueError):
    """The payload is no JSON, or an object of another API. The message names why and repeats no payload."""


class Dialect(msgspec.Struct, frozen=True):
    """One way to ask a server for a stream, and to read it: a row of `engines.dialects.DIALECTS`."""

    name: str
    kind: str  # as `engine.kind` and `engine.api` of a profile: a row of `profile.engine.APIS`
    api: str
    path: str
    models_path: str
    framing: Literal["sse", "ndjson"]
    content_types: tuple[str, ...]  # media types of a streamed 2xx answer
    encode: Callable[[Prompt, Sampling], bytes]  # the JSON body of the request
    decode: Callable[[bytes], Delta]  # one payload of the framer; raises NotAnEvent
    models: Callable[[bytes], list[str]]  # names in a body of models_path; raises NotAnEvent
    knows_ignore_eos: bool
    ends_with_finish: bool  # the event with the finish reason is the last of the answer (else: the sentinel)
    unread: tuple[str, ...] = ()  # fields that vary and that `decode` does not know: strings or whole numbers
    done_ends: bool = False  # the sentinel ends an answer of a server that never tells a finish reason
    end: str = "a finish reason"  # what an answer that was cut lacks, in a sentence
    headers: dict[str, str] = {}  # what the protocol wants in each request; the profile's win

    def accepts(self, content_type: str) -> bool:
        """Tell whether a Content-Type header's value (parameters and case don't matter) announces such a stream."""
        return content_type.partition(";")[0].strip().lower() in self.content_types
