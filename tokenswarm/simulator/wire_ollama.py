"""The NDJSON lines of Ollama's /api/chat and /api/generate as Go's encoding/json writes them.

Source: ollama api/types.go and server/routes.go. `<`, `>`, `&` are escaped, created_at is RFC3339Nano in UTC, durations
are ns and, like the counts, left out when 0 (omitempty). Only non-empty pieces are sent. One wire a request.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from tokenswarm.simulator.text import GO_PIECES, go_escaped
from tokenswarm.simulator.wire_openai import Durations, Said


def rfc3339_nano(realtime_ns: int) -> bytes:
    """A moment as Go's time.RFC3339Nano writes it in UTC: trailing zeros of the fraction are left out."""
    seconds, nanos = divmod(realtime_ns, 1_000_000_000)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    fraction = f"{nanos:09d}".rstrip("0")
    return (f"{stamp}.{fraction}Z" if fraction else f"{stamp}Z").encode()


class OllamaWire:
    """`chat` True: `message`; else `response`. `now_ns` is CLOCK_REALTIME, for created_at."""

    media = b"application/x-ndjson"
    headers_wait = True  # Go's net/http sends the head with the first line: a queued request hears nothing

    def __init__(self, model: str, chat: bool, prompt_tokens: int, now_ns: Callable[[], int]) -> None:
        self.chat = chat
        self.prompt_tokens = prompt_tokens
        self._now_ns = now_ns
        self._head = b'{"model":"' + go_escaped(model) + b'","created_at":"'

    def start(self, _choices: int) -> list[bytes]:
        """Ollama has no role event."""
        return []

    def empty(self) -> bytes:
        """A line without text, as some runners send one first."""
        return self._line(b"", b"", b'"done":false}')

    def token(
        self, _index: int, piece: int | str, reasoning: bool, _count: int, _finish: str | None, _stop_reason: str | None
    ) -> bytes:
        """The line of one token; nothing for an empty piece."""
        body = GO_PIECES[piece] if isinstance(piece, int) else go_escaped(piece)
        if not body:
            return b""
        if reasoning:
            return self._line(b"", body, b'"done":false}')
        return self._line(body, b"", b'"done":false}')

    def parts(self, _reasoning: bool) -> None:
        """Each line has its time."""

    def end(self, completion_tokens: int, _reasoning_tokens: int, durations: Durations, finish: str) -> list[bytes]:
        return [self._line(b"", b"", self._final(finish, completion_tokens, durations))]

    def failure(self, message: str) -> list[bytes]:
        """An error mid-stream: a line of its own under HTTP 200, and no done line after it."""
        return [b'{"error":"' + go_escaped(message) + b'"}\n']

    def whole(self, said: list[Said], durations: Durations) -> bytes:
        one = said[0]
        final = self._final(one.finish, one.tokens, durations)
        return self._line(go_escaped(one.content), go_escaped(one.reasoning), final).rstrip(b"\n")

    def loaded(self, reason: str) -> bytes:
        """The answer to an empty prompt: the model was loaded (or unloaded)."""
        return self._line(b"", b"", b'"done":true,"done_reason":"%b"}' % reason.encode()).rstrip(b"\n")

    def _line(self, content: bytes, thinking: bytes, tail: bytes) -> bytes:
        thought = b',"thinking":"%b"' % thinking if thinking else b""
        stamp = rfc3339_nano(self._now_ns())
        if self.chat:
            return b'%b%b","message":{"role":"assistant","content":"%b"%b},%b\n' % (
                self._head,
                stamp,
                content,
                thought,
                tail,
            )
        return b'%b%b","response":"%b"%b,%b\n' % (self._head, stamp, content, thought, tail)

    def _final(self, finish: str, completion_tokens: int, durations: Durations) -> bytes:
        numbers = {
            "total_duration": durations.total,
            "load_duration": durations.load,
            "prompt_eval_count": self.prompt_tokens,
            "prompt_eval_duration": durations.prompt_eval,
            "eval_count": completion_tokens,
            "eval_duration": durations.eval,
        }
        filled = b"".join(b',"%b":%d' % (name.encode(), value) for name, value in numbers.items() if value)
        return b'"done":true,"done_reason":"%b"%b}' % (finish.encode(), filled)
