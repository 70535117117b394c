"""The receiving side of one exchange: HTTP framing by llhttp, stamped reads, until somebody drains them.

A response ends complete, or with an error that was mapped once, here and in transport.py: a body that its own framing
says is whole; a broken connection (RESET) where content-length or chunks promised more; broken framing (PROTOCOL).
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import httptools

from tokenswarm.record import Outcome

PATH_MARKS = frozenset(
    (b"server", b"via", b"age", b"x-cache", b"x-varnish", b"x-powered-by", b"x-served-by", b"x-amz-cf-id", b"cf-ray")
)
"""Headers in which proxies, caches and gateways give themselves away ..."""
PATH_PREFIXES = (b"x-envoy-", b"x-litellm-", b"x-portkey-", b"x-kong-")
"""... and the beginnings of such."""
RETRY_MARKS = frozenset(("x-litellm-attempted-retries", "x-portkey-retry-attempt-count"))
LINES = frozenset((b"content-type", b"content-encoding", b"retry-after", b"transfer-encoding", b"content-length"))
UNPACKED = frozenset(("identity", "none", "utf-8", "utf8"))  # content encodings that are none; servers do write them
CHUNKED = ((b"transfer-encoding", b"chunked"),)
MARKS_MAX, MARK_CHARS = 16, 120
NO_MARKS: dict[str, str] = {}  # one for all that have none


class TransportError(Exception):
    """A failure at the edge, mapped once: the outcome, a sentence, a bounded word for grouping."""

    def __init__(self, outcome: Outcome, sentence: str, kind: str) -> None:
        super().__init__(sentence)
        self.outcome = outcome
        self.sentence = sentence
        self.kind = kind


@lru_cache(maxsize=256)
def _heard(name: bytes) -> bytes:
    """The name of a header in small letters; b"" of one that says nothing to us."""
    key = name.lower()
    return key if key in LINES or key in PATH_MARKS or key.startswith(PATH_PREFIXES) else b""


@lru_cache(maxsize=64)  # most servers say the same in each answer
def _mark_of(key: bytes, value: bytes) -> dict[str, str]:
    """A mark as it is kept. Many answers have this very dict: it is not to be changed."""
    said = "".join(c for c in value.decode("latin-1") if c.isprintable())
    return {key.decode("latin-1")[:MARK_CHARS]: said[:MARK_CHARS]}


class Response:
    """The receiving side of one exchange: llhttp's callbacks and the stamped reads, until somebody drains them.

    `reads` holds (recv_ns, lag_ns, pieces so far) for each read since the last drain, `pieces` the body bytes.
    """

    __slots__ = (
        "_drained_bytes",
        "_own_pieces",
        "closed_by_peer",
        "complete",
        "content_encoding",
        "content_type",
        "error",
        "first_low_ns",
        "framing",
        "head_done",
        "headers_ns",
        "keep_alive",
        "last_read_ns",
        "lows",
        "marks",
        "on_body",
        "parser",
        "pending_bytes",
        "pieces",
        "reads",
        "retry_after",
        "status",
        "trailing",
        "unsure",
    )

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.on_body: Callable[[bytes], None] | None = self.pieces.append  # llhttp calls it: no Python frame a chunk
        self.reads: list[tuple[int, int, int]] = []
        self.pending_bytes = 0
        self._drained_bytes = 0
        self._own_pieces = 0  # of the answer, where another one came behind it
        self.headers_ns = 0
        self.last_read_ns = 0  # no later stamp lies before it; whoever sends puts the moment of sending here
        self.first_low_ns = 0  # no byte of the first read came before; 0: not known
        self.lows: array[int] | None = None  # pairs (low, stamp): of reads of several events, none came before `low`
        self.unsure: tuple[tuple[int, int], ...] = ()  # reads whose moment is not known: (no earlier than, their stamp)
        self.status = 0
        self.content_type = ""
        self.content_encoding = ""
        self.retry_after = ""
        self.framing: tuple[tuple[bytes, bytes], ...] = ()  # the lines of transfer-encoding and content-length
        self.marks = NO_MARKS  # of PATH_MARKS: what stands between leaves its name there
        self.head_done = False
        self.complete = False
        self.closed_by_peer = False
        self.keep_alive = False
        self.trailing = False  # bytes behind the end of the answer: the connection can't be used again
        self.error: TransportError | None = None
        self.parser: Any = httptools.HttpResponseParser(self)

    def release(self) -> None:
        """The head is parsed, and somebody else unframes the body: a parser and its callbacks are 1 kB a stream."""
        self.parser = self.on_body = None
        if self.framing == CHUNKED:
            self.framing = CHUNKED  # one for all

    def resume(self) -> None:
        """Parse on after `release`, where a chunk begins. The head is told again, as far as it matters."""
        self.on_body = self.pieces.append
        self.parser = httptools.HttpResponseParser(self)
        self.framing = ()
        close = b"" if self.keep_alive else b"connection: close\r\n"
        self.parser.feed_data(b"HTTP/1.1 %d -\r\ntransfer-encoding: chunked\r\n%s\r\n" % (self.status, close))

    @property
    def unsure_reads(self) -> int:
        """Reads whose moment is not known to some µs."""
        return len(self.unsure)

    @property
    def bytes_received(self) -> int:
        return self._drained_bytes + self.pending_bytes

    @property
    def framed(self) -> bool:
        """By content-length or chunks: an early end is a broken connection."""
        return bool(self.framing)

    def on_message_begin(self) -> None:
        self.trailing = self.complete  # a second answer that nobody asked for, and that changes nothing

    def on_header(self, name: bytes, value: bytes) -> None:
        key = _heard(name)
        if not key or self.complete:
            return
        if key == b"content-type":
            self.content_type = sys.intern(value.decode("latin-1").lower())
        elif key == b"content-encoding":
            told = value.decode("latin-1").strip().lower()
            self.content_encoding = "" if told in UNPACKED else told
        elif key == b"retry-after":
            self.retry_after = value.decode("latin-1")[:40]
        elif key in LINES:
            self.framing += ((key, value),)
        else:
            self._mark(key, value)

    def _mark(self, key: bytes, value: bytes) -> None:
        first, marks = _mark_of(key, value), self.marks
        if not marks:
            self.marks = first
        elif len(marks) < MARKS_MAX:
            ((name, said),) = first.items()
            if name in marks:  # Caddy's Server stands before the engine's
                said = f"{marks[name]}, {said}"[:MARK_CHARS]
            self.marks = {**marks, name: said}

    @property
    def announced(self) -> bool:
        """Whether the length was said ahead: somebody had the whole answer before it sent the head."""
        return self.framing != CHUNKED and any(name == b"content-length" for name, _ in self.framing)

    @property
    def retries(self) -> int:
        """Attempts beyond the first that a gateway says it made."""
        if RETRY_MARKS.isdisjoint(self.marks):
            return 0
        said = (self.marks.get(name, "") for name in RETRY_MARKS)
        return max((int(n) for n in said if n.isascii() and n.isdigit() and len(n) < 4), default=0)

    def on_headers_complete(self) -> None:
        if self.complete:
            return
        self.status = self.parser.get_status_code()
        if self.status >= 200:
            self.head_done = True

    def on_message_complete(self) -> None:
        if self.complete:
            return
        if self.status < 200:  # 100 Continue, 103 Early Hints: the answer is still to come
            self.framing = ()
            return
        self.complete = True
        self._own_pieces = len(self.pieces)
        self.keep_alive = self.parser.should_keep_alive()

    def feed(self, data: bytes, recv_ns: int, lag_ns: int) -> bool:
        """Take one read. True when this response has ended (complete, or broken)."""
        if self.complete:
            self.trailing = True
            return True
        self.pending_bytes += len(data)
        self.last_read_ns = recv_ns
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as error:
            # llhttp refuses a second answer behind a final one; the first is whole and counts.
            if self.complete:
                self.trailing = True
            else:
                sentence = f"the answer breaks HTTP/1.1 framing: {error}"
                if not self._drained_bytes:
                    sentence = _other_tongue(data) or sentence
                self.error = TransportError(Outcome.PROTOCOL, sentence[:200], "http framing")
        except httptools.HttpParserUpgrade:
            self.error = TransportError(Outcome.PROTOCOL, "the server switched protocols", "http upgrade")
        if self.complete:
            del self.pieces[self._own_pieces :]
        if not self.headers_ns and self.head_done:
            self.headers_ns = recv_ns
        self.reads.append((recv_ns, lag_ns, len(self.pieces)))
        return self.complete or self.error is not None

    def end_of_stream(self, recv_ns: int, broken: str | None = None) -> None:
        """The peer closed, or (`broken`, a sentence) what came is no TLS. Only an answer without content-length and
        chunks ends by a close, and only by a clean one."""
        self.closed_by_peer = True
        if self.complete or self.error is not None:
            return
        if broken is not None:
            self.error = TransportError(Outcome.RESET, broken, "tls read")
        elif self.head_done and not self.framed:
            self.complete = True
            self.last_read_ns = recv_ns
        else:
            where = "inside the answer" if self.bytes_received else "before the answer"
            self.error = TransportError(Outcome.RESET, f"the server closed the connection {where}", "closed early")

    def drain(self) -> tuple[list[tuple[int, int, int]], list[bytes]]:
        """Hand over what was read since the last call."""
        reads, pieces = self.reads, self.pieces[:]
        self.reads = []
        self.pieces.clear()  # in place: the parser holds this list's append
        self._drained_bytes += self.pending_bytes
        self.pending_bytes = 0
        return reads, pieces


def _other_tongue(data: bytes) -> str:
    """What the first bytes of an answer are that is no HTTP/1.1; empty where nobody knows."""
    if data[:2] in (b"\x15\x03", b"\x16\x03"):
        return "the server speaks TLS on this port: write https:// instead of http://"
    if data[3:9] == b"\x04\x00\x00\x00\x00\x00":  # a SETTINGS frame, which every HTTP/2 server says first
        return "the server speaks HTTP/2 only: let it, or a proxy before it, speak HTTP/1.1"
    return ""
