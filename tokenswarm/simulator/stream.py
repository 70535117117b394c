"""The tokens of one streamed answer between its first and its last, at the least cost: a few µs each.

What stands around a token's text is made once, the socket is written without the transport's buffer in between, and
the counts of metrics and truth are made of many tokens at a time. Everything else about an answer is Answer's.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable
from time import monotonic_ns
from typing import Protocol

from tokenswarm.simulator.asks import Output
from tokenswarm.simulator.batching import Sequence
from tokenswarm.simulator.metrics import Metrics
from tokenswarm.simulator.text import JSON_PIECES
from tokenswarm.simulator.truth import Truth
from tokenswarm.simulator.wire import Wire, chunk, plain


class Whole(Protocol):
    """The answer that the tokens belong to."""

    frame: Callable[[bytes], bytes]
    wire: Wire
    outputs: list[Output]
    metrics: Metrics
    truth: Truth
    real_ns: array[int]
    mono_ns: array[int]
    last_mono_ns: list[int]

    def token(self, seq: Sequence, wall_ns: int, /) -> bool: ...


class Transport(Protocol):
    def write(self, data: bytes, /) -> None: ...
    def is_closing(self) -> bool: ...
    def get_write_buffer_size(self) -> int: ...


class Heads(dict[int, bytes]):
    """What stands before a token's text, by the text's length: the size of the chunk, and the event's opening."""

    def __init__(self, opening: bytes, closing: bytes, chunked: bool) -> None:
        super().__init__()
        self._opening = opening
        self._around = len(opening) + len(closing)
        self._chunked = chunked

    def __missing__(self, length: int) -> bytes:
        size = b"%x\r\n" % (self._around + length) if self._chunked else b""
        head = self[length] = size + self._opening
        return head


class Stream:
    """Takes the place of `Answer.token` up to the token number `until`, which is the answer's again."""

    __slots__ = (
        "_answer", "_blocked", "_closing", "_fd", "_gaps", "_heads", "_last_ns", "_late", "_mono_ns", "_pieces",
        "_real_ns", "_reasoning", "_transport", "_until",
    )  # fmt: skip

    def __init__(self, answer: Whole, transport: Transport, fd: int, until: int, reasoning: bool) -> None:
        self._answer, self._transport, self._fd, self._until = answer, transport, fd, until
        self._reasoning = reasoning
        self._last_ns = answer.mono_ns[-1]
        self._pieces = answer.outputs[0].pieces
        self._mono_ns, self._real_ns = answer.mono_ns, answer.real_ns
        self._gaps, self._late = answer.metrics.gaps_ns, answer.truth.late_ns
        self._blocked = True  # until the transport's buffer was seen empty
        self._heads: Heads | None = None
        self._closing = b""
        parts = answer.wire.parts(reasoning)
        if parts is not None and answer.frame in (chunk, plain):
            chunked = answer.frame is chunk
            self._heads = Heads(*parts, chunked)
            self._closing = parts[1] + (b"\r\n" if chunked else b"")

    def token(self, seq: Sequence, wall_ns: int) -> bool:
        """Send a token. True: the event loop may have something to do."""
        if seq.produced >= self._until or self._transport.is_closing():
            self._answer.last_mono_ns[0] = self._last_ns
            return self._answer.token(seq, wall_ns)
        pieces = self._pieces
        if self._heads is not None:
            pieces.state = state = (pieces.state * 1664525 + 1013904223) & 0xFFFFFFFF
            text = JSON_PIECES[state >> 22]
            data = self._heads[len(text)] + text + self._closing
        else:
            answer = self._answer
            event = answer.wire.token(0, pieces.next_index(), self._reasoning, seq.produced, None, None)
            data = answer.frame(event) if event else b""
        mono_ns = monotonic_ns()
        waits = self._blocked and self._waits()
        sent = 0
        if not waits:
            try:
                sent = os.write(self._fd, data)
            except OSError:
                sent = 0  # full, or gone: the transport knows what to do
        self._mono_ns.append(mono_ns)
        self._real_ns.append(mono_ns + wall_ns)
        self._gaps.append(mono_ns - self._last_ns)
        self._late.append(mono_ns - seq.due_ns)
        self._last_ns = mono_ns
        if sent == len(data):
            return False
        self._blocked = True
        self._transport.write(data[sent:])
        return True

    def _waits(self) -> bool:
        """Whether earlier bytes still wait in this process, because the client doesn't read."""
        if self._transport.get_write_buffer_size():
            self._answer.truth.blocked_writes += 1
            return True
        self._blocked = False
        return False
