"""The server dialects, one a file: `encode` (a prompt to a request body) and `decode` (one wire event to a Delta).

Both are pure functions. `DIALECTS` is the table that the rest of the program reads; a new engine is a new file and a
new row. docs/add-an-engine.md walks through it.
"""

from __future__ import annotations

import msgspec

from tokenswarm.record import EngineTimes


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Token counts as the server states them; None where it does not."""

    prompt_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    cached_tokens: int | None = None


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
