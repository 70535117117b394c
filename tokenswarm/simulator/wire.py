"""What an answer needs of a wire format, and the two framings of a body."""

from __future__ import annotations

from typing import Protocol

from tokenswarm.simulator.wire_openai import Durations, Said


class Wire(Protocol):
    """What an answer needs of a wire format."""

    media: bytes
    headers_wait: bool

    def start(self, choices: int) -> list[bytes]: ...
    def token(
        self, index: int, piece: int | str, reasoning: bool, count: int, finish: str | None, stop_reason: str | None, /
    ) -> bytes: ...
    def parts(self, reasoning: bool, /) -> tuple[bytes, bytes] | None: ...
    def end(
        self, completion_tokens: int, reasoning_tokens: int, durations: Durations, finish: str, /
    ) -> list[bytes]: ...
    def failure(self, message: str) -> list[bytes]: ...
    def whole(self, said: list[Said], durations: Durations, /) -> bytes: ...


def chunk(data: bytes) -> bytes:
    """One chunk of HTTP/1.1's chunked coding."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def plain(data: bytes) -> bytes:
    return data
